"""The import rules of pyproject.toml bite: a tree with one violation of each breaks each."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The rule's name in pyproject.toml -> (a module, an import that it must not have).
VIOLATIONS = {
    "Imports point one way, and siblings never call each other": ("router/ledger/entry.py", "import router.routing"),
    "Prices are a library: no router, no network, no clock": ("pricing/rating.py", "import time"),
    "Adapters say which requests to make and make none": ("router/providers/fal.py", "import asyncio"),
    "Routing decides and does nothing else; time is an argument": ("router/routing/policy.py", "import time"),
    "The ledger keeps money and does no HTTP": ("router/ledger/rows.py", "import httpx"),
    "Only the ledger knows its database": ("router/api/images.py", "import apsw"),
    "HTTP to providers is the business of adapters, transport and pool": ("router/gateway.py", "import httpx"),
    "The use case knows neither its face nor its metrics": ("router/gateway.py", "import prometheus_client"),
    "The HTTP face hands over, and touches no provider, price or row itself": (
        "router/api/wire.py",
        "import router.providers.fal",
    ),
    "Only metrics and telemetry know Prometheus": ("router/app.py", "import prometheus_client"),
    "The sandbox stands apart: an adapter and its emulator must not share a misreading": (
        "router/sandbox/fal.py",
        "import router.types",
    ),
}


def test_each_rule_has_a_violation_here() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert [contract["name"] for contract in config["tool"]["importlinter"]["contracts"]] == list(VIOLATIONS)


def test_each_violation_breaks_its_rule(tmp_path: Path) -> None:
    for package in ("pricing", "router"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, statement in VIOLATIONS.values():
        module = tmp_path / name
        assert statement not in module.read_text()
        module.write_text(f"{module.read_text()}\n{statement}\n")
    (tmp_path / "router/homeless.py").write_text("")

    lint = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    run = subprocess.run(lint, cwd=tmp_path, env={"COLUMNS": "200"}, capture_output=True, text=True)

    assert run.returncode == 1, run.stdout + run.stderr
    assert re.findall(r"^(.+) KEPT$", run.stdout, re.MULTILINE) == []
    assert re.findall(r"^(.+) BROKEN$", run.stdout, re.MULTILINE) == list(VIOLATIONS)
    assert "homeless" in run.stdout, "a new module must find its place in the layers"
