"""The clients that people use, each in a process of its own: the newest versions and the two majors before them.

What an application does with them stands in ``contract.py`` and ``tests/js/contract.mjs``. The set-up of the tests
(`.ci/venv`) puts the older Python clients, and the newest one's own tests, into ``.venv/clients``, all pinned.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.process import KEY, RouterProcess

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INSTALLED = ROOT / ".venv" / "clients"
PLAIN = ("-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:schemathesis")  # as its own configuration is not
SUITE = "tests/api_resources/test_images.py"
JAVASCRIPT = ROOT / "tests" / "js"


def run(command: list[str | Path], directory: Path, **more: str) -> str:
    """What the command printed; the test fails with it if the command does."""
    env: Mapping[str, str] = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    } | more
    done = subprocess.run(
        command, cwd=directory, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    process = RouterProcess(tmp_path_factory.mktemp("router"))
    yield process
    assert process.stop() == 0


@pytest.mark.xdist_group("clients")
@pytest.mark.parametrize("major", [3, 2, 1])
def test_python(router: RouterProcess, major: int) -> None:
    before = {} if major == 3 else {"PYTHONPATH": str(INSTALLED / f"openai-{major}")}
    printed = run([sys.executable, HERE / "contract.py", f"{router.base}/v1", KEY], ROOT, **before)
    assert re.search(rf"openai {major}\.\S+: (\d+) of \1 passed", printed), printed


@pytest.mark.xdist_group("clients")
def test_javascript_and_the_vercel_ai_sdk(router: RouterProcess) -> None:
    names = ["openai", "openai-6", "openai-4", "ai-7", "ai-6", "ai-5"]
    node = Path(sys.executable).with_name("node")
    printed = run([node, "contract.mjs", f"{router.base}/v1", KEY, *names], JAVASCRIPT)
    for name in names:
        assert re.search(rf"^{name}: (\d+) of \1 passed$", printed, re.MULTILINE), printed


@pytest.mark.xdist_group("own-suite")
def test_the_python_clients_own_tests(tmp_path: Path) -> None:
    """All hundred of them: every method with every parameter, checked strictly against the client's own types."""
    router = RouterProcess(tmp_path, key="My API Key", speed=0, more=HERE / "providers.yaml")
    try:
        printed = run(
            [sys.executable, "-m", "pytest", *PLAIN, SUITE],
            INSTALLED / "source",
            TEST_API_BASE_URL=f"{router.base}/v1",
        )
    finally:
        router.stop()
    passed, _, others = printed.strip().splitlines()[-1].partition(" passed")
    assert int(passed) >= 100, printed
    assert "failed" not in others
    assert "skipped" not in others
