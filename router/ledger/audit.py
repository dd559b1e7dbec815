"""Is the ledger what was written into it? And copies of it that are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw

from router.ledger import rows
from router.ledger.database import LedgerError, connect_reader

BLOCK = 10_000  # rows looked at together; between blocks the writer may start its WAL over
MOST = 100  # problems worth listing


@dataclass(frozen=True, slots=True)
class Audit:
    """The end of the chain, worth noting outside the ledger, and everything that is wrong (empty: all is well)."""

    seq: int
    hash: str
    problems: tuple[str, ...]


def verify(path: Path) -> Audit:
    """Recompute the chain; check the file's structure, and that what was held for an attempt went back when it ended.

    Works beside a running router, up to the row that is last when it begins. Each altered or foreign row and each gap
    is named. That rows were cut off at the end only shows by an earlier audit's ``seq`` and ``hash``.
    """
    with closing(connect_reader(path)) as db:
        problems = [f"file: {text}" for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
        last, hash_ = 0, rows.GENESIS
        for seq, table, row, stored in _chain(db):
            if seq != last + 1:
                problems.append(f"{table} {seq}: rows {last + 1} to {seq - 1} before it are missing")
            elif rows.digest(hash_, table, row) != stored:
                problems.append(f"{table} {seq}: it is not what was written, or does not belong here")
            last, hash_ = seq, stored  # go on from what stands there, so that only the wrong rows are named
            if len(problems) >= MOST:
                break
        problems += [f"attempt {attempt}: {text}" for attempt, text in db.execute(_IMBALANCE)]
    return Audit(last, hash_.hex(), tuple(problems[:MOST]))


def backup(path: Path, target: Path) -> None:
    """Copy the ledger as it is at one moment into one new file, beside a running router; LedgerError if that fails."""
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # never over something else
    except OSError as error:
        raise LedgerError(f"{target}: {error.strerror}") from error
    try:
        with closing(connect_reader(path)) as source, closing(apsw.Connection(str(target))) as copy:
            with copy.backup("main", source, "main") as run:
                run.step(-1)  # in one read transaction: the writer goes on meanwhile
            copy.pragma("journal_mode", "delete")  # a single file, whole without a WAL
    except BaseException as error:
        os.unlink(target)
        if isinstance(error, apsw.Error):
            raise LedgerError(f"{target}: {error}") from error
        raise


def _chain(db: apsw.Connection) -> Iterator[tuple[int, str, rows.Row, bytes]]:
    """All rows of all tables in the order of seq, with their stored hashes."""
    statements = {
        table: f"SELECT {', '.join(columns)}, hash FROM {table} WHERE seq > ? AND seq <= ?"  # noqa: S608 - our own names
        for table, columns in rows.TABLES.items()
    }
    end = max((seq for (seq,) in db.execute(_LAST) if seq is not None), default=0)
    for start in range(0, end, BLOCK):
        bounds = (start, min(start + BLOCK, end))
        block = [(row[0], table, row) for table, text in statements.items() for row in db.execute(text, bounds)]
        block.sort(key=lambda entry: entry[0])
        for seq, table, (*row, stored) in block:
            yield seq, table, row, stored


_LAST = " UNION ALL ".join(f"SELECT max(seq) FROM {table}" for table in rows.TABLES)  # noqa: S608 - our own names
_IMBALANCE = """
SELECT attempt, 'held and released amounts do not match' FROM entry
WHERE attempt IN (SELECT attempt FROM entry WHERE kind = 'unknown')
GROUP BY attempt
HAVING coalesce(sum(amount_nanos) FILTER (WHERE kind = 'released'), 0)
  <> -(max(kind IN ('settled', 'void')) * sum(amount_nanos) FILTER (WHERE kind = 'unknown'))
UNION ALL
SELECT attempt, 'it has a ' || kind || ' entry but no such row' FROM entry
WHERE attempt NOT IN (SELECT seq FROM attempt)
"""
