"""pixelroute replay as whoever decides about policies and contracts meets it."""

from __future__ import annotations

import csv
import io
import json
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from router.cli import main
from tests.integration.process import RouterProcess

ROOT = Path(__file__).parents[2]

TARGET = "gpu-fast/flux.2-dev-turbo"


def pixelroute(*args: str, env: dict[str, str]) -> Result:
    """The command in this process: starting one takes longer than a replay."""
    return CliRunner().invoke(main, args, env=env)


@pytest.fixture
def ledger(router: RouterProcess) -> dict[str, str]:
    for _ in range(3):
        assert router.post("/v1/images/generations", {"model": TARGET, "prompt": "a lake"}).status_code == 200
        router.post("/v1/images/generations", {"model": "flux.2-dev-turbo", "prompt": "a lake", "n": 2})
    return {"PIXELROUTE_LEDGER": router.ledger_url}


def replayed(ledger: dict[str, str], *args: str) -> dict[str, Any]:
    answer = pixelroute("replay", *args, "--format", "json", "--runs", "3", env=ledger)
    assert answer.exit_code == 0, answer.stderr
    told: dict[str, Any] = json.loads(answer.stdout)
    return told


def figure(told: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [row for row in told["figures"] if row["figure"] == name]
    return dict(found)


def test_it_agrees_with_itself_in_every_form(ledger):
    told = replayed(ledger, "--policy", "cheapest")
    assert figure(told, "requests")["recorded"] >= 6
    assert Decimal(figure(told, "money")["recorded"]) > 0
    assert sum(row["recorded"] for row in told["targets"]) == figure(told, "requests")["recorded"]
    assert any("What cannot be known" in note for note in told["notes"])
    args = ("replay", "--policy", "cheapest", "--runs", "3")
    as_csv = list(csv.DictReader(io.StringIO(pixelroute(*args, "--format", "csv", env=ledger).stdout)))
    assert [row["what_if"] for row in as_csv] == [
        "" if row["what_if"] is None else str(row["what_if"]) for row in told["figures"]
    ]
    table = pixelroute(*args, env=ledger)
    assert figure(told, "money")["what_if"] in table.stdout
    assert TARGET in table.stdout
    assert table.stderr == "", "progress is for terminals"


def test_other_prices_make_other_money(ledger, tmp_path):
    books = tmp_path / "books"
    shutil.copytree(ROOT / "pricing" / "books", books)
    same = replayed(ledger, "--prices", str(books), "--only", TARGET)
    book = books / "gpu-fast.yaml"
    book.write_text(book.read_text().replace("0.012", "0.015"))
    dearer = replayed(ledger, "--prices", str(books), "--only", TARGET)
    for name in ("money", "predicted_money"):
        assert Decimal(figure(same, name)["what_if"]) > 0
        assert Decimal(figure(dearer, name)["what_if"]) == Decimal(figure(same, name)["what_if"]) * 15 / 12
        assert figure(dearer, name)["recorded"] == figure(same, name)["recorded"]


def test_another_configuration_brings_other_providers(ledger, tmp_path):
    text = (ROOT / "providers.yaml").read_text()
    other = tmp_path / "other.yaml"
    other.write_text(text)
    without = replayed(ledger, "--providers", str(other), "--ignore", "gpu-fast")
    assert TARGET not in {row["target"] for row in without["targets"] if row["what_if"]}
    # Pinned to a provider that is not to be used, a request has nowhere to go.
    assert figure(without, "failed")["what_if"] >= 3


def test_the_worth_of_a_second_may_be_named_in_dollars(ledger):
    told = replayed(ledger, "--policy", "0")
    dear = replayed(ledger, "--policy", "1")
    assert Decimal(figure(told, "predicted_money")["what_if"]) <= Decimal(figure(dear, "predicted_money")["what_if"])


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--policy", "wild"], 2, "neither"),
        (["--policy", "-1"], 2, "neither"),
        (["--since", "1999-01-01", "--until", "1999-02-01"], 1, "no request"),
        (["--ledger", "sqlite:///nowhere/at/all.db"], 2, "cannot replay"),
    ],
)
def test_what_cannot_be_replayed_says_why(ledger, args, code, words):
    answer = pixelroute("replay", *args, env=ledger)
    assert answer.exit_code == code
    assert words in answer.stderr


def test_broken_books_are_named(ledger, tmp_path: Path):
    (tmp_path / "broken.yaml").write_text("nonsense")
    answer = pixelroute("replay", "--prices", str(tmp_path), env=ledger)
    assert answer.exit_code == 2
    assert "broken.yaml" in answer.stderr
