"""The ledger as a state machine over its file: admits records, refuses contradictions, commits them together.

Synchronous and single-threaded; ``store`` runs it in the writer thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from itertools import chain
from pathlib import Path

import apsw

from router.ledger import rows
from router.ledger.database import LedgerRefused, connect_writer
from router.ledger.entry import Adjustment, JobNote, Opening, Settlement, State
from router.records import record

Record = Opening | JobNote | Settlement | Adjustment
Outcome = LedgerRefused | None

CHECKPOINT_PAGES = 4096  # of the WAL, 16 MB: rare enough that few commits wait behind one, small enough to recover fast


@record
class Standing:
    """Where an attempt stands: its row, its state, the amount held or booked for it."""

    seq: int
    state: State
    nanos: int
    currency: str


@dataclass(slots=True)
class _Draft:
    """A transaction in the making: the rows to insert, and what the journal will know once they are durable."""

    seq: int
    hash: bytes
    standings: dict[str, Standing] = field(default_factory=dict)
    rows: dict[str, list[rows.Row]] = field(default_factory=dict)  # by table


class Journal:
    """The ledger's file, the end of its chain, and in memory every attempt whose state can still change."""

    def __init__(self, path: Path) -> None:
        self._db = connect_writer(path)
        self._cursor = self._db.cursor()
        self._seq, self._hash = self._head()
        self._live = self._load()
        self.open_attempts = sum(standing.state is State.OPEN for standing in self._live.values())

    def close(self) -> None:
        self._db.close()

    def identity(self) -> str:
        """The hash of the first mark, which every later row is chained to: no other ledger has it."""
        first: bytes = self._db.execute("SELECT hash FROM mark ORDER BY seq LIMIT 1").get
        return first.hex()[:16]

    def left_open(self) -> dict[str, Standing]:
        """Attempts that are neither settled, void nor unknown, by id."""
        return {key: standing for key, standing in self._live.items() if standing.state is State.OPEN}

    def commit(self, records: Sequence[Record], mark: tuple[str, datetime] | None = None) -> list[Outcome]:
        """Make all records durable in one transaction; the answer says for each whether it was refused instead.

        apsw.Error if the transaction failed: then nothing of it is in the ledger, and all of it may be tried again.
        """
        draft = _Draft(self._seq, self._hash)
        if mark is not None:
            _chain(draft, "mark", [[rows.utc_text(mark[1]), mark[0]]])
        outcomes = [self._draft(record, draft) for record in records]
        if draft.seq > self._seq:
            alone = draft.seq == self._seq + 1  # one row is a transaction by itself, with a third of the statements
            try:
                with nullcontext() if alone else self._db:
                    self._insert(draft)
            except _UNFIT:
                # Some record is one that only the database could tell to be wrong: an attempt id that was resolved
                # long ago, a number of the wrong type. It must not take its neighbours with it.
                return self._commit_singly(records, mark)
            self._adopt(draft)
        return outcomes

    def checkpoint(self) -> None:
        """Move the WAL into the database when it has grown by so much. apsw.Error if it fails.

        Never waits for readers: what one of them still needs is moved the next time.
        """
        written, _ = self._db.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)
        if written >= CHECKPOINT_PAGES:
            self._db.wal_checkpoint()
            self._db.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE, True)  # counted from zero again

    def _commit_singly(self, records: Sequence[Record], mark: tuple[str, datetime] | None) -> list[Outcome]:
        """One transaction still, with a savepoint around each record."""
        outcomes: list[Outcome] = []
        whole = _Draft(self._seq, self._hash)
        with self._db:
            if mark is not None:
                _chain(whole, "mark", [[rows.utc_text(mark[1]), mark[0]]])
                self._insert(whole)
            for record in records:
                draft = _Draft(whole.seq, whole.hash, whole.standings.copy())
                outcome = self._draft(record, draft)
                if outcome is None:
                    try:
                        with self._db:
                            self._insert(draft)
                        whole = draft
                    except _UNFIT as error:
                        outcome = LedgerRefused(f"attempt {record.attempt_id}: {error}")
                outcomes.append(outcome)
        self._adopt(whole)
        return outcomes

    def _draft(self, record: Record, draft: _Draft) -> Outcome:
        """Add the record's rows to the draft, or say why it is refused."""
        try:
            table, made, standing = self._admit(record, draft)
            _chain(draft, table, made)
        except LedgerRefused as refusal:
            return refusal
        except Exception as error:  # it cannot be kept exactly: a float, a naive time, broken Unicode
            return LedgerRefused(f"attempt {record.attempt_id}: {error}")
        draft.standings[record.attempt_id] = standing
        return None

    def _insert(self, draft: _Draft) -> None:
        for table in rows.TABLES:  # attempts first: other rows refer to them
            made, at = draft.rows.get(table, ()), 0
            while at < len(made):
                count = min(_MOST_TOGETHER, 1 << (len(made) - at).bit_length() - 1)
                self._cursor.execute(_insert(table, count), tuple(chain.from_iterable(made[at : at + count])))
                at += count

    def _adopt(self, draft: _Draft) -> None:
        self._seq, self._hash = draft.seq, draft.hash
        for attempt_id, standing in draft.standings.items():
            before = self._live.pop(attempt_id, None)
            if standing.state in _CHANGING:
                self._live[attempt_id] = standing
            self.open_attempts += standing.state is State.OPEN
            self.open_attempts -= before is not None and before.state is State.OPEN

    def _admit(self, record: Record, draft: _Draft) -> tuple[str, list[rows.Row], Standing]:
        """The rows that a record becomes, and where its attempt stands afterwards; LedgerRefused if it may not."""
        attempt_id = record.attempt_id
        now = draft.standings.get(attempt_id) or self._live.get(attempt_id)
        if isinstance(record, Opening):
            if now is not None:
                raise LedgerRefused(f"attempt {attempt_id} was opened before")
            standing = Standing(draft.seq + 1, State.OPEN, record.estimate_nanos, record.currency)
            return "attempt", [rows.attempt_row(record)], standing
        now = now or self._resolved(attempt_id)
        if isinstance(record, Settlement):
            return _settle(record, now)
        if isinstance(record, JobNote):
            if now.state not in _CHANGING:
                raise LedgerRefused(f"attempt {attempt_id} is {now.state}: no job can be running for it")
            return "job", [rows.job_row(now.seq, record)], now
        if now.state in _CHANGING:
            raise LedgerRefused(f"attempt {attempt_id} is {now.state}: settle it, there is nothing to adjust yet")
        if record.currency != now.currency:
            raise LedgerRefused(f"attempt {attempt_id} is booked in {now.currency}, not in {record.currency}")
        return "entry", [rows.adjusted_row(now.seq, record)], now

    def _resolved(self, attempt_id: str) -> Standing:
        for seq, state, cost, currency in self._db.execute(
            "SELECT seq, state, cost_nanos, currency FROM standing WHERE attempt_id = ?", (attempt_id,)
        ):
            return Standing(seq, State(state), cost, currency)
        raise LedgerRefused(f"attempt {attempt_id} was never opened")

    def _head(self) -> tuple[int, bytes]:
        seq, hash_ = 0, rows.GENESIS
        for table in rows.TABLES:
            for row in self._db.execute(f"SELECT seq, hash FROM {table} ORDER BY seq DESC LIMIT 1"):  # noqa: S608 - ours
                seq, hash_ = max((seq, hash_), row)
        return seq, hash_

    def _load(self) -> dict[str, Standing]:
        found = self._db.execute("SELECT attempt_id, seq, state, held_nanos, currency FROM unresolved")
        return {attempt_id: Standing(seq, State(state), held, cur) for attempt_id, seq, state, held, cur in found}


