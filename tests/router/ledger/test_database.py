"""The file itself: its URL, its versions, its one writer, and that nothing in it can be changed."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from router.ledger import Ledger, LedgerError, Reports, State, ledger_path, rows
from router.ledger.database import connect_reader, connect_writer, migrate, migrations
from router.ledger.files import Reserve
from tests.router.ledger.builders import NOON, opening, settlement


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///ledger.db", "ledger.db"),
        ("sqlite:///data/ledger.db", "data/ledger.db"),
        ("sqlite:////var/lib/pixelroute/ledger.db", "/var/lib/pixelroute/ledger.db"),
        ("sqlite:///my%20ledger.db", "my ledger.db"),
    ],
)
def test_a_url_names_a_file(url: str, path: str) -> None:
    assert ledger_path(url) == Path(path)
    assert Ledger.from_url(url).path == Path(path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ledger.db",
        "sqlite:ledger.db",
        "sqlite://ledger.db",
        "sqlite:///",
        "sqlite:///data/",
        "sqlite:///:memory:",
        "sqlite:///ledger.db?mode=ro",
        "sqlite:///ledger.db#a",
        "sqlite:///a%00b",
        "postgresql://user:hunter2@host/db",
    ],
)
def test_any_other_url_is_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(ValueError, match=r"^ledger: ") as refusal:
        Ledger.from_url(url)
    assert "hunter2" not in str(refusal.value)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A ledger with a row in every table."""
    path = tmp_path / "ledger.db"
    async with Ledger(path, clock=lambda: NOON, reserve_bytes=0) as ledger:
        await ledger.open(opening())
        await ledger.job("a1", "job", {"url": "u"})
        await ledger.settle(settlement(state=State.UNKNOWN))
        await ledger.settle(settlement())
        await ledger.open(opening("a2"))
    return path


@pytest.mark.anyio
@pytest.mark.parametrize("table", rows.TABLES)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {table} SET hash = x'00'",
        "UPDATE {table} SET seq = seq + 1000",
        "UPDATE OR REPLACE {table} SET seq = 1",
        "DELETE FROM {table}",
        "INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
        "REPLACE INTO {table} SELECT * FROM {table} LIMIT 1",
    ],
)
async def test_no_row_can_be_changed(path: Path, table: str, statement: str) -> None:
    connection = apsw.Connection(str(path))
    before = connection.execute(f"SELECT * FROM {table}").fetchall()
    assert before
    with pytest.raises(apsw.ConstraintError, match=r"append-only|in the ledger already"):
        connection.execute(statement.format(table=table))
    assert connection.execute(f"SELECT * FROM {table}").fetchall() == before
    connection.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("attempt", "seq = 100"),  # the same id again
        ("entry", "seq = 100"),  # the same kind for the same attempt again
        ("entry", "seq = 100, kind = 'void'"),  # void after settled
    ],
)
async def test_the_database_itself_refuses_a_second_outcome(path: Path, table: str, change: str) -> None:
    connection = apsw.Connection(str(path))
    columns = [*rows.TABLES[table], "hash"]
    replaced = dict(part.split(" = ") for part in change.split(", "))
    chosen = ", ".join(replaced.get(column, column) for column in columns)
    for verb in ("INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE"):
        with pytest.raises(apsw.ConstraintError, match="in the ledger already"):
            connection.execute(f"{verb} INTO {table} SELECT {chosen} FROM {table} LIMIT 1")
    connection.close()


@pytest.mark.anyio
async def test_readers_cannot_write(path: Path) -> None:
    connection = connect_reader(path)
    with pytest.raises(apsw.ReadOnlyError):
        connection.execute("INSERT INTO mark VALUES (100, '', 'start', x'00')")
    connection.close()


def test_a_new_file_is_durable_and_ours(tmp_path: Path) -> None:
    connection = connect_writer(tmp_path / "ledger.db")
    assert connection.pragma("journal_mode") == "wal"
    assert connection.pragma("synchronous") == 2  # FULL
    assert connection.pragma("user_version") == len(migrations())
    assert connection.pragma("foreign_keys") == 1
    connection.close()


def test_the_columns_in_code_are_those_of_the_schema(tmp_path: Path) -> None:
    connection = connect_writer(tmp_path / "ledger.db")
    for table, columns in rows.TABLES.items():
        found = [name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]
        assert found == [*columns, "hash"]
    connection.close()


