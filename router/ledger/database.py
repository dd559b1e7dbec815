"""Opening the ledger's file: its URL, SQLite's settings, the schema and its versions."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

import apsw

APPLICATION_ID = 0x50584C47  # "PXLG" in the file's header: this is a ledger of ours
OLDEST_SQLITE = 3051003  # before it, two connections writing or checkpointing at once can corrupt a WAL database
BUSY_MS = 2000
PAGE_LIMIT_WAL = 64 << 20  # bytes: the WAL shrinks to this when it starts over


class LedgerError(Exception):
    """The ledger cannot do what was asked. The message is for operators; it names no secret."""


class LedgerRefused(LedgerError):
    """The ledger works, but this record contradicts what it holds (settled twice, unknown attempt, ...)."""


def ledger_path(url: str) -> Path:
    """The file of ``sqlite:///relative/ledger.db`` or ``sqlite:////from/the/root.db``; ValueError for anything else."""
    scheme, colon, rest = url.partition(":")
    if scheme != "sqlite" or not colon:
        # what stands after the scheme may hold a password, so it is not repeated
        raise ValueError(f"ledger: {scheme[:20]!r} is not supported, use sqlite:///path/ledger.db")
    if not rest.startswith("///"):
        raise ValueError("ledger: write sqlite:///path/ledger.db, or sqlite:////path/ledger.db from the root")
    path = unquote(rest[3:])
    if "?" in rest or "#" in rest:
        raise ValueError("ledger: the URL takes no parameters")
    if not path or path.endswith("/") or path.startswith(":") or "\0" in path:
        raise ValueError(f"ledger: {path!r} is not the path of a file")
    return Path(path)


def migrations() -> list[str]:
    """The SQL that leads from one version of the schema to the next; the first makes an empty file a ledger."""
    return [files("router.ledger").joinpath("schema.sql").read_text("utf-8")]


def migrate(connection: apsw.Connection, scripts: Sequence[str]) -> None:
    """Bring the file to version ``len(scripts)``, each step in its own transaction. LedgerError if it is not ours."""
    version, application = connection.pragma("user_version"), connection.pragma("application_id")
    if version > len(scripts):
        raise LedgerError(f"the ledger has version {version}, made by a newer release; this one knows {len(scripts)}")
    if application != APPLICATION_ID and (version or connection.execute("SELECT 1 FROM sqlite_schema").fetchall()):
        raise LedgerError("the file is a database, but not a ledger")
    for number, script in enumerate(scripts[version:], start=version + 1):
        with connection:
            connection.execute(script)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")


def connect_writer(path: Path) -> apsw.Connection:
    """The one connection that writes and checkpoints, with every commit synced to the disk."""
    if apsw.SQLITE_VERSION_NUMBER < OLDEST_SQLITE or sqlite_number() < OLDEST_SQLITE:
        raise LedgerError(f"SQLite {apsw.sqlite_lib_version()} can corrupt a WAL database; 3.51.3 or later is needed")
    connection = apsw.Connection(str(path))
    try:
        connection.set_busy_timeout(BUSY_MS)
        mode = connection.pragma("journal_mode", "wal")
        if mode != "wal":
            raise LedgerError(f"{path}: this file system cannot keep a write-ahead log (journal mode {mode})")
        connection.pragma("synchronous", "FULL")
        connection.pragma("foreign_keys", True)
        connection.pragma("journal_size_limit", PAGE_LIMIT_WAL)
        connection.transaction_mode = "IMMEDIATE"
        migrate(connection, migrations())
        connection.wal_autocheckpoint(0)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> apsw.Connection:
    """A read-only connection, beside a running router or without one. LedgerError if there is no ledger."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(BUSY_MS)
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            version, application = connection.pragma("user_version"), connection.pragma("application_id")
        except BaseException:
            connection.close()
            raise
    except apsw.Error as error:
        raise LedgerError(f"no ledger can be read at {path}: {error}") from error
    if application != APPLICATION_ID or version != len(migrations()):
        connection.close()
        raise LedgerError(f"{path} is not a ledger of this version")
    return connection


def sqlite_number() -> int:
    major, minor, patch = (int(part) for part in apsw.sqlite_lib_version().split(".")[:3])
    return major * 1_000_000 + minor * 1_000 + patch
