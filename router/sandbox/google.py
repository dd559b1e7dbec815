"""Google's Gemini API: ``generateContent`` with image models (client 3.4, documentation, 2026-11-20).

One picture per call, inline as base64. A refusal is a 200 without a picture. Money follows ``usageMetadata``: tokens
of text and pictures in, of text and thoughts out, of the picture out, which depend on model and resolution.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.answers import EventStream
from router.sandbox.emulator import (
    Call,
    Emulator,
    Problem,
    Wrong,
    decode_base64,
    encode_base64,
    listing,
    mapping,
    whole,
)
from router.sandbox.pictures import Brief, Size
from router.sandbox.world import Latency

RATIOS: Mapping[str, Size] = {
    "1:1": (1024, 1024),
    "2:3": (832, 1248),
    "3:2": (1248, 832),
    "3:4": (864, 1184),
    "4:3": (1184, 864),
    "4:5": (896, 1152),
    "5:4": (1152, 896),
    "9:16": (768, 1344),
    "16:9": (1344, 768),
    "21:9": (1536, 672),
}
_SCALE = {"512": 0.5, "1K": 1, "2K": 2, "4K": 4}


@dataclass(frozen=True, slots=True)
class _Model:
    """Dollars per million tokens, and tokens of a picture."""

    per_in: Decimal
    per_text_out: Decimal
    per_image_out: Decimal
    image_tokens: Mapping[str, int]  # by imageSize
    input_tokens: int  # of one picture sent in
    max_inputs: int = 14
    thoughts: int = 0  # tokens it thinks before it draws, billed as text
    latency: Latency = field(default=Latency(9.0, 20.0))


MODELS: Mapping[str, _Model] = {
    "gemini-2.5-flash-image": _Model(
        Decimal("0.30"), Decimal("2.50"), Decimal(30), {"1K": 1290}, 258, max_inputs=3, latency=Latency(7.0, 15.0)
    ),
    "gemini-3.1-flash-image": _Model(
        Decimal("0.50"), Decimal("3.00"), Decimal(60), {"512": 747, "1K": 1120, "2K": 1680, "4K": 2520}, 1120
    ),
    "gemini-3.1-flash-lite-image": _Model(
        Decimal("0.25"), Decimal("1.50"), Decimal(30), {"1K": 1120}, 1120, latency=Latency(4.0, 9.0)
    ),
    "gemini-3-pro-image": _Model(
        Decimal("2.00"), Decimal("12.00"), Decimal(120), {"1K": 1120, "2K": 1120, "4K": 2000}, 560, thoughts=220,
        latency=Latency(21.0, 45.0),
    ),
    "gemini-nano-banana-2.1": _Model(Decimal("1.50"), Decimal("7.50"), Decimal(30), {"1K": 1120}, 1120),
}  # fmt: skip
"""Prices: ai.google.dev/pricing as seen in 2026."""


@dataclass(frozen=True, slots=True)
class _Order:
    prompt: str
    size: Size
    tier: str
    seed: int
    sources: tuple[bytes, ...]
    words: bool  # TEXT is among the modalities


class Google(Emulator):
    name = "google"
    key = "sandbox-google"
    hosts: ClassVar = ("generativelanguage.googleapis.com",)

    def routes(self, host: str) -> Sequence[BaseRoute]:
        routes = []
        for version in ("v1", "v1beta"):
            routes += [
                self.route(f"/{version}/models/{{model}}:generateContent", self.generate),
                self.route(f"/{version}/models/{{model}}:streamGenerateContent", self.stream),
                self.route(f"/{version}/models", self.models, method="GET", step="other"),
            ]
        return routes

    def authorized(self, request: Request) -> bool:
        given = request.headers.get("x-goog-api-key") or request.query_params.get("key")
        return given == self.key

    def error(self, wrong: Wrong) -> Response:
        match wrong.kind:
            case "unauthenticated":
                info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
                text = "API key not valid. Please pass a valid API key."
                return _error(400, "INVALID_ARGUMENT", text, [{**info, "domain": "googleapis.com"}])
            case "no_credit":
                return _error(400, "FAILED_PRECONDITION", "Billing is not enabled for this project.")
            case "not_found":
                return _error(404, "NOT_FOUND", wrong.message or "The model is not found.")
            case "rate_limited":  # no Retry-After: the hint is in the details
                details = []
                if wrong.retry_after is not None:
                    kind_ = "type.googleapis.com/google.rpc.RetryInfo"
                    details.append({"@type": kind_, "retryDelay": f"{wrong.retry_after:g}s"})
                return _error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", details)
            case "server_error":
                words = {503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
                text = wrong.message or "An internal error has occurred."
                return _error(wrong.status or 500, words.get(wrong.status or 500, "INTERNAL"), text)
            case _:
                return _error(400, "INVALID_ARGUMENT", wrong.message or "Request contains an invalid argument.")

    async def models(self, call: Call) -> Response:
        methods = ["generateContent", "countTokens"]
        cards = [{"name": f"models/{name}", "supportedGenerationMethods": methods} for name in MODELS]
        return JSONResponse({"models": cards})

    async def generate(self, call: Call) -> Response:
        return JSONResponse(await self._reply(call))

    async def stream(self, call: Call) -> Response:
        reply = await self._reply(call)

        async def events() -> AsyncIterator[bytes]:
            if call.fault("break_stream"):
                yield b"data: "
                raise EventStream.Break
            yield b"data: " + json.dumps(reply).encode() + b"\r\n\r\n"

        return EventStream(events())

    async def _reply(self, call: Call) -> dict[str, Any]:
        body = await call.json()
        texts, sources = self._parts(body)
        prompt = "\n".join(texts)
        name = await call.admit(call.request.path_params["model"], prompt)
        model = MODELS.get(name)
        if model is None:
            raise Problem(self.problem("not_found", f"models/{name} is not found for API version v1beta."))
        order = await self._checked(model, body, prompt, sources)
        await call.work(model.latency, order.size, 1)
        return await self._answer(call, model, order)

    # Checks

    def _parts(self, body: Mapping[str, Any]) -> tuple[list[str], list[bytes]]:
        def wrong(text: str) -> Problem:
            return Problem(self.problem("invalid", text))

        contents = body.get("contents")
        if isinstance(contents, dict):
            contents = [contents]
        if not isinstance(contents, list) or not contents:
            raise wrong("* GenerateContentRequest.contents: contents is not specified")
        texts, sources = [], []
        for content in contents:
            for part in map(mapping, listing(mapping(content).get("parts"))):
                inline = part.get("inlineData") or part.get("inline_data")
                if isinstance(part.get("text"), str):
                    texts.append(part["text"])
                elif isinstance(inline, dict):
                    try:
                        both = str(inline.get("data", "")).replace("-", "+").replace("_", "/")  # either alphabet
                        sources.append(decode_base64(both))
                    except ValueError:
                        raise wrong("Base64 decoding failed.") from None
        if not texts:
            raise wrong("* GenerateContentRequest.contents[0].parts: must contain a text part")
        return texts, sources

    async def _checked(self, model: _Model, body: Mapping[str, Any], prompt: str, sources: list[bytes]) -> _Order:
        def wrong(text: str) -> Problem:
            return Problem(self.problem("invalid", text))

        config = mapping(body.get("generationConfig"))
        image = mapping(config.get("imageConfig"))
        if len(sources) > model.max_inputs:
            raise wrong(f"At most {model.max_inputs} input images are supported.")
        shapes = [await self.world.painter.measure(source) for source in sources]
        if None in shapes:
            raise wrong("Unable to process input image.")
        ratio = image.get("aspectRatio")
        if ratio is None:
            ratio = _nearest(shapes[0]) if shapes and shapes[0] else "1:1"
        if not isinstance(ratio, str) or ratio not in RATIOS:
            raise wrong(f"aspect_ratio must be one of {', '.join(RATIOS)}")
        tier = image.get("imageSize", "1K")
        if not isinstance(tier, str) or tier not in model.image_tokens:
            raise wrong(f"image_size must be one of {', '.join(model.image_tokens)}")
        if config.get("candidateCount", 1) != 1:
            raise wrong("Multiple candidates is not enabled for this model")
        seed = config.get("seed", 0)
        if whole(seed) is None:
            raise wrong("seed must be an integer")
        width, height = RATIOS[ratio]
        size = (int(width * _SCALE[tier]), int(height * _SCALE[tier]))
        modalities = listing(config.get("responseModalities")) or ["TEXT", "IMAGE"]
        return _Order(prompt, size, tier, int(seed), tuple(sources), "TEXT" in modalities)

    # Answers

    async def _answer(self, call: Call, model: _Model, order: _Order) -> dict[str, Any]:
        about = {"modelVersion": call.model, "responseId": call.id[:22]}
        tokens_in = -(-len(order.prompt) // 4)
        refused = call.fault("refused")
        if refused and refused.params.get("stage") != "output":
            blocked = {"promptFeedback": {"blockReason": refused.params.get("reason", "PROHIBITED_CONTENT")}}
            usage = {"promptTokenCount": tokens_in, "totalTokenCount": tokens_in}
            return {**blocked, "usageMetadata": usage, **about}
        parts: list[dict[str, Any]] = []
        text_out, image_out, reason = 0, 0, "STOP"
        if refused:
            reason = str(refused.params.get("reason", "IMAGE_SAFETY"))
        elif call.fault("text_only"):
            words = "I can describe that picture, but I did not draw it."
            parts.append({"text": words})
            text_out = -(-len(words) // 4)
        elif call.fault("empty"):
            reason = "NO_IMAGE"
        else:
            size = call.real_size(order.size)
            picture = await call.paint(Brief(call.model, order.prompt, order.seed, size, "png", sources=order.sources))
            if order.words:
                parts.append({"text": "Here you are."})
                text_out = 4
            parts.append({"inlineData": {"mimeType": "image/png", "data": encode_base64(picture)}})
            image_out = model.image_tokens[order.tier]
        usage = self._bill(call, model, order, tokens_in, text_out, image_out)
        candidate: dict[str, Any] = {"finishReason": reason, "index": 0}
        if parts:
            candidate["content"] = {"role": "model", "parts": parts}
        return {"candidates": [candidate], "usageMetadata": usage, **about}

    def _bill(
        self, call: Call, model: _Model, order: _Order, text_in: int, text_out: int, image_out: int
    ) -> dict[str, Any]:
        """Write the invoice; blocked pictures are free. The usage object."""
        image_in = model.input_tokens * len(order.sources)
        thoughts = model.thoughts if text_out or image_out else 0
        if text_out or image_out:
            amount = (
                (text_in + image_in) * model.per_in
                + (text_out + thoughts) * model.per_text_out
                + image_out * model.per_image_out
            )
            quantity = {"text_in": text_in, "image_in": image_in, "text_out": text_out + thoughts}
            call.bill(
                amount / 1_000_000,
                operation="edit" if order.sources else "generate",
                quantity={**quantity, "image_out": image_out},
            )
        usage: dict[str, Any] = {
            "promptTokenCount": text_in + image_in,
            "candidatesTokenCount": text_out + image_out,
            "totalTokenCount": text_in + image_in + text_out + image_out + thoughts,
            "promptTokensDetails": _details(TEXT=text_in, IMAGE=image_in),
            "candidatesTokensDetails": _details(TEXT=text_out, IMAGE=image_out),
        }
        if thoughts:
            usage["thoughtsTokenCount"] = thoughts
        return usage


def _details(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": name, "tokenCount": count} for name, count in counts.items() if count]


def _error(code: int, status: str, message: str, details: Sequence[Mapping[str, Any]] = ()) -> Response:
    error: dict[str, Any] = {"code": code, "message": message, "status": status}
    if details:
        error["details"] = list(details)
    return JSONResponse({"error": error}, code)


def _nearest(size: Size) -> str:
    shape = size[0] / size[1]
    return min(RATIOS, key=lambda ratio: abs(RATIOS[ratio][0] / RATIOS[ratio][1] - shape))