def test_migrations_run_once_and_in_order(tmp_path: Path) -> None:
    scripts = [*migrations(), "CREATE TABLE second (x)", "INSERT INTO second VALUES (3)"]
    connection = connect_writer(tmp_path / "ledger.db")
    connection.execute("INSERT INTO mark VALUES (1, '', 'start', x'00')")
    migrate(connection, scripts[:2])
    migrate(connection, scripts)
    migrate(connection, scripts)
    assert connection.execute("SELECT * FROM second").fetchall() == [(3,)]
    assert connection.execute("SELECT count(*) FROM mark").fetchall() == [(1,)]
    assert connection.pragma("user_version") == 3
    connection.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    connection = connect_writer(tmp_path / "ledger.db")
    with pytest.raises(apsw.SQLError):
        migrate(connection, [*migrations(), "CREATE TABLE second (x); INSERT INTO nowhere VALUES (1)"])
    assert connection.pragma("user_version") == len(migrations())
    assert not connection.table_exists("main", "second")
    connection.close()


def test_a_file_that_is_no_ledger_of_ours_is_left_alone(tmp_path: Path) -> None:
    newer, foreign, text = tmp_path / "newer.db", tmp_path / "foreign.db", tmp_path / "text.db"
    connection = connect_writer(newer)
    connection.pragma("user_version", 99)
    connection.close()
    connection = apsw.Connection(str(foreign))
    connection.execute("CREATE TABLE customers (name)")
    connection.close()
    text.write_text("this is not a database, it is prose " * 100)
    for path, reason in ((newer, "newer release"), (foreign, "not a ledger")):
        with pytest.raises(LedgerError, match=reason):
            connect_writer(path)
    with pytest.raises(apsw.NotADBError):
        connect_writer(text)
    for path in (newer, foreign, text, tmp_path / "missing.db"):
        with pytest.raises(LedgerError):
            Reports(path)
    assert not (tmp_path / "missing.db").exists()


@pytest.mark.anyio
@pytest.mark.parametrize("contents", [b"prose" * 1000, None])
async def test_a_ledger_that_cannot_be_opened_says_so_and_frees_the_lock(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "ledger.db"
    path.mkdir() if contents is None else path.write_bytes(contents)
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"ledger\.db"):
            await Ledger(path, reserve_bytes=0).start()


@pytest.mark.anyio
async def test_a_second_writer_is_kept_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    (tmp_path / "link").symlink_to(tmp_path)
    async with Ledger(path, reserve_bytes=0):
        with pytest.raises(LedgerError, match="one writer"):
            await Ledger(path, reserve_bytes=0).start()
        with pytest.raises(LedgerError, match="one writer"):  # by whatever name
            await Ledger(tmp_path / "link" / "ledger.db", reserve_bytes=0).start()
        (tmp_path / "other.db").symlink_to(path)
        with pytest.raises(LedgerError, match="one writer"):
            await Ledger(tmp_path / "other.db", reserve_bytes=0).start()
    async with Ledger(path, reserve_bytes=0):
        pass


@pytest.mark.anyio
async def test_another_process_is_kept_out_and_told_by_whom(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    program = (
        "import asyncio, sys, pathlib\n"
        "from router.ledger import Ledger\n"
        "async def main():\n"
        "    async with Ledger(pathlib.Path(sys.argv[1]), reserve_bytes=0):\n"
        "        print('ready', flush=True)\n"
        "        await asyncio.to_thread(sys.stdin.readline)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:  # noqa: ASYNC220
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(LedgerError, match=f"written by process {other.pid}"):
            await Ledger(path, reserve_bytes=0).start()
        with Reports(path) as reports:  # reading is free
            assert reports.totals() == []
        other.communicate("\n")
        assert other.returncode == 0
    async with Ledger(path, reserve_bytes=0):
        pass


def test_the_reserve_takes_room_and_gives_it_back(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "ledger.db", 1 << 20)
    assert reserve.hold()
    assert reserve.hold()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_blocks * 512 >= 1 << 20
    reserve.give()
    reserve.give()
    assert list(tmp_path.iterdir()) == []
    assert not Reserve(tmp_path / "ledger.db", 1 << 60).hold()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_not_inherited_by_programs_we_start(tmp_path: Path) -> None:
    from router.ledger.files import Lock

    lock = Lock(tmp_path / "ledger.db")
    assert fcntl.fcntl(lock._file, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    lock.release()
