"""What is told when something is wrong, and whether trying again can help."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI, RateLimitError

from tests.contract.surface import all_kinds, with_key
from tests.contract.walk import (
    BODY_BYTES,
    EDIT,
    FAULTS_OF_OURS,
    GENERATE,
    HURRIED,
    MODEL,
    NARROW,
    PICTURE,
    POOR,
    SMALL,
    VARY,
    Walk,
    made,
    mask,
    refused,
    row,
    shown_by,
)

NOBODY = "server_error"


@row("X1", "one shape for every error: message, type, param and code")
def _(walk: Walk) -> None:
    for answer in all_kinds(walk):
        if answer.status_code >= 400:
            refused(answer, answer.status_code, type=answer.json()["error"]["type"])


@row("X2", "no key: 401")
def _(walk: Walk) -> None:
    refused(with_key(walk, GENERATE, None), 401, (None, "invalid_api_key"), None)


@row("X3", "wrong key: 401")
def _(walk: Walk) -> None:
    refused(with_key(walk, GENERATE, "Bearer wrong"), 401, "invalid_api_key", None)


@row("X4", "a model that is not this key's: 403")
def _(walk: Walk) -> None:
    refused(walk.generate(headers={"authorization": f"Bearer {NARROW}"}), 403, "model_not_allowed", "model")


@row("X5", "an unknown model: 404")
def _(walk: Walk) -> None:
    refused(walk.generate(model="no-such-model"), 404, "model_not_found", "model")
    refused(walk.edit(model="no-such-model"), 404, "model_not_found", "model")
    refused(walk.http.get("/v1/models/no-such-model"), 404, "model_not_found", "model")


@row("X6", "a field that is missing")
def _(walk: Walk) -> None:
    refused(walk.generate("prompt"), 400, "missing_required_parameter", "prompt")


@row("X7", "a value of the wrong type")
def _(walk: Walk) -> None:
    refused(walk.generate(n="2"), 400, "invalid_type", "n")


@row("X8", "a word or size that there is not")
def _(walk: Walk) -> None:
    refused(walk.generate(quality="ultra"), 400, "invalid_value", "quality")
    refused(walk.generate(size="0x0"), 400, "invalid_value", "size")


@row("X9", "a number out of its range")
def _(walk: Walk) -> None:
    refused(walk.generate(n=11), 400, "integer_above_max_value", "n")
    refused(walk.generate(n=0), 400, "integer_below_min_value", "n")


@row("X10", "a text that is too long")
def _(walk: Walk) -> None:
    refused(walk.generate(prompt="x" * 32_001), 400, "string_above_max_length", "prompt")


@row("X11", "too many pictures")
def _(walk: Walk) -> None:
    refused(walk.edit(*[("image[]", PICTURE)] * 17), 400, "array_above_max_length", "image")


@row("X12", "what this model cannot do")
def _(walk: Walk) -> None:
    cannot = ("unsupported_parameter", "unsupported_value", "unsupported_model")
    refused(walk.generate(background="transparent"), 400, cannot, "background")
    refused(walk.edit(("image", PICTURE), ("mask", mask())), 400, cannot, "mask")
    refused(walk.edit(model="walk-draws-only"), 400, cannot, "model")


@row("X13", "a body that cannot be read")
def _(walk: Walk) -> None:
    refused(walk.http.post(GENERATE, content=b"{", headers={"content-type": "application/json"}), 400, None, None)
    kind = {"content-type": "multipart/form-data; boundary=x"}
    refused(walk.http.post(EDIT, content=b"--x\r\nContent", headers=kind), 400, None, None)


@row("X14", "a content type that is not read")
def _(walk: Walk) -> None:
    for path in (GENERATE, EDIT, VARY):
        answer = walk.http.post(path, content=b"x", headers={"content-type": "text/plain"})
        refused(answer, 400, "unsupported_content_type", None)


@row("X15", "a picture that is none")
def _(walk: Walk) -> None:
    none = ("unsupported_file_mimetype", "invalid_image_file")
    refused(walk.edit(("image", b"x")), 400, none, "image")
    refused(walk.edit(("image", PICTURE), ("mask", b"x"), model="walk-takes-a-mask"), 400, none, "mask")


@row("X16", "a prompt or picture that a provider refuses")
def _(walk: Walk) -> None:
    error = refused(
        walk.generate(model="sandbox-refused"),
        400,
        "moderation_blocked",
        (None, "prompt"),
        "image_generation_user_error",
    )
    details = error.get("moderation_details", {"moderation_stage": "unknown"})
    assert details["moderation_stage"] in ("input", "output", "unknown")


@row("X17", "a body that is too large")
def _(walk: Walk) -> None:
    answer = walk.http.post(GENERATE, content=b"x" * (BODY_BYTES + 1), headers={"content-type": "application/json"})
    refused(answer, 413, "request_too_large", None)


@row("X18", "a path or method that there is not")
def _(walk: Walk) -> None:
    refused(walk.http.get("/v1/paintings"), 404, None, None)
    refused(walk.http.get(GENERATE), 405, "method_not_allowed", None)


@row("X19", "a limit on requests is told as one, with when to try again: the providers', and this key's own")
def _(walk: Walk) -> None:
    refused(walk.limited, 429, "rate_limit_exceeded", None, "requests")
    assert int(walk.limited.headers["retry-after"]) >= 1
    own = {"authorization": f"Bearer {HURRIED}"}
    free = walk.http.post(GENERATE + "?dryRun=true", json={"model": MODEL, "prompt": "a lake"}, headers=own)
    assert (free.status_code, walk.http.get("/v1/models", headers=own).status_code) == (200, 200)
    made(first := walk.generate(headers=own))
    assert first.headers["x-ratelimit-limit-requests"] == "40"
    assert first.headers["x-ratelimit-remaining-requests"] == "39"
    assert first.headers["x-ratelimit-reset-requests"] == "1.5s"
    before = walk.costs()
    for _ in range(100):
        if (answer := walk.http.post(GENERATE, content=b"{", headers=own)).status_code == 429:
            break
    error = refused(answer, 429, "rate_limit_exceeded", None, "requests")  # before the body is looked at
    assert "40 requests per minute" in error["message"]
    assert answer.headers["retry-after"] in ("1", "2")
    assert 0 < int(answer.headers["retry-after-ms"]) <= 1500
    assert "x-should-retry" not in answer.headers
    assert walk.costs() == before
    with OpenAI(base_url=f"{walk.router.base}/v1", api_key=HURRIED) as client:  # it waits by itself
        assert client.images.generate(model=MODEL, prompt="a lake", size=SMALL, response_format="b64_json").data


@row("X20", "a key's own money that is spent, never an account of ours that is empty, is told as its quota")
def _(walk: Walk) -> None:
    own = {"authorization": f"Bearer {POOR}"}
    dear = {"model": f"gpu-fast/{MODEL}", "headers": own}
    with ThreadPoolExecutor(8) as pool:  # 0.012 each
        answers = list(pool.map(lambda _: walk.generate(**dear), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, *[429] * 6]
    spent = next(answer for answer in answers if answer.status_code == 429)
    error = refused(spent, 429, "insufficient_quota", None, "insufficient_quota")
    assert spent.headers["x-should-retry"] == "false"
    assert "retry-after" not in spent.headers
    assert "The budget of the key 'poor' does not suffice: $0.03 per day" in error["message"]
    assert error["budget"]["used"] == "0.024"
    assert error["budget"]["renews_at"].endswith("T00:00:00Z")
    assert walk.router.calls()["gpu-fast"]["billed"] == 2
    job = walk.generate(background=True, **dear)
    refused(job, 429, "insufficient_quota", None, "insufficient_quota")
    with OpenAI(base_url=f"{walk.router.base}/v1", api_key=POOR) as client, pytest.raises(RateLimitError):
        client.images.generate(model=dear["model"], prompt="a lake")  # it does not try again
    assert walk.http.post(GENERATE + "?dryRun=true", json={"model": MODEL, "prompt": "x"}, headers=own).is_success
    shown = walk.http.get("/metrics").text
    assert 'pixelroute_budget_spent_usd{id="poor",period="day",scope="key"} 0.024' in shown
    answer = walk.generate(model="walk-wants-our-money")
    refused(answer, 502, "all_providers_failed", None, NOBODY)
    assert answer.headers["x-should-retry"] == "false"


@row("X21", "every provider failed")
def _(walk: Walk) -> None:
    answer = walk.generate(model="sandbox-down")
    assert answer.status_code in (502, 503)  # 503 where they are not even asked for a while
    refused(answer, answer.status_code, "all_providers_failed", None, NOBODY)


@row("X22", "the time is over")
def _(walk: Walk) -> None:
    refused(walk.late, 504, "timeout", None, NOBODY)


shown_by(
    "X23",
    "a bug of ours is a 500 that tells nothing",
    "tests/router/api/test_errors.py::test_x23_a_bug_is_logged_and_told_to_nobody",
)


@row("X24", "one bad request has one answer, by a fixed order of what is looked at")
def _(walk: Walk) -> None:
    wrong = {"authorization": "Bearer wrong", "content-type": "text/plain"}
    large = b"{" * (BODY_BYTES + 1)
    refused(walk.http.put("/v1/paintings", content=large, headers=wrong), 404)  # the path
    refused(walk.http.put(GENERATE, content=large, headers=wrong), 405)  # the method
    refused(walk.http.post(GENERATE, content=large, headers=wrong), 401)  # the key
    del wrong["authorization"]
    refused(walk.http.post(GENERATE, content=large, headers=wrong), 413)  # the size
    refused(walk.http.post(GENERATE, content=b"{", headers=wrong), 400, "unsupported_content_type")
    asked = {"n": 99, "size": "huge", "model": "no-such-model", "background": "transparent", "prompt": 7}
    kind = {"content-type": "application/json"}
    refused(walk.http.post(GENERATE, content=json.dumps(asked).encode()[:-1], headers=kind), 400, None, None)
    refused(walk.http.post(GENERATE, json=asked), 400, "invalid_type", "prompt")
    refused(walk.http.post(GENERATE, json=asked | {"prompt": None}), 400, "missing_required_parameter", "prompt")
    refused(walk.http.post(GENERATE, json=asked | {"prompt": "x"}), 400, ("integer_above_max_value", "invalid_value"))
    asked |= {"prompt": "x", "n": 1, "size": SMALL}
    refused(walk.http.post(GENERATE, json=asked), 404, "model_not_found")
    refused(walk.http.post(GENERATE, json=asked | {"model": MODEL}), 400, "unsupported_parameter", "background")


@row("X25", "what is wrong is found before anybody is asked, and costs nothing")
def _(walk: Walk) -> None:
    before = walk.costs()
    for fields in ({"n": 0}, {"size": "9999x9999"}, {"model": "no"}, {"prompt": ""}, {"background": "transparent"}):
        assert walk.generate(**fields).status_code < 500
    walk.edit(("image", b"x"))
    walk.edit(("image", PICTURE), ("mask", mask()))
    assert walk.costs() == before
    assert all(calls["total"] == 0 for calls in walk.router.calls().values())


@row("X26", "after a last word clients are told not to try again, unless a moment's wait is all it needs")
def _(walk: Walk) -> None:
    for answer in (walk.late, walk.generate(model="sandbox-billed-error"), walk.generate(model="sandbox-text-only")):
        assert answer.status_code >= 500
        assert answer.headers["x-should-retry"] == "false"
    for _ in range(2):  # the second time nobody is even asked: all are to be left alone for a short time
        waits = walk.generate(model="sandbox-rate-limited")
        assert waits.status_code == 429
        assert "x-should-retry" not in waits.headers
        assert 1000 * (int(waits.headers["retry-after"]) - 1) < int(waits.headers["retry-after-ms"]) <= 3000


@row("X27", "408 and 409, which clients repeat, are kept for what is to be repeated")
def _(walk: Walk) -> None:
    key = {"idempotency-key": "walk-x27"}
    made(walk.generate(headers=key))
    statuses = {walk.generate(headers=key, prompt="another").status_code}
    statuses |= {answer.status_code for answer in all_kinds(walk)}
    assert not statuses & {408, 409}


@row("X28", "a refusal is the end: nobody else is asked")
def _(walk: Walk) -> None:
    walk.router.fault("gpu-fast", "refused", count=1)
    order = {"order": ["gpu-fast", "gpu-spot", "fal"]}
    answer = walk.generate(provider=order)
    refused(answer, 400, "moderation_blocked", (), "image_generation_user_error")
    assert [walk.router.calls()[name]["total"] for name in ("gpu-fast", "gpu-spot", "fal")] == [1, 0, 0]


@row("X29", "what a provider says is wrong with the request is told; what is wrong with us is tried elsewhere")
def _(walk: Walk) -> None:
    blamed = refused(walk.edit(model="walk-blames-the-request"), 400)
    assert len(blamed["message"]) > 10
    order = {"order": ["gpu-spot", "gpu-fast"]}
    for fault, outcome in FAULTS_OF_OURS.items():
        attempts = made(walk.generate(model=f"walk-{fault}", provider=order))["metadata"]["attempts"]
        assert [one["outcome"] for one in attempts] == [outcome, "success"]
    for _ in range(2):  # the second finds both left alone for what is left of their pauses
        limited = walk.generate(model="sandbox-rate-limited")
        refused(limited, 429, "rate_limit_exceeded", None, "requests")
        assert limited.headers["retry-after"] in ("1", "2")  # of 2 and 3


@row("X30", "the same request under the same Idempotency-Key is made and paid once")
def _(walk: Walk) -> None:
    key = {"idempotency-key": "walk-x30"}
    first, again = (walk.generate(headers=key) for _ in range(2))
    assert made(first)["data"] == made(again)["data"]
    assert again.json()["id"] == first.json()["id"]
    assert sum(calls["billed"] for calls in walk.router.calls().values()) == 1
    refused(walk.generate(headers=key, prompt="another"), 400, "idempotency_key_reused")
    with_another = walk.generate(headers={"idempotency-key": "walk-x30-b"})
    assert with_another.json()["id"] != first.json()["id"]
