"""Runs the contract of this directory with every client version we name. Needs package registries and Node 22.

    .venv/bin/python tests/clients/run.py [DIRECTORY]

Environments are made in DIRECTORY (a temporary one by default) and kept, so that a second run is quick.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.integration.process import KEY, RouterProcess  # noqa: E402

PYTHON = ("openai==3.52.0", "openai==2.54.0", "openai==1.109.1")
JAVASCRIPT = {
    "openai-7": "npm:openai@7.55.0",
    "openai-6": "npm:openai@6.49.0",
    "openai-4": "npm:openai@4.104.0",
    "ai-7": "npm:ai@7.0.173",
    "ai-openai-7": "npm:@ai-sdk/openai@4.0.118",
    "ai-compatible-7": "npm:@ai-sdk/openai-compatible@3.0.92",
    "ai-6": "npm:ai@6.0.326",
    "ai-openai-6": "npm:@ai-sdk/openai@3.0.141",
    "ai-compatible-6": "npm:@ai-sdk/openai-compatible@2.0.87",
    "ai-5": "npm:ai@5.0.277",
    "ai-openai-5": "npm:@ai-sdk/openai@2.0.131",
    "ai-compatible-5": "npm:@ai-sdk/openai-compatible@1.0.61",
    "zod": "^4",  # a peer of the ai packages
}
RUN = ("openai-7", "openai-6", "openai-4", "ai-7", "ai-6", "ai-5")


def python(directory: Path, requirement: str, base: str) -> int:
    """The contract in an environment of its own."""
    home = directory / requirement.replace("==", "-")
    if not (home / "bin" / "python").exists():
        venv.create(home, with_pip=True)
        subprocess.run([home / "bin" / "pip", "install", "--quiet", requirement], check=True)
    return subprocess.run([home / "bin" / "python", HERE / "contract.py", base, KEY], check=False).returncode


def javascript(directory: Path, base: str) -> int:
    home = directory / "javascript"
    home.mkdir(exist_ok=True)
    package = {"private": True, "type": "module", "dependencies": JAVASCRIPT}
    wanted = json.dumps(package, indent=2)
    if not (home / "package.json").exists() or (home / "package.json").read_text() != wanted:
        (home / "package.json").write_text(wanted)
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "--legacy-peer-deps"], cwd=home, check=True
        )
    shutil.copy(HERE / "contract.mjs", home)
    return subprocess.run(["node", "contract.mjs", base, KEY, *RUN], cwd=home, check=False).returncode


def main() -> int:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="pixelroute-clients-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"environments in {directory}")
    with tempfile.TemporaryDirectory() as scratch:
        router = RouterProcess(Path(scratch))
        try:
            base = f"{router.base}/v1"
            return max([*(python(directory, each, base) for each in PYTHON), javascript(directory, base)])
        finally:
            router.stop()


if __name__ == "__main__":
    sys.exit(main())
