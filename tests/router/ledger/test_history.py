"""Any history of records and restarts, against a model of the ledger in a dozen lines."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.ledger import Adjustment, JobNote, Ledger, LedgerRefused, Opening, Reports, Settlement, State, verify
from tests.router.ledger.builders import NOON, opening, settlement

IDS = st.sampled_from(["a", "b", "c", "d"])
NANOS = st.integers(0, 2**40)
CURRENCIES = st.sampled_from(["USD", "EUR"])
RECORDS = st.one_of(
    st.builds(lambda i, n, c: opening(i, estimate_nanos=n, currency=c), IDS, NANOS, CURRENCIES),
    st.builds(
        lambda i, s, n, c: settlement(i, s, amount_nanos=n, currency=c),
        IDS,
        st.sampled_from([State.SETTLED, State.SETTLED, State.UNKNOWN, State.VOID, State.OPEN]),
        st.one_of(st.just(0), NANOS),
        CURRENCIES,
    ),
    st.builds(lambda i: JobNote(i, "job", {"url": "u"}, NOON), IDS),
    st.builds(lambda i, n, c: Adjustment(i, n, c, "why", "who", NOON), IDS, st.integers(-(2**40), 2**40), CURRENCIES),
)
RESTART = None
HISTORIES = st.lists(st.one_of(st.lists(RECORDS, min_size=1, max_size=6), st.just(RESTART)), max_size=12)


@dataclass
class Model:
    """What a ledger is, without any disk: state, money booked, money held, and its currency, per attempt."""

    attempts: dict[str, tuple[State, int, int, str]] = field(default_factory=dict)

    def admits(self, record: object) -> bool:
        match record:
            case Opening(attempt_id=key):
                if key in self.attempts:
                    return False
                self.attempts[key] = (State.OPEN, 0, record.estimate_nanos, record.currency)
            case Settlement(attempt_id=key, state=state):
                now = self.attempts.get(key, (State.SETTLED,))[0]
                legal = {
                    State.OPEN: (State.SETTLED, State.VOID, State.UNKNOWN),
                    State.UNKNOWN: (State.SETTLED, State.VOID),
                }
                if state not in legal.get(now, ()) or (state is State.VOID and record.amount_nanos):
                    return False
                unknown = state is State.UNKNOWN
                amount = record.amount_nanos
                self.attempts[key] = (state, 0 if unknown else amount, amount if unknown else 0, record.currency)
            case JobNote(attempt_id=key):
                return self.attempts.get(key, (State.VOID,))[0] in (State.OPEN, State.UNKNOWN)
            case Adjustment(attempt_id=key):
                state, cost, held, currency = self.attempts.get(key, (State.OPEN, 0, 0, ""))
                if state not in (State.SETTLED, State.VOID) or currency != record.currency:
                    return False
                self.attempts[key] = (state, cost + record.amount_nanos, held, currency)
        return True

    def restart(self) -> set[str]:
        lost = {key for key, (state, *_) in self.attempts.items() if state is State.OPEN}
        for key in lost:
            self.attempts[key] = (State.UNKNOWN, *self.attempts[key][1:])
        return lost


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HISTORIES)
def test_the_ledger_does_what_the_model_does(history: list[list[object] | None]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_play(Path(directory) / "ledger.db", history))


async def _play(path: Path, history: list[list[object] | None]) -> None:
    model = Model()
    ledger = Ledger(path, reserve_bytes=0)
    await ledger.start()
    for batch in history:
        if batch is RESTART:
            await ledger.close()
            ledger = Ledger(path, reserve_bytes=0)
            assert {one.opening.attempt_id for one in await ledger.start()} == model.restart()
            continue
        results = await asyncio.gather(*(_write(ledger, record) for record in batch), return_exceptions=True)
        for record, result in zip(batch, results, strict=True):
            if model.admits(record):
                assert result is None
            else:
                assert isinstance(result, LedgerRefused)
    states = [state for state, *_ in model.attempts.values()]
    assert ledger.open_attempts == states.count(State.OPEN)
    unresolved = {one.opening.attempt_id: one.state for one in await ledger.unresolved()}
    assert unresolved == {
        key: state for key, (state, *_) in model.attempts.items() if state in (State.OPEN, State.UNKNOWN)
    }
    await ledger.close()
    with Reports(path) as reports:
        for key, expected in model.attempts.items():
            record = reports.request(f"req_{key}")
            assert record is not None
            (found,) = record.attempts
            assert (found.state, found.cost_nanos, found.unsettled_nanos, found.currency) == expected
        for total in reports.totals():
            mine = [one for one in model.attempts.values() if one[3] == total.currency]
            assert total.attempts == len(mine)
            assert total.cost_nanos == sum(cost for _, cost, _, _ in mine)
            assert total.unsettled_nanos == sum(held for _, _, held, _ in mine)
    assert verify(path).problems == ()


async def _write(ledger: Ledger, record: object) -> None:
    match record:
        case Opening():
            await ledger.open(record)
        case Settlement():
            await ledger.settle(record)
        case JobNote():
            await ledger.job(record.attempt_id, record.job_id, record.state)
        case Adjustment(key, amount, currency, reason, actor, at):
            await ledger.adjust(key, amount, currency, reason, actor, at)
