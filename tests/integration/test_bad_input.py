"""What a client can get wrong: one clear error each, no provider called, nothing charged, nothing secret in the log."""

from __future__ import annotations

import socket

import httpx
import pytest

from router.ledger import Reports
from router.sandbox import KEYS
from tests.integration.process import KEY, RouterProcess

SECRET_PROMPT = "the prompt that must never be logged"
GOOD = {"model": "flux.2-dev-turbo", "prompt": SECRET_PROMPT, "size": "1024x1024"}
GENERATE = "/v1/images/generations"
EDIT = "/v1/images/edits"
JSON = {"content-type": "application/json"}
FORM = "multipart/form-data; boundary=x"

CASES = [
    # name, path, how it is sent, status, code, param
    ("missing prompt", GENERATE, {"json": {"model": "flux.2-dev-turbo"}}, 400, "missing_required_parameter", "prompt"),
    ("null prompt", GENERATE, {"json": GOOD | {"prompt": None}}, 400, "missing_required_parameter", "prompt"),
    ("unknown model", GENERATE, {"json": GOOD | {"model": "dall-e-9"}}, 404, "model_not_found", "model"),
    ("n=0", GENERATE, {"json": GOOD | {"n": 0}}, 400, "integer_below_min_value", "n"),
    ("n=11", GENERATE, {"json": GOOD | {"n": 11}}, 400, "integer_above_max_value", "n"),
    ("n as text", GENERATE, {"json": GOOD | {"n": "2"}}, 400, "invalid_type", "n"),
    ("size 0x0", GENERATE, {"json": GOOD | {"size": "0x0"}}, 400, "invalid_value", "size"),
    ("size 1024x", GENERATE, {"json": GOOD | {"size": "1024x"}}, 400, "invalid_value", "size"),
    ("size huge", GENERATE, {"json": GOOD | {"size": "99999999x99999999"}}, 400, "invalid_value", "size"),
    ("size not offered", GENERATE, {"json": GOOD | {"size": "4096x4096"}}, 400, "invalid_value", "size"),
    ("broken JSON", GENERATE, {"content": b'{"model": ', "headers": JSON}, 400, None, None),
    ("no JSON object", GENERATE, {"content": b"[]", "headers": JSON}, 400, None, None),
    (
        "wrong content type",
        GENERATE,
        {"content": b"prompt=x", "headers": {"content-type": "text/plain"}},
        400,
        "unsupported_content_type",
        None,
    ),
    (
        "no image",
        EDIT,
        {"data": {"prompt": SECRET_PROMPT}, "files": {"other": b"x"}},
        400,
        "missing_required_parameter",
        "image",
    ),
    (
        "not an image",
        EDIT,
        {"data": {"prompt": SECRET_PROMPT}, "files": {"image": ("a.png", b"no picture")}},
        400,
        None,
        "image",
    ),
    (
        "cut form",
        EDIT,
        {"content": b"--x\r\nContent-Disposition: form-data", "headers": {"content-type": FORM}},
        400,
        None,
        None,
    ),
    ("unknown path", "/v1/images/paintings", {"json": GOOD}, 404, None, None),
]


@pytest.mark.parametrize(("name", "path", "sent", "status", "code", "param"), CASES, ids=[case[0] for case in CASES])
def test_bad_input_costs_nothing(router: RouterProcess, name, path, sent, status, code, param):
    rows = attempts(router)
    answer = router.post(path, **sent)
    assert_error(answer, status, code, param)
    assert attempts(router) == rows
    assert all(calls["total"] == 0 for calls in router.calls().values())


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({}, None),
        ({"authorization": "Bearer"}, None),
        ({"authorization": "Bearer a-wrong-secret-key"}, "invalid_api_key"),
        ({"authorization": f"Bearer {KEY}x"}, "invalid_api_key"),
        ({"api-key": "a-wrong-secret-key"}, "invalid_api_key"),
    ],
    ids=["no header", "no key", "wrong key", "key with a tail", "wrong api-key"],
)
def test_a_key_is_needed_and_a_wrong_one_is_not_repeated(router, sent, code):
    answer = router.post(GENERATE, GOOD, key=None, headers=sent)
    assert_error(answer, 401, code, None)
    assert "a-wrong-secret-key" not in answer.text
    assert KEY not in answer.text
    assert all(calls["total"] == 0 for calls in router.calls().values())


def test_a_body_over_the_limit_is_refused_at_once(router):
    with socket.create_connection(("127.0.0.1", router.port), timeout=10) as connection:
        head = f"POST {EDIT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        head += "content-type: multipart/form-data; boundary=x\r\ncontent-length: 99999999999\r\n\r\n"
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # to the end: the router closes the connection
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in answer.replace(b" ", b"")


def test_logs_tell_who_failed_and_keep_every_secret(router):
    answers = [
        router.post(GENERATE, GOOD | {"n": 11}),
        router.post(GENERATE, GOOD, key="a-wrong-secret-key"),
        router.post(GENERATE, GOOD | {"model": "sandbox-refused"}),
    ]
    codes = [router.line(answer)["error_code"] for answer in answers]
    assert codes == ["integer_above_max_value", "invalid_api_key", "moderation_blocked"]
    log = router.log_path.read_text()
    for secret in (KEY, "a-wrong-secret-key", SECRET_PROMPT, *KEYS.values()):
        assert secret not in log
        assert secret not in httpx.get(f"{router.base}/metrics").text
    for path in router.directory.glob("ledger.db*"):
        content = path.read_bytes()
        for secret in (KEY, SECRET_PROMPT, *KEYS.values()):
            assert secret.encode() not in content


def attempts(router: RouterProcess) -> int:
    with Reports(router.ledger_url) as reports:
        return sum(row.attempts for row in reports.costs("provider"))


def assert_error(answer: httpx.Response, status: int, code: str | None, param: str | None) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    if code is not None:
        assert error["code"] == code
    assert error["param"] == param
