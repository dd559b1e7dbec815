"""Providers that fail as they are told to, each in its own words, and what the router must make of it.

``CASES`` and ``BILLED`` are the one place that says what is expected; the table in router/routing/README.md is made of
them. The answers are the documented ones kept as the adapters' fixtures, and where there are none, written in the
shapes of the providers' documentation; nothing comes from the emulators.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from tests.helpers import PNG_BYTES, documented
from tests.router.loopback import Exchange

PROVIDERS = {  # the target of each that is asked first: a shipped one, with its real options, price and billing facts
    "bfl": "bfl/flux.2-pro",
    "fal": "fal/flux.2-dev-turbo",
    "google": "google/gemini-2.5-flash-image",
    "openai": "openai/gpt-image-2",
    "replicate": "replicate/flux.1-schnell",
    "runware": "runware/flux.1-schnell",
    "stability": "stability/stable-image-core",
    "together": "together/flux.2-dev",
    "xai": "xai/grok-imagine-image",
}
SPARE = "gpu-fast/flux.2-dev-turbo"  # stands behind, and always works

NO, MAYBE, PAID = "no", "maybe", "yes"


@dataclass(frozen=True)
class Case:
    """One way to fail. ``again``: calls when there is no other target, by whether the failure may have been billed."""

    kind: str
    moves: bool  # another target is asked
    again: dict[str, int]
    status: int  # of the last word, and its code
    code: str
    resend: bool = False  # a client's SDK may send it again


ONCE = {NO: 1, MAYBE: 1, PAID: 1}

CASES: dict[str, Case] = {
    "cannot be reached": Case("not_sent", True, {NO: 3}, 502, "all_providers_failed", True),
    "key refused": Case("auth", True, ONCE, 502, "all_providers_failed"),
    "credit used up": Case("auth", True, ONCE, 502, "all_providers_failed"),
    "429": Case("rate_limited", True, {NO: 3}, 429, "rate_limit_exceeded", True),
    "request not accepted": Case("bad_request", False, ONCE, 400, "invalid_value"),
    "content refused": Case("refused", False, ONCE, 400, "moderation_blocked"),
    "picture withheld": Case("refused", False, ONCE, 400, "moderation_blocked"),
    "500": Case("server_error", True, {NO: 2, MAYBE: 1}, 502, "all_providers_failed"),
    "job failed": Case("server_error", True, {NO: 2, MAYBE: 1}, 502, "all_providers_failed"),
    "connection reset": Case("no_answer", True, ONCE, 504, "timeout"),
    "answer cut off": Case("no_answer", True, ONCE, 504, "timeout"),
    "answer not readable": Case("no_answer", True, ONCE, 504, "timeout"),
    "silence": Case("no_answer", True, ONCE, 504, "timeout"),
    "success without a picture": Case("unusable", True, ONCE, 502, "all_providers_failed"),
    "download fails": Case("download_failed", False, ONCE, 502, "download_failed"),
}

_ALL = tuple(PROVIDERS)
_JOBS = ("bfl", "fal", "replicate")
_BY_URL = ("bfl", "fal", "openai", "replicate", "runware", "together", "xai")


def _each(names: tuple[str, ...], billed: str, **others: str) -> dict[str, str]:
    return dict.fromkeys(names, billed) | others


BILLED: dict[str, dict[str, str]] = {  # a provider that is missing cannot fail in that way
    "cannot be reached": _each(_ALL, NO),
    "key refused": _each(_ALL, NO),
    "credit used up": _each(_ALL, NO),
    "429": _each(_ALL, NO),
    "request not accepted": _each(_ALL, NO),
    "content refused": _each(_ALL, MAYBE, bfl=NO, stability=NO),
    "picture withheld": {"fal": PAID, "google": MAYBE, "runware": PAID, "stability": MAYBE, "xai": MAYBE},
    "500": _each(_ALL, MAYBE, bfl=NO, fal=NO, stability=NO),
    "job failed": _each(_JOBS, NO, replicate=MAYBE),
    "connection reset": _each(_ALL, MAYBE),
    "answer cut off": _each(_ALL, MAYBE),
    "answer not readable": _each(_ALL, MAYBE),
    "silence": _each(_ALL, MAYBE),
    "success without a picture": _each(_ALL, PAID),
    "download fails": _each(_BY_URL, PAID),
}

CELLS = [(case, name) for case in CASES for name in BILLED[case]]

_WORDS = {NO: "free", MAYBE: "maybe", PAID: "paid"}


def table() -> str:
    """The expectations for people, in Markdown."""
    lines = [
        f"| what happens | class | other target | alone | last word | send again | {' | '.join(PROVIDERS)} |",
        f"| --- | --- | --- | --- | --- | --- |{' --- |' * len(PROVIDERS)}",
    ]
    for name, case in CASES.items():
        billed = BILLED[name]
        calls = {case.again[each] for each in set(billed.values())}
        alone = str(max(calls)) if len(calls) == 1 else f"{max(calls)} if free"
        cells = " | ".join(_WORDS[billed[each]] if each in billed else "–" for each in PROVIDERS)
        words = "yes" if case.moves else "no", alone, f"{case.status} `{case.code}`", "yes" if case.resend else "no"
        lines.append(f"| {name} | `{case.kind}` | {' | '.join(words)} | {cells} |")
    return "\n".join(lines) + "\n"


# --- what they say ----------------------------------------------------------------------------------------------

Said = tuple[int, Any, dict[str, str]]  # status, body, headers


def _said(status: int, body: Any, **headers: str) -> Said:
    return status, body, {name.replace("_", "-"): value for name, value in headers.items()}


def _shown(fixture: str, http: int | None = None, **changes: Any) -> Said:
    shown = documented(fixture, http=http, **changes)
    headers = {name: value for name, value in shown.headers.items() if name not in ("content-length", "content-type")}
    return shown.status_code, orjson.loads(shown.content), headers


def _openai(status: int, type_: str, code: str | None, message: str = "No.", **headers: str) -> Said:
    return _said(status, {"error": {"message": message, "type": type_, "param": None, "code": code}}, **headers)


def _google(status: int, word: str, *details: dict[str, Any]) -> Said:
    return _said(status, {"error": {"code": status, "message": "No.", "status": word, "details": list(details)}})


def _runware(status: int, code: str, **more: str) -> Said:
    return _said(status, {"errors": [{"code": code, "message": "No.", "taskType": "imageInference", **more}]})


def _stability(status: int, name: str, **headers: str) -> Said:
    return _said(status, {"id": "8d3c1f", "name": name, "errors": ["prompt: no"]}, **headers)


def _replicate(status: int, title: str, detail: str = "No.", **more: Any) -> Said:
    headers = {"retry-after": "1"} if status == 429 else {}
    return status, {"title": title, "detail": detail, "status": status, **more}, headers


_WAIT = {"retry_after": "1"}
_RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"}
_BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}

_REFUSALS: dict[str, dict[str, Said]] = {  # of the first call, before any job
    "key refused": {
        "bfl": _said(403, {"detail": "Not authenticated - Invalid Authentication"}),
        "fal": _said(401, {"detail": "Cannot access application. Authentication is required."}),
        "google": _google(400, "INVALID_ARGUMENT", _BAD_KEY),
        "openai": _openai(401, "invalid_request_error", "invalid_api_key"),
        "replicate": _replicate(401, "Unauthenticated"),
        "runware": _runware(401, "invalidApiKey"),
        "stability": _stability(401, "unauthorized"),
        "together": _openai(401, "invalid_request_error", "invalid_api_key"),
        "xai": _said(401, {"code": "Invalid credentials", "error": "No."}),
    },
    "credit used up": {
        "bfl": _said(402, {"detail": "Insufficient credits."}),
        "fal": _said(403, {"detail": "User is locked. Reason: Exhausted balance."}),
        "google": _google(400, "FAILED_PRECONDITION"),
        "openai": _openai(429, "insufficient_quota", "insufficient_quota"),
        "replicate": _replicate(402, "Insufficient credit"),
        "runware": _runware(402, "insufficientCredits"),
        "stability": _stability(402, "payment_required"),
        "together": _openai(402, "invalid_request_error", None),
        "xai": _said(403, {"code": "The caller does not have permission", "error": "No credits."}),
    },
    "429": {
        "bfl": _said(429, {"detail": "Too many active tasks."}, **_WAIT),
        "fal": _said(429, {"detail": "Too many concurrent requests."}, **_WAIT),
        "google": _google(429, "RESOURCE_EXHAUSTED", _RETRY_INFO),
        "openai": _openai(429, "requests", "rate_limit_exceeded", **_WAIT),
        "replicate": _replicate(429, "Throttled", "Request was throttled. Your rate limit resets in ~1s."),
        "runware": (429, {"errors": [{"code": "rateLimit", "message": "No."}]}, {"retry-after": "1"}),
        "stability": _stability(429, "rate_limit_exceeded", **_WAIT),
        "together": _openai(429, "rate_limit", None, **_WAIT),
        "xai": _said(429, {"code": "Too many requests", "error": "No."}, **_WAIT),
    },
    "request not accepted": {
        "bfl": _said(422, {"detail": [{"loc": ["body", "width"], "msg": "No.", "type": "value_error"}]}),
        "fal": _said(422, {"detail": [{"loc": ["body", "image_size"], "msg": "No.", "type": "value_error"}]}),
        "google": _google(400, "INVALID_ARGUMENT"),
        "openai": _openai(400, "invalid_request_error", "invalid_value"),
        "replicate": _replicate(422, "Input validation failed", invalid_fields=[{"field": "input.num_outputs"}]),
        "runware": _shown("runware/failed"),
        "stability": _stability(400, "bad_request"),
        "together": _openai(400, "invalid_request_error", None),
        "xai": _said(400, {"code": "Client specified an invalid argument", "error": "No."}),
    },
    "500": {
        "bfl": _said(500, {"detail": "Internal Server Error"}),
        "fal": _said(500, {"detail": "Internal error", "error_type": "internal_error"}),
        "google": _google(500, "INTERNAL"),
        "openai": _openai(500, "server_error", None),
        "replicate": _replicate(500, "Internal error"),
        "runware": _runware(500, "serverError"),
        "stability": _stability(500, "internal_error"),
        "together": _openai(500, "server_error", None),
        "xai": _said(500, {"code": "Internal error", "error": "No."}),
    },
}


def _after_acceptance(name: str, *then: Said) -> list[Said]:
    """The answers of a job that was taken."""
    accepted = {"bfl": "bfl/submit", "fal": "fal/submit", "replicate": "replicate/starting"}
    return [_shown(accepted[name]), *then]


def _fal_result(status: int, body: Any, **headers: str) -> list[Said]:
    return _after_acceptance("fal", _shown("fal/completed"), _said(status, body, **headers))


def _replicate_end(**changes: Any) -> list[Said]:
    return _after_acceptance("replicate", _shown("replicate/failed", **changes))


_SCRIPTS: dict[str, dict[str, list[Said]]] = {
    "content refused": {
        "bfl": _after_acceptance("bfl", _shown("bfl/moderated", status="Request Moderated")),
        "fal": _fal_result(
            422, {"detail": [{"loc": ["body", "prompt"], "msg": "No.", "type": "content_policy_violation"}]}
        ),
        "google": [_shown("google/blocked")],
        "openai": [_openai(400, "image_generation_user_error", "moderation_blocked")],
        "replicate": _replicate_end(error="The input or output was flagged as sensitive. Please try again. (E005)"),
        "runware": [_runware(400, "providerContentModeration")],
        "stability": [_stability(403, "content_moderation")],
        "together": [_openai(422, "invalid_request_error", "content", "NSFW content detected in the prompt.")],
        "xai": [_said(400, {"code": "Generated image rejected by content moderation.", "error": "No."})],
    },
    "picture withheld": {
        "fal": _fal_result(
            200,
            {"images": [{"url": "https://v3b.fal.media/files/black.png"}], "has_nsfw_concepts": [True]},
            x_fal_billable_units="1",
        ),
        "google": [_shown("google/withheld")],
        "runware": [_said(200, {"data": [{"taskType": "imageInference", "NSFWContent": True, "cost": 0.0038}]})],
        "stability": [_shown("stability/filtered")],
        "xai": [_said(200, {"data": [{"respect_moderation": False}]})],
    },
    "job failed": {
        "bfl": _after_acceptance("bfl", _shown("bfl/moderated", status="Error", details=None)),
        "fal": _after_acceptance("fal", _shown("fal/completed_failed")),
        "replicate": _replicate_end(),
    },
    "success without a picture": {
        "bfl": _after_acceptance("bfl", _shown("bfl/ready", result=None)),
        "fal": _fal_result(200, {"images": [], "has_nsfw_concepts": []}),
        "google": [_shown("google/text_only")],
        "openai": [_shown("openai/generated", data=[], usage={"input_tokens": 10, "output_tokens": 1056})],
        "replicate": _after_acceptance("replicate", _shown("replicate/succeeded", output=[])),
        "runware": [_said(200, {"data": []})],
        "stability": [_said(200, {"finish_reason": "SUCCESS", "seed": 1})],
        "together": [_shown("together/base64", data=[])],
        "xai": [_said(200, {"data": []})],
    },
    "download fails": {
        "bfl": _after_acceptance("bfl", _shown("bfl/ready")),
        "fal": _after_acceptance("fal", _shown("fal/completed"), _shown("fal/result")),
        "openai": [_shown("openai/compatible_url")],
        "replicate": _after_acceptance("replicate", _shown("replicate/succeeded")),
        "runware": [_shown("runware/generated")],
        "together": [_shown("together/url")],
        "xai": [_shown("openai/compatible_url")],
    },
}


def script(case: str, name: str) -> list[Said]:
    """The answers to one attempt's calls, in order; empty where the connection itself fails."""
    if case in _REFUSALS:
        return [_REFUSALS[case][name]]
    return _SCRIPTS[case][name] if case in _SCRIPTS else []


