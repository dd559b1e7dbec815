"""Paths, keys, headers, how bodies are read, models, time: what is the same whatever is asked for."""

from __future__ import annotations

import io
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from router.config import Limits
from router.ledger import State
from tests.contract.walk import (
    BODY_BYTES,
    EDIT,
    GENERATE,
    MODEL,
    NARROW,
    PICTURE,
    SMALL,
    VARY,
    Walk,
    answered,
    head,
    made,
    refused,
    row,
)
from tests.integration.process import KEY, until

BODY = json.dumps({"model": MODEL, "prompt": "a lake", "size": SMALL}).encode()
JSON = "content-type: application/json"

# --- paths ------------------------------------------------------------------------------------------------------


@row("A1", "the three image operations and the two of models answer under /v1")
def _(walk: Walk) -> None:
    made(walk.generate())
    made(walk.edit())
    made(walk.form(VARY, {"model": MODEL, "size": SMALL}, ("image", PICTURE)))
    assert walk.http.get("/v1/models").json()["object"] == "list"
    assert walk.http.get(f"/v1/models/{MODEL}").json()["id"] == MODEL


@row("A2", "query parameters that mean nothing here are ignored")
def _(walk: Walk) -> None:
    made(
        walk.http.post(GENERATE + "?api-version=2025-04-01-preview&x=", content=BODY, headers=dict([JSON.split(": ")]))
    )
    assert walk.http.get("/v1/models?api-version=1&limit=2").status_code == 200


@row("A3", "an unknown path is a 404 with an error object")
def _(walk: Walk) -> None:
    for method, path in (("GET", "/v1/paintings"), ("POST", "/v1/images"), ("POST", "/v1/responses"), ("GET", "/")):
        refused(walk.http.request(method, path), 404)


@row("A4", "a wrong method on a known path is a 405 that names the right one")
def _(walk: Walk) -> None:
    for method, path, allowed in (("GET", GENERATE, "POST"), ("PUT", EDIT, "POST"), ("POST", "/v1/models", "GET")):
        answer = walk.http.request(method, path)
        refused(answer, 405)
        assert allowed in answer.headers["allow"]


@row("A5", "doubled and trailing slashes are served or not found, never redirected")
def _(walk: Walk) -> None:
    for path in ("//v1/images/generations", GENERATE + "/", "/v1//images/generations", "/v1/models/"):
        with walk.connection() as connection:
            connection.sendall(head(path, JSON, f"content-length: {len(BODY)}") + BODY)
            status, headers, body = answered(connection)
        assert status in (200, 404, 405), path
        assert "location" not in headers
        assert status == 200 or json.loads(body)["error"]["type"] == "invalid_request_error"


@row("A6", "content types are read in any case and with parameters; a GET may carry one")
def _(walk: Walk) -> None:
    for kind in ("Application/JSON", "application/json; charset=utf-8", "application/json;charset=UTF-8"):
        made(walk.http.post(GENERATE, content=BODY, headers={"content-type": kind}))
    assert walk.http.get("/v1/models", headers={"content-type": "application/json"}).status_code == 200


# --- keys -------------------------------------------------------------------------------------------------------


def with_key(walk: Walk, path: str, header: str | None, name: str = "authorization") -> httpx.Response:
    headers = {name: header} if header is not None else {}
    request = walk.http.build_request("GET" if "models" in path else "POST", path, headers=headers)
    if "authorization" not in headers:  # the client's own
        del request.headers["authorization"]
    return walk.http.send(request)


PATHS = (GENERATE, EDIT, VARY, "/v1/models", f"/v1/models/{MODEL}")


@row("B1", "a bearer key, its scheme in any case, itself exact, for every path under /v1")
def _(walk: Walk) -> None:
    for path in PATHS:
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert with_key(walk, path, f"{scheme} {KEY}").status_code != 401
        for wrong in (KEY.upper(), KEY[:-1], KEY + "x"):
            assert with_key(walk, path, f"Bearer {wrong}").status_code == 401


@row("B2", "no key is a 401 without a code that blames one")
def _(walk: Walk) -> None:
    for path in PATHS:
        for header in (None, "", "Bearer", "Basic eDp5"):
            refused(with_key(walk, path, header), 401, (None, "invalid_api_key"))


@row("B3", "a wrong key is a 401 that shows neither it nor any other")
def _(walk: Walk) -> None:
    answer = with_key(walk, GENERATE, "Bearer sk-somebody-elses-0123456789")
    refused(answer, 401, "invalid_api_key", None)
    assert "somebody" not in answer.text
    assert KEY not in answer.text


@row("B4", "the key is looked at before the body")
def _(walk: Walk) -> None:
    with walk.connection() as connection:  # which sends no byte of the body it announces
        connection.sendall(head(GENERATE, JSON, "content-length: 1000", key="wrong"))
        assert answered(connection)[0] == 401


