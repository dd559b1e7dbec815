"""kill -9 at random moments: no billed call without a row, nothing settled twice, no promise broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from router.ledger import Ledger, Reports, State, verify

KILLS = 40
ROOT = Path(__file__).parents[3]


@pytest.mark.anyio
async def test_a_killed_router_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    subprocess.run(  # noqa: ASYNC221
        [sys.executable, str(Path(__file__).with_name("crashing.py")), str(path), str(KILLS), "20261120"],
        check=True,
        timeout=60,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )
    billed = (tmp_path / "billed").read_text().split()
    answered = dict(line.split() for line in (tmp_path / "answered").read_text().splitlines())
    assert len(billed) == len(set(billed)) > 200

    # Nobody has restarted it yet: the last life's attempts are shown all the same.
    with Reports(path) as reports:
        left_open = {record.opening.attempt_id for record in reports.unsettled() if record.state is State.OPEN}
    ledger = Ledger(path, reserve_bytes=0)
    found = {one.opening.attempt_id for one in await ledger.start()}
    await ledger.close()
    assert found == left_open

    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    states = {row[0]: row[1] for row in connection.execute("SELECT attempt_id, state FROM standing")}
    restarts = connection.execute("SELECT count(*) FROM entry WHERE evidence = 'restart'").get
    outcomes = connection.execute(
        "SELECT max(n) FROM (SELECT count(*) AS n FROM entry WHERE kind IN ('settled', 'void') GROUP BY attempt)"
    ).get
    connection.close()
    assert set(billed) - set(states) == set()  # 0 billed calls without a row
    assert {attempt_id: states[attempt_id] for attempt_id in answered} == answered  # every answer had been booked
    assert "open" not in states.values()
    assert restarts > KILLS / 2  # the kills did hit calls half-way
    assert outcomes == 1
    assert verify(path).problems == ()
    with Reports(path) as reports:
        (total,) = reports.totals()
        assert total.attempts == len(states)
        assert total.cost_nanos == 8_000_000 * list(states.values()).count("settled")
        assert total.unsettled_nanos == 8_000_000 * list(states.values()).count("unknown")
        assert total.unsettled == len(reports.unsettled())
