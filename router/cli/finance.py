"""Commands for whoever closes the month: report, prices check and diff, ledger verify and backup."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import orjson
from rich.table import Table

from pricing import NoRateError, Price, PricingError, check_price_books, diff, load_price_books, money_text
from router.cli.common import (
    complain,
    config_option,
    format_option,
    ledger_option,
    ledger_url,
    out,
    period,
    settings_from,
    since_option,
    until_option,
)
from router.config import Settings
from router.ledger import LedgerError, Reports, backup, verify
from router.ledger.reports import CostRow, SettledUsage, group_of

GROUPS = "provider, model, key, team, project, day, target, operation, or tag:NAME"
books_argument = click.argument("directory", required=False, type=click.Path(file_okay=False, path_type=Path))


@click.command()
@config_option
@ledger_option
@click.option("--by", default="provider", show_default=True, help=f"Group by {GROUPS}.")
@since_option
@until_option
@format_option
@click.option("--sandbox", is_flag=True, help="Report the sandbox's play money instead of the real ledger.")
@click.option(
    "--charged", is_flag=True, help="Settled money only, with what its owners are charged (markups in terms)."
)
@click.option("--currency", help="The same, converted at each day's rate (exchange rates in terms), such as EUR.")
def report(
    configs: tuple[Path, ...],
    ledger: str | None,
    by: str,
    since: datetime | None,
    until: datetime | None,
    form: str,
    sandbox: bool,
    charged: bool,
    currency: str | None,
) -> None:
    """Costs from the ledger: settled, unknown (at their estimate) and paid without delivery, exact to the nano."""
    url = ledger or ledger_url(configs, sandbox)
    start, end = period(since, until)
    settings = settings_from(configs, keyless=True) if charged or currency else None
    try:
        with Reports(url) as reports:
            rows, open_rows = reports.costs(by, start, end), reports.unsettled()
            dicts = [plain_row(by, row) for row in rows]
            if settings is not None:
                dicts = charged_rows(by, reports.usages(start, end), settings, currency)
    except (LedgerError, NoRateError, ValueError) as error:
        complain("cannot report", error)
        sys.exit(2)
    if form == "table":
        out.print(_plain_table(dicts) if settings is not None else report_table(by, rows))
        if unpriced := sum(row.unpriced for row in rows):
            out.print(f"{unpriced} attempts had no price in force: their money is missing from these sums.")
        if open_rows:
            out.print(f"{len(open_rows)} attempts are unsettled; they count at their estimate until evidence comes.")
        return
    if form == "json":
        sys.stdout.buffer.write(orjson.dumps(dicts, option=orjson.OPT_INDENT_2) + b"\n")
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dicts[0]) if dicts else [by])
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in dicts)
    sys.stdout.write(text.getvalue())


def charged_rows(
    by: str, rows: Iterable[SettledUsage], settings: Settings, currency: str | None
) -> list[dict[str, Any]]:
    """Settled costs row by row, each with what its owner is charged, converted at the rate of its own day if asked.

    Raises NoRateError where a rate is missing; ValueError for a ``by`` that is none.
    """
    found: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        opening, settled = row.opening, row.settlement
        into = currency or settled.currency
        sums = found.setdefault(
            (group_of(opening, by), into), dict.fromkeys(("attempts", "list", "cost", "charged"), 0)
        )
        book = settings.providers[opening.provider].prices if opening.provider in settings.providers else ""
        sku = Price.from_snapshot(opening.price).sku if opening.price else opening.provider_model
        payer = opening.team or opening.project or ""
        charged = settings.terms.charge_to(settled.amount_nanos, book, sku, opening.opened_at, payer)
        sums["attempts"] += 1
        for name, nanos in (("list", settled.list_nanos), ("cost", settled.amount_nanos), ("charged", charged)):
            sums[name] += settings.terms.convert(nanos, settled.currency, into, opening.opened_at)
    return [
        {
            by: group,
            "attempts": sums["attempts"],
            "list_cost": money_text(sums["list"]),
            "cost": money_text(sums["cost"]),
            "charged": money_text(sums["charged"]),
            "currency": into,
        }
        for (group, into), sums in sorted(found.items(), key=lambda item: (-item[1]["cost"], item[0]))
    ]


def _inert(value: Any) -> Any:
    """Text that a spreadsheet will not run as a formula."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def plain_row(by: str, row: CostRow) -> dict[str, Any]:
    """One row for machines: money as exact decimal text."""
    return {
        by: row.group,
        "requests": row.requests,
        "attempts": row.attempts,
        "images": row.images,
        "megapixels": format(row.megapixels, "f"),
        "cost": money_text(row.cost_nanos),
        "unsettled": row.unsettled,
        "unsettled_estimate": money_text(row.unsettled_nanos),
        "undelivered_cost": money_text(row.undelivered_nanos),
        "list_cost": money_text(row.list_nanos),
        "unpriced": row.unpriced,
        "currency": row.currency,
    }