@row("B5", "Azure's header carries a key as well")
def _(walk: Walk) -> None:
    assert with_key(walk, "/v1/models", KEY, "api-key").status_code == 200
    refused(with_key(walk, "/v1/models", "wrong", "api-key"), 401, "invalid_api_key")


@row("B6", "what SDKs tell of themselves is never an error, and a retry is on record")
def _(walk: Walk) -> None:
    told = {
        "OpenAI-Organization": "org-1",
        "OpenAI-Project": "proj_1",
        "OpenAI-Beta": "assistants=v2",
        "X-Stainless-Lang": "python",
        "X-Stainless-Retry-Count": "1",
        "X-Stainless-Timeout": "600",
        "X-Client-Request-Id": "mine-17",
        "Idempotency-Key": "walk-b6",
        "User-Agent": "OpenAI/Python 3.52.0",
    }
    answer = walk.generate(headers=told)
    made(answer)
    assert walk.router.line(answer)["retry_count"] == 1
    made(
        walk.generate(
            headers={
                "X-Stainless-Retry-Count": "x",
                "X-Stainless-Timeout": "soon",
                "OpenAI-Beta": "\xe9".encode("latin-1"),
            }
        )
    )


@row("B7", "a provider that refuses our own key is not the client's fault")
def _(walk: Walk) -> None:
    refused(walk.generate(model="walk-refuses-our-key"), 502, "all_providers_failed", None, "server_error")


# --- request ids and headers ------------------------------------------------------------------------------------


def all_kinds(walk: Walk) -> list[httpx.Response]:
    """One answer of every kind."""
    return [
        walk.generate(),
        walk.generate("model", stream=True),
        walk.generate(n=0),
        walk.generate(model="sandbox-refused"),
        walk.generate(model="sandbox-down"),
        walk.http.get("/v1/models"),
        walk.http.get("/v1/paintings"),
        walk.http.get(GENERATE),
        with_key(walk, GENERATE, "Bearer wrong"),
        walk.http.post(GENERATE, content=b"{", headers={"content-type": "application/json"}),
        walk.http.post(EDIT, content=b"x" * (BODY_BYTES + 1), headers={"content-type": "multipart/form-data"}),
    ]


@row("H1", "every answer has an id of its own, which is the ledger's and the log's too")
def _(walk: Walk) -> None:
    answers = all_kinds(walk)
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[!-~]+", name) for name in ids)
    assert walk.kept(answers[0]).request_id == walk.router.line(answers[0])["request_id"] == ids[0]
    assert answers[0].json()["id"] == ids[0]


@row("H2", "the milliseconds spent, on every answer")
def _(walk: Walk) -> None:
    assert all(answer.headers["openai-processing-ms"].isdecimal() for answer in all_kinds(walk))


@row("H3", "OpenAI's version, on every answer")
def _(walk: Walk) -> None:
    assert {answer.headers["openai-version"] for answer in all_kinds(walk)} == {"2020-10-01"}


@row("H4", "no rate limit is announced where none is enforced")
def _(walk: Walk) -> None:
    for answer in (walk.generate(), walk.limited):
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


@row("H5", "what is ours stands under one prefix: who made it, for how much, in how many attempts")
def _(walk: Walk) -> None:
    answer = walk.generate()
    ours = {name: value for name, value in answer.headers.items() if name.startswith("x-pixelroute-")}
    metadata = answer.json()["metadata"]
    assert ours["x-pixelroute-provider"] == metadata["provider"]
    assert ours["x-pixelroute-cost"] == metadata["cost"]
    assert ours["x-pixelroute-attempts"] == str(len(metadata["attempts"]))


@row("H6", "JSON is called JSON; streams are not cached nor held back by proxies")
def _(walk: Walk) -> None:
    assert walk.generate().headers["content-type"] == "application/json"
    stream = walk.generate(stream=True)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["cache-control"] == "no-cache"
    assert stream.headers["x-accel-buffering"] == "no"


@row(
    "H7",
    "nothing but JSON, whatever is wrong",
    "tests/router/api/test_errors.py::test_x23_a_bug_is_logged_and_told_to_nobody",
)
def _(walk: Walk) -> None:
    for answer in all_kinds(walk):
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/json"
            assert set(answer.json()) == {"error"}


# --- reading bodies ---------------------------------------------------------------------------------------------


