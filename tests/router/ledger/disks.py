"""Disks that misbehave: SQLite file systems that remember what was synced, or have little room.

They have no shared memory, so a ledger on one has its file to itself while it is open.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

NAME = "misbehaving"
REAL = apsw.Connection


class Disk(apsw.VFS):
    """Passes everything on to the real file system; a subclass steps in between."""

    def __init__(self) -> None:
        super().__init__(NAME, "unix")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _File(self, name, flags)

    def wrote(self, path: Path, size: int, offset: int) -> None:
        """About to write."""

    def synced(self, path: Path) -> None:
        """The file's contents have reached the disk."""


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._disk = disk
        self._path = Path(name if isinstance(name, str) else name.filename())

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.wrote(self._path, len(data), offset)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._disk.synced(self._path)


class VolatileDisk(Disk):
    """Remembers of each file what was in it at its last sync: all that a loss of power would leave."""

    def __init__(self) -> None:
        super().__init__()
        self._durable: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def synced(self, path: Path) -> None:
        with self._lock:
            self._durable[path.name] = path.read_bytes()

    def after_power_loss(self, directory: Path) -> Path:
        """A new directory with what is left."""
        directory.mkdir()
        with self._lock:
            left = dict(self._durable)
        for name, contents in left.items():
            if not name.endswith("-journal"):  # of the change to WAL, long gone
                (directory / name).write_bytes(contents)
        return directory


class SmallDisk(Disk):
    """Has room for ``capacity`` bytes in one directory, whoever uses them."""

    def __init__(self, directory: Path, capacity: int) -> None:
        super().__init__()
        self.directory, self.capacity = directory, capacity

    def wrote(self, path: Path, size: int, offset: int) -> None:
        growth = offset + size - path.stat().st_size
        if growth > 0 and self.used() + growth > self.capacity:
            raise apsw.FullError("no space left")

    def used(self) -> int:
        return sum(file.stat().st_size for file in self.directory.iterdir())


@contextmanager
def mounted(disk: Disk) -> Iterator[None]:
    """Ledgers opened inside for writing are on that disk."""

    class Connection(REAL):
        def __init__(self, filename: str) -> None:
            super().__init__(filename, vfs=NAME)
            self.pragma("locking_mode", "exclusive")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apsw, "Connection", Connection)
        yield
    disk.unregister()
