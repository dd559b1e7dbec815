"""Stability AI, v2beta: multipart in, bytes or base64 out (API reference, 2026-11-20).

Flat credits of 0.01 USD for each successful call. A filtered picture is a 200 with ``CONTENT_FILTERED``, blurred and
charged; a refused prompt a 403.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.emulator import Call, Emulator, Problem, Wrong, encode_base64
from router.sandbox.pictures import MEDIA_TYPES, Brief, Size
from router.sandbox.sizes import MEGAPIXEL, from_ratio
from router.sandbox.world import Kept, Latency

RATIOS = ("1:1", "16:9", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21")
CREDIT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class _Service:
    credits: Decimal
    image: bool = False  # works on a picture
    prompt: bool = True
    later: bool = False  # answers with an id to ask for
    scale: int = 1  # of the sides, for upscalers
    latency: Latency = field(default=Latency(6.0, 13.0))


def _credits(amount: str, **rest: Any) -> _Service:
    return _Service(Decimal(amount), **rest)


SERVICES: Mapping[str, _Service] = {
    "generate/ultra": _credits("8", latency=Latency(9.0, 18.0)),
    "generate/core": _credits("3", latency=Latency(3.5, 7.0)),
    "generate/sd3": _credits("6.5"),
    "edit/inpaint": _credits("5", image=True),
    "edit/outpaint": _credits("5", image=True, prompt=False),
    "edit/erase": _credits("5", image=True, prompt=False),
    "edit/search-and-replace": _credits("5", image=True),
    "edit/search-and-recolor": _credits("5", image=True),
    "edit/remove-background": _credits("5", image=True, prompt=False),
    "edit/replace-background-and-relight": _credits("8", image=True, prompt=False, later=True),
    "control/sketch": _credits("5", image=True),
    "control/structure": _credits("5", image=True),
    "control/style": _credits("5", image=True),
    "upscale/fast": _credits("2", image=True, prompt=False, scale=4, latency=Latency(1.5, 3.0)),
    "upscale/conservative": _credits("40", image=True, scale=2),
    "upscale/creative": _credits("60", image=True, later=True, scale=2),
}
"""Prices: platform.stability.ai/pricing, copies of 2026."""

_SD3 = {
    "sd3.5-large": Decimal("6.5"),
    "sd3.5-large-turbo": Decimal(4),
    "sd3.5-medium": Decimal("3.5"),
}


class Stability(Emulator):
    name = "stability"
    key = "sandbox-stability"
    hosts: ClassVar = ("api.stability.ai",)

    def start(self) -> None:
        super().start()
        self._results: Kept[Response | None] = Kept(100)

    def routes(self, host: str) -> Sequence[BaseRoute]:
        return [
            self.route("/v2beta/stable-image/{group}/{service}", self.serve),
            self.route("/v2beta/results/{id}", self.result, method="GET", step="poll"),
            self.route("/v1/user/balance", self.balance, method="GET", step="other"),
        ]

    def error(self, wrong: Wrong) -> Response:
        match wrong.kind:
            case "unauthenticated":
                return self._error(401, "unauthorized", "authorization: invalid or missing header value")
            case "no_credit":
                return self._error(402, "payment_required", "You lack sufficient credits to make this request.")
            case "not_found":
                return self._error(404, "not_found", wrong.message or "The requested resource was not found.")
            case "rate_limited":
                reply = self._error(429, "rate_limit_exceeded", "You have exceeded the rate limit of 150 requests.")
                if wrong.retry_after is not None:
                    reply.headers["retry-after"] = f"{wrong.retry_after:g}"
                return reply
            case "server_error":
                return self._error(
                    wrong.status or 500, "internal_error", wrong.message or "An unexpected error occurred."
                )
            case "refused":
                return self._error(403, "content_moderation", "Your request was flagged by our content moderation.")
            case "too_large":
                return self._error(413, "payload_too_large", "Request payload is larger than 10MiB.")
            case _:
                return self._error(
                    400, "bad_request", f"{wrong.param}: {wrong.message}" if wrong.param else wrong.message
                )

    def _error(self, status: int, name: str, *errors: str) -> Response:
        return JSONResponse({"id": self.world.identifier("stability"), "name": name, "errors": errors}, status)

    async def balance(self, call: Call) -> Response:
        return JSONResponse({"credits": float(1000 - self.world.invoice.total(self.name) / CREDIT)})

    async def serve(self, call: Call) -> Response:
        parts = call.request.path_params
        path, suffix, asked = f"{parts['group']}/{parts['service']}".partition("--")
        service = SERVICES.get(path)
        if service is None:
            raise Problem(self.problem("not_found"))
        fields, source = await self._form(call)
        prompt = fields.get("prompt", "")
        await call.admit(f"{path}{suffix}{asked}", prompt)
        call.model = path
        credits = service.credits
        if path == "generate/sd3":
            model, more, faults = fields.get("model", "sd3.5-large").partition("--")
            await call.admit(f"{model}{more}{faults}", prompt)
            if model not in _SD3:
                raise self._wrong("model", f"must be one of {', '.join(_SD3)}")
            credits = _SD3[model]
        if service.prompt and not prompt:
            raise self._wrong("prompt", "cannot be empty")
        if service.image and source is None:
            raise self._wrong("image", "cannot be empty")
        size = await self._size(service, fields, source)
        format = fields.get("output_format", "png")
        if format not in MEDIA_TYPES or (path == "generate/sd3" and format == "webp"):
            raise self._wrong("output_format", "must be one of png, jpeg, webp")
        seed = fields.get("seed", "0")
        if not seed.isdecimal() or int(seed) > 4_294_967_294:
            raise self._wrong("seed", "must be an integer of 0 to 4294967294")
        number = int(seed) or self.world.rng("stability/seed").randrange(1, 2**32 - 1)
        refused = call.fault("refused")
        if refused and refused.params.get("stage") != "output":
            raise Problem(self.problem("refused"))
        brief = Brief(
            call.model,
            prompt or path,
            number,
            call.real_size(size),
            format,
            sources=() if source is None else (source,),
            detail=0.15 if refused else 1.0,
        )
        if service.later:
            self._results[call.id] = None
            self.world.spawn(self._later(call, service, brief, credits, bool(refused)))
            return JSONResponse({"id": call.id})
        return await self._make(call, service, brief, credits, bool(refused))

    async def result(self, call: Call) -> Response:
        id_ = call.request.path_params["id"]
        await call.admit("")
        if id_ not in self._results:
            raise Problem(self.problem("not_found"))
        reply = self._results[id_]
        if reply is None:
            return JSONResponse({"id": id_, "status": "in-progress"}, 202)
        return Response(bytes(reply.body), reply.status_code, headers=_headers(reply))

    async def _later(self, call: Call, service: _Service, brief: Brief, credits: Decimal, filtered: bool) -> None:
        try:
            self._results[call.id] = await self._make(call, service, brief, credits, filtered)
        except Problem as problem:
            self._results[call.id] = problem.response

    async def _make(self, call: Call, service: _Service, brief: Brief, credits: Decimal, filtered: bool) -> Response:
        await call.work(service.latency, brief.size, 1)
        picture = await call.paint(brief) if call.amount_of_pictures(1) else b""
        call.bill(
            credits * CREDIT if picture else Decimal(0),
            operation="edit" if brief.sources else "generate",
            quantity={"credits": credits},
        )
        finish = "CONTENT_FILTERED" if filtered else "SUCCESS"
        if "application/json" in call.request.headers.get("accept", ""):
            body: dict[str, Any] = {"finish_reason": finish, "seed": brief.seed}
            return JSONResponse({"image": encode_base64(picture), **body} if picture else body)
        headers = {"finish-reason": finish, "seed": str(brief.seed)}
        return Response(picture, media_type=MEDIA_TYPES[brief.format], headers=headers)

    async def _form(self, call: Call) -> tuple[dict[str, str], bytes | None]:
        request: Request = call.request
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise self._wrong("content-type", "must be multipart/form-data")
        fields: dict[str, str] = {}
        source: bytes | None = None
        try:
            async with request.form(max_part_size=1 << 24) as form:
                for name, value in form.multi_items():
                    if isinstance(value, str):
                        fields[name] = value
                    elif name in ("image", "subject_image") and isinstance(value, UploadFile):
                        source = await value.read()
        except MultiPartException as problem:
            raise self._wrong("body", problem.message) from None
        call.record["body"] = {**fields, "image": source and len(source)}
        if source is not None and len(source) > 10 << 20:
            raise Problem(self.problem("too_large"))
        return fields, source

    async def _size(self, service: _Service, fields: Mapping[str, str], source: bytes | None) -> Size:
        shape = None
        if source is not None:
            shape = await self.world.painter.measure(source)
            if shape is None:
                raise self._wrong("image", "could not be decoded")
            if min(shape) < 64 or shape[0] * shape[1] > 9_437_184:
                raise self._wrong("image", "must have sides of at least 64 and at most 9437184 pixels")
        if service.image and shape is not None:
            width, height = shape
            room = max(1, min(service.scale, int((16 * MEGAPIXEL / (width * height)) ** 0.5)))
            return width * room, height * room
        ratio = fields.get("aspect_ratio", "1:1")
        if ratio not in RATIOS:
            raise self._wrong("aspect_ratio", f"must be one of {', '.join(RATIOS)}")
        return from_ratio(ratio, MEGAPIXEL, 64)

    def _wrong(self, field_name: str, text: str) -> Problem:
        return Problem(self.problem("invalid", text, param=field_name))


def _headers(reply: Response) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name != "content-length"}
