"""Two files beside the ledger: the lock that keeps a second writer out, and the room kept for a full disk."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from router.ledger.database import LedgerError


class Lock:
    """Held from construction to ``release``, or to the end of the process however it ends."""

    def __init__(self, ledger: Path) -> None:
        path = ledger.with_name(ledger.name + "-lock")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            who = f"process {holder}" if holder else "another process"
            raise LedgerError(f"{ledger} is being written by {who}; a ledger has one writer") from error
        os.ftruncate(self._file, 0)
        with suppress(OSError):  # on a full disk the lock holds all the same, it just does not say who has it
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._file)  # the file stays: removing it would let two writers lock two different files


class Reserve:
    """Disk space set aside, so that calls already running can settle when the disk is full."""

    def __init__(self, ledger: Path, size: int) -> None:
        self._path = ledger.with_name(ledger.name + "-reserve")
        self._size = size

    def hold(self) -> bool:
        """Make sure that the space is set aside; False if there is no room for it now."""
        if not self._size:
            return True
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return False
        try:
            missing = self._size - os.fstat(file).st_blocks * 512
            if missing > 0:
                disk = os.fstatvfs(file)
                if disk.f_bavail * disk.f_frsize < missing:  # trying would take from others what is left
                    raise OSError
                os.posix_fallocate(file, 0, self._size)
        except OSError:
            self.give()  # a part of it helps nobody
            return False
        finally:
            os.close(file)
        return True

    def give(self) -> None:
        """Hand the space back to the file system."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
