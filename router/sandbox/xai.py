"""xAI's image API: like OpenAI's, but edits in JSON, ratios instead of sizes, and the cost in every reply
(documentation and adapters, 2026-11-20).

Money is in ticks of 10^-10 USD. A picture that moderation withholds is a 200 with an empty URL, and is charged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.emulator import Call, Problem, Wrong, encode_base64
from router.sandbox.openai_shape import Fields, OpenAIShape
from router.sandbox.pictures import Brief, Size
from router.sandbox.sizes import MEGAPIXEL, from_ratio
from router.sandbox.world import Latency

RATIOS = (
    "1:1", "3:4", "4:3", "9:16", "16:9", "2:3", "3:2", "9:19.5", "19.5:9", "9:20", "20:9", "1:2", "2:1", "auto",
)  # fmt: skip
TICK = Decimal("1e-10")


@dataclass(frozen=True, slots=True)
class _Model:
    """Dollars of a picture made and of one sent in."""

    per_output: Decimal
    per_input: Decimal
    latency: Latency = field(default=Latency(6.0, 13.0))


MODELS: Mapping[str, _Model] = {
    "grok-imagine-image": _Model(Decimal("0.02"), Decimal("0.002")),
    "grok-imagine-image-2.0": _Model(Decimal("0.06"), Decimal("0.01"), Latency(9.0, 19.0)),
}
"""Prices: docs.x.ai, 2026; those of inputs are this emulator's own, only the ticks count."""


class XAI(OpenAIShape):
    name = "xai"
    key = "sandbox-xai"
    hosts: ClassVar = ("api.x.ai", "imgen.x.ai")

    def routes(self, host: str) -> Sequence[BaseRoute]:
        if host == "imgen.x.ai":
            return [self.files_route(host)]
        return [
            self.route("/v1/images/generations", self.generate),
            self.route("/v1/images/edits", self.edit),
        ]

    def error(self, wrong: Wrong) -> Response:
        match wrong.kind:
            case "unauthenticated":
                return _error(401, "Unauthenticated", "Incorrect API key provided.")
            case "no_credit":
                return _error(403, "Forbidden", "Your team has no credits left.")
            case "not_found":
                return _error(404, "Not Found", wrong.message or "The model does not exist.")
            case "rate_limited":
                reply = _error(429, "Too Many Requests", "Rate limit reached.")
                if wrong.retry_after is not None:
                    reply.headers["retry-after"] = f"{wrong.retry_after:g}"
                return reply
            case "server_error":
                return JSONResponse({"error": wrong.message or "Internal server error."}, wrong.status or 500)
            case "refused":
                return _error(400, "content moderation", "Generated image rejected by content moderation.")
            case _:
                return _error(400, "Client specified an invalid argument", wrong.message or "Invalid argument.")

    async def generate(self, call: Call) -> Response:
        return await self._serve(call, await call.json(), [])

    async def edit(self, call: Call) -> Response:
        if not call.request.headers.get("content-type", "").startswith("application/json"):
            raise Problem(_error(415, "Unsupported Media Type", "Expected application/json."))
        fields = await call.json()
        given = fields.get("images") or ([fields["image"]] if fields.get("image") else [])
        urls = [item.get("url") if isinstance(item, dict) else item for item in given]
        if not urls or len(urls) > 5:
            raise self.reject("Between one and five images are required.", "image")
        try:
            sources = [await call.fetch(str(url)) for url in urls]
        except ValueError as problem:
            raise self.reject(f"Could not load the image: {problem}.", "image") from None
        await self.measured(sources)
        return await self._serve(call, fields, sources)

    async def _serve(self, call: Call, fields: Fields, sources: list[bytes]) -> Response:
        for name in ("size", "style", "mask", "seed"):
            if fields.get(name) is not None:
                raise self.reject(f"Argument not supported: {name}", name)
        prompt = self.prompt(fields)
        name = await call.admit(str(fields.get("model") or "grok-imagine-image"), prompt)
        model = MODELS.get(name)
        if model is None:
            raise Problem(self.problem("not_found", f"The model {name} does not exist."))
        n = self.integer(fields, "n", 1, 1, 10)
        delivery = self.word(fields, "response_format", "url", ("url", "b64_json"))
        size = await self._shape(fields, sources)
        self.word(fields, "quality", "medium", ("low", "medium", "high"))
        refused = call.fault("refused")
        if refused and refused.params.get("stage") == "prompt":
            raise Problem(self.problem("refused"))
        await call.work(model.latency, size, n)
        made = call.amount_of_pictures(n)
        data = []
        for index in range(made):
            item: dict[str, Any] = {"revised_prompt": prompt, "mime_type": "image/jpeg"}
            if refused:
                data.append({**item, "url": "", "respect_moderation": False})
                continue
            brief = Brief(name, prompt, 0, call.real_size(size), "jpeg", index, tuple(sources))
            picture = await call.paint(brief)
            if delivery == "url":
                path = f"imgen.x.ai/xai-imgen/{self.world.identifier('xai/file', 24)}.jpeg"
                item["url"] = call.publish(path, picture, "jpeg", lifetime_s=3600)
            else:
                item["b64_json"] = encode_base64(picture)
            data.append({**item, "respect_moderation": True})
        amount = model.per_output * made + model.per_input * len(sources) * bool(made)
        call.bill(
            amount, operation="edit" if sources else "generate", quantity={"images": made, "inputs": len(sources)}
        )
        return JSONResponse({"data": data, "usage": {"cost_in_usd_ticks": int(amount / TICK)}})

    async def _shape(self, fields: Fields, sources: Sequence[bytes]) -> Size:
        ratio = self.word(fields, "aspect_ratio", "auto", RATIOS)
        pixels = {"1k": MEGAPIXEL, "2k": 4 * MEGAPIXEL}[self.word(fields, "resolution", "1k", ("1k", "2k"))]
        if ratio == "auto":
            sizes = await self.measured(sources[:1])
            ratio = f"{sizes[0][0]}:{sizes[0][1]}" if sizes and max(sizes[0]) < 100 * min(sizes[0]) else "1:1"
            width, _, height = ratio.partition(":")
            ratio = f"{int(width) / int(height)}:1"
        return from_ratio(ratio, pixels, 16)


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"code": code, "error": message}, status)
