"""The command line as a person meets it."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from pricing.book import PACKAGED
from router.config import default_config
from tests.integration.process import RouterProcess

ROOT = Path(__file__).parents[2]


def pixelroute(*args: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "router", *args],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("command", ["serve", "demo", "sandbox", "check", "quote", "report", "replay"])
def test_every_command_explains_itself(command):
    assert command in pixelroute("--help").stdout
    answer = pixelroute(command, "--help")
    assert answer.returncode == 0
    assert "Usage: pixelroute" in answer.stdout


def test_serve_without_any_key_says_so_and_names_the_sandbox():
    answer = pixelroute("serve")
    assert answer.returncode == 2
    assert "FAL_KEY is not set" in answer.stderr
    assert "--sandbox" in answer.stderr


def test_serve_beyond_loopback_needs_a_client_key():
    answer = pixelroute("serve", "--sandbox", "--host", "0.0.0.0", "--port", "0")
    assert answer.returncode == 2
    assert "PIXELROUTE_API_KEY" in answer.stderr


def test_what_is_said_keeps_its_brackets(tmp_path):
    """``pixelroute[redis]`` must not be taken for markup and vanish."""
    missing = tmp_path / "no[bold]such.yaml"
    assert "no[bold]such.yaml" in pixelroute("serve", "--config", str(missing)).stderr


def test_serve_names_every_problem_of_a_broken_file(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("routing: {policy: wild}\nlimits: {body_bytes: 1}\n")
    answer = pixelroute("serve", "--config", str(broken))
    assert answer.returncode == 2
    assert f"{broken}: routing.policy" in answer.stderr
    assert f"{broken}: limits.body_bytes" in answer.stderr


def test_check_is_content_with_what_is_shipped():
    answer = pixelroute("check", env={"FAL_KEY": "x:y"})
    assert answer.returncode == 0, answer.stderr
    assert "no problems" in answer.stdout
    assert "is the unit right?" not in answer.stdout
    assert "OPENAI_API_KEY is not set" in answer.stdout


def test_check_finds_a_model_without_a_price(tmp_path):
    unpriced = tmp_path / "unpriced.yaml"
    unpriced.write_text("providers: {fal: {}}\nmodels: {dream: {targets: {fal: {generate: fal-ai/does-not-exist}}}}\n")
    answer = pixelroute("check", "--config", str(unpriced))
    assert answer.returncode == 1
    assert "models.dream.targets.fal.generate" in answer.stderr


def test_check_finds_a_price_out_of_line_with_the_same_model_elsewhere(tmp_path):
    books = shutil.copytree(PACKAGED, tmp_path / "books")
    fal = books / "fal.yaml"
    fal.write_text(fal.read_text().replace("0.008", "0.08"))  # a slip by ten, plausible by itself
    config = tmp_path / "providers.yaml"
    config.write_text(default_config().read_text() + f"\nprices: {books}\n")
    answer = pixelroute("check", "--config", str(config))
    assert "models.flux.2-dev-turbo.targets.fal: a picture of 1024x1024 costs 0.08" in answer.stdout


@pytest.mark.parametrize(
    ("args", "fal"),
    [
        (["--size", "512x512"], "0.008"),
        (["--size", "1920x1080"], "0.016"),
        (["--size", "2048x2048"], "0.032"),
        (["--size", "1024x1024", "--input", "512x512"], "0.016"),
        (["--size", "1449x1448", "-n", "2"], "0.048"),
    ],
)
def test_quote_gives_the_published_prices(args, fal):
    answer = pixelroute("quote", "flux.2-dev-turbo", *args, "--json")
    assert answer.returncode == 0, answer.stderr
    quoted = {candidate["target"]: candidate.get("total_cost") for candidate in json.loads(answer.stdout)["candidates"]}
    assert quoted["fal/flux.2-dev-turbo"] == fal


def test_quote_refuses_what_nobody_can_make():
    answer = pixelroute("quote", "flux.2-dev-turbo", "--size", "9000x9000")
    assert answer.returncode == 1
    assert "9000x9000" in answer.stderr


def test_reports_agree_in_every_form(router: RouterProcess):
    router.post("/v1/images/generations", {"model": "gpu-fast/flux.2-dev-turbo", "prompt": "a lake"})
    env = {"PIXELROUTE_LEDGER": router.ledger_url}
    as_json = json.loads(pixelroute("report", "--format", "json", env=env).stdout)
    as_csv = list(csv.DictReader(io.StringIO(pixelroute("report", "--format", "csv", env=env).stdout)))
    assert [row["cost"] for row in as_csv] == [row["cost"] for row in as_json]
    table = pixelroute("report", env=env).stdout
    for row in as_json:
        assert row["provider"] in table
        assert row["cost"] in table
    for by in ("model", "key", "team", "project", "day", "target", "operation", "tag:tier"):
        rows = json.loads(pixelroute("report", "--by", by, "--format", "json", env=env).stdout)
        assert sum(row["attempts"] for row in rows) == sum(row["attempts"] for row in as_json)
    assert pixelroute("report", "--by", "colour", env=env).returncode == 2


def test_the_demo_does_what_it_says(tmp_path):
    answer = pixelroute("demo", "--once", "--pictures", str(tmp_path / "pictures"))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for name in ("mountain.png", "mountain-starry.png", "typewriter-four-4.png", "typewriter-combined.png"):
        assert (tmp_path / "pictures" / name).is_file()
    for word in ("provider", "why", "cost", "identical yes", "What it cost", "/console", "/metrics", "/docs"):
        assert word in answer.stdout


def test_explain_shows_every_candidate_of_a_request(router: RouterProcess):
    request_id = router.post("/v1/images/generations", {"model": "flux.2-dev-turbo", "prompt": "a lake"}).json()["id"]
    env = {"PIXELROUTE_LEDGER": router.ledger_url}
    told = pixelroute("explain", request_id, env=env).stdout
    for candidate in ("fal/flux.2-dev-turbo", "gpu-fast/flux.2-dev-turbo", "gpu-spot/flux.2-dev-turbo"):
        assert candidate in told
    [record] = json.loads(pixelroute("explain", request_id, "--json", env=env).stdout)
    assert record["chosen"]
    for candidate in record["candidates"]:
        assert candidate["price_nanos"] > 0
        assert 0 < candidate["p50_s"] <= candidate["p95_s"]
        assert 0 < candidate["p"] <= 1
        assert candidate["n"] >= 0
        assert candidate["score_nanos"] > candidate["price_nanos"]
        assert candidate["target"] == record["chosen"] or "why" in candidate or "lost_by" in candidate
    assert f"the cheapest would have been {record['cheapest']}, the fastest {record['fastest']}" in told
    assert pixelroute("explain", "req_unknown", env=env).returncode == 1


def test_prices_check_is_content_with_what_is_shipped():
    answer = pixelroute("prices", "check")
    complaints = [line for line in answer.stderr.splitlines() if "was last checked" not in line]  # prices age by day
    assert (answer.returncode, complaints) == (0, [])
    assert answer.stdout.startswith("0 errors, ")


def test_prices_diff_tells_what_other_books_would_have_cost(router: RouterProcess, tmp_path):
    for _ in range(3):
        router.post("/v1/images/generations", {"model": "gpu-fast/flux.2-dev-turbo", "prompt": "a lake"})
    books = tmp_path / "books"
    shutil.copytree(ROOT / "pricing" / "books", books)
    book = books / "gpu-fast.yaml"
    book.write_text(book.read_text().replace("0.012", "0.015"))
    answer = pixelroute("prices", "diff", str(books), env={"PIXELROUTE_LEDGER": router.ledger_url})
    assert answer.returncode == 0, answer.stderr
    [line] = [line for line in answer.stdout.splitlines() if line.strip().startswith("gpu-fast:flux.2-dev-turbo")]
    _, rows, booked, anew, change, currency = line.split()
    assert int(rows) >= 3
    assert Decimal(anew) == Decimal(booked) * 15 / 12
    assert Decimal(change) == Decimal(anew) - Decimal(booked)
    assert currency == "USD"
    assert "EDITED" in answer.stdout


def test_the_ledger_can_be_verified_and_copied_while_it_is_written(router: RouterProcess, tmp_path):
    router.post("/v1/images/generations", {"model": "gpu-fast/flux.2-dev-turbo", "prompt": "a lake"})
    path = router.ledger_url.removeprefix("sqlite:///")
    assert " 0 problems" in pixelroute("ledger", "verify", path).stdout
    copy = tmp_path / "copy.db"
    assert pixelroute("ledger", "backup", path, str(copy)).returncode == 0
    assert pixelroute("ledger", "verify", str(copy)).returncode == 0
    content = bytearray(copy.read_bytes())
    at = content.rfind(b"flux.2-dev-turbo")
    content[at] ^= 1
    copy.write_bytes(content)
    altered = pixelroute("ledger", "verify", str(copy))
    assert altered.returncode == 1
    assert "problem" in altered.stderr
    assert pixelroute("ledger", "backup", path, str(copy)).returncode == 2