@row("D1", "bodies come with a length or in chunks")
def _(walk: Walk) -> None:
    made(walk.http.post(GENERATE, content=iter([BODY[:20], BODY[20:]]), headers={"content-type": "application/json"}))
    form = httpx.Request(
        "POST", "http://x", data={"model": MODEL, "prompt": "x", "size": SMALL}, files={"image": io.BytesIO(PICTURE)}
    )
    content = form.read()
    pieces = (content[start : start + 100] for start in range(0, len(content), 100))
    answer = walk.http.post(EDIT, content=pieces, headers={"content-type": form.headers["content-type"]})
    assert "content-length" not in answer.request.headers
    made(answer)


@row("D2", "too large a body is a 413: at once where its length says so, else when the limit is crossed")
def _(walk: Walk) -> None:
    with walk.connection() as connection:
        connection.sendall(head(GENERATE, JSON, f"content-length: {BODY_BYTES + 1}"))
        status, headers, body = answered(connection)
        assert (status, headers["connection"]) == (413, "close")
        assert json.loads(body)["error"]["code"] == "request_too_large"
    pieces = (b"x" * 65536 for _ in range(BODY_BYTES // 65536 + 2))
    answer = walk.http.post(GENERATE, content=pieces, headers={"content-type": "application/json"})
    refused(answer, 413, "request_too_large", None)
    assert Limits().body_bytes >= 64 << 20


@row("D3", "a client that goes away while it sends is no error")
def _(walk: Walk) -> None:
    before = len(walk.router.left())
    form = "content-type: multipart/form-data; boundary=x"
    for path, kind, begun in ((GENERATE, JSON, b'{"prompt"'), (EDIT, form, b"--x\r\nContent-")):
        with walk.connection() as connection:
            connection.sendall(head(path, kind, "content-length: 1000") + begun)
    until(lambda: len(walk.router.left()) == before + 2)
    assert not walk.router.events("unhandled error")
    made(walk.generate())


@row("D4", "long texts and many parts in a form are read or refused, never a 500")
def _(walk: Walk) -> None:
    refused(walk.edit(prompt="x" * 2_000_000), 400, "string_above_max_length", "prompt")
    made(walk.edit(a_field_of_the_providers="x" * 2_000_000))
    refused(walk.form(EDIT, {f"f{number}": "x" for number in range(1500)}, ("image", PICTURE)), 400)


# --- models -----------------------------------------------------------------------------------------------------


@row("L1", "a list of model objects with OpenAI's four keys")
def _(walk: Walk) -> None:
    body = walk.http.get("/v1/models").json()
    assert body["object"] == "list"
    for model in body["data"]:
        assert model["object"] == "model"
        assert isinstance(model["id"], str)
        assert isinstance(model["owned_by"], str)
        assert type(model["created"]) is int


@row("L2", "a key sees what it may use, by every name")
def _(walk: Walk) -> None:
    mine = {model["id"] for model in walk.http.get("/v1/models").json()["data"]}
    assert {MODEL, "flux-2-turbo", "a-name-that-old-clients-use"} <= mine
    narrow = walk.http.get("/v1/models", headers={"authorization": f"Bearer {NARROW}"}).json()["data"]
    assert {"flux.2-klein-9b", "flux-2-klein-9b"} <= {model["id"] for model in narrow} < mine
    assert {model.get("slug", model["id"]) for model in narrow} == {"flux.2-klein-9b"}


@row("L3", "one model, by a name with a slash as well, bare or encoded")
def _(walk: Walk) -> None:
    for path in (f"/v1/models/fal/{MODEL}", f"/v1/models/fal%2F{MODEL}", f"/v1/models/fal%2f{MODEL}"):
        assert walk.http.get(path).json()["id"] == f"fal/{MODEL}"
    refused(walk.http.get("/v1/models/no/such"), 404, "model_not_found", "model")


@row("L4", "every listed name can be looked up and is taken as a model")
def _(walk: Walk) -> None:
    for listed in walk.http.get("/v1/models").json()["data"]:
        name = listed["id"]
        assert walk.http.get("/v1/models/" + name.replace("/", "%2F")).json() == listed
        asked = walk.http.post(GENERATE + "?dryRun=true", json={"model": name, "prompt": "a lake"})
        if "generate" in listed["operations"]:
            assert asked.status_code == 200, name
        else:
            refused(asked, 400, "unsupported_model", "model")


@row("L5", "models cannot be deleted")
def _(walk: Walk) -> None:
    refused(walk.http.delete(f"/v1/models/{MODEL}"), 405)


# --- what clients are used to -----------------------------------------------------------------------------------


@row("C1", "any name that clients have built in can be made to mean a model")
def _(walk: Walk) -> None:
    body = made(walk.generate(model="a-name-that-old-clients-use"))
    assert body["metadata"]["executed_model"] == "gpu-fast/walk-known-by-another-name"
    made(walk.generate("size", "response_format", model="dall-e-3", quality="standard", style="vivid"))


@row("C2", "three requests at once for three pictures are three requests")
def _(walk: Walk) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: walk.generate(), range(3)))
    assert len({answer.json()["id"] for answer in answers}) == 3
    assert [len(walk.kept(answer).attempts) for answer in answers] == [1, 1, 1]