def _plain_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(*(rows[0] if rows else ()), box=None, header_style="bold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


def report_table(by: str, rows: Sequence[CostRow]) -> Table:
    """The cost report for a terminal. Money is printed exactly, not rounded."""
    table = Table(by, "requests", "attempts", "images", "megapixels", "settled", "unknown", "undelivered", "currency")
    table.box, table.header_style = None, "bold"
    for column in table.columns[1:8]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.group or "none",
            str(row.requests),
            str(row.attempts),
            str(row.images),
            f"{row.megapixels:.2f}",
            money_text(row.cost_nanos),
            money_text(row.unsettled_nanos),
            money_text(row.undelivered_nanos),
            row.currency,
        )
    return table


@click.group()
def prices() -> None:
    """Look after the price books."""


@prices.command("check")
@books_argument
def prices_check(directory: Path | None) -> None:
    """Lint the price books in DIRECTORY (those shipped, if none is named): sources, units, overlaps, unknown keys."""
    problems = check_price_books(directory, today=datetime.now(UTC).date())
    for problem in problems:
        color = "red" if problem.severity == "error" else "yellow"
        complain(f"{problem.severity:7}", problem, color)
    errors = sum(problem.severity == "error" for problem in problems)
    out.print(f"{errors} errors, {len(problems) - errors} warnings.")
    sys.exit(1 if errors else 0)


@prices.command("diff")
@config_option
@ledger_option
@click.argument("directory", type=click.Path(file_okay=False, exists=True, path_type=Path))
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="UTC.  [default: 30 days ago]")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="UTC, exclusive.  [default: now]")
@click.option("--sandbox", is_flag=True, help="Use the sandbox's ledger.")
def prices_diff(
    configs: tuple[Path, ...],
    ledger: str | None,
    directory: Path,
    since: datetime | None,
    until: datetime | None,
    sandbox: bool,
) -> None:
    """What the price books in DIRECTORY would have changed in the ledger's spending, by price book entry."""
    from router.cli.offline import metered

    settings = settings_from(configs, keyless=True)
    start, end = period(since, until)
    try:
        new = load_price_books(directory)
        with Reports(ledger or ledger_url(configs, sandbox)) as reports:
            difference = diff(settings.books, new, metered(reports.usages(start, end), settings))
    except (PricingError, LedgerError, ValueError) as error:
        complain("cannot compare", error)
        sys.exit(2)
    for word, ids in (("added", difference.added), ("removed", difference.removed), ("EDITED", difference.edited)):
        for price_id in ids:
            out.print(f"{word:8} {price_id}")
    table = Table("price book entry", "rows", "booked", "by the new books", "change", "currency", box=None)
    for effect in difference.effects:
        table.add_row(
            f"{effect.book}:{effect.sku}",
            str(effect.rows),
            money_text(effect.old_nanos),
            money_text(effect.new_nanos),
            ("+" if effect.change_nanos > 0 else "") + money_text(effect.change_nanos),
            effect.currency,
        )
    out.print(table if difference.effects else "Nothing that was bought would have cost anything else.")


@click.group("ledger")
def ledger_group() -> None:
    """Look after the ledger file."""


@ledger_group.command("verify")
@click.argument("path", type=click.Path(dir_okay=False, exists=True, path_type=Path))
def ledger_verify(path: Path) -> None:
    """Recompute the hash chain and the balances of the ledger at PATH; name every altered or missing row."""
    audit = verify(path)
    for problem in audit.problems:
        complain("problem", problem)
    out.print(f"{audit.seq} rows, {len(audit.problems)} problems, chain ends in {audit.hash}.", soft_wrap=True)
    sys.exit(1 if audit.problems else 0)


@ledger_group.command("backup")
@click.argument("path", type=click.Path(dir_okay=False, exists=True, path_type=Path))
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
def ledger_backup(path: Path, target: Path) -> None:
    """Copy the ledger at PATH to TARGET, also while a router writes it."""
    try:
        backup(path, target)
    except LedgerError as error:
        complain("cannot copy", error)
        sys.exit(2)
    out.print(f"{target}: {target.stat().st_size} bytes.", soft_wrap=True)
