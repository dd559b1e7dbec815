"""The command ``pixelroute``: serve, demo, sandbox, check, quote, report."""

from __future__ import annotations

import csv
import io
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from pricing import ImageSize, PricingError, check_price_books, diff, load_price_books, money_text
from router import __version__
from router.config import ConfigError, Settings, default_config, load
from router.ledger import LedgerError, Reports, backup, verify
from router.ledger.reports import CostRow
from router.routing import unpack

# Piped output is not folded at 80 columns: tables and exact amounts stay whole.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 160)

GROUPS = "provider, model, key, team, project, day, target, operation, or tag:NAME"

config_option = click.option(
    "--config",
    "configs",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="PIXELROUTE_CONFIG",
    help="Configuration file; several add up, later ones win.  [default: ./providers.yaml, else the packaged one]",
)
ledger_option = click.option(
    "--ledger",
    envvar="PIXELROUTE_LEDGER",
    help="Ledger URL, sqlite:///path/ledger.db.  [default: the configuration's]",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pixelroute")
def main() -> None:
    """An image-generation gateway: OpenAI's Images API in, the best provider out, every cent in a durable ledger.

    Without any key: `pixelroute demo` shows everything on the sandbox providers, `pixelroute serve --sandbox` keeps
    them for your application. With keys in the environment (FAL_KEY, OPENAI_API_KEY, ...): `pixelroute serve`.
    """


def settings_from(configs: Sequence[Path], *, keyless: bool = False) -> Settings:
    """Load the configuration or leave with every problem printed."""
    paths = tuple(configs) or (default_config(),)
    try:
        return load(paths, keyless=keyless, today=datetime.now(UTC).date())
    except ConfigError as error:
        _print_problems(error)
        sys.exit(2)


def _print_problems(error: ConfigError) -> None:
    for problem in error.problems:
        err.print(f"[red]problem[/red]  {problem}", markup=True, soft_wrap=True)
    count = len(error.problems)
    err.print(f"{count} problem{'s' if count != 1 else ''}; nothing was started.")


# --- serving ----------------------------------------------------------------------------------------------------


@main.command()
@config_option
@ledger_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one."
)
@click.option(
    "--sandbox", is_flag=True, help="Use the built-in provider emulators instead of real hosts: no key, no bill."
)
@click.option("--sandbox-speed", default=0.1, show_default=True, help="Sandbox latencies as a share of the real ones.")
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json", "console"]),
    default="auto",
    show_default=True,
    help="JSON lines, or plain text; auto writes text to a terminal and JSON elsewhere.",
)
def serve(
    configs: tuple[Path, ...],
    ledger: str | None,
    host: str,
    port: int,
    sandbox: bool,
    sandbox_speed: float,
    log_format: str,
) -> None:
    """Serve applications until interrupted.

    The client key comes from PIXELROUTE_API_KEY (required when listening beyond loopback); the console, metrics and
    API share the port.
    """
    from router.app import StartError, serve_forever

    if ledger:
        os.environ["PIXELROUTE_LEDGER"] = ledger
    paths = tuple(configs) or (default_config(),)
    try:
        serve_forever(paths, host=host, port=port, sandbox=sandbox, sandbox_speed=sandbox_speed, log_format=log_format)
    except ConfigError as error:
        _print_problems(error)
        sys.exit(2)
    except StartError as error:
        err.print(f"[red]cannot start[/red]  {error}", soft_wrap=True)
        sys.exit(2)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9100, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option("--speed", default=0.1, show_default=True, help="Latencies as a share of the real ones.")
def sandbox(host: str, port: int, speed: float) -> None:
    """Run the provider emulators alone, for tests of other programs; prints their base URLs and keys."""
    from router.app import sandbox_forever

    sandbox_forever(host, port, speed, out.print)


