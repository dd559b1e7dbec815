"""Questions to the ledger: costs by any cut, single requests, what is unsettled, warm-start samples.

Reads through a connection of its own, beside a running router. Days are UTC. Sums are of unrounded integer nanos, per
currency; currencies are never added together. An attempt counts in the period in which it was opened, with all that
was booked for it later.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

from pricing import MEGAPIXEL, Usage, money
from router.ledger import rows
from router.ledger.database import connect_reader, ledger_path
from router.ledger.entry import JobNote, Opening, Settlement, State, Unresolved, usage_from_dict

CUTS: Mapping[str, str] = {
    "provider": "provider",
    "model": "model",
    "target": "target",
    "operation": "operation",
    "key": "key",
    "team": "team",
    "project": "project",
    "user": "user",
    "role": "role",
    "hour": "substr(opened_at, 1, 13)",
    "day": "substr(opened_at, 1, 10)",
    "month": "substr(opened_at, 1, 7)",
}
"""What ``costs`` can group by, beside ``tag:NAME``, and the expression that does it."""

PAGE = 1000  # rows read at once by the iterators: no long transaction that keeps the WAL from shrinking


@dataclass(frozen=True, slots=True)
class CostRow:
    """One group of a cost report, in one currency. Amounts in nanos; ``group`` None: no owner was given."""

    group: str | None
    currency: str
    requests: int  # distinct; a request with attempts in two groups counts in both, and once in the total
    attempts: int
    images: int  # made, measured
    output_pixels: int
    metered_nanomp: int  # 1e-9 megapixels of components priced by the megapixel, exact ...
    billed_nanomp: int  # ... and as billed after rounding
    cost_nanos: int  # settled and adjusted
    unsettled: int  # attempts whose outcome is not known
    unsettled_nanos: int  # the same at their estimate; not part of cost_nanos
    undelivered_nanos: int  # the part of cost_nanos that no client got a picture for
    list_nanos: int  # cost at list prices
    unpriced: int  # attempts without a price: their money is missing from the sums

    @property
    def cost(self) -> Decimal:
        return money(self.cost_nanos)

    @property
    def megapixels(self) -> Decimal:
        """Made, in units of 2**20 pixels, whatever they were priced by."""
        return Decimal(self.output_pixels) / MEGAPIXEL


@dataclass(frozen=True, slots=True)
class CostReport:
    """Rows by group, dearest first (periods in their order), and one total per currency over the same attempts."""

    by: str
    rows: tuple[CostRow, ...]
    totals: tuple[CostRow, ...]


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """One entry as it stands in the ledger; ``settlement`` is set for the kinds settled, void and unknown."""

    seq: int
    kind: str  # settled, void, unknown, released, adjusted
    recorded_at: datetime
    amount_nanos: int  # signed
    currency: str
    settlement: Settlement | None
    evidence: str
    actor: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """An attempt with everything that was recorded for it."""

    opening: Opening
    state: State
    currency: str
    cost_nanos: int
    unsettled_nanos: int
    jobs: tuple[JobNote, ...]
    entries: tuple[EntryRecord, ...]

    @property
    def settlement(self) -> Settlement | None:
        """The last word on the attempt so far, if there is one."""
        return next((entry.settlement for entry in reversed(self.entries) if entry.settlement), None)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A client's request: its attempts in their order. The first attempt's opening says what was asked."""

    request_id: str
    attempts: tuple[AttemptRecord, ...]

    @property
    def delivered(self) -> AttemptRecord | None:
        """The attempt that answered the client."""
        return next((a for a in self.attempts if a.settlement is not None and a.settlement.delivered), None)


@dataclass(frozen=True, slots=True)
class SettledUsage:
    """A settled attempt for rating again: what was consumed, what was in force, what was charged."""

    opening: Opening
    settlement: Settlement
    usage: Usage


class Sample(NamedTuple):
    """One finished attempt for the routing's statistics."""

    target: str
    operation: str
    images: int  # made, or asked for when none came
    megapixels: float | None  # of those pictures together; None if no size is known
    outcome: str
    latency_ms: int | None
    at: datetime


_SEEN = "e.evidence = 'response' AND e.kind IN ('settled', 'void', 'unknown')"
_PERIODS = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}


def group_of(opening: Opening, by: str) -> str:
    """The group of one attempt, as ``costs`` would name it; empty if nobody owns it. ValueError for unknown ``by``."""
    if by.startswith("tag:"):
        return opening.tags.get(by[4:], "")
    if by not in CUTS:
        raise ValueError(f"by: {by!r} is none of {', '.join(CUTS)}, tag:NAME")
    if by in _PERIODS:
        return opening.opened_at.strftime(_PERIODS[by])
    return getattr(opening, by) or ""


