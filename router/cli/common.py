"""What the commands share: consoles, options, and how a configuration or a period becomes something to work with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from router.config import ConfigError, Settings, default_config, load

# Piped output is not folded at 80 columns: tables and exact amounts stay whole.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 160)

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
_MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
since_option = click.option("--since", type=_MOMENT, help="UTC.  [default: 30 days ago]")
until_option = click.option("--until", type=_MOMENT, help="UTC, exclusive.  [default: now]")
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="For people, or machines.",
)


def complain(word: str, what: object, color: str = "red") -> None:
    """One line to standard error. Brackets in ``what`` are its own, as in pixelroute[redis], and no markup."""
    err.print(Text.assemble((word, color), f"  {what}"), soft_wrap=True)


def settings_from(configs: Sequence[Path], *, keyless: bool = False) -> Settings:
    """Load the configuration or leave with every problem printed."""
    paths = tuple(configs) or (default_config(),)
    try:
        return load(paths, keyless=keyless)
    except ConfigError as error:
        print_problems(error)
        sys.exit(2)


def print_problems(error: ConfigError) -> None:
    for problem in error.problems:
        complain("problem", problem)
    count = len(error.problems)
    err.print(f"{count} problem{'s' if count != 1 else ''}; nothing was started.")


def ledger_url(configs: Sequence[Path], sandbox: bool) -> str:
    if sandbox:
        return "sqlite:///pixelroute-data/sandbox.db"
    return settings_from(configs, keyless=True).ledger_url


def period(since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
    """From and until in UTC; the last 30 days unless told otherwise."""
    start = since.replace(tzinfo=UTC) if since else datetime.now(UTC) - timedelta(days=30)
    end = until.replace(tzinfo=UTC) if until else datetime.now(UTC) + timedelta(seconds=1)
    return start, end
