"""The official client with the retries it comes with, and upstream calls that are billed and then fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import APITimeoutError, InternalServerError, OpenAI

from router.ledger import Reports, State
from tests.integration.process import KEY, RouterProcess
from tests.integration.test_commands import pixelroute

PROMPT = "A serene mountain landscape at sunset"
PINNED = "openai/gpt-image-2"


@pytest.fixture(scope="module")
def own_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    """One for this module alone: what fails here is ejected, and must not be missed elsewhere."""
    process = RouterProcess(tmp_path_factory.mktemp("billed-once"))
    yield process
    assert process.stop() == 0


@pytest.fixture
def router(own_router: RouterProcess) -> RouterProcess:
    own_router.reset()
    return own_router


def official(router: RouterProcess, **more: Any) -> OpenAI:
    return OpenAI(base_url=f"{router.base}/v1", api_key=KEY, **more)


def heard(router: RouterProcess) -> int:
    """Requests for pictures that have reached the router."""
    return sum(line.get("operation") in ("generate", "edit") for line in router.events("request"))


@pytest.mark.parametrize(
    ("fault", "params", "status"),
    [
        ("server_error", {"billed": 1, "status": 500}, 502),
        ("server_error", {"billed": 1, "status": 502}, 502),
        ("server_error", {"billed": 1, "status": 503}, 502),
        ("server_error", {"billed": 1, "status": 504}, 502),
        ("reset", {"billed": 1}, 504),
        ("cut", {}, 504),
        ("truncated", {}, 504),
        ("empty", {}, 502),
        ("corrupt", {}, 502),
    ],
)
def test_one_call_of_the_user_is_billed_once(
    router: RouterProcess, fault: str, params: dict[str, Any], status: int
) -> None:
    router.fault("openai", fault, **params)
    before = heard(router)
    with official(router) as client, pytest.raises(InternalServerError) as caught:
        client.images.generate(model=PINNED, prompt=PROMPT)
    assert caught.value.status_code == status
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert router.calls()["openai"]["total"] == 1
    assert router.calls()["openai"]["billed"] == 1
    router.line(caught.value.response)  # which stands after those of all earlier requests
    assert heard(router) == before + 1  # the client did not send it again
    with Reports(router.ledger_url) as reports:
        found = reports.request(caught.value.request_id or "")
    assert found is not None
    [attempt] = found.attempts
    assert attempt.state in (State.UNKNOWN, State.SETTLED)
    invoiced = router.invoice()["providers"]["openai"]["total_nanos"]
    assert attempt.cost_nanos + attempt.unsettled_nanos >= invoiced  # never less than what the provider asks for


def test_a_failure_that_another_target_makes_good_is_billed_once_at_each(router: RouterProcess) -> None:
    """Which only happens as far as the waste budget goes, and is told."""
    router.fault("together", "server_error", billed=1, status=500)
    with official(router) as client:
        answer = client.images.generate(
            model="flux.2-dev", prompt=PROMPT, extra_body={"provider": {"order": ["together", "fal"]}}
        )
    assert [router.calls()[name]["billed"] for name in ("together", "fal")] == [1, 1]
    told = answer.metadata["attempts"]  # type: ignore[attr-defined]
    assert [(attempt["provider"], attempt["billed"]) for attempt in told] == [("together", "maybe"), ("fal", "yes")]


def test_a_client_that_gives_up_early_is_answered_before_it_does(router: RouterProcess) -> None:
    """Its own timeout would end in a second request, for it cannot know what the first one cost."""
    router.fault("openai", "hang", seconds=30)
    began = time.monotonic()
    with official(router, timeout=2.0) as client, pytest.raises(InternalServerError) as caught:
        client.images.generate(model=PINNED, prompt=PROMPT)
    assert not isinstance(caught.value, APITimeoutError)
    assert (caught.value.status_code, caught.value.code) == (504, "timeout")
    assert 1.5 < time.monotonic() - began < 4.0
    assert router.calls()["openai"]["total"] == 1


def test_what_costs_nothing_is_sent_again_by_the_client(router: RouterProcess) -> None:
    """The other side: no 429 of ours keeps a client from the retries that help it."""
    router.fault("openai", "rate_limited", retry_after=1, count=3)
    with official(router) as client:
        answer = client.images.generate(model=PINNED, prompt=PROMPT)
    assert answer.metadata["provider"] == "openai"  # type: ignore[attr-defined]
    assert router.calls()["openai"]["billed"] == 1


REFUSED: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    ("POST", "/v1/images/generations", {"prompt": PROMPT, "model": name}, {})
    for name in (
        "sandbox-down",
        "sandbox-rate-limited",
        "sandbox-refused",
        "sandbox-text-only",
        "sandbox-billed-error",
        "nothing",
    )
] + [
    ("POST", "/v1/images/generations", {"prompt": PROMPT, "model": PINNED, "provider": {"max_cost": 0}}, {}),
    ("POST", "/v1/images/generations", {"prompt": PROMPT, "n": 99}, {}),
    ("POST", "/v1/images/generations", {}, {"content-type": "text/plain"}),
    ("POST", "/v1/images/generations", {}, {"authorization": "Bearer wrong"}),
    ("POST", "/v1/images/edits", {"prompt": PROMPT}, {}),
    ("GET", "/v1/images/generations", {}, {}),
    ("GET", "/v1/models/nothing", {}, {}),
    ("GET", "/v1/requests/nothing", {}, {}),
    ("GET", "/v1/nothing", {}, {}),
    ("POST", "/v1/routing/gpu-fast/nothing/drain", {}, {}),
]


@pytest.mark.parametrize(("method", "path", "body", "headers"), REFUSED)
def test_every_error_says_whether_sending_it_again_can_help(
    router: RouterProcess, method: str, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    sent = {"authorization": f"Bearer {KEY}"} | headers
    answer = httpx.request(
        method, router.base + path, json=body if method == "POST" else None, headers=sent, timeout=30
    )
    assert answer.status_code >= 400
    assert answer.headers.get("x-should-retry") in ("true", "false") or answer.headers["retry-after"]
    assert answer.json()["error"]["message"]


def test_a_target_that_hangs_is_rescued_and_both_calls_are_in_the_books(router: RouterProcess) -> None:
    body = {"model": "sandbox-rescue", "prompt": PROMPT, "provider": {"order": ["gpu-fast"]}}
    began = time.monotonic()
    answer = router.post("/v1/images/generations", body, headers={"x-pixelroute-deadline-s": "30"})
    assert answer.status_code == 200, answer.text
    assert time.monotonic() - began < 20
    told = answer.json()
    assert told["metadata"]["executed_model"] == "gpu-spot/sandbox-rescue"
    attempts = [(attempt["role"], attempt["outcome"]) for attempt in told["metadata"]["attempts"]]
    assert attempts == [("first", "cancelled"), ("rescue", "success")]
    with Reports(router.ledger_url) as reports:
        found = reports.request(told["id"])
    assert found is not None
    first, rescue = found.attempts
    assert (first.opening.role, first.opening.provider, first.settlement and first.settlement.delivered) == (
        "first", "gpu-fast", False,
    )  # fmt: skip
    assert (first.state, rescue.state) == (State.UNKNOWN, State.SETTLED)
    assert (rescue.opening.role, rescue.opening.provider) == ("rescue", "gpu-spot")
    assert rescue.settlement is not None
    assert rescue.settlement.delivered
    assert router.calls()["gpu-fast"]["total"] == router.calls()["gpu-spot"]["total"] == 1
    page = httpx.get(f"{router.base}/metrics").text
    labels = 'from_provider="gpu-fast",model="sandbox-rescue",to_provider="gpu-spot",won="true"'
    assert f"pixelroute_rescues_total{{{labels}}} 1.0" in page
    said = pixelroute("explain", told["id"], "--ledger", router.ledger_url).stdout
    assert "(rescue)" in said
    assert "cheapest" in said
    assert "fastest" in said


def test_a_job_that_is_stuck_is_cancelled_at_its_provider_when_another_target_has_answered(
    router: RouterProcess,
) -> None:
    router.fault("fal", "stuck")
    body = {"model": "flux.2-dev-turbo", "prompt": PROMPT, "provider": {"order": ["fal"]}}
    answer = router.post("/v1/images/generations", body, headers={"x-pixelroute-deadline-s": "30"})
    assert answer.status_code == 200, answer.text
    told = answer.json()["metadata"]["attempts"]
    assert [(attempt["provider"] == "fal", attempt["role"]) for attempt in told] == [(True, "first"), (False, "rescue")]
    for _ in range(200):  # the client did not wait for it
        endpoints = router.calls()["fal"]["endpoints"]
        if any("cancel" in name for name in endpoints):
            break
        time.sleep(0.02)
    assert sum(count for name, count in endpoints.items() if "cancel" in name) == 1
    assert router.calls()["fal"]["billed"] == 0
