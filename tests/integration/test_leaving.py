"""A real socket, closed while a provider works: what was wanted of that happens there, and in the books."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from router.ledger import Reports
from router.ledger.reports import AttemptRecord
from tests.integration.process import KEY, RouterProcess, until
from tests.integration.test_crash import GENERATE

MODEL = "fal/flux.2-dev-turbo"  # jobs in a queue, which can be called back


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    process = RouterProcess(tmp_path_factory.mktemp("leaving"), speed=0.4)
    yield process
    assert process.stop() == 0
    assert not process.events("unhandled error")


def leave(router: RouterProcess, wish: dict[str, Any]) -> str:
    """Ask for a picture and hang up once a provider has the job; the request's id."""
    seen = len(router.left())
    body = json.dumps({"model": MODEL, "prompt": "a lake"} | wish).encode()
    head = f"POST {GENERATE} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", router.port)) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: router.calls()["fal"]["total"])
    [gone] = until(lambda: router.left()[seen:])
    assert gone["outcome"] == "cancelled"
    return str(gone["request_id"])


def asked(router: RouterProcess, request_id: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {KEY}"}

    def ended() -> dict[str, Any] | None:
        answer: dict[str, Any] = httpx.get(f"{router.base}/v1/requests/{request_id}", headers=headers).json()
        return answer if answer["status"] != "processing" else None

    found: dict[str, Any] = until(ended)
    return found


def booked(router: RouterProcess, request_id: str) -> list[AttemptRecord]:
    with Reports(router.ledger_url) as reports:
        found = reports.request(request_id)
    assert found is not None
    return list(found.attempts)


def called_back(router: RouterProcess) -> bool:
    return any(endpoint.startswith("PUT") for endpoint in router.calls()["fal"]["endpoints"])


def test_t3_a_job_that_nobody_wants_is_called_back_and_booked_at_what_it_may_cost(router: RouterProcess) -> None:
    router.reset()
    router.fault("fal", "stuck")  # it waits in the queue
    request_id = leave(router, {"provider": {"on_disconnect": "cancel"}})
    ended = asked(router, request_id)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "cancelled")
    until(lambda: called_back(router))
    [attempt] = booked(router, request_id)
    assert attempt.settlement is not None
    assert (attempt.state, attempt.settlement.outcome) == ("unknown", "cancelled")
    assert attempt.unsettled_nanos == 8_000_000
    in_flight = 'pixelroute_provider_in_flight{provider="fal"} 0.0'
    assert in_flight in httpx.get(f"{router.base}/metrics").text
    assert "fal" not in router.invoice()["providers"]  # it was free, but fal does not say so: held until its bill tells


def test_t3_else_it_goes_on_and_its_result_can_be_asked_for(router: RouterProcess) -> None:
    router.reset()
    request_id = leave(router, {})
    ended = asked(router, request_id)
    assert (ended["status"], len(ended["response"]["data"])) == ("completed", 1)
    assert not called_back(router)
    assert [attempt.state for attempt in booked(router, request_id)] == ["settled"]