_CHANGING = (State.OPEN, State.UNKNOWN)
_UNFIT = (apsw.ConstraintError, apsw.MismatchError, apsw.TooBigError, ValueError, TypeError, OverflowError)
_MOST_TOGETHER = 64  # rows in one statement, which come in powers of two so that few have to be prepared


@cache
def _insert(table: str, count: int) -> str:
    """A statement for so many rows, all columns in the schema's order: SQLite gives up the interpreter lock for each
    statement, and getting it back from a busy event loop costs more than inserting a row.
    """
    values = f"({','.join('?' * (len(rows.TABLES[table]) + 1))})"
    return f"INSERT INTO {table} VALUES {','.join([values] * count)}"  # noqa: S608 - ours


def _settle(record: Settlement, now: Standing) -> tuple[str, list[rows.Row], Standing]:
    attempt_id, state = record.attempt_id, record.state
    if now.state not in _CHANGING:
        raise LedgerRefused(f"attempt {attempt_id} is already {now.state}")
    if state is State.OPEN or state is now.state:
        raise LedgerRefused(f"attempt {attempt_id} is {now.state} and cannot become {state}")
    if state is State.VOID and record.amount_nanos:
        raise LedgerRefused(f"attempt {attempt_id}: what was never billed costs nothing")
    made = [rows.settled_row(now.seq, record)]
    if now.state is State.UNKNOWN:  # what it was held at goes back first
        made.insert(0, rows.released_row(now.seq, now.nanos, now.currency, record))
    return "entry", made, Standing(now.seq, state, record.amount_nanos, record.currency)


def _chain(draft: _Draft, table: str, made: list[rows.Row]) -> None:
    """Number and hash the rows; the draft changes only when all of them could be."""
    seq, hash_ = draft.seq, draft.hash
    for row in made:
        seq += 1
        row.insert(0, seq)
        hash_ = rows.digest(hash_, table, row)
        row.append(hash_)
    draft.seq, draft.hash = seq, hash_
    draft.rows.setdefault(table, []).extend(made)
