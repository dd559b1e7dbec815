"""OpenAI Images (client 3.52, specification and guide, 2026-11-20): generations, edits, streams, models.

Tokens of an output picture follow the published formula (gpt-image-2 and 2.5) or table (1.5 and 1-mini); a partial
picture costs 100 more. Text counts a token per four characters. How many tokens an input picture takes is not
published: the rule here is this emulator's own, so only ``usage`` can settle an edit.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.answers import EventStream
from router.sandbox.emulator import Call, Problem, encode_base64
from router.sandbox.openai_shape import Fields, OpenAIShape, sse
from router.sandbox.pictures import Brief, Size
from router.sandbox.sizes import text
from router.sandbox.world import Latency


@dataclass(frozen=True, slots=True)
class _Model:
    """Dollars per million tokens, and how an output picture is counted."""

    text_in: Decimal
    image_in: Decimal
    image_out: Decimal
    text_out: Decimal = Decimal(0)
    scale: Mapping[str, int] | None = None  # quality -> q of the formula; None: the table of the older family
    free_size: bool = True
    latency: Latency = field(default=Latency(22.0, 60.0))


_NEW = {"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96}
_TWO = _Model(Decimal(5), Decimal(8), Decimal(30), scale={"low": 16, "medium": 48, "high": 96})
_TWO_FIVE = _Model(Decimal(5), Decimal(8), Decimal(30), scale=_NEW, latency=Latency(14.0, 38.0))
_ONE_FIVE = _Model(Decimal(5), Decimal(8), Decimal(32), Decimal(10), free_size=False)
_MINI = _Model(Decimal(2), Decimal("2.5"), Decimal(8), free_size=False, latency=Latency(12.0, 30.0))

MODELS: Mapping[str, _Model] = {
    "gpt-image-2.5-sunburst": _TWO_FIVE,
    "gpt-image-2.5-sunburst-2026-09-08": _TWO_FIVE,
    "gpt-image-2.5-flare": _TWO_FIVE,
    "gpt-image-2.5-flare-2026-09-08": _TWO_FIVE,
    "gpt-image-2": _TWO,
    "gpt-image-2-2026-04-21": _TWO,
    "gpt-image-1.5": _ONE_FIVE,
    "gpt-image-1.5-2025-12-16": _ONE_FIVE,
    "chatgpt-image-latest": _ONE_FIVE,
    "gpt-image-1-mini": _MINI,
}

_OLD_TOKENS: Mapping[Size, Mapping[str, int]] = {
    (1024, 1024): {"low": 272, "medium": 1056, "high": 4160},
    (1024, 1536): {"low": 408, "medium": 1584, "high": 6240},
    (1536, 1024): {"low": 400, "medium": 1568, "high": 6208},
}
_KNOWN = {
    "prompt", "model", "n", "size", "quality", "background", "output_format", "output_compression", "moderation",
    "stream", "partial_images", "complexity", "safety_identifier", "user",
}  # fmt: skip
_KNOWN_IN_EDITS = _KNOWN | {"image", "image[]", "images", "mask", "markup", "input_fidelity"}
PARTIAL_TOKENS = 100


def output_tokens(model: _Model, size: Size, quality: str) -> int:
    """Tokens of one output picture."""
    if model.scale is None:
        return _OLD_TOKENS[size][quality]
    q = model.scale[quality]
    width, height = size
    short, long = min(size), max(size)
    r = (2 * q * short + long) // (2 * long)
    return -(-q * r * (2_000_000 + width * height) // 4_000_000)


def input_tokens(size: Size, fidelity: str = "low") -> int:
    """Tokens of one input picture by this emulator's own rule: tiles of 512 px once the short side is 512."""
    short, long = min(size), max(size)
    tiles = -(-long // short) if short else 1
    tokens = 65 + 129 * min(tiles, 8)
    return tokens if fidelity == "low" else tokens + (4160 if short == long else 6240)


@dataclass(frozen=True, slots=True)
class _Job:
    """A validated request."""

    operation: str  # generate, edit
    model: _Model
    prompt: str
    n: int
    size: Size
    quality: str
    background: str
    format: str
    compression: int
    partials: int | None  # None: no stream
    sources: tuple[bytes, ...]
    text_tokens: int
    image_tokens: int

    @property
    def event(self) -> str:
        return "image_edit" if self.operation == "edit" else "image_generation"


class OpenAI(OpenAIShape):
    name = "openai"
    key = "sk-sandbox-openai"
    hosts: ClassVar = ("api.openai.com",)

    def routes(self, host: str) -> Sequence[BaseRoute]:
        return [
            self.route("/v1/images/generations", self.generate),
            self.route("/v1/images/edits", self.edit),
            self.route("/v1/images/variations", self.variations, step="other"),
            self.route("/v1/models", self.models, method="GET", step="other"),
            self.route("/v1/models/{model}", self.one_model, method="GET", step="other"),
        ]

    def stamp(self, call: Call, response: Response) -> None:
        response.headers["x-request-id"] = f"req_{call.id}"
        response.headers["openai-organization"] = "sandbox"
        response.headers["openai-version"] = "2020-10-01"
        response.headers["openai-processing-ms"] = str(round((self.world.now() - call.record["at"]) * 1000))
        response.headers["x-ratelimit-limit-requests"] = "500"
        response.headers["x-ratelimit-remaining-requests"] = str(500 - self.in_flight)

    async def generate(self, call: Call) -> Response:
        return await self._serve(call, "generate", await call.json(), [])

    async def edit(self, call: Call) -> Response:
        if call.request.headers.get("content-type", "").startswith("application/json"):
            fields = await call.json()
            images = fields.get("images")
            if not isinstance(images, list):
                raise self.reject("Missing required parameter: 'images'.", "images", "missing_required_parameter")
            sources = [await self._referenced(call, item) for item in images]
            over = {"mask": await self._referenced(call, fields["mask"])} if fields.get("mask") else {}
        else:
            fields, sources, over = await self.form(call)
        if not sources:
            raise self.reject("Missing required parameter: 'image'.", "image", "missing_required_parameter")
        if len(sources) > 16:
            raise self.reject("Too many images: at most 16.", "image")
        for name, picture in over.items():
            shapes = await self.measured([picture, sources[0]], name)
            if shapes[0] != shapes[1]:
                raise self.reject(f"Invalid {name} image: its size differs from the image's.", name)
        if len(over) > 1:
            raise self.reject("'markup' cannot be combined with 'mask'.", "markup")
        if "markup" in over and not str(fields.get("model")).startswith("gpt-image-2.5"):
            raise self.reject("This model takes no markup.", "markup", "unsupported_parameter")
        return await self._serve(call, "edit", fields, sources)

    async def _referenced(self, call: Call, item: Any) -> bytes:
        if not isinstance(item, dict) or not isinstance(item.get("image_url"), str):
            raise self.reject("Each image needs an 'image_url' here.", "images")
        try:
            return await call.fetch(item["image_url"])
        except ValueError as problem:
            raise self.reject(f"Could not load the image: {problem}.", "images") from None

    async def variations(self, call: Call) -> Response:
        return self.problem("invalid", "The variations endpoint no longer accepts requests.", status=404)

    async def models(self, call: Call) -> Response:
        return JSONResponse({"object": "list", "data": [_card(name) for name in MODELS]})

    async def one_model(self, call: Call) -> Response:
        name = call.request.path_params["model"]
        return JSONResponse(_card(name)) if name in MODELS else self.problem("not_found", param="model")

    # Checks

    def asked_model(self, call: Call, fields: Fields) -> Any:
        return fields.get("model")

    async def _serve(self, call: Call, operation: str, fields: Fields, sources: list[bytes]) -> Response:
        name = self.asked_model(call, fields)
        if not isinstance(name, str):
            raise self.reject("You must provide a model parameter.", "model", "missing_required_parameter")
        prompt = fields.get("prompt")
        name = await call.admit(name, prompt if isinstance(prompt, str) else "")
        model = MODELS.get(name)
        if model is None:
            raise Problem(self.problem("not_found", f"The model '{name}' does not exist.", param="model"))
        job = await self._checked(operation, model, fields, sources)
        self.refuse(call)
        if job.partials is None:
            return await self._whole(call, job)
        return EventStream(self._events(call, job))

    async def _checked(self, operation: str, model: _Model, fields: Fields, sources: list[bytes]) -> _Job:
        known = _KNOWN if operation == "generate" else _KNOWN_IN_EDITS
        if unknown := sorted(set(fields) - known):
            raise self.reject(f"Unknown parameter: '{unknown[0]}'.", unknown[0], "unknown_parameter")
        prompt = self.prompt(fields)
        size = self.size(fields, (1024, 1024))
        self._check_size(model, size)
        qualities = tuple(model.scale or ("low", "medium", "high"))
        quality = self.word(fields, "quality", "auto", (*qualities, "auto"))
        format = self.word(fields, "output_format", "png", ("png", "jpeg", "webp"))
        background = self.word(fields, "background", "auto", ("auto", "opaque", "transparent"))
        if background == "transparent" and format == "jpeg":
            raise self.reject("Transparent background needs png or webp.", "background")
        stream = fields.get("stream") in (True, "true")
        partials = self.integer(fields, "partial_images", 0, 0, 3)
        if partials and not stream:
            raise self.reject("'partial_images' needs 'stream'.", "partial_images")
        self.word(fields, "moderation", "auto", ("auto", "low"))
        fidelity = self.word(fields, "input_fidelity", "low", ("low", "high"))
        sizes = await self.measured(sources)
        return _Job(
            operation=operation,
            model=model,
            prompt=prompt,
            n=self.integer(fields, "n", 1, 1, 10),
            size=size,
            quality="medium" if quality == "auto" else quality,
            background="opaque" if background == "auto" else background,
            format=format,
            compression=self.integer(fields, "output_compression", 100, 0, 100),
            partials=partials if stream else None,
            sources=tuple(sources),
            text_tokens=-(-len(prompt) // 4),
            image_tokens=sum(input_tokens(size, fidelity) for size in sizes),
        )

    def _check_size(self, model: _Model, size: Size) -> None:
        width, height = size
        if not model.free_size:
            allowed = ", ".join(text(known) for known in _OLD_TOKENS)
            if size not in _OLD_TOKENS:
                raise self.reject(f"Invalid size '{width}x{height}'. Supported sizes: {allowed} and auto.", "size")
            return
        if width % 16 or height % 16 or max(size) > 3840 or max(size) > 3 * min(size):
            rule = "Sides must be multiples of 16, at most 3840, and no longer than three times the other"
            raise self.reject(f"Invalid size '{width}x{height}'. {rule}.", "size")
        if not 655_360 <= width * height <= 8_294_400:
            raise self.reject(f"Invalid size '{width}x{height}': 655360 to 8294400 pixels.", "size")

    # Work

    def _brief(self, call: Call, job: _Job, index: int, detail: float = 1.0) -> Brief:
        return Brief(
            call.model,
            job.prompt,
            0,
            call.real_size(job.size),
            job.format,
            index,
            job.sources,
            max(1, job.compression),
            job.background == "transparent",
            detail,
        )

    async def _whole(self, call: Call, job: _Job) -> Response:
        await call.work(job.model.latency, job.size, job.n)
        made = call.amount_of_pictures(job.n)
        pictures = [await call.paint(self._brief(call, job, index)) for index in range(made)]
        usage = self._bill(call, job, made, 0)
        body = {
            "created": int(time.time()),
            "background": job.background,
            "output_format": job.format,
            "quality": job.quality,
            "size": text(call.real_size(job.size)),
            "data": [{"b64_json": encode_base64(picture)} for picture in pictures],
            "usage": usage,
        }
        return JSONResponse(body)

    async def _events(self, call: Call, job: _Job) -> AsyncIterator[bytes]:
        partials = job.partials or 0
        breaks = call.fault("break_stream") or call.fault("cut")
        fails = call.fault("stream_error")
        sent = 0
        common = {
            "background": job.background,
            "created_at": int(time.time()),
            "output_format": job.format,
            "quality": job.quality,
            "size": text(call.real_size(job.size)),
        }
        for index in range(job.n):
            for partial in range(partials + 1):
                if fails and sent >= fails.number("after", 1):
                    error = {"type": "server_error", "code": "server_error", "message": "The server had an error."}
                    yield sse("error", {"type": "error", "error": {**error, "param": None}})
                    return
                if breaks and sent >= breaks.number("after", 1):
                    self._bill(call, job, index + 1, sent)
                    raise EventStream.Break
                await call.work(_share(job.model.latency, partials + 1), job.size, 1)
                if partial == partials:
                    break
                picture = await call.paint(self._brief(call, job, index, (partial + 1) / (partials + 1)))
                kind = f"{job.event}.partial_image"
                fields = {"type": kind, "b64_json": encode_base64(picture), "partial_image_index": partial, **common}
                yield sse(kind, fields)
                sent += 1
            picture = await call.paint(self._brief(call, job, index))
            last = index == job.n - 1
            kind = f"{job.event}.completed"
            fields = {"type": kind, "b64_json": encode_base64(picture), **common}
            if last:
                fields["usage"] = self._bill(call, job, job.n, sent)
            yield sse(kind, fields)

    def _bill(self, call: Call, job: _Job, made: int, partials: int) -> dict[str, Any]:
        """Write the invoice; the usage object."""
        counted = call.real_size(job.size) if job.model.free_size else job.size  # the table has no other sizes
        out = made * output_tokens(job.model, counted, job.quality) + partials * PARTIAL_TOKENS
        million = Decimal(1_000_000)
        amount = (
            job.text_tokens * job.model.text_in + job.image_tokens * job.model.image_in + out * job.model.image_out
        ) / million
        call.bill(
            amount,
            operation=job.operation,
            quantity={"text_in": job.text_tokens, "image_in": job.image_tokens, "image_out": out, "images": made},
        )
        tokens_in = job.text_tokens + job.image_tokens
        return {
            "input_tokens": tokens_in,
            "input_tokens_details": {"text_tokens": job.text_tokens, "image_tokens": job.image_tokens},
            "output_tokens": out,
            "output_tokens_details": {"image_tokens": out, "text_tokens": 0},
            "total_tokens": tokens_in + out,
        }


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_763_600_000, "owned_by": "openai"}


def _share(latency: Latency, parts: int) -> Latency:
    return Latency(latency.p50 / parts, latency.p95 / parts)