# --- how they say it --------------------------------------------------------------------------------------------

_ADDRESS = re.compile(rb'https?://[^/"]+/')
_PICTURE = re.compile(r"\.(?:png|jpe?g|webp)(?:\?|$)")


class Upstream:
    """All providers on one host, each under a path of its own: ``/fal/...``."""

    def __init__(self, case: str, name: str) -> None:
        self.case = case
        self.name = name
        self.asked: dict[str, int] = {}  # calls that may be billed, by provider
        self.downloads = 0
        self._answers: list[Said] = []

    async def answer(self, exchange: Exchange) -> None:
        request = exchange.request
        provider = request.path.split("/")[1]
        if request.line.startswith("POST"):
            self.asked[provider] = self.asked.get(provider, 0) + 1
            self._answers = script(self.case, self.name).copy()
        if provider != self.name:
            await self._say(exchange, _shown("openai/generated"))
        elif request.line.startswith("GET") and _PICTURE.search(request.path):
            self.downloads += 1
            if self.case == "download fails":
                await exchange.reply(b"gone", status="404 Not Found")
            else:
                await exchange.reply(PNG_BYTES, headers="Content-Type: image/png\r\n")
        elif self.case == "connection reset":
            exchange.reset()
        elif self.case == "answer cut off":
            await exchange.write(b'HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n{"data":')
            exchange.close()
        elif self.case == "answer not readable":
            await exchange.reply(b"<html>It works!</html>")
        elif self.case == "silence":
            await exchange.hang()
        else:
            await self._say(exchange, self._answers.pop(0))

    async def _say(self, exchange: Exchange, said: Said) -> None:
        status, body, headers = said
        here = f"http://{exchange.request.header('host')}/{self.name}/".encode()
        content = _ADDRESS.sub(here, orjson.dumps(body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        await exchange.reply(content, status=f"{status} X", headers=f"Content-Type: application/json\r\n{lines}")
