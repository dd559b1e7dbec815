"""Commands that look and change nothing: check, quote, explain."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import orjson
from rich.table import Table

from pricing import ImageSize, money_text
from router.cli.common import complain, config_option, err, ledger_option, ledger_url, out, settings_from
from router.ledger import LedgerError, Reports
from router.routing import unpack


@click.command()
@config_option
def check(configs: tuple[Path, ...]) -> None:
    """Check the configuration and the price books; print every problem with file and key."""
    from router.cli.offline import check_settings

    settings = settings_from(configs, keyless=True)
    problems, notes = check_settings(settings, datetime.now(UTC))
    for note in notes:
        out.print(f"[yellow]note[/yellow]     {note}", soft_wrap=True)
    for problem in problems:
        complain("problem", problem)
    ready = settings_from(configs)
    table = Table("provider", "state", "models", box=None, header_style="bold")
    for name in settings.providers:
        models = sum(any(t.provider == name for t in model.targets) for model in settings.models.values())
        table.add_row(name, ready.disabled.get(name, "ready"), str(models))
    for name, why in settings.disabled.items():
        table.add_row(name, why, "-")
    out.print(table)
    out.print(
        f"{len(settings.models)} models, {len(settings.targets)} targets, price book {settings.books.version[:12]}: "
        + ("no problems." if not problems else f"{len(problems)} problems.")
    )
    sys.exit(1 if problems else 0)


class SizeType(click.ParamType[ImageSize]):
    name = "WIDTHxHEIGHT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, ImageSize):
            return value
        try:
            return ImageSize.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@config_option
@click.argument("model")
@click.option("--size", type=SizeType(), help="Output size.  [default: the model's]")
@click.option(
    "-n", "--images", "n", default=1, show_default=True, type=click.IntRange(1, 10), help="How many pictures."
)
@click.option("--input", "inputs", multiple=True, type=SizeType(), help="Size of a source picture; makes it an edit.")
@click.option("--quality", help="low, medium, high, ...")
@click.option("--prompt", default="a picture", help="Prompt, where its length matters.")
@click.option("--json", "as_json", is_flag=True, help="Print the dry-run body.")
def quote(
    configs: tuple[Path, ...],
    model: str,
    size: ImageSize | None,
    n: int,
    inputs: tuple[ImageSize, ...],
    quality: str | None,
    prompt: str,
    as_json: bool,
) -> None:
    """What a request would cost at every provider that could serve MODEL, before sending anything."""
    from router.cli.offline import quote_offline
    from router.errors import RequestError

    settings = settings_from(configs, keyless=True)
    try:
        body = quote_offline(
            settings,
            model=model,
            size=size,
            n=n,
            inputs=inputs,
            quality=quality,
            prompt=prompt,
            at=datetime.now(UTC),
        )
    except RequestError as error:
        complain("cannot be quoted", error.message)
        sys.exit(1)
    if as_json:
        sys.stdout.buffer.write(orjson.dumps(body, option=orjson.OPT_INDENT_2) + b"\n")
        return
    table = Table("target", "cost", "at least", "at most", "price in force", "note", box=None, header_style="bold")
    for candidate in body["candidates"]:
        if candidate.get("total_cost") is None:
            why = (
                "no price: unknown, not free"
                if "unpriced" in candidate
                else f"cannot serve: {candidate['excluded_by']}"
            )
            table.add_row(candidate["target"], "-", "-", "-", "-", why)
            continue
        table.add_row(
            candidate["target"],
            f"{candidate['total_cost']} {candidate['currency']}",
            candidate["low_cost"],
            candidate["high_cost"],
            candidate["price_id"],
            candidate["hint"] or "",
        )
    out.print(table)
    for warning in body["warnings"]:
        complain("note   ", warning["message"], "yellow")


@click.command()
@config_option
@ledger_option
@click.argument("request_id")
@click.option("--sandbox", is_flag=True, help="Look into the sandbox's ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print the decision records as they are stored.")
def explain(configs: tuple[Path, ...], ledger: str | None, request_id: str, sandbox: bool, as_json: bool) -> None:
    """Why REQUEST_ID went where it went: candidates, money, expectations, exclusions, and what came of it."""
    try:
        with Reports(ledger or ledger_url(configs, sandbox)) as reports:
            found = reports.request(request_id)
    except (LedgerError, ValueError) as error:
        complain("cannot explain", error)
        sys.exit(2)
    if found is None:
        err.print(f"The ledger has no request {request_id}. What is refused before any attempt leaves no row.")
        sys.exit(1)
    if as_json:
        records = [unpack(attempt.opening.decision).record() for attempt in found.attempts]
        sys.stdout.buffer.write(orjson.dumps(records, option=orjson.OPT_INDENT_2) + b"\n")
        return
    for attempt in found.attempts:
        opening, settlement = attempt.opening, attempt.settlement
        outcome = settlement.outcome if settlement else "still open"
        out.print(f"\n[bold]attempt {opening.attempt_no}[/bold] ({opening.role.value}) at {opening.target}: {outcome}")
        money = f"{money_text(attempt.cost_nanos)} {attempt.currency}"
        if attempt.unsettled_nanos:
            money = f"up to {money_text(attempt.unsettled_nanos)} {attempt.currency}"
        out.print(f"  {attempt.state.value}, {money}")
        decision = unpack(opening.decision)
        out.print(f"  {decision.reason}", soft_wrap=True)
        if decision.cheapest and decision.fastest:
            out.print(
                f"  the cheapest would have been {decision.cheapest}, the fastest {decision.fastest}", soft_wrap=True
            )
        out.print(_candidates(decision.record()))


def _candidates(decision: Mapping[str, Any]) -> Table:
    """The decision record's candidates, the chosen one marked."""
    table = Table("", "candidate", "price", "p50 s", "p95 s", "success", "samples", "score", "why not", box=None)
    for candidate in decision["candidates"]:
        chosen = candidate["target"] == decision["chosen"]
        lost = f"behind by {candidate['lost_by']}" if "lost_by" in candidate else ""
        table.add_row(
            "*" if chosen else "",
            candidate["target"],
            money_text(candidate["price_nanos"]),
            *(
                f"{candidate[key]:.3g}" if key in candidate else "" for key in ("p50_s", "p95_s")
            ),  # left out of long ones
            f"{candidate['p']:.3f}",
            f"{candidate['n']:.1f}",
            money_text(candidate["score_nanos"]),
            candidate.get("why", lost),
        )
    return table
