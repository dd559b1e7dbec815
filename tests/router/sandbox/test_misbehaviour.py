"""Every fault, seen from outside, at the host that shows it most plainly."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.router.sandbox.running import Sandbox, start

BODY = {"model": "flux.2-dev-turbo", "prompt": "a lake", "size": "256x256", "response_format": "b64_json"}


def generate(sandbox: Sandbox, fault: str = "", **fields: Any) -> httpx.Response:
    headers = sandbox.bearer("gpu-fast") | ({"X-Sandbox-Fault": fault} if fault else {})
    return sandbox.http.post(f"{sandbox.base('gpu-fast')}/images/generations", headers=headers, json=BODY | fields)


def pictures(reply: httpx.Response) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))) for item in reply.json()["data"]]


def test_nothing_wrong(sandbox: Sandbox) -> None:
    reply = generate(sandbox)
    assert reply.status_code == 200
    assert [picture.size for picture in pictures(reply)] == [(256, 256)]
    assert sandbox.invoice("gpu-fast")["providers"]["gpu-fast"] == {
        "calls": 1,
        "total": "0.012000000",
        "total_nanos": 12_000_000,
    }


@pytest.mark.parametrize("ask", ["header", "model", "prompt", "control"])
def test_four_ways_to_ask(sandbox: Sandbox, ask: str) -> None:
    if ask == "control":
        sandbox.fault("server_error", provider="gpu-fast", params={"status": 503}, count=1)
    reply = generate(
        sandbox,
        "server_error; status=503" if ask == "header" else "",
        model="flux.2-dev-turbo--server_error:status=503" if ask == "model" else BODY["model"],
        prompt="a lake [fault: server_error; status=503]" if ask == "prompt" else "a lake",
    )
    assert reply.status_code == 503
    assert reply.json()["error"]["type"] == "server_error"
    assert sandbox.billed("gpu-fast") == 0
    assert generate(sandbox).status_code == 200


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("rate_limited", 429, "rate_limit_exceeded"),
        ("429", 429, "rate_limit_exceeded"),
        ("server_error", 500, "server_error"),
        ("502", 502, "server_error"),
        ("down", 503, "server_error"),
        ("failed", 500, "server_error"),
        ("unauthenticated", 401, "invalid_api_key"),
        ("no_credit", 429, "insufficient_quota"),
        ("refused", 400, "moderation_blocked"),
        ("nonsense", 400, "invalid_value"),
    ],
)
def test_error_answers_cost_nothing(sandbox: Sandbox, fault: str, status: int, code: str) -> None:
    reply = generate(sandbox, fault)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert sandbox.billed("gpu-fast") == 0


def test_retry_after_or_none(sandbox: Sandbox) -> None:
    assert generate(sandbox, "rate_limited; retry_after=7").headers["retry-after"] == "7"
    assert "retry-after" not in generate(sandbox, "rate_limited; retry_after=0").headers


def test_a_500_after_the_work_is_billed(sandbox: Sandbox) -> None:
    assert generate(sandbox, "billed_error").status_code == 500
    assert sandbox.invoice("gpu-fast")["providers"]["gpu-fast"]["calls"] == 1


def test_truncated_json(sandbox: Sandbox) -> None:
    reply = generate(sandbox, "truncated")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    with pytest.raises(ValueError, match=r"."):
        reply.json()


def test_wrong_content_type(sandbox: Sandbox) -> None:
    reply = generate(sandbox, "wrong_type")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")


def test_no_picture_fewer_pictures_wrong_size_no_image(sandbox: Sandbox) -> None:
    assert generate(sandbox, "empty").json()["data"] == []
    assert generate(sandbox, "text_only").json()["data"] == []
    assert sandbox.billed("gpu-fast") == 0
    assert len(pictures(generate(sandbox, "fewer", n=3))) == 2
    assert len(pictures(generate(sandbox, "fewer; n=1", n=3))) == 1
    assert pictures(generate(sandbox, "wrong_size"))[0].size == (128, 128)
    assert pictures(generate(sandbox, "wrong_size; width=300; height=200"))[0].size == (300, 200)
    with pytest.raises(OSError, match="cannot identify"):
        pictures(generate(sandbox, "corrupt"))


def test_reset_and_cut(sandbox: Sandbox) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        generate(sandbox, "reset")
    assert sandbox.billed("gpu-fast") == 0
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        generate(sandbox, "reset; billed=1")
    with pytest.raises(httpx.RemoteProtocolError, match=r"incomplete|without sending complete"):
        generate(sandbox, "cut")
    assert sandbox.invoice("gpu-fast")["providers"]["gpu-fast"]["calls"] == 2


def test_hang_ends_with_the_client(sandbox: Sandbox) -> None:
    headers = sandbox.bearer("gpu-fast") | {"X-Sandbox-Fault": "hang"}
    begun = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{sandbox.base('gpu-fast')}/images/generations", headers=headers, json=BODY, timeout=0.2)
    with pytest.raises(httpx.RemoteProtocolError):
        generate(sandbox, "stuck; seconds=0.1")  # without jobs the same as hang
    assert time.monotonic() - begun < 5


def test_delay_in_real_time(sandbox: Sandbox) -> None:
    begun = time.monotonic()
    assert generate(sandbox, "delay; seconds=0.3").status_code == 200
    assert time.monotonic() - begun >= 0.3


def test_a_limit_of_calls_at_once(sandbox: Sandbox) -> None:
    from concurrent.futures import ThreadPoolExecutor

    fault = "delay; seconds=0.4, concurrency; limit=2"
    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(lambda _: generate(sandbox, fault).status_code, range(4)))
    assert statuses[:2] == [200, 200]
    assert statuses[-1] == 429


def test_expired_links(sandbox: Sandbox) -> None:
    reply = generate(sandbox, "expired_link", response_format="url")
    assert sandbox.http.get(reply.json()["data"][0]["url"]).status_code == 404
    reply = generate(sandbox, "expired_link; status=403", response_format="url")
    assert sandbox.http.get(reply.json()["data"][0]["url"]).status_code == 403
    good = generate(sandbox, response_format="url").json()["data"][0]["url"]
    sandbox.fault("expired_link", provider="gpu-fast", count=1)
    assert [sandbox.http.get(good).status_code for _ in range(2)] == [404, 200]
    sandbox.fault("cut", provider="gpu-fast", on="file", count=1)
    with pytest.raises(httpx.RemoteProtocolError):
        sandbox.http.get(good)


def test_invoice_calls_and_reset(sandbox: Sandbox) -> None:
    generate(sandbox)
    generate(sandbox, "500")
    calls = sandbox.calls("gpu-fast")
    assert (calls["total"], calls["billed"]) == (2, 1)
    assert calls["endpoints"] == {"POST /gpu-fast.local/v1/images/generations": 2}
    last = calls["last"][-1]
    assert last["status"] == 500
    assert last["faults"] == ["server_error"]
    assert last["body"]["prompt"] == "a lake"
    assert last["headers"]["authorization"] == "***"
    assert sandbox.key("gpu-fast") not in str(calls)
    line = sandbox.invoice("gpu-fast")["lines"][0]
    assert (line["model"], line["amount_nanos"], line["operation"]) == ("flux.2-dev-turbo", 12_000_000, "generate")
    everything = sandbox.http.get("/_control/invoice?lines=0").json()
    assert everything["total"] == "0.012000000"
    assert "lines" not in everything
    sandbox.http.post("/_control/reset")
    assert sandbox.calls("gpu-fast")["total"] == 0
    assert sandbox.http.get("/_control/invoice").json()["total_nanos"] == 0


def test_orders_are_listed_and_withdrawn(sandbox: Sandbox) -> None:
    sandbox.fault("empty", provider="fal", until=60)
    listed = sandbox.http.get("/_control/faults").json()
    assert [(rule["fault"], rule["provider"]) for rule in listed["faults"]] == [("empty", "fal")]
    assert "rate_limited" in listed["kinds"]
    assert sandbox.http.delete("/_control/faults").status_code == 204
    assert sandbox.http.get("/_control/faults").json()["faults"] == []


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"fault": "x"}', b'{"fault": "empty", "provider": "nobody"}'])
def test_bad_orders_are_told(sandbox: Sandbox, bad: bytes) -> None:
    reply = sandbox.http.post("/_control/faults", content=bad)
    assert reply.status_code == 400
    assert reply.json()["error"]


def test_unknown_provider_and_wrong_key(sandbox: Sandbox) -> None:
    assert sandbox.http.get("/_control/calls/nobody").status_code == 404
    assert sandbox.http.get("/_control/invoice/nobody").status_code == 404
    reply = sandbox.http.post(f"{sandbox.base('gpu-fast')}/images/generations", json=BODY)
    assert reply.status_code == 401


def test_the_same_seed_gives_the_same_sandbox() -> None:
    def world(seed: int) -> list[str]:
        port, stop = start(seed=seed, time_scale=0)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
                box = Sandbox(f"http://127.0.0.1:{port}", http)
                return [generate(box).text for _ in range(2)]
        finally:
            stop()

    def shown(replies: list[str]) -> list[str]:
        return [reply.partition('"data"')[2] for reply in replies]

    first = shown(world(7))
    assert first[0] != first[1]  # no seed was sent: the provider takes another each time
    assert shown(world(7)) == first
    assert shown(world(8)) != first


def test_latency_follows_the_time_scale() -> None:
    port, stop = start(time_scale=0.05)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
            box = Sandbox(f"http://127.0.0.1:{port}", http)
            begun = time.monotonic()
            generate(box)  # about 1.9 s * 0.44 for a sixteenth of a megapixel
            generate(box, model="flux.2-dev-turbo--slow")
            assert 0.15 < time.monotonic() - begun < 5
    finally:
        stop()


def test_answers_on_a_kept_connection_are_not_held_back(sandbox: Sandbox) -> None:
    def once() -> float:
        begun = time.perf_counter()
        sandbox.http.get("/_control/faults")
        return time.perf_counter() - begun

    assert min(once() for _ in range(8)) < 0.03  # a delayed acknowledgement would add 0.04
