"""Every bad request has one answer, costs nothing, and leaves no secret behind. Ids quote the contract."""

import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from router.api import Exchange
from router.errors import SERVER, RequestError
from router.types import ImageRequest
from tests.router.api.conftest import KEY
from tests.router.api.fake import FakeGateway, bomb, mask, picture

pytestmark = pytest.mark.anyio

GENERATE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
OK = {"prompt": "a cat", "model": "flux.2-dev-turbo"}


def problem(response: httpx.Response) -> dict[str, Any]:
    """The error object, after checking what holds for every error."""
    assert response.headers["content-type"] == "application/json"
    again, after = response.headers.get("x-should-retry"), response.headers.get("retry-after")
    assert again in ("true", "false") or (again is None and int(after or 0) >= 1)
    assert " " not in response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    return error


def without(*names: str, **more: Any) -> dict[str, Any]:
    return {name: value for name, value in OK.items() if name not in names} | more


JSON_TABLE: list[tuple[str, Any, int, str | None, str | None]] = [
    ("G6-missing-prompt", without("prompt"), 400, "missing_required_parameter", "prompt"),
    ("G6-null-prompt", OK | {"prompt": None}, 400, "missing_required_parameter", "prompt"),
    ("G6-empty-prompt", OK | {"prompt": ""}, 400, "invalid_value", "prompt"),
    ("G6-long-prompt", OK | {"prompt": "é" * 32001}, 400, "string_above_max_length", "prompt"),
    ("G5-prompt-number", OK | {"prompt": 5}, 400, "invalid_type", "prompt"),
    ("G5-prompt-object", OK | {"prompt": {"text": "x", "images": []}}, 400, "invalid_type", "prompt"),
    ("G5-prompt-array", OK | {"prompt": ["x"]}, 400, "invalid_type", "prompt"),
    ("G7-missing-model", without("model"), 400, "missing_required_parameter", "model"),
    ("G7-empty-model", OK | {"model": ""}, 400, "invalid_value", "model"),
    ("G7-X5-unknown-model", OK | {"model": "nope"}, 404, "model_not_found", "model"),
    ("G7-endless-model", OK | {"model": "m" * 5000}, 404, "model_not_found", "model"),
    ("G8-n-0", OK | {"n": 0}, 400, "integer_below_min_value", "n"),
    ("G8-n-11", OK | {"n": 11}, 400, "integer_above_max_value", "n"),
    ("G8-n-negative", OK | {"n": -1}, 400, "integer_below_min_value", "n"),
    ("G8-n-huge", OK | {"n": 10**30}, 400, "integer_above_max_value", "n"),
    ("G5-n-string", OK | {"n": "2"}, 400, "invalid_type", "n"),
    ("G5-n-bool", OK | {"n": True}, 400, "invalid_type", "n"),
    ("G5-n-fraction", OK | {"n": 1.5}, 400, "invalid_type", "n"),
    ("G5-n-array", OK | {"n": [1]}, 400, "invalid_type", "n"),
    *(
        (f"G9-size-{size!r}", OK | {"size": size}, 400, "invalid_value", "size")
        for size in (
            "0x0",
            "1024x",
            "x1024",
            "99999999x99999999",
            "huge",
            "1024",
            "-1x5",
            "1024 x 1024",
            "",
            "0512x512",
            "1024X1024",
            "1024x1024\n",
            "１０２４x１０２４",
            "1e3x1e3",
            "16:9",
            "landscape_4_3",
        )
    ),
    ("G5-size-number", OK | {"size": 1024}, 400, "invalid_type", "size"),
    ("G10-quality", OK | {"quality": "ultra"}, 400, "invalid_value", "quality"),
    ("G11-response-format", OK | {"response_format": "bytes"}, 400, "invalid_value", "response_format"),
    ("G12-output-format", OK | {"output_format": "bmp"}, 400, "invalid_value", "output_format"),
    ("G12-svg", OK | {"output_format": "svg"}, 400, "invalid_value", "output_format"),
    ("G13-compression-high", OK | {"output_compression": 101}, 400, "integer_above_max_value", "output_compression"),
    ("G13-compression-low", OK | {"output_compression": -1}, 400, "integer_below_min_value", "output_compression"),
    ("G14-background", OK | {"background": "green"}, 400, "invalid_value", "background"),
    (
        "G14-transparent-jpeg",
        OK | {"background": "transparent", "output_format": "jpeg"},
        400,
        "invalid_value",
        "background",
    ),
    ("moderation", OK | {"moderation": "none"}, 400, "invalid_value", "moderation"),
    ("style", OK | {"style": "gothic"}, 400, "invalid_value", "style"),
    ("stream-type", OK | {"stream": "true"}, 400, "invalid_type", "stream"),
    ("stream-number", OK | {"stream": 1}, 400, "invalid_type", "stream"),
    (
        "G15-partial-images",
        OK | {"stream": True, "partial_images": 4},
        400,
        "integer_above_max_value",
        "partial_images",
    ),
    ("user-type", OK | {"user": 7}, 400, "invalid_type", "user"),
    ("seed-type", OK | {"seed": "x"}, 400, "invalid_type", "seed"),
    ("seed-huge", OK | {"seed": 2**70}, 400, "integer_above_max_value", "seed"),
    ("svg-type", OK | {"svg": "x"}, 400, "invalid_type", "svg"),
    ("fal-size-conflict", OK | {"size": "512x512", "image_size": "square_hd"}, 400, "invalid_value", "image_size"),
    ("fal-size-preset", OK | {"image_size": "landscape"}, 400, "invalid_value", "image_size"),
    ("fal-size-half", OK | {"image_size": {"width": 5}}, 400, "missing_required_parameter", "image_size.height"),
    ("fal-size-type", OK | {"image_size": {"width": 5, "height": "x"}}, 400, "invalid_type", "image_size.height"),
    ("fal-size-zero", OK | {"image_size": {"width": 0, "height": 5}}, 400, "invalid_value", "image_size"),
    ("fal-n-conflict", OK | {"n": 1, "num_images": 2}, 400, "invalid_value", "num_images"),
    ("fal-n-range", OK | {"num_images": 11}, 400, "integer_above_max_value", "num_images"),
    ("ratio", OK | {"aspect_ratio": "wide"}, 400, "invalid_value", "aspect_ratio"),
    ("ratio-zero", OK | {"aspect_ratio": "0:0"}, 400, "invalid_value", "aspect_ratio"),
    ("ratio-absurd", OK | {"aspect_ratio": "100:1"}, 400, "invalid_value", "aspect_ratio"),
    ("resolution", OK | {"resolution": "8K"}, 400, "invalid_value", "resolution"),
    ("provider-type", OK | {"provider": "fal"}, 400, "invalid_type", "provider"),
    ("provider-sort", OK | {"provider": {"sort": "luck"}}, 400, "invalid_value", "provider.sort"),
    ("provider-order", OK | {"provider": {"order": "fal"}}, 400, "invalid_type", "provider.order"),
    ("provider-cost", OK | {"provider": {"max_cost": "much"}}, 400, "invalid_value", "provider.max_cost"),
    ("provider-cost-nan", OK | {"provider": {"max_cost": "NaN"}}, 400, "invalid_value", "provider.max_cost"),
    ("provider-unknown", OK | {"provider": {"max_price": 1}}, 400, "unknown_parameter", "provider.max_price"),
    ("provider-share", OK | {"provider": {"min_success": 95}}, 400, "invalid_value", "provider.min_success"),
    ("provider-tags", OK | {"provider": {"require_tags": "eu"}}, 400, "invalid_type", "provider.require_tags"),
    ("models-type", OK | {"models": "b"}, 400, "invalid_type", "models"),
    ("models-many", OK | {"models": ["b"] * 9}, 400, "array_above_max_length", "models"),
    ("models-empty", OK | {"models": [""]}, 400, "invalid_value", "models"),
    ("provider-flag", OK | {"provider": {"allow_fallbacks": 1}}, 400, "invalid_type", "provider.allow_fallbacks"),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"), [row[1:] for row in JSON_TABLE], ids=[r[0] for r in JSON_TABLE]
)
async def test_bad_generation(
    client: httpx.AsyncClient, gateway: FakeGateway, body: Any, status: int, code: str | None, param: str | None
) -> None:
    response = await client.post(GENERATE, json=body)
    error = problem(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert response.headers["x-should-retry"] == "false"
    assert gateway.requests == []  # X25: nothing was run


BROKEN = {
    "empty": b"",
    "half": b'{"prompt": "a c',
    "not-json": b"prompt=a+cat",
    "array": b'["a"]',
    "string": b'"a"',
    "null": b"null",
    "number": b"1",
    "NaN": b'{"prompt": "a", "n": NaN}',
    "Infinity": b'{"prompt": "a", "n": Infinity}',
    "latin-1": '{"prompt": "é"}'.encode("latin-1"),
    "deep-array": b'{"prompt": "a", "model": "flux.2-dev-turbo", "x": ' + b"[" * 100_000,
    "deep-object": b'{"prompt": "a", "model": "flux.2-dev-turbo", "x": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    "lone-surrogate": b'{"prompt": "\\ud83e", "model": "flux.2-dev-turbo"}',
    "two-values": b"{}{}",
    "digits": b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=[f"G2-X13-{name}" for name in BROKEN])
async def test_broken_json(client: httpx.AsyncClient, gateway: FakeGateway, body: bytes) -> None:
    response = await client.post(GENERATE, content=body, headers={"Content-Type": "application/json"})
    error = problem(response)
    assert response.status_code == 400
    assert gateway.requests == []
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_g1_x14_wrong_content_type(client: httpx.AsyncClient, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = await client.post(GENERATE, content=b'{"prompt": "a"}', headers=headers)
    assert (response.status_code, problem(response)["code"]) == (400, "unsupported_content_type")


@pytest.mark.parametrize("content_type", ["Application/JSON", "application/json; charset=utf-8"])
async def test_a6_content_type_is_read_loosely(client: httpx.AsyncClient, content_type: str) -> None:
    response = await client.post(GENERATE, content=json.dumps(OK).encode(), headers={"Content-Type": content_type})
    assert response.status_code == 200


@pytest.mark.parametrize("path", [EDIT, VARY])
async def test_e1_edits_take_forms(client: httpx.AsyncClient, path: str) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        response = await client.post(path, content=b"prompt=x", headers={"Content-Type": content_type})
        assert (response.status_code, problem(response)["code"]) == (400, "unsupported_content_type")


# --- forms ------------------------------------------------------------------------------------------------------

PNG = picture()
FORM_TABLE: list[tuple[str, dict[str, str], list[tuple[str, bytes]], int, str | None, str | None]] = [
    ("M4-no-image", OK, [], 400, "missing_required_parameter", "image"),
    ("E2-no-prompt", without("prompt"), [("image", PNG)], 400, "missing_required_parameter", "prompt"),
    ("M7-empty-prompt", OK | {"prompt": ""}, [("image", PNG)], 400, "missing_required_parameter", "prompt"),
    ("M3-empty-image", OK, [("image", b"")], 400, "invalid_image_file", "image"),
    ("M3-X15-not-an-image", OK, [("image", b"raw file contents")], 400, "unsupported_file_mimetype", "image"),
    ("M3-html", OK, [("image", b"<html>")], 400, "unsupported_file_mimetype", "image"),
    ("M3-truncated", OK, [("image", picture(200, 200)[:-500])], 400, "invalid_image_file", "image"),
    ("M3-cut-header", OK, [("image", PNG[:20])], 400, "invalid_image_file", "image"),
    ("M3-second-bad", OK, [("image[]", PNG), ("image[]", b"x")], 400, "unsupported_file_mimetype", "image"),
    ("M3-bomb", OK, [("image", bomb())], 400, "invalid_image_file", "image"),
    ("X11-17-images", OK, [("image[]", PNG)] * 17, 400, "array_above_max_length", "image"),
    ("M5-mask-not-png", OK, [("image", PNG), ("mask", picture(form="jpeg"))], 400, "invalid_image_file", "mask"),
    ("M5-mask-no-alpha", OK, [("image", PNG), ("mask", picture())], 400, "invalid_image_file", "mask"),
    ("M5-mask-size", OK, [("image", PNG), ("mask", mask(9, 9))], 400, "invalid_image_file", "mask"),
    ("M5-mask-not-an-image", OK, [("image", PNG), ("mask", b"x")], 400, "unsupported_file_mimetype", "mask"),
    ("M5-two-masks", OK, [("image", PNG), ("mask", mask()), ("mask", mask())], 400, "array_above_max_length", "mask"),
    ("M10-with-mask", OK, [("image", PNG), ("markup", mask()), ("mask", mask())], 400, "invalid_value", "markup"),
    ("M10-no-alpha", OK, [("image", PNG), ("markup", picture())], 400, "invalid_image_file", "markup"),
    ("M10-size", OK, [("image", PNG), ("markup", mask(9, 9))], 400, "invalid_image_file", "markup"),
    ("M6-n-word", OK | {"n": "two"}, [("image", PNG)], 400, "invalid_type", "n"),
    ("M6-n-fraction", OK | {"n": "1.5"}, [("image", PNG)], 400, "invalid_type", "n"),
    ("M6-n-hindi", OK | {"n": "२"}, [("image", PNG)], 400, "invalid_type", "n"),
    ("M6-n-endless", OK | {"n": "9" * 5000}, [("image", PNG)], 400, "invalid_type", "n"),
    ("M6-stream", OK | {"stream": "yes"}, [("image", PNG)], 400, "invalid_type", "stream"),
    ("M7-n-0", OK | {"n": "0"}, [("image", PNG)], 400, "integer_below_min_value", "n"),
    ("input-fidelity", OK | {"input_fidelity": "medium"}, [("image", PNG)], 400, "invalid_value", "input_fidelity"),
    ("G9-size", OK | {"size": "0x0"}, [("image", PNG)], 400, "invalid_value", "size"),
    ("provider-text", OK | {"provider": "fal"}, [("image", PNG)], 400, "invalid_type", "provider"),
    ("X5-unknown-model", OK | {"model": "nope"}, [("image", PNG)], 404, "model_not_found", "model"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "files", "status", "code", "param"), [row[1:] for row in FORM_TABLE], ids=[row[0] for row in FORM_TABLE]
)
async def test_bad_edit(
    client: httpx.AsyncClient,
    gateway: FakeGateway,
    fields: dict[str, str],
    files: list[tuple[str, bytes]],
    status: int,
    code: str | None,
    param: str | None,
) -> None:
    sent: list[Any] = [(name, ("upload", data, "application/octet-stream")) for name, data in files]
    sent += [(name, (None, value.encode())) for name, value in fields.items()]  # httpx sends a form in any case
    response = await client.post(EDIT, files=sent)
    error = problem(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert gateway.requests == []


async def test_a_field_that_stands_twice(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    sent: list[Any] = [("image", PNG), ("prompt", (None, b"a")), ("prompt", (None, b"b")), ("model", (None, b"x"))]
    response = await client.post(EDIT, files=sent)
    error = problem(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", "prompt")
    assert gateway.requests == []


FORM_HEADER = {"Content-Type": "multipart/form-data; boundary=XX"}
HEAD = b'--XX\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat'
ENCODED = b"\r\nContent-Transfer-Encoding: base64\r\n\r\n"
WHOLE = HEAD + b'\r\n--XX\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + PNG + b"\r\n--XX--\r\n"
BROKEN_FORMS: dict[str, tuple[bytes, dict[str, str]]] = {
    "no-boundary": (WHOLE, {"Content-Type": "multipart/form-data"}),
    "empty-boundary": (WHOLE, {"Content-Type": "multipart/form-data; boundary="}),
    "endless-boundary": (WHOLE, {"Content-Type": "multipart/form-data; boundary=" + "x" * 5000}),
    "other-boundary": (WHOLE, {"Content-Type": "multipart/form-data; boundary=YY"}),
    "empty": (b"", FORM_HEADER),
    "garbage": (b"\x00\xff" * 1000, FORM_HEADER),
    "newlines": (b"\r\n" * 1000, FORM_HEADER),
    "no-end": (WHOLE[:-8], FORM_HEADER),
    "cut-in-image": (WHOLE[:-60], FORM_HEADER),
    "cut-in-header": (HEAD[:30], FORM_HEADER),
    "no-disposition": (b"--XX\r\nX-A: b\r\n\r\nc\r\n--XX--\r\n", FORM_HEADER),
    "no-name": (b"--XX\r\nContent-Disposition: form-data\r\n\r\nc\r\n--XX--\r\n", FORM_HEADER),
    "attachment": (b'--XX\r\nContent-Disposition: attachment; name="a"\r\n\r\nc\r\n--XX--\r\n', FORM_HEADER),
    "transfer-encoding": (HEAD.replace(b"prompt", b"a").replace(b"\r\n\r\n", ENCODED) + b"\r\n--XX--\r\n", FORM_HEADER),
    "many-parts": (b'--XX\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 1500 + b"--XX--\r\n", FORM_HEADER),
    "long-header": (b"--XX\r\nX-A: " + b"b" * 100_000 + b"\r\n\r\nc\r\n--XX--\r\n", FORM_HEADER),
    "not-utf-8": (b'--XX\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--XX--\r\n', FORM_HEADER),
    "only-the-end": (b"--XX--\r\n", FORM_HEADER),
}


@pytest.mark.parametrize(("body", "headers"), BROKEN_FORMS.values(), ids=[f"M9-{name}" for name in BROKEN_FORMS])
async def test_broken_form(
    client: httpx.AsyncClient, gateway: FakeGateway, body: bytes, headers: dict[str, str]
) -> None:
    response = await client.post(EDIT, content=body, headers=headers)
    problem(response)
    assert response.status_code == 400
    assert gateway.requests == []


# --- who asks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [GENERATE, EDIT, VARY, "/v1/models", "/v1/models/x"])
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        pytest.param({}, None, id="B2-X2-none"),
        pytest.param({"Authorization": ""}, None, id="B2-empty"),
        pytest.param({"Authorization": "Bearer"}, None, id="B2-bare-scheme"),
        pytest.param({"Authorization": "Bearer  "}, None, id="B2-blank"),
        pytest.param({"Authorization": f"Basic {KEY}"}, None, id="B2-basic"),
        pytest.param({"Authorization": "Bearer sk-wrong-key-0000"}, "invalid_api_key", id="B3-X3-wrong"),
        pytest.param({"Authorization": f"Bearer {KEY} "}, "200", id="B1-trailing-space"),
        pytest.param({"Authorization": f"Bearer {KEY.lower()}"}, "invalid_api_key", id="B1-exact"),
        pytest.param({"Authorization": f"BEARER {KEY}"}, "200", id="B1-scheme-in-any-case"),
        pytest.param({"api-key": KEY}, "200", id="B5-azure"),
        pytest.param({"api-key": "wrong"}, "invalid_api_key", id="B5-azure-wrong"),
    ],
)
async def test_keys(
    make_client: Callable[..., httpx.AsyncClient], path: str, headers: dict[str, str], code: str | None
) -> None:
    async with make_client() as client:
        client.headers.pop("Authorization")
        method = "GET" if "models" in path else "POST"
        response = await client.request(method, path, headers=headers)
    if code == "200":
        assert response.status_code != 401
        return
    error = problem(response)
    assert (response.status_code, error["type"], error["code"]) == (401, "invalid_request_error", code)
    assert "sk-wrong" not in response.text
    assert KEY.lower() not in response.text
    assert response.headers["www-authenticate"] == "Bearer"


async def test_b4_the_key_is_checked_before_the_body_is_read(make_app: Callable[..., Any]) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": GENERATE, "headers": [(b"content-type", b"application/json")],
        "query_string": b"", "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    await make_app()(scope, receive, send)
    assert sent[0]["status"] == 401


async def test_b6_harmless_headers(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    headers = {
        "OpenAI-Organization": "o", "OpenAI-Project": "p", "OpenAI-Beta": "x", "X-Stainless-Lang": "python",
        "X-Stainless-Retry-Count": "2", "X-Client-Request-Id": "c", "Idempotency-Key": "i",
    }  # fmt: skip
    assert (await client.post(GENERATE, json=OK, headers=headers)).status_code == 200
    assert gateway.callers[0].retry_count == 2
    headers["X-Stainless-Retry-Count"] = "many"
    assert (await client.post(GENERATE, json=OK, headers=headers)).status_code == 200
    assert gateway.callers[1].retry_count == 0


# --- paths and methods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allow"),
    [
        ("GET", "/", 404, None, None),
        ("POST", "/v1/responses", 404, None, None),
        ("POST", "/images/generations", 404, None, None),
        ("POST", "/v1/images/generations/", 404, None, None),
        ("POST", "//v1/images/generations", 404, None, None),
        ("GET", GENERATE, 405, "method_not_allowed", {"POST"}),
        ("DELETE", EDIT, 405, "method_not_allowed", {"POST"}),
        ("DELETE", "/v1/models/flux.2-dev-turbo", 405, "method_not_allowed", {"GET", "HEAD"}),
        ("POST", "/v1/models", 405, "method_not_allowed", {"GET", "HEAD"}),
    ],
)
async def test_a3_a4_a5_l5_x18(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str | None, allow: set[str] | None
) -> None:
    response = await client.request(method, httpx.URL("http://router.test").copy_with(raw_path=path.encode()))
    error = problem(response)
    assert (response.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
    if allow is not None:
        assert set(response.headers["allow"].replace(" ", "").split(",")) == allow


async def test_a2_unknown_query_parameters_are_ignored(client: httpx.AsyncClient) -> None:
    assert (await client.post(GENERATE + "?api-version=2024-02-01&x", json=OK)).status_code == 200


# --- sizes of bodies --------------------------------------------------------------------------------------------


async def test_x17_a_declared_body_over_the_limit_is_not_read(make_app: Callable[..., Any]) -> None:
    sent: list[Any] = []
    reads = 0

    async def receive() -> Any:
        nonlocal reads
        reads += 1
        assert sent, "the body was asked for before the answer was out"
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": GENERATE, "query_string": b"", "http_version": "1.1",
        "scheme": "http",
        "headers": [
            (b"content-type", b"application/json"), (b"authorization", b"Bearer " + KEY.encode()),
            (b"content-length", b"999999999999999999999999"),
        ],
    }  # fmt: skip
    await make_app(body_bytes=1000)(scope, receive, send)
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["code"] == "request_too_large"


async def test_d2_x17_a_chunked_body_is_stopped_at_the_limit(make_client: Callable[..., httpx.AsyncClient]) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 100

    async with make_client(body_bytes=1000) as client:
        for path, kind in ((GENERATE, "application/json"), (EDIT, "multipart/form-data; boundary=XX")):
            response = await client.post(path, content=endless(), headers={"Content-Type": kind})
            if kind.startswith("multipart"):
                assert response.status_code in (400, 413)
            else:
                assert (response.status_code, problem(response)["code"]) == (413, "request_too_large")


async def test_d1_chunked_bodies_work(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    async def pieces(data: bytes) -> Any:
        for at in range(0, len(data), 7):
            yield data[at : at + 7]

    response = await client.post(
        GENERATE, content=pieces(json.dumps(OK).encode()), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 200
    form = WHOLE.replace(
        b"--XX--", b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\ngpt-image-2\r\n--XX--'
    )
    response = await client.post(EDIT, content=pieces(form), headers=FORM_HEADER)
    assert response.status_code == 200
    assert gateway.requests[-1].images[0].data == PNG


async def test_bytes_in_flight_are_bounded(make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway) -> None:
    async def nested(_: ImageRequest, __: Any) -> None:
        if len(gateway.requests) == 1:
            response = await client.post(GENERATE, json=OK | {"prompt": "b" * 600})
            assert (response.status_code, problem(response)["code"]) == (503, "overloaded")
            assert (response.headers["retry-after"], response.headers.get("x-should-retry")) == ("1", None)

    gateway.behave = nested
    async with make_client(in_flight_bytes=1000) as client:
        assert (await client.post(GENERATE, json=OK | {"prompt": "a" * 600})).status_code == 200
        assert (await client.post(GENERATE, json=OK | {"prompt": "a" * 600})).status_code == 200  # given back
        assert (await client.post(GENERATE, json=OK | {"prompt": "a" * 2000})).status_code == 200  # alone it may


# --- what the gateway says --------------------------------------------------------------------------------------


async def test_x24_one_order_of_checks(make_client: Callable[..., httpx.AsyncClient]) -> None:
    """Each request is wrong in two ways; the earlier check answers."""
    async with make_client(body_bytes=100) as client:
        long, json_type = b"x" * 200, {"Content-Type": "application/json"}
        cases = [
            (await client.post("/v1/nope", headers={"Authorization": ""}), 404),
            (await client.get(GENERATE, headers={"Authorization": ""}), 405),
            (await client.post(GENERATE, content=long, headers={"Authorization": ""}), 401),
            (await client.post(GENERATE, content=long, headers={"Content-Type": "text/plain"}), 413),
        ]
        assert [response.status_code for response, _ in cases] == [status for _, status in cases]
        for body, code in (
            (b"{", None),
            (b'{"size": "0x0"}', "missing_required_parameter"),
            (b'{"size": 5, "n": 0, "prompt": "a", "model": "nope"}', "invalid_type"),
            (b'{"n": 0, "size": 5, "prompt": "a", "model": "nope"}', "invalid_type"),
            (b'{"n": 0, "prompt": "a", "model": "nope"}', "integer_below_min_value"),
            (b'{"prompt": "a", "model": "nope"}', "model_not_found"),
        ):
            response = await client.post(GENERATE, content=body, headers=json_type)
            assert problem(response)["code"] == code
        response = await client.post(GENERATE, content=b"{", headers={"Content-Type": "text/plain"})
        assert problem(response)["code"] == "unsupported_content_type"


RAISED = [
    ("X16", RequestError(400, "Refused.", code="moderation_blocked", type="image_generation_user_error",
                         details={"moderation_details": {"moderation_stage": "input", "categories": ["x"]}}), "false"),
    ("X19", RequestError(429, "Slow down.", code="rate_limit_exceeded", type="requests", retry=True,
                         retry_after_s=2.2), None),
    ("X20", RequestError(429, "Spent.", code="insufficient_quota", type="insufficient_quota"), "false"),
    ("X21", RequestError(502, "All failed.", code="all_providers_failed", type=SERVER), "false"),
    ("X22", RequestError(504, "Too slow.", code="timeout", type=SERVER), "false"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "retry"), [row[1:] for row in RAISED], ids=[row[0] for row in RAISED])
async def test_x26_the_gateways_errors_are_passed_on(
    client: httpx.AsyncClient, gateway: FakeGateway, seen: list[Exchange], error: RequestError, retry: str | None
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    gateway.behave = refuse
    response = await client.post(GENERATE, json=OK)
    told = problem(response)
    assert (response.status_code, told["code"], told["type"]) == (error.status, error.code, error.type)
    assert told.items() >= error.details.items()
    assert response.headers.get("x-should-retry") == retry
    waits = (response.headers.get("retry-after"), response.headers.get("retry-after-ms"))
    assert waits == (("3", "2200") if error.retry_after_s else (None, None))
    assert seen[-1].error is error
    assert seen[-1].request_id == response.headers["x-request-id"]


async def test_x23_a_bug_is_logged_and_told_to_nobody(
    client: httpx.AsyncClient, gateway: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("internal-host.example sk-provider-secret")

    gateway.behave = fail
    with caplog.at_level(logging.ERROR):
        response = await client.post(GENERATE, json=OK)
    error = problem(response)
    assert (response.status_code, error["type"], error["code"]) == (500, "server_error", None)
    assert "internal-host" not in response.text
    assert response.headers["openai-processing-ms"].isdigit()
    record = next(record for record in caplog.records if record.exc_info)
    assert record.__dict__["request_id"] == response.headers["x-request-id"]


async def test_no_log_line_holds_a_key_or_a_prompt(
    client: httpx.AsyncClient, seen: list[Exchange], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await client.post(GENERATE, json=OK | {"prompt": "a very private wish", "n": 0})
        await client.post(GENERATE, json=OK, headers={"Authorization": "Bearer sk-wrong-key-0000"})
    assert "private wish" not in caplog.text
    assert "sk-wrong" not in caplog.text
    assert KEY not in caplog.text
    assert [exchange.status for exchange in seen] == [400, 401]
    assert seen[0].caller is not None
    assert seen[0].caller.key == "tests"
