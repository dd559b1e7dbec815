"""kill -9 in the middle: what may have been billed is shown, what can be known is settled, nothing is bought again."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from router.ledger import Reports
from tests.integration.process import KEY, RouterProcess, until

GENERATE = "/v1/images/generations"


@pytest.fixture
def lone(tmp_path):
    process = RouterProcess(tmp_path, speed=0.02)
    yield process
    if process.process.poll() is None:
        process.kill()


def in_background(router: RouterProcess, model: str, key: str = KEY) -> threading.Thread:
    def send() -> None:
        with contextlib.suppress(httpx.TransportError):  # the router dies
            router.post(GENERATE, {"model": model, "prompt": "a lake"}, key=key)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def states(router: RouterProcess) -> dict[str, int]:
    with Reports(router.ledger_url) as reports:
        found: dict[str, int] = {}
        for request in reports.recent(100):
            for attempt in request.attempts:
                found[attempt.state.value] = found.get(attempt.state.value, 0) + 1
        return found


def test_a_killed_router_leaves_no_billed_call_without_a_row(lone):
    clients = [in_background(lone, "sandbox-hang") for _ in range(4)]
    until(lambda: lone.calls()["gpu-fast"]["total"] == 4)
    lone.kill()
    for client in clients:
        client.join()
    assert states(lone) == {"open": 4}
    lone.start()
    assert states(lone) == {"unknown": 4}
    with Reports(lone.ledger_url) as reports:
        [row] = reports.costs("provider", datetime.now(UTC) - timedelta(days=1))
        assert (row.unsettled, row.unsettled_nanos, row.cost_nanos) == (4, 4 * 12_000_000, 0)
        assert len(reports.unsettled()) == 4
    assert lone.events("unsettled attempts found")[0]["count"] == 4
    assert lone.stop() == 0


def test_running_requests_finish_when_the_router_is_asked_to_stop(lone):
    answers: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: answers.append(lone.post(GENERATE, {"model": "sandbox-slow", "prompt": "a lake"}))
    )
    thread.start()
    until(lambda: lone.calls()["gpu-fast"]["total"] == 1)
    assert lone.stop() == 0
    thread.join()
    assert answers[0].status_code == 200
    assert states(lone) == {"settled": 1}


def test_two_routers_never_write_one_ledger(lone):
    with pytest.raises(AssertionError, match="ledger"):
        RouterProcess(lone.directory)


def test_a_client_that_leaves_pays_for_its_picture(lone):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            lone.base + GENERATE,
            json={"model": "sandbox-slow", "prompt": "a lake"},
            headers={"authorization": "Bearer integration-test-key"},
            timeout=0.1,
        )
    until(lambda: states(lone) == {"settled": 1})
    assert lone.invoice()["total_nanos"] == 12_000_000
    until(lone.left)
