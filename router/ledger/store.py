"""The durable, append-only ledger: one writer thread, many waiters, one fsync for all that wait together.

    async with Ledger.from_url("sqlite:///ledger.db") as ledger:
        await ledger.open(opening)          # on disk before the billable call leaves
        ...
        await ledger.settle(settlement)     # on disk before the client is answered

The event loop only puts records on a queue and awaits futures; encoding, hashing and SQLite happen in the thread, which
takes whatever has gathered, commits it in one transaction and wakes all its waiters at once.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import apsw

from pricing import Basis
from router.ledger.database import LedgerError, ledger_path
from router.ledger.entry import Adjustment, JobNote, Opening, Settlement, State, Unresolved
from router.ledger.files import Lock, Reserve
from router.ledger.journal import Journal, Record, Standing
from router.ledger.reports import Reports, RequestRecord

RESERVE_BYTES = 64 << 20
RETRY_S = 0.5  # between attempts to write while the disk refuses
MAX_BATCH = 512

_NOT_STARTED = "it is not started"

_NO_ROOM = (apsw.FullError, apsw.IOError)  # a quota or a file-size limit shows as the latter

OnCommit = Callable[[int, float, bool], None]


class _Pending:
    """A record on its way to the disk, and who waits for it."""

    __slots__ = ("done", "record", "since")

    def __init__(self, record: Record, done: asyncio.Future[None], since: float) -> None:
        self.record, self.done, self.since = record, done, since


class Ledger:
    """The one writer of a ledger file. Belongs to the event loop that started it.

    ``on_commit(rows, seconds, ok)`` is called on the loop after every transaction, for metrics.
    ``reserve_bytes`` of disk are set aside, so that running calls can settle when the disk is full.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_commit: OnCommit | None = None,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self.path = path
        self.on_commit = on_commit
        self._clock = clock
        self._reserve_bytes = reserve_bytes
        self._queue: queue.SimpleQueue[list[_Pending] | None] = queue.SimpleQueue()
        self._gathered: list[_Pending] = []  # of this turn of the loop
        self._pending: dict[int, _Pending] = {}  # in the order they came
        self._problem: str | None = _NOT_STARTED
        self._closing = False
        self._grace_s = 0.0
        self._mend_at = 0.0
        self.identity = ""  # tells this ledger from all others, wherever its file lies; known once it is started

    @classmethod
    def from_url(cls, url: str) -> Ledger:
        """A ledger for ``sqlite:///relative/path.db`` or ``sqlite:////absolute/path.db``; else ValueError."""
        return cls(ledger_path(url))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> list[Unresolved]:
        """Open or create the file. Attempts that an earlier process left open become unknown, and are returned.

        LedgerError if another process writes it, or it cannot be opened, migrated or written.
        """
        self._loop = asyncio.get_running_loop()
        left = await asyncio.to_thread(self._prepare)
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._run, name="ledger-writer", daemon=True).start()
        return [one for one in await self.unresolved() if one.opening.attempt_id in left] if left else []

    async def close(self, grace_s: float = 10.0) -> None:
        """Write what is queued, for at most ``grace_s`` while the disk refuses, and let go of the file."""
        if self._problem == _NOT_STARTED:
            return
        if not self._closing:
            self._closing, self._grace_s = True, grace_s
            self._hand_over()
            self._queue.put(None)
        await asyncio.shield(self._stopped)

    async def open(self, opening: Opening) -> None:
        """Return when the attempt is on disk. LedgerError if it cannot be: then nothing may be sent.

        If the waiting is cancelled nothing was sent, and the row is followed by a void entry.
        """
        if self._problem is not None:
            raise LedgerError(f"the ledger cannot be written: {self._problem}")
        try:
            await self._submit(opening)
        except asyncio.CancelledError:
            with suppress(LedgerError):
                self._enqueue(self._unsent(opening)).done.add_done_callback(asyncio.Future.exception)
            raise

    async def job(self, attempt_id: str, job_id: str, state: Mapping[str, str]) -> None:
        """Return when an accepted upstream job is on disk. Waits out a fault of the disk."""
        await self._submit(JobNote(attempt_id, job_id, state, self._clock()))

    async def settle(self, settlement: Settlement) -> None:
        """Return when the outcome is on disk. Waits out a fault of the disk; cancelling the waiting loses nothing.

        LedgerRefused if the attempt was never opened or is already resolved.
        """
        await self._submit(settlement)

    async def adjust(
        self, attempt_id: str, amount_nanos: int, currency: str, reason: str, actor: str, at: datetime
    ) -> None:
        """Correct a resolved attempt's cost by a signed amount, with a new entry."""
        await self._submit(Adjustment(attempt_id, amount_nanos, currency, reason, actor, at))

    async def unresolved(self) -> list[Unresolved]:
        """Attempts that are open or unknown, oldest first, with their upstream jobs."""
        return await asyncio.to_thread(self._read_unresolved)

    async def request(self, request_id: str) -> RequestRecord | None:
        """A request with all its attempts as they stand on disk; None if it is not in the ledger."""
        return await asyncio.to_thread(self._read_request, request_id)

    @property
    def problem(self) -> str | None:
        """Why no attempt can be opened now, or None: for readiness."""
        return self._problem

    @property
    def pending(self) -> int:
        """Records that are not yet durable."""
        return len(self._pending)

    def oldest_pending_age_s(self, now: float) -> float:
        """How long the oldest of them has waited at ``now`` (``time.monotonic()``); 0.0 if there is none."""
        for pending in self._pending.values():
            return max(0.0, now - pending.since)
        return 0.0

    @property
    def open_attempts(self) -> int:
        """Attempts on disk that are neither settled, void nor unknown."""
        return self._journal.open_attempts if self._problem != _NOT_STARTED else 0

    async def _submit(self, record: Record) -> None:
        await self._enqueue(record).done

    def _enqueue(self, record: Record) -> _Pending:
        if self._closing or self._problem == _NOT_STARTED:
            raise LedgerError("the ledger is closed" if self._closing else "the ledger is not started")
        pending = _Pending(record, self._loop.create_future(), time.monotonic())
        self._pending[id(pending)] = pending
        if not self._gathered:
            self._loop.call_soon(self._hand_over)
        self._gathered.append(pending)
        return pending

    def _hand_over(self) -> None:
        """Give the writer what one turn of the loop has gathered: waking it costs more than queueing."""
        if self._gathered:
            batch, self._gathered = self._gathered, []
            self._queue.put(batch)

    def _read_unresolved(self) -> list[Unresolved]:
        with Reports(self.path) as reports:
            return reports.unresolved()

    def _read_request(self, request_id: str) -> RequestRecord | None:
        with Reports(self.path) as reports:
            return reports.request(request_id)

    # What follows runs in the writer thread (``_prepare`` in a helper thread, before there is one).

    def _prepare(self) -> set[str]:
        """Lock, open, and resolve what an earlier process left open; the ids of those attempts."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path = self.path.resolve()  # by whatever name it was given, its lock is the same
            self._lock = Lock(self.path)
        except OSError as error:
            raise LedgerError(f"{self.path}: {error.strerror}") from error
        self._reserve = Reserve(self.path, self._reserve_bytes)
        try:
            room = self._reserve.hold()
            self._journal = Journal(self.path)
            try:
                now, left = self._clock(), self._journal.left_open()
                lost = [_lost(attempt_id, standing, now) for attempt_id, standing in left.items()]
                try:
                    self._journal.commit(lost, mark=("start", now))
                except _NO_ROOM:
                    room = False
                    self._reserve.give()
                    self._journal.commit(lost, mark=("start", now))
            except BaseException:
                self._journal.close()
                raise
        except BaseException as error:
            self._lock.release()
            if isinstance(error, apsw.Error):
                raise LedgerError(f"{self.path}: {error}") from error
            raise
        self.identity = self._journal.identity()
        self._problem = None if room else "the disk has no room for the reserve"
        return set(left)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # a defect: nobody may wait for ever, and no attempt may be opened
            self._problem = f"its writer failed: {error!r}"
            raise
        finally:
            self._finish()

    def _serve(self) -> None:
        kept: list[_Pending] = []  # what a fault keeps from the disk; never an opening
        give_up_at: float | None = None
        while give_up_at is None or kept:
            batch, stop = self._take(RETRY_S if kept or self._problem else None)
            if stop:
                give_up_at = time.monotonic() + self._grace_s
            kept = self._write(kept + batch)
            with suppress(apsw.Error):  # a full disk: the WAL goes on growing, from the reserve if need be
                self._journal.checkpoint()
            if give_up_at is not None and kept and time.monotonic() >= give_up_at:
                return

    def _take(self, timeout_s: float | None) -> tuple[list[_Pending], bool]:
        """Everything that has gathered; waits for something if nothing has. True when the ledger is to close."""
        batch: list[_Pending] = []
        with suppress(queue.Empty):
            more = self._queue.get(timeout=timeout_s)
            while more is not None:
                batch += more
                if len(batch) >= MAX_BATCH or self._queue.empty():
                    return batch, False
                more = self._queue.get()
            return batch, True
        return batch, False

    def _write(self, batch: list[_Pending]) -> list[_Pending]:
        """Commit the records; those that must be tried again are returned. An opening is never tried again."""
        if self._problem is not None:
            batch = self._drop_openings(batch)
        error = self._commit(batch)
        if error is not None:
            self._problem = str(error)
            batch = self._drop_openings(batch)
            if isinstance(error, _NO_ROOM):
                self._reserve.give()
                error = self._commit(batch)
            return batch if error is not None else []
        if self._problem is not None and time.monotonic() >= self._mend_at:
            self._mend()
        return []

    def _mend(self) -> None:
        """Open for business again once the reserve is back and a commit has gone through."""
        self._mend_at = time.monotonic() + RETRY_S
        if not self._reserve.hold():
            return
        try:
            self._journal.commit([], mark=("resume", self._clock()))
        except apsw.Error:
            self._reserve.give()
        else:
            self._problem = None

    def _commit(self, batch: list[_Pending]) -> apsw.Error | None:
        if not batch:
            return None
        began = time.perf_counter()
        try:
            outcomes = self._journal.commit([pending.record for pending in batch])
        except apsw.Error as error:
            self._post([], len(batch), time.perf_counter() - began, ok=False)
            return error
        self._post(list(zip(batch, outcomes, strict=True)), len(batch), time.perf_counter() - began, ok=True)
        return None

    def _drop_openings(self, batch: list[_Pending]) -> list[_Pending]:
        openings = [pending for pending in batch if isinstance(pending.record, Opening)]
        self._fail(openings, f"the ledger cannot be written: {self._problem}")
        return [pending for pending in batch if not isinstance(pending.record, Opening)]

    def _fail(self, batch: list[_Pending], message: str) -> None:
        if batch:
            self._post([(pending, LedgerError(message)) for pending in batch], 0, 0.0, ok=False)

    def _finish(self) -> None:
        with suppress(apsw.Error):
            if not self._journal.open_attempts:
                self._journal.commit([], mark=("stop", self._clock()))
        with suppress(apsw.Error):
            self._journal.close()
        self._lock.release()
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        """On the loop, once the writer is gone: whoever still waits, waits for nothing."""
        self._closing = True
        for pending in self._pending.values():
            _wake(pending.done, LedgerError("the ledger was closed before the disk took the record"))
        self._pending.clear()
        _wake(self._stopped, None)

    def _post(
        self, results: Sequence[tuple[_Pending, LedgerError | None]], count: int, seconds: float, *, ok: bool
    ) -> None:
        with suppress(RuntimeError):  # the loop is gone, and with it everyone who waited
            self._loop.call_soon_threadsafe(self._deliver, results, count, seconds, ok)

    def _deliver(
        self, results: Sequence[tuple[_Pending, LedgerError | None]], count: int, seconds: float, ok: bool
    ) -> None:
        """On the loop: wake everyone whose record is settled one way or the other."""
        for pending, error in results:
            del self._pending[id(pending)]
            _wake(pending.done, error)
        if self.on_commit is not None and count:
            with suppress(Exception):  # a metric that fails is no reason to fail a request
                self.on_commit(count, seconds, ok)

    def _unsent(self, opening: Opening) -> Settlement:
        return Settlement(
            attempt_id=opening.attempt_id,
            state=State.VOID,
            recorded_at=self._clock(),
            outcome="cancelled",
            amount_nanos=0,
            list_nanos=0,
            currency=opening.currency,
            basis=Basis.MEASURED,
            error="given up before anything was sent",
            evidence="router",
        )


def _lost(attempt_id: str, standing: Standing, now: datetime) -> Settlement:
    """The entry of an attempt whose process died: it may have been billed."""
    return Settlement(
        attempt_id=attempt_id,
        state=State.UNKNOWN,
        recorded_at=now,
        outcome="cancelled",
        amount_nanos=standing.nanos,
        list_nanos=standing.nanos,
        currency=standing.currency,
        basis=Basis.WORST_CASE,
        error="the router stopped before the outcome was known",
        evidence="restart",
    )


def _wake(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():  # the waiter was cancelled
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
