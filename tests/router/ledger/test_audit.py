"""Whoever changes a ledger behind its back is found out, and told where."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from router.ledger import Ledger, LedgerError, Reports, State, backup, verify
from tests.router.ledger.builders import NOON, opening, settlement

pytestmark = pytest.mark.anyio

KINDS = ("mark", "attempt", "job", "entry")


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """Rows 1 to 43: a start, ten times attempt, job, unknown, and then released and settled for a few, a stop."""
    path = tmp_path / "ledger.db"
    async with Ledger(path, clock=lambda: NOON, reserve_bytes=0) as ledger:
        for number in range(10):
            await ledger.open(opening(f"a{number}", user="Zoë \x7f\x01 ☃"))
            await ledger.job(f"a{number}", "job", {"url": "u"})
            await ledger.settle(settlement(f"a{number}", State.UNKNOWN))
        for number in range(5):
            await ledger.settle(settlement(f"a{number}"))
        await ledger.adjust("a1", 3, "USD", "why", "who", NOON)
    return path


def tamper(path: Path, *statements: str) -> None:
    """What somebody with the file and a shell can do: the triggers are no hindrance to them."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.pragma("foreign_keys", False)
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
            assert connection.changes() > 0


async def test_a_sound_ledger_is_sound(path: Path) -> None:
    audit = verify(path)
    assert audit.problems == ()
    assert audit.seq == 43
    tamper(path)
    assert verify(path) == audit


async def test_anyone_can_recompute_the_chain(path: Path) -> None:
    """With a JSON encoder and SHA-256, as the documentation says, and none of our code."""
    rows = []
    with closing(apsw.Connection(str(path))) as connection:
        for table in KINDS:
            rows += [(row[0], table, row) for row in connection.execute(f"SELECT * FROM {table}")]
    previous = bytes(32)
    for seq, (number, table, (*columns, stored)) in enumerate(sorted(rows, key=lambda row: row[0]), start=1):
        text = json.dumps([table, *columns], ensure_ascii=False, separators=(",", ":"))
        previous = hashlib.sha256(previous + text.encode()).digest()
        assert (number, stored) == (seq, previous)
    assert verify(path).hash == previous.hex()


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE entry SET amount_nanos = amount_nanos - 1 WHERE seq = 33", "entry 33: it is not what was written"),
        ("UPDATE entry SET recorded_at = '2020-01-01T00:00:00.000000Z' WHERE seq = 4", "entry 4: it is not"),
        ("UPDATE attempt SET project = 'another' WHERE seq = 5", "attempt 5: it is not"),
        ("UPDATE attempt SET price = price || ' ' WHERE seq = 29", "attempt 29: it is not"),
        ("UPDATE job SET state = '{}' WHERE seq = 3", "job 3: it is not"),
        ("UPDATE mark SET event = 'resume' WHERE seq = 1", "mark 1: it is not"),
        ("DELETE FROM job WHERE seq = 6", "entry 7: rows 6 to 6 before it are missing"),
        ("DELETE FROM attempt WHERE seq = 8", "job 9: rows 8 to 8"),
        ("DELETE FROM mark WHERE seq = 1", "attempt 2: rows 1 to 1"),
        ("UPDATE entry SET kind = 'adjusted' WHERE seq = 32", "held and released"),
    ],
)
async def test_a_changed_row_is_named(path: Path, statement: str, problem: str) -> None:
    tamper(path, statement)
    problems = verify(path).problems
    assert any(problem in found for found in problems), problems
    assert len(problems) <= 5  # not everything that follows it


async def test_a_row_slipped_in_is_named(path: Path) -> None:
    tamper(path, "INSERT INTO mark VALUES (44, '2026-11-20T12:00:00.000000Z', 'stop', zeroblob(32))")
    assert verify(path).problems == ("mark 44: it is not what was written, or does not belong here",)


async def test_rows_cut_off_at_the_end_show_against_an_earlier_audit(path: Path) -> None:
    before = verify(path)
    tamper(path, "DELETE FROM mark WHERE seq = 43", "DELETE FROM entry WHERE seq = 42")
    after = verify(path)
    assert after.problems == ()
    assert (after.seq, after.hash) != (before.seq, before.hash)


async def test_a_damaged_file_is_found(path: Path) -> None:
    backup(path, path.with_name("copy.db"))
    damaged = bytearray(path.with_name("copy.db").read_bytes())
    place = damaged.rindex(b"catalogue")
    damaged[place] ^= 1
    path.with_name("copy.db").write_bytes(bytes(damaged))
    assert len(verify(path.with_name("copy.db")).problems) == 1


async def test_a_copy_made_beside_a_running_router_is_whole(tmp_path: Path) -> None:
    path, copy = tmp_path / "ledger.db", tmp_path / "copy.db"
    async with Ledger(path, reserve_bytes=0) as ledger:
        await ledger.open(opening())
        done = False

        async def load() -> int:
            number = 0
            while not done:
                number += 1
                await ledger.open(opening(f"b{number}"))
                await ledger.settle(settlement(f"b{number}"))
            return number

        loading = asyncio.ensure_future(load())
        await ledger.settle(settlement())
        await asyncio.to_thread(backup, path, copy)
        audit = await asyncio.to_thread(verify, path)
        done = True
        written = await loading
    assert audit.problems == verify(copy).problems == ()
    assert written > 1
    with Reports(copy) as reports:
        assert reports.request("req_a1") is not None
    assert not (tmp_path / "copy.db-wal").exists()  # one file is all of it
    async with Ledger(copy, reserve_bytes=0) as ledger:  # and can take over
        await ledger.open(opening("next"))
    assert verify(copy).problems == ()


async def test_a_copy_never_replaces_a_file(path: Path) -> None:
    target = path.with_name("precious")
    target.write_text("mine")
    with pytest.raises(LedgerError, match="precious"):
        backup(path, target)
    assert target.read_text() == "mine"
    with pytest.raises(LedgerError, match="no ledger"):
        backup(path.with_name("missing.db"), path.with_name("copy.db"))
    assert not path.with_name("copy.db").exists()