@main.command()
@click.option("--once", is_flag=True, help="End after the requests; the exit status tells success.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="A free one if taken.")
@click.option(
    "--pictures",
    default="demo-pictures",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to save the pictures, the log and the demo's ledger.",
)
def demo(once: bool, port: int, pictures: Path) -> None:
    """Send requests through a router on the sandbox, show choices, pictures, costs and the report; keep serving."""
    from router.demo import run

    sys.exit(run(once=once, port=port, pictures=pictures, console=out))


# --- the ledger -------------------------------------------------------------------------------------------------


@main.group("ledger")
def ledger_group() -> None:
    """Look after the ledger file."""


@ledger_group.command("verify")
@click.argument("path", type=click.Path(dir_okay=False, exists=True, path_type=Path))
def ledger_verify(path: Path) -> None:
    """Recompute the hash chain and the balances of the ledger at PATH; name every altered or missing row."""
    audit = verify(path)
    for problem in audit.problems:
        err.print(f"[red]problem[/red]  {problem}", soft_wrap=True)
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
        err.print(f"[red]cannot copy[/red]  {error}", soft_wrap=True)
        sys.exit(2)
    out.print(f"{target}: {target.stat().st_size} bytes.", soft_wrap=True)


# --- prices -----------------------------------------------------------------------------------------------------


@main.group()
def prices() -> None:
    """Look after the price books."""


books_argument = click.argument("directory", required=False, type=click.Path(file_okay=False, path_type=Path))


@prices.command("check")
@books_argument
def prices_check(directory: Path | None) -> None:
    """Lint the price books in DIRECTORY (those shipped, if none is named): sources, units, overlaps, unknown keys."""
    problems = check_price_books(directory, today=datetime.now(UTC).date())
    for problem in problems:
        color = "red" if problem.severity == "error" else "yellow"
        err.print(f"[{color}]{problem.severity:8}[/{color}] {problem}", soft_wrap=True)
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
    from router.app import metered

    settings = settings_from(configs, keyless=True)
    start, end = _period(since, until)
    try:
        new = load_price_books(directory)
        with Reports(ledger or _ledger_url(configs, sandbox)) as reports:
            difference = diff(settings.books, new, metered(reports.usages(start, end), settings))
    except (PricingError, LedgerError, ValueError) as error:
        err.print(f"[red]cannot compare[/red]  {error}", soft_wrap=True)
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


# --- steering a running router ----------------------------------------------------------------------------------

url_option = click.option(
    "--url", envvar="PIXELROUTE_URL", default="http://127.0.0.1:8000", show_default=True, help="The running router."
)


@main.command()
@url_option
@click.argument("target")
def drain(url: str, target: str) -> None:
    """Send TARGET (provider/model) no new requests; running ones finish. Needs PIXELROUTE_ADMIN_KEY."""
    _steer(url, target, "drain")


@main.command()
@url_option
@click.argument("target")
def undrain(url: str, target: str) -> None:
    """Let TARGET (provider/model) serve again. Needs PIXELROUTE_ADMIN_KEY."""
    _steer(url, target, "undrain")


def _steer(url: str, target: str, verb: str) -> None:
    headers = {"Authorization": f"Bearer {os.environ.get('PIXELROUTE_ADMIN_KEY', '')}".strip()}
    request = urllib.request.Request(f"{url}/v1/routing/{target}/{verb}", method="POST", headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - the operator's own router
            state = orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        err.print(f"[red]refused[/red]  {orjson.loads(error.read())['error']['message']}", soft_wrap=True)
        sys.exit(1)
    except OSError as error:
        err.print(f"[red]no answer[/red]  {url}: {error}", soft_wrap=True)
        sys.exit(1)
    out.print(f"{state['target']}: {verb}ed")


# --- looking ----------------------------------------------------------------------------------------------------


@main.command()
@config_option
def check(configs: tuple[Path, ...]) -> None:
    """Check the configuration and the price books; print every problem with file and key."""
    from router.app import check_settings

    settings = settings_from(configs, keyless=True)
    problems, notes = check_settings(settings)
    for note in notes:
        out.print(f"[yellow]note[/yellow]     {note}", soft_wrap=True)
    for problem in problems:
        err.print(f"[red]problem[/red]  {problem}", soft_wrap=True)
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


@main.command()
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
    from router.app import quote_offline
    from router.errors import RequestError

    settings = settings_from(configs, keyless=True)
    try:
        body = quote_offline(settings, model=model, size=size, n=n, inputs=inputs, quality=quality, prompt=prompt)
    except RequestError as error:
        err.print(f"[red]cannot be quoted[/red]  {error.message}", soft_wrap=True)
        sys.exit(1)
    if as_json:
        sys.stdout.buffer.write(orjson.dumps(body, option=orjson.OPT_INDENT_2) + b"\n")
        return
    table = Table("target", "cost", "at least", "at most", "price in force", "note", box=None, header_style="bold")
    for candidate in body["candidates"]:
        if candidate.get("total_cost") is None:
            table.add_row(candidate["target"], "-", "-", "-", "-", f"cannot serve it: {candidate['excluded_by']}")
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


@main.command()
@config_option
@ledger_option
@click.option("--by", default="provider", show_default=True, help=f"Group by {GROUPS}.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="UTC.  [default: 30 days ago]")
@click.option("--until", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="UTC, exclusive.  [default: now]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="For people, or machines.",
)
@click.option("--sandbox", is_flag=True, help="Report the sandbox's play money instead of the real ledger.")
def report(
    configs: tuple[Path, ...],
    ledger: str | None,
    by: str,
    since: datetime | None,
    until: datetime | None,
    form: str,
    sandbox: bool,
) -> None:
    """Costs from the ledger: settled, unknown (at their estimate) and paid without delivery, exact to the nano."""
    url = ledger or _ledger_url(configs, sandbox)
    start, end = _period(since, until)
    try:
        with Reports(url) as reports:
            rows, open_rows = reports.costs(by, start, end), reports.unsettled()
    except (LedgerError, ValueError) as error:
        err.print(f"[red]cannot report[/red]  {error}", soft_wrap=True)
        sys.exit(2)
    if form == "table":
        out.print(report_table(by, rows))
        if open_rows:
            out.print(f"{len(open_rows)} attempts are unsettled; they count at their estimate until evidence comes.")
        return
    dicts = [plain_row(by, row) for row in rows]
    if form == "json":
        sys.stdout.buffer.write(orjson.dumps(dicts, option=orjson.OPT_INDENT_2) + b"\n")
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dicts[0]) if dicts else [by])
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in dicts)
    sys.stdout.write(text.getvalue())


