"""The command replay: past requests through another policy, price book or set of providers."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pricing import PricingError, load_price_books, money_text
from router.cli.common import (
    complain,
    config_option,
    err,
    format_option,
    ledger_option,
    ledger_url,
    out,
    period,
    settings_from,
    since_option,
    until_option,
)
from router.config import POLICIES, ConfigError
from router.ledger import LedgerError, Reports
from router.routing.sketch import P95_SAMPLES, wilson

if TYPE_CHECKING:
    from router.whatif import Comparison

COLUMNS = ("figure", "recorded", "what_if", "lowest", "highest")
METHOD = (
    "Where the target that was used is chosen again, what happened then happens again; elsewhere an outcome of that "
    "target is drawn, from the 20 recorded nearest in time for the same work. Money is booked as the answers came: "
    "later corrections are not in it. Lowest and highest are over {runs} runs, which differ by these draws alone."
)
UNKNOWN = (
    "What cannot be known: what targets would have done under another load than theirs, what clients would have done "
    "about other answers, rescues of calls that hung, and what the ledger does not keep of a request (masks, "
    "backgrounds, Retry-After, providers' own fields). Content that was refused counts as refused everywhere."
)


class PolicyType(click.ParamType[Any]):
    name = "NAME|DOLLARS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value in POLICIES:
            return value
        try:
            worth = float(value)
        except ValueError:
            worth = -1.0
        if not 0.0 <= worth <= 1000.0:
            self.fail(f"{value!r} is neither one of {', '.join(POLICIES)} nor dollars per second", param, ctx)
        return worth


@click.command()
@config_option
@ledger_option
@click.option("--policy", type=PolicyType(), help="A preset, or what a second of waiting is worth in dollars: 0.002.")
@click.option(
    "--prices", type=click.Path(file_okay=False, exists=True, path_type=Path), help="Directory of other price books."
)
@click.option(
    "--providers",
    "others",
    multiple=True,
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Another configuration file, for its providers, models and routing; several add up.",
)
@click.option("--only", multiple=True, help="Only this provider or target (provider/model); several add up.")
@click.option("--ignore", multiple=True, help="Without this provider or target; several add up.")
@since_option
@until_option
@click.option("--runs", default=9, show_default=True, type=click.IntRange(1, 999), help="How often to play it.")
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal answers.")
@format_option
@click.option("--sandbox", is_flag=True, help="Replay the sandbox's ledger.")
def replay(
    configs: tuple[Path, ...],
    ledger: str | None,
    policy: str | float | None,
    prices: Path | None,
    others: tuple[Path, ...],
    only: tuple[str, ...],
    ignore: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    runs: int,
    seed: int,
    form: str,
    sandbox: bool,
) -> None:
    """What the ledger's requests would have cost, and how they would have fared, under another policy.

    Money, time and failures stand side by side, as recorded and as they would have been, with the spread of the
    estimate and what it rests on. Nothing is sent to anybody. For example:

      pixelroute replay --since 2026-11-01 --policy cheapest

      pixelroute replay --ignore openai --prices new-contract/
    """
    from router.app import WhatIf, what_if

    settings = settings_from(configs, keyless=True)
    start, end = period(since, until)
    named, worth = (policy, None) if isinstance(policy, str) else ("balanced" if policy is not None else None, policy)
    try:
        change = WhatIf(
            policy=named,
            value_of_time=worth,
            settings=settings_from(others, keyless=True) if others else None,
            books=load_price_books(prices) if prices is not None else None,
            only=only,
            ignore=ignore,
        )
        with Reports(ledger or ledger_url(configs, sandbox)) as reports, _progress() as progress:
            reading = progress.add_task("reading", total=None)
            playing = progress.add_task("playing", total=None, start=False)

            def read(rows: Iterator[Any]) -> Iterator[Any]:
                for row in rows:
                    progress.advance(reading)
                    yield row
                done = progress.tasks[reading].completed
                progress.update(reading, total=done)
                progress.start_task(playing)
                progress.update(playing, total=runs * reports.count(start, end))

            comparison = what_if(
                settings,
                reports,
                start,
                end,
                change,
                runs=runs,
                seed=seed,
                reading=read,
                played=lambda: progress.advance(playing),
            )
    except (LedgerError, PricingError, ConfigError, ValueError) as error:
        complain("cannot replay", error)
        sys.exit(2)
    if not comparison.recorded.requests:
        err.print("There is no request in this period that could be replayed.")
        sys.exit(1)
    notes = notes_of(comparison)
    if form == "json":
        sys.stdout.buffer.write(orjson.dumps(as_dict(comparison, notes), option=orjson.OPT_INDENT_2) + b"\n")
    elif form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(figures(comparison))
        sys.stdout.write(text.getvalue())
    else:
        _print(comparison, notes)


def _progress() -> Progress:
    """On standard error, and only for people who are there to see it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def figures(comparison: Comparison) -> list[dict[str, Any]]:
    """The comparison row by row: counts as integers, money as exact text, times in seconds."""

    def row(name: str, metric: Any, form: Any = lambda value: value) -> dict[str, Any]:
        values = (metric(comparison.recorded), *comparison.spread(metric))
        return dict(zip(COLUMNS, (name, *(form(value) for value in values)), strict=True))

    def seconds(value: float) -> float | None:
        return round(value, 3) if value >= 0 else None

    return [
        row("requests", lambda side: side.requests),
        row("delivered", lambda side: side.delivered),
        row("failed", lambda side: side.failed),
        row("refused", lambda side: side.refused),
        row("attempts", lambda side: side.attempts),
        row("looks", lambda side: side.looks),
        row("money", lambda side: side.money_nanos, money_text),
        row("predicted_money", lambda side: side.predicted_nanos, money_text),
        row("p50_s", lambda side: side.quantile(0.5) or -1.0, seconds),
        row("p95_s", lambda side: side.quantile(0.95) or -1.0, seconds),
        row("guessed_attempts", lambda side: side.guessed),
    ]


