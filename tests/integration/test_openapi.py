"""Requests made up from our own OpenAPI document, valid and broken ones, against a running router."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.process import KEY, RouterProcess

CASES = int(os.environ.get("SCHEMATHESIS_CASES", "10"))
"""Fuzzed cases per operation; ``make fuzz`` makes 2,000. Those that try every line of the document come on top."""


def test_schemathesis_finds_no_violation_and_no_5xx(tmp_path: Path) -> None:
    router = RouterProcess(tmp_path, speed=0)
    try:
        command = [Path(sys.executable).with_name("schemathesis"), "run", f"{router.base}/openapi.json"]
        command += ["-H", f"Authorization: Bearer {KEY}", "--seed", "1", "--max-examples", str(CASES)]
        command += ["--phases", "examples,coverage,fuzzing", "--generation-database", "none", "--no-color"]
        # What no document can say is not held against an answer of 400: which sizes, fields and pictures the model
        # that was named can take, and that a mask fits its picture. Every other check is on.
        command += ["--exclude-checks", "positive_data_acceptance"]
        env = os.environ | {"SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("schemathesis_hooks.py"))}
        done = subprocess.run(
            command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    finally:
        stopped = router.stop()
    assert done.returncode == 0, done.stdout[:20_000]  # which begins with what has failed; the summary comes last
    assert stopped == 0
    assert not router.events("unhandled error")
