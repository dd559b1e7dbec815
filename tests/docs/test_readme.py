"""What the README tells a reader to run is run, in its order, against a router on the sandbox.

Blocks marked ``sh``, ``python`` and ``js`` are run; ``json`` is compared with a real answer; ``text`` is not run.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from tests.docs.blocks import ROOT, Block, blocks, commands
from tests.integration.process import RouterProcess, free_port

pytestmark = pytest.mark.xdist_group("readme")

README = "README.md"
BIN = Path(sys.executable).parent
TOLD = "http://127.0.0.1:8000"  # where the README's router listens


def cases(*languages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks(README, *languages), ids=str)


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    process = RouterProcess(tmp_path_factory.mktemp("router"), key=None, speed=0.05)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's directory: one for the whole README, since later commands use what earlier ones have made."""
    directory = tmp_path_factory.mktemp("desk")
    (directory / "node_modules").symlink_to(ROOT / "tests/js/node_modules")
    (directory / "providers.yaml").symlink_to(ROOT / "providers.yaml")
    return directory


@pytest.fixture
def env(router: RouterProcess) -> Mapping[str, str]:
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PIXELROUTE_LEDGER": router.ledger_url}


def run(*command: str, cwd: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_block_says_what_it_is() -> None:
    text = (ROOT / README).read_text()
    languages = re.findall(r"^```(\w*)\n(?=.*?^```$)", text, re.MULTILINE | re.DOTALL)
    assert set(languages) <= {"sh", "python", "js", "json", "text", "yaml", ""}
    assert len(blocks(README, "")) == 0, "a block without a language"
    assert {"sh", "python", "js"} <= set(languages)


@cases("python")
def test_python(block: Block, router: RouterProcess, desk: Path, env: Mapping[str, str]) -> None:
    script = desk / "snippet.py"
    script.write_text(block.text.replace(TOLD, router.base))
    assert f"{router.base}/v1/media/" in run(sys.executable, str(script), cwd=desk, env=env)


@cases("js")
def test_javascript(block: Block, router: RouterProcess, desk: Path, env: Mapping[str, str]) -> None:
    script = desk / "snippet.mjs"
    script.write_text(block.text.replace(TOLD, router.base))
    node = [str(BIN / "node"), "--preserve-symlinks", "--preserve-symlinks-main", str(script)]
    assert f"{router.base}/v1/media/" in run(*node, cwd=desk, env=env)


@cases("sh")
def test_shell(block: Block, router: RouterProcess, desk: Path, env: Mapping[str, str]) -> None:
    for command in commands(block):
        if command.startswith("make "):
            assert_make_knows(command)
        elif command.startswith("pixelroute serve"):
            assert_serves(command, desk, env)
        elif command.startswith("pixelroute demo"):
            assert "--help" in run("bash", "-c", f"{command} --help", cwd=desk, env=env)
        else:
            # -f: an error's status fails the command, where a reader would see the error.
            there = command.replace(TOLD, router.base).replace("curl ", "curl -f ")
            run("bash", "-euo", "pipefail", "-c", there, cwd=desk, env=env)


def assert_make_knows(command: str) -> None:
    """The verbs are run by CI itself; here, that they exist."""
    run(*command.split(), "--dry-run", cwd=ROOT, env={**os.environ, "MAKEFLAGS": ""})


def assert_serves(command: str, desk: Path, env: Mapping[str, str]) -> None:
    port = free_port()
    own = {**env, "PIXELROUTE_LEDGER": f"sqlite:///{desk}/own.db", "PIXELROUTE_MEDIA": str(desk / "media")}
    process = subprocess.Popen(
        [*command.split(), "--port", str(port)], cwd=desk, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        said = ""
        while str(port) not in said.partition("serving")[2]:
            line = process.stdout.readline().decode()
            assert line, f"{command} ended: {said}"
            said += line
        client = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=client) as http:
            assert http.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@cases("json")
def test_answers_look_as_told(block: Block, router: RouterProcess) -> None:
    told = json.loads(block.text)
    body = {"model": "flux.2-dev-turbo", "prompt": "A serene mountain landscape at sunset", "size": "1024x1024"}
    answer = router.post("/v1/images/generations", body, key=None)
    assert answer.status_code == 200
    real = answer.json()
    assert set(told) <= set(real)
    assert set(told["metadata"]) <= set(real["metadata"])
    assert {key: type(value) for key, value in told["metadata"].items()} == {
        key: type(real["metadata"][key]) for key in told["metadata"]
    }


def test_headers_are_as_told(router: RouterProcess) -> None:
    (listed,) = re.findall(r"the headers ((?:`[\w-]+`(?:, | and )?)+)", (ROOT / README).read_text())
    first, *others = re.findall(r"`([\w-]+)`", listed)
    prefix = "X-Pixelroute"
    names = [first, *(prefix + other for other in others)]
    body = {"model": "flux.2-dev-turbo", "prompt": "A serene mountain landscape at sunset"}
    headers = router.post("/v1/images/generations", body, key=None).headers
    assert len(names) >= 5
    assert [name for name in names if name not in headers] == []