@row("C3", "a retried request is a new one with its own cost, and says that it is a retry")
def _(walk: Walk) -> None:
    answers = [walk.generate(headers={"x-stainless-retry-count": str(count)}) for count in (0, 2)]
    rows = [walk.kept(answer).attempts[0] for answer in answers]
    assert [one.opening.retry_count for one in rows] == [0, 2]
    assert all(one.cost_nanos > 0 for one in rows)
    assert [walk.router.line(answer)["retry_count"] for answer in answers] == [0, 2]


@row(
    "C4",
    "the newest words for quality come back only to who used them",
    "tests/router/api/test_replies.py::test_r8_c4_quality",
)
def _(walk: Walk) -> None:
    assert made(walk.generate(model="gpt-image-2.5-flare", size="1024x1024", quality="xhigh"))["quality"] == "xhigh"
    plain = made(walk.generate(model="gpt-image-2.5-flare", size="1024x1024"))
    assert plain.get("quality") not in ("xhigh", "max")


# --- time -------------------------------------------------------------------------------------------------------


@row("T1", "the whole of a request has less than 300 s by default, and what the operator says")
def _(walk: Walk) -> None:
    assert Limits().request_timeout_s < 300
    refused(walk.late, 504, "timeout", None, "server_error")
    assert 4.5 < walk.late.elapsed.total_seconds() < 15  # five were configured


@row("T2", "requests run side by side, and each gets its own pictures")
def _(walk: Walk) -> None:
    for provider in ("fal", "gpu-fast", "gpu-spot"):
        walk.router.fault(provider, "delay", seconds=1)
    began = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda number: walk.generate(prompt=f"lake {number}"), range(32)))
    assert time.monotonic() - began < 16  # one after the other: more than 32
    assert len({made(answer)["data"][0]["b64_json"] for answer in answers}) == 32


@row("T3", "a client that leaves is counted as gone; what its pictures cost is booked; no provider is blamed")
def _(walk: Walk) -> None:
    walk.router.fault("gpu-fast", "delay", seconds=3)  # long enough to have left before the answer comes
    body = json.dumps({"model": "walk-draws-only", "prompt": "a lake", "size": SMALL}).encode()
    before = len(walk.router.left())
    with walk.connection() as connection:
        connection.sendall(head(GENERATE, JSON, f"content-length: {len(body)}") + body)
        until(lambda: walk.router.calls()["gpu-fast"]["total"])
    gone = until(lambda: walk.router.left()[before:])[0]
    asked = until(
        lambda: (
            (found := walk.http.get(f"/v1/requests/{gone['request_id']}").json())["status"] != "processing" and found
        )
    )
    assert asked["status"] == "completed"
    [attempt] = walk.kept(httpx.Response(200, headers={"x-request-id": gone["request_id"]})).attempts
    assert (attempt.state, attempt.settlement and attempt.settlement.outcome) == (State.SETTLED, "success")
    assert attempt.cost_nanos > 0

    # Who wants no work to go on without it has it stopped; it is booked at what it may cost, and as nobody's failure.
    walk.router.reset()
    walk.router.fault("gpu-fast", "delay", seconds=3)
    wish = "x-pixelroute-on-disconnect: cancel"
    before = len(walk.router.left())
    with walk.connection() as connection:
        connection.sendall(head(GENERATE, JSON, wish, f"content-length: {len(body)}") + body)
        until(lambda: walk.router.calls()["gpu-fast"]["total"])
    gone = until(lambda: walk.router.left()[before:])[0]
    assert gone["outcome"] == "cancelled"
    stopped = until(
        lambda: (
            (found := walk.http.get(f"/v1/requests/{gone['request_id']}").json())["status"] != "processing" and found
        )
    )
    assert (stopped["status"], stopped["error"]["code"]) == ("failed", "cancelled")
    [attempt] = walk.kept(httpx.Response(200, headers={"x-request-id": gone["request_id"]})).attempts
    assert (attempt.state, attempt.settlement and attempt.settlement.outcome) == (State.UNKNOWN, "cancelled")
    assert attempt.unsettled_nanos > 0


@row("T4", "a connection outlives an error, unless its body was never read")
def _(walk: Walk) -> None:
    with walk.connection() as connection:
        for key, body, status in (("wrong", BODY, 401), (KEY, b"{", 400), (KEY, BODY, 200), (KEY, b"[]", 400)):
            connection.sendall(head(GENERATE, JSON, f"content-length: {len(body)}", key=key) + body)
            assert answered(connection)[0] == status
