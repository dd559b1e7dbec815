"""Full disks, locked files, lost power: nothing is sent without a row, running calls settle, no restart is needed."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from router.ledger import Ledger, LedgerError, Reports, State, verify
from router.ledger.journal import Journal, Record
from tests.router.ledger.builders import NOON, mended, opening, settlement
from tests.router.ledger.disks import REAL, SmallDisk, VolatileDisk, mounted

pytestmark = pytest.mark.anyio


async def test_what_returned_survives_a_loss_of_power(tmp_path: Path) -> None:
    """At the moment a call returns, its row is in what the disk has synced: sync before send, and before reply."""
    disk = VolatileDisk()
    home = tmp_path / "home"
    home.mkdir()
    with mounted(disk):
        async with Ledger(home / "ledger.db", reserve_bytes=0) as ledger:
            for number in range(25):
                await ledger.open(opening(f"a{number}"))
                after_open = _left(disk, tmp_path / f"open{number}")
                assert after_open.pop(f"a{number}") == "open"
                await ledger.settle(settlement(f"a{number}"))
                after_settle = _left(disk, tmp_path / f"settle{number}")
                assert after_settle.pop(f"a{number}") == "settled"
                assert set(after_settle) == set(after_open) == {f"a{before}" for before in range(number)}


async def test_what_returned_survives_a_loss_of_power_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with others half-way, and with the WAL starting over many times."""
    monkeypatch.setattr("router.ledger.journal.CHECKPOINT_PAGES", 40)
    disk = VolatileDisk()
    home = tmp_path / "home"
    home.mkdir()
    promised: dict[str, str] = {}
    cuts = 0

    async def worker(name: str) -> None:
        for number in range(12):
            attempt_id = f"{name}{number}"
            await ledger.open(opening(attempt_id))
            promised[attempt_id] = "open"
            cut(name)
            await ledger.settle(settlement(attempt_id))
            promised[attempt_id] = "settled"
            cut(name)

    def cut(name: str) -> None:
        nonlocal cuts
        if name == "a":
            left = _left(disk, tmp_path / f"cut{cuts}")  # nothing else runs on this loop meanwhile
            for attempt_id, state in promised.items():
                assert left[attempt_id] == state or (left[attempt_id], state) == ("settled", "open")
            cuts += 1

    with mounted(disk):
        async with Ledger(home / "ledger.db", reserve_bytes=0) as ledger:
            await asyncio.gather(*(worker(name) for name in "abcdefgh"))
    assert (len(promised), cuts) == (96, 24)


def _left(disk: VolatileDisk, directory: Path) -> dict[str, str]:
    """The attempts and their states in what a loss of power would leave now."""
    ledger = disk.after_power_loss(directory) / "ledger.db"
    with closing(REAL(str(ledger))) as left:
        assert left.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {str(row[0]): str(row[1]) for row in left.execute("SELECT attempt_id, state FROM standing")}