class Reports:
    """Read-only view of a ledger, given by its URL or path. May be shared between threads; answers one at a time.

    LedgerError if there is no ledger. Close it, or use it as a context manager.
    """

    def __init__(self, source: str | Path) -> None:
        path = ledger_path(source) if isinstance(source, str) and "://" in source else Path(source)
        self._lock = threading.Lock()
        self._db = connect_reader(path)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def report(self, by: str, since: datetime | None = None, until: datetime | None = None) -> CostReport:
        """Costs of the attempts opened in [since, until), by one of ``CUTS`` or ``tag:NAME``, with totals.

        Rows and totals are of one moment. ValueError if ``by`` is not known.
        """
        binding = _period(since, until)
        if by.startswith("tag:"):
            key = "(SELECT value FROM json_each(tags) WHERE key = :tag)"
            binding["tag"] = by[4:]
        elif by in CUTS:
            key = CUTS[by]
        else:
            raise ValueError(f"by: {by!r} is none of {', '.join(CUTS)}, tag:NAME")
        ordered = "grp" if by in ("hour", "day", "month") else "cost DESC, grp"
        with self._snapshot():
            groups = self._costs(f"{key} AS grp", "GROUP BY grp, currency", f"ORDER BY currency, {ordered}", binding)
            totals = self._costs("NULL AS grp", "GROUP BY currency", "ORDER BY currency", binding)
        return CostReport(by, groups, totals)

    def costs(self, by: str, since: datetime | None = None, until: datetime | None = None) -> list[CostRow]:
        """The rows of ``report``."""
        return list(self.report(by, since, until).rows)

    def totals(self, since: datetime | None = None, until: datetime | None = None) -> list[CostRow]:
        """One row per currency over all attempts opened in [since, until)."""
        with self._lock:
            return list(self._costs("NULL AS grp", "GROUP BY currency", "ORDER BY currency", _period(since, until)))

    def unsettled(self) -> list[AttemptRecord]:
        """Attempts whose outcome is not known, oldest first: still running, or their process died."""
        with self._snapshot():
            return self._attempts("seq IN (SELECT seq FROM unresolved)", {})

    def unresolved(self) -> list[Unresolved]:
        """The same as the resume after a restart needs them."""
        return [Unresolved(attempt.opening, attempt.state, attempt.jobs) for attempt in self.unsettled()]

    def request(self, request_id: str) -> RequestRecord | None:
        """A request with all its attempts, entries, jobs and routing decisions; None if it is not in the ledger."""
        with self._snapshot():
            attempts = self._attempts("request_id = :request", {"request": request_id})
        return RequestRecord(request_id, tuple(attempts)) if attempts else None

    def recent(self, limit: int) -> list[RequestRecord]:
        """The requests that began last, latest first."""
        with self._snapshot():
            ids: dict[str, None] = {}
            for (request_id,) in self._db.execute("SELECT request_id FROM attempt ORDER BY seq DESC"):
                if len(ids) == limit and request_id not in ids:
                    break
                ids[request_id] = None
            found: dict[str, list[AttemptRecord]] = {request_id: [] for request_id in ids}
            wanted = {"ids": orjson.dumps(list(ids)).decode()}
            for attempt in self._attempts("request_id IN (SELECT value FROM json_each(:ids))", wanted):
                found[attempt.opening.request_id].append(attempt)
        return [RequestRecord(request_id, tuple(attempts)) for request_id, attempts in found.items()]

    def usages(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[SettledUsage]:
        """Settled attempts opened in [since, until) in the ledger's order, for rating them again."""
        for attempt, entry in self._outcomes("e.kind = 'settled'", since, until):
            settled = rows.settlement(entry, attempt["id"])
            yield SettledUsage(rows.opening(attempt), settled, usage_from_dict(settled.usage))

    def answered(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[tuple[Opening, Settlement]]:
        """Attempts opened in [since, until) whose end was seen, with what was booked then, in the ledger's order."""
        for attempt, entry in self._outcomes(_SEEN, since, until):
            yield rows.opening(attempt), rows.settlement(entry, attempt["id"])

    def count(self, since: datetime | None = None, until: datetime | None = None) -> int:
        """Requests with an attempt opened in [since, until)."""
        period = "opened_at >= :since AND opened_at < :until"
        with self._lock:
            found = self._db.execute(
                f"SELECT count(DISTINCT request_id) FROM attempt WHERE {period}",  # noqa: S608 - a constant
                _period(since, until),
            ).get
        return int(found)

    def samples(self, since: datetime | None = None) -> Iterator[Sample]:
        """Attempts opened since then whose end was seen, in the ledger's order: not those that a crash cut off."""
        for attempt, entry in self._outcomes(_SEEN, since, None):
            images, pixels = entry["images"], entry["output_pixels"]
            if not images:
                size = orjson.loads(attempt["expected"]).get("size")
                images, pixels = attempt["images"], rows.pixels(size) * attempt["images"] if size else 0
            yield Sample(
                attempt["target"],
                attempt["operation"],
                images,
                pixels / MEGAPIXEL if pixels else None,
                entry["outcome"],
                entry["latency_ms"],
                rows.utc_time(entry["recorded_at"]),
            )

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """All that is read inside is of one moment."""
        with self._lock:
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    def _costs(self, key: str, group: str, order: str, binding: dict[str, Any]) -> tuple[CostRow, ...]:
        found = self._db.execute(
            f"""
            SELECT {key}, currency, count(DISTINCT request_id), count(*), sum(images), sum(output_pixels),
              sum(metered_nanomp), sum(billed_nanomp), sum(cost_nanos) AS cost,
              count(*) FILTER (WHERE state IN ('open', 'unknown')), sum(unsettled_nanos),
              coalesce(sum(cost_nanos) FILTER (WHERE NOT delivered), 0), sum(list_nanos),
              count(*) FILTER (WHERE basis = 'unpriced')
            FROM standing WHERE opened_at >= :since AND opened_at < :until {group} {order}
            """,  # noqa: S608 - names from our own tables, values bound
            binding,
        )
        return tuple(CostRow(None if row[0] is None else str(row[0]), *row[1:]) for row in found)

    def _attempts(self, condition: str, binding: dict[str, Any]) -> list[AttemptRecord]:
        """The attempts that meet a condition on ``attempt``, oldest first."""
        records = []
        for attempt in self._named("attempt", f"{condition} ORDER BY seq", binding):
            here = {"seq": attempt["seq"]}
            ((state, currency, cost, unsettled),) = self._db.execute(
                "SELECT state, currency, cost_nanos, unsettled_nanos FROM standing WHERE seq = :seq", here
            )
            jobs = tuple(
                JobNote(attempt["id"], job["job_id"], orjson.loads(job["state"]), rows.utc_time(job["recorded_at"]))
                for job in self._named("job", "attempt = :seq ORDER BY seq", here)
            )
            entries = tuple(
                _entry(entry, attempt["id"]) for entry in self._named("entry", "attempt = :seq ORDER BY seq", here)
            )
            records.append(AttemptRecord(rows.opening(attempt), State(state), currency, cost, unsettled, jobs, entries))
        return records

    def _named(self, table: str, condition: str, binding: dict[str, Any]) -> Iterator[dict[str, Any]]:
        columns = rows.TABLES[table]
        found = self._db.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE {condition}", binding)  # noqa: S608 - ours
        return (dict(zip(columns, row, strict=True)) for row in found)

    def _outcomes(
        self, condition: str, since: datetime | None, until: datetime | None
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Attempts in the ledger's order, each with the one entry that meets the condition, page by page."""
        attempts, entries = rows.TABLES["attempt"], rows.TABLES["entry"]
        columns = [*(f"a.{column}" for column in attempts), *(f"e.{column}" for column in entries)]
        # The unary plus keeps the walk on seq: by time, every page would sort all that is left.
        statement = f"""
            SELECT {", ".join(columns)} FROM attempt a JOIN entry e ON e.attempt = a.seq
            WHERE a.seq > :after AND +a.opened_at >= :since AND +a.opened_at < :until AND {condition}
            ORDER BY a.seq LIMIT {PAGE}
            """  # noqa: S608 - names from our own tables, values bound
        binding: dict[str, Any] = _period(since, until)
        with self._lock:
            first = self._db.execute("SELECT min(seq) FROM attempt WHERE opened_at >= :since", binding).get
        if first is None:
            return
        binding["after"] = first - 1
        while True:
            with self._lock:
                page = self._db.execute(statement, binding).fetchall()
            for row in page:
                attempt = dict(zip(attempts, row, strict=False))
                yield attempt, dict(zip(entries, row[len(attempts) :], strict=True))
            if len(page) < PAGE:
                return
            binding["after"] = page[-1][0]


def _entry(row: Mapping[str, Any], attempt_id: str) -> EntryRecord:
    return EntryRecord(
        seq=row["seq"],
        kind=row["kind"],
        recorded_at=rows.utc_time(row["recorded_at"]),
        amount_nanos=row["amount_nanos"],
        currency=row["currency"],
        settlement=rows.settlement(row, attempt_id) if row["items"] is not None else None,
        evidence=row["evidence"],
        actor=row["actor"],
        reason=row["reason"],
    )


def _period(since: datetime | None, until: datetime | None) -> dict[str, Any]:
    """Bounds that compare as text; an open end is before or after every time that can be written."""
    return {"since": rows.utc_text(since) if since else "", "until": rows.utc_text(until) if until else "~"}