def _period(since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
    """From and until in UTC; the last 30 days unless told otherwise."""
    start = since.replace(tzinfo=UTC) if since else datetime.now(UTC) - timedelta(days=30)
    end = until.replace(tzinfo=UTC) if until else datetime.now(UTC) + timedelta(seconds=1)
    return start, end


def _inert(value: Any) -> Any:
    """Text that a spreadsheet will not run as a formula."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


@main.command()
@config_option
@ledger_option
@click.argument("request_id")
@click.option("--sandbox", is_flag=True, help="Look into the sandbox's ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print the decision records as they are stored.")
def explain(configs: tuple[Path, ...], ledger: str | None, request_id: str, sandbox: bool, as_json: bool) -> None:
    """Why REQUEST_ID went where it went: candidates, money, expectations, exclusions, and what came of it."""
    try:
        with Reports(ledger or _ledger_url(configs, sandbox)) as reports:
            found = reports.request(request_id)
    except (LedgerError, ValueError) as error:
        err.print(f"[red]cannot explain[/red]  {error}", soft_wrap=True)
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
        out.print(f"  {attempt.state.value}, {money_text(attempt.cost_nanos)} {attempt.currency}")
        decision = unpack(opening.decision)
        out.print(f"  {decision.reason}", soft_wrap=True)
        out.print(_candidates(decision.record()))


def _candidates(decision: Mapping[str, Any]) -> Table:
    """The decision record's candidates, the chosen one marked."""
    table = Table("", "candidate", "price", "expected s", "success", "samples", "score", "why not", box=None)
    for candidate in decision["candidates"]:
        chosen = candidate["target"] == decision["chosen"]
        lost = f"behind by {candidate['lost_by']}" if "lost_by" in candidate else ""
        table.add_row(
            "*" if chosen else "",
            candidate["target"],
            money_text(candidate["price_nanos"]),
            f"{candidate['mean_s']:.2f}",
            f"{candidate['p']:.3f}",
            f"{candidate['n']:.1f}",
            money_text(candidate["score_nanos"]),
            candidate.get("why", lost),
        )
    return table


def _ledger_url(configs: Sequence[Path], sandbox: bool) -> str:
    if sandbox:
        return "sqlite:///pixelroute-data/sandbox.db"
    return settings_from(configs, keyless=True).ledger_url


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