async def test_on_a_full_disk_running_calls_settle_and_none_is_opened(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    disk = SmallDisk(home, capacity=3 << 20)
    ledger = Ledger(home / "ledger.db", reserve_bytes=1 << 20)
    with mounted(disk):
        await ledger.start()
        running = []
        with pytest.raises(LedgerError, match="no space"):  # noqa: PT012
            for number in range(10_000):
                await ledger.open(opening(f"a{number}"))
                running.append(f"a{number}")
        assert len(running) > 50
        assert ledger.problem is not None
        with pytest.raises(LedgerError, match="cannot be written"):
            await ledger.open(opening("more"))
        assert ledger.open_attempts == len(running)

        async with asyncio.timeout(15):
            for attempt_id in running:  # all of them, from the reserve
                await ledger.settle(settlement(attempt_id))
        assert ledger.open_attempts == 0
        assert ledger.problem is not None  # the reserve is used up: still no openings
        with pytest.raises(LedgerError, match="cannot be written"):
            await ledger.open(opening("more"))

        disk.capacity = 64 << 20  # somebody made room
        await mended(ledger)
        await ledger.open(opening("again"))
        await ledger.settle(settlement("again"))
        assert (home / "ledger.db-reserve").stat().st_size == 1 << 20
        await ledger.close()
    with Reports(home / "ledger.db") as reports:
        (total,) = reports.totals()
    assert (total.attempts, total.unsettled) == (len(running) + 1, 0)
    assert verify(home / "ledger.db").problems == ()


async def test_a_settlement_waits_for_room_that_even_the_reserve_did_not_have(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    disk = SmallDisk(home, capacity=64 << 20)
    ledger = Ledger(home / "ledger.db", reserve_bytes=0)
    with mounted(disk):
        await ledger.start()
        for number in range(20):
            await ledger.open(opening(f"a{number}"))
        disk.capacity = 0
        settles = [asyncio.ensure_future(ledger.settle(settlement(f"a{number}"))) for number in range(20)]
        with pytest.raises(LedgerError):
            await ledger.open(opening("more"))
        assert not any(settle.done() for settle in settles)
        assert ledger.pending == 20
        disk.capacity = 64 << 20
        async with asyncio.timeout(5):
            await asyncio.gather(*settles)
        await ledger.close()
    with Reports(home / "ledger.db") as reports:
        assert (reports.totals()[0].attempts, reports.unsettled()) == (20, [])
    assert verify(home / "ledger.db").problems == ()


async def test_closing_on_a_full_disk_ends_and_says_what_was_not_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    disk = SmallDisk(home, capacity=64 << 20)
    ledger = Ledger(home / "ledger.db", reserve_bytes=0)
    with mounted(disk):
        await ledger.start()
        await ledger.open(opening())
        disk.capacity = 0
        settle = asyncio.ensure_future(ledger.settle(settlement()))
        await asyncio.sleep(0)
        await ledger.close(grace_s=0.0)
        with pytest.raises(LedgerError, match="closed before"):
            await settle
    ledger = Ledger(home / "ledger.db", reserve_bytes=0)
    (lost,) = await ledger.start()  # the attempt is not: it is unknown now
    assert (lost.opening.attempt_id, lost.state) == ("a1", State.UNKNOWN)
    await ledger.close()


async def test_a_ledger_without_room_for_its_reserve_opens_nothing(tmp_path: Path) -> None:
    async with Ledger(tmp_path / "ledger.db", reserve_bytes=1 << 60) as ledger:
        assert ledger.problem is not None
        assert "reserve" in ledger.problem
        with pytest.raises(LedgerError, match="reserve"):
            await ledger.open(opening())


async def test_a_limit_on_the_files_size_is_survived(tmp_path: Path) -> None:
    """The operating system's own limit, in a process of its own: openings are refused, settlements wait, it mends."""
    program = Path(__file__).with_name("limited.py")
    done = subprocess.run(  # noqa: ASYNC221
        [sys.executable, str(program), str(tmp_path / "ledger.db")],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.stderr == ""
    opened, refused, settled = map(int, done.stdout.split())
    assert opened > 50
    assert (refused, settled) == (1, opened)
    with Reports(tmp_path / "ledger.db") as reports:
        (total,) = reports.totals()
    assert (total.attempts, total.unsettled, total.cost_nanos) == (opened + 1, 1, opened * 8_000_000)
    assert verify(tmp_path / "ledger.db").problems == ()


async def test_another_program_holding_the_database_delays_settlements_and_refuses_openings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.ledger.database.BUSY_MS", 100)
    path = tmp_path / "ledger.db"
    async with Ledger(path, reserve_bytes=0) as ledger:
        await ledger.open(opening())
        with closing(apsw.Connection(str(path))) as other:
            other.execute("BEGIN IMMEDIATE")
            settle = asyncio.ensure_future(ledger.settle(settlement()))
            for name in ("b1", "b2"):
                with pytest.raises(LedgerError, match="locked"):
                    await ledger.open(opening(name))
            assert not settle.done()
            other.execute("ROLLBACK")
        async with asyncio.timeout(5):
            await settle
        await mended(ledger)
        await ledger.open(opening("b1"))
    assert verify(path).problems == ()


async def test_a_defect_in_the_writer_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.excepthook", lambda *_: None)
    ledger = Ledger(tmp_path / "ledger.db", reserve_bytes=0)
    await ledger.start()
    await ledger.open(opening())
    monkeypatch.setattr(Journal, "commit", lambda *_, **__: 1 // 0)
    with pytest.raises(LedgerError):
        await ledger.settle(settlement())
    with pytest.raises(LedgerError):
        await ledger.open(opening("a2"))
    await ledger.close()
    for thread in threading.enumerate():
        if thread.name == "ledger-writer":
            thread.join()
    monkeypatch.undo()
    ledger = Ledger(tmp_path / "ledger.db", reserve_bytes=0)
    (lost,) = await ledger.start()
    assert lost.opening.attempt_id == "a1"
    await ledger.close()


async def test_a_failed_transaction_leaves_no_trace(tmp_path: Path) -> None:
    """Batches fail and are tried again at random; the ledger ends as if nothing had happened."""
    luck = random.Random(7)
    home = tmp_path / "home"
    home.mkdir()
    disk = SmallDisk(home, capacity=64 << 20)
    with mounted(disk):
        journal = Journal(home / "ledger.db")
        for number in range(60):
            records = [opening(f"{number}-{k}") for k in range(luck.randrange(1, 12))]
            batch: list[Record] = [*records, *(settlement(one.attempt_id) for one in records if luck.random() < 0.5)]
            while True:
                disk.capacity = 64 << 20 if luck.random() < 0.5 else disk.used() + luck.randrange(20_000)
                try:
                    outcomes = journal.commit(batch, mark=("resume", NOON) if luck.random() < 0.1 else None)
                except apsw.FullError:
                    continue
                assert outcomes == [None] * len(batch)
                break
        journal.close()
    assert verify(home / "ledger.db").problems == ()