def targets(comparison: Comparison) -> list[dict[str, Any]]:
    """First choices by target, and on how many recorded outcomes the answer rests there."""
    names = {name for side in (comparison.recorded, *comparison.runs) for name in side.firsts}

    def row(name: str) -> dict[str, Any]:
        middle, low, high = comparison.spread(lambda side: side.firsts[name])
        counts = {"recorded": comparison.recorded.firsts[name], "what_if": middle, "lowest": low, "highest": high}
        return {"target": name} | counts | {"outcomes_on_record": comparison.history.outcomes[name]}

    return sorted((row(name) for name in names), key=lambda row: (-row["what_if"], -row["recorded"], row["target"]))


def notes_of(comparison: Comparison) -> list[str]:
    """How far the figures can be trusted, in sentences."""
    found = [METHOD.format(runs=len(comparison.runs))]
    side = comparison.recorded
    low, high = wilson(side.failed, side.requests - side.refused)
    share = f"{low:.2%} and {high:.2%}"
    found.append(f"Failures as recorded lie between {share} (95 % interval, n = {side.requests - side.refused}).")
    if len(side.seconds) < P95_SAMPLES:
        found.append(
            f"The 95th percentile needs {P95_SAMPLES} pictures to be worth its name; there are {side.delivered}."
        )
    guessed, _, _ = comparison.spread(lambda run: run.guessed)
    attempts, _, _ = comparison.spread(lambda run: run.attempts)
    if guessed:
        unseen = [row["target"] for row in targets(comparison) if not row["outcomes_on_record"]]
        found.append(
            f"{guessed} of {attempts} attempts have no recorded outcome to go by ({', '.join(unseen) or 'retries'}): "
            "their time and success are the configured expectations, not evidence."
        )
    for reason, count in sorted(comparison.history.left_out.items()):
        if count:
            found.append(f"{count} requests are left out on both sides: {reason}.")
    return [*found, UNKNOWN]


def as_dict(comparison: Comparison, notes: Iterable[str]) -> dict[str, Any]:
    return {
        "currency": comparison.currency,
        "runs": len(comparison.runs),
        "figures": figures(comparison),
        "targets": targets(comparison),
        "notes": list(notes),
    }


def _print(comparison: Comparison, notes: Iterable[str]) -> None:
    table = Table("", "as recorded", "what if", "lowest", "highest", box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in figures(comparison):
        name = row["figure"].replace("_", " ")
        name = f"{name}, {comparison.currency}" if "money" in name else name
        table.add_row(name, *("-" if row[column] is None else str(row[column]) for column in COLUMNS[1:]))
    out.print(table)
    out.print()
    table = Table("first choices", "as recorded", "what if", "lowest", "highest", "outcomes on record", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in targets(comparison):
        table.add_row(*(str(value) for value in row.values()))
    out.print(table)
    for note in notes:
        out.print(f"\n{note}", soft_wrap=True)
