"""Together AI: pictures by URL or base64 in one call (client 3.1.1, documentation, 2026-11-20).

Nothing in a reply can be measured or priced, so the invoice follows the request: schnell by megapixels of 10^6 px
without rounding, times four steps or more; the other models by the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.emulator import Call, Problem, Wrong, encode_base64
from router.sandbox.openai_shape import OpenAIShape
from router.sandbox.pictures import Brief, Size
from router.sandbox.world import Latency


@dataclass(frozen=True, slots=True)
class _Model:
    """Dollars for a picture, or for a megapixel of 10^6 px at up to four steps."""

    price: Decimal
    per_megapixel: bool = False
    inputs: int = 0
    steps: int = 28
    max_steps: int = 50
    latency: Latency = field(default=Latency(5.0, 11.0))


def _flux2(price: str) -> _Model:
    return _Model(Decimal(price), inputs=8, latency=Latency(6.5, 14.0))


MODELS: Mapping[str, _Model] = {
    "black-forest-labs/FLUX.1-schnell": _Model(
        Decimal("0.0027"), per_megapixel=True, steps=4, max_steps=12, latency=Latency(0.7, 1.6)
    ),
    "black-forest-labs/FLUX.1-dev": _Model(Decimal("0.0154")),
    "black-forest-labs/FLUX.1.1-pro": _Model(Decimal("0.04")),
    "black-forest-labs/FLUX.1-kontext-pro": _Model(Decimal("0.04"), inputs=1),
    "black-forest-labs/FLUX.1-kontext-max": _Model(Decimal("0.08"), inputs=1),
    "black-forest-labs/FLUX.2-pro": _flux2("0.03"),
    "black-forest-labs/FLUX.2-dev": _flux2("0.0154"),
    "black-forest-labs/FLUX.2-flex": _flux2("0.03"),
    "black-forest-labs/FLUX.2-max": _flux2("0.07"),
    "google/flash-image-2.5": _Model(Decimal("0.039"), inputs=3),
    "google/gemini-3-pro-image": _Model(Decimal("0.134"), inputs=14, latency=Latency(21.0, 45.0)),
}
"""Prices: a comparison of 2026-05, for FLUX.2 the likely ones; see the provider's page before use."""


class Together(OpenAIShape):
    name = "together"
    key = "sandbox-together"
    hosts: ClassVar = ("api.together.xyz", "api.together.ai")

    def routes(self, host: str) -> Sequence[BaseRoute]:
        return [
            self.route("/v1/images/generations", self.generate),
            self.files_route(host, "/imgproxy/{path:path}"),
        ]

    def error(self, wrong: Wrong) -> Response:
        match wrong.kind:
            case "no_credit":
                return _error(402, "payment_required", "Credit limit exceeded.", None, "credit_limit")
            case "refused":
                return _error(
                    422, "invalid_request_error", "NSFW content detected in the prompt.", None, "nsfw_content"
                )
            case _:
                return super().error(wrong)

    async def generate(self, call: Call) -> Response:
        fields = await call.json()
        prompt = self.prompt(fields)
        name = await call.admit(str(fields.get("model") or ""), prompt)
        model = MODELS.get(name)
        if model is None:
            raise Problem(self.problem("not_found", f"Unable to access model {name}.", param="model"))
        n = self.integer(fields, "n", 1, 1, 4)
        size = (self.integer(fields, "width", 1024, 64, 2048), self.integer(fields, "height", 1024, 64, 2048))
        if size[0] % 8 or size[1] % 8:
            raise self.reject("width and height must be multiples of 8.", "width")
        steps = self.integer(fields, "steps", model.steps, 1, model.max_steps)
        seed = self.integer(fields, "seed", -1, -1, 2**63)
        if seed < 0:
            seed = self.world.rng("together/seed").randrange(2**31)
        format = self.word(fields, "output_format", "jpeg", ("jpeg", "png"))
        delivery = self.word(fields, "response_format", "url", ("url", "base64", "b64_json"))
        sources = await self._sources(call, fields, model)
        await self.measured(sources, "reference_images")
        self.refuse(call)
        seconds = await call.work(model.latency, size, n)
        real = call.real_size(size)
        made = call.amount_of_pictures(n)
        data = []
        for index in range(made):
            brief = Brief(name, prompt, seed, real, format, index, tuple(sources))
            item = self._deliver(call, await call.paint(brief), format, delivery)
            data.append({"index": index, **item, "timings": {"inference": round(seconds, 3)}})
        self._bill(call, model, real, made, steps, bool(sources))
        return JSONResponse({"id": call.id, "model": name, "object": "list", "data": data})

    async def _sources(self, call: Call, fields: Mapping[str, Any], model: _Model) -> list[bytes]:
        urls = fields.get("reference_images") or ([fields["image_url"]] if fields.get("image_url") else [])
        if not isinstance(urls, list) or len(urls) > model.inputs:
            raise self.reject(f"This model takes at most {model.inputs} reference images.", "reference_images")
        try:
            return [await call.fetch(str(url)) for url in urls]
        except ValueError as problem:
            raise self.reject(f"Could not load an image: {problem}.", "reference_images") from None

    def _deliver(self, call: Call, picture: bytes, format: str, delivery: str) -> dict[str, Any]:
        if delivery != "url":
            return {"b64_json": encode_base64(picture), "type": "b64_json"}
        path = f"{self.hosts[1]}/imgproxy/{self.world.identifier('together/file', 24)}.{format}"
        url = call.publish(path, picture, format, lifetime_s=3600)
        if (file := self.world.files.get(path)) is not None:
            file.needs_user_agent = True  # downloads without one are forbidden
        return {"url": url, "type": "url"}

    def _bill(self, call: Call, model: _Model, size: Size, made: int, steps: int, edit: bool) -> None:
        amount = model.price * made
        quantity: dict[str, Any] = {"images": made}
        if model.per_megapixel:
            megapixels = Decimal(size[0] * size[1]) / 1_000_000
            amount = amount * megapixels * max(4, steps) / 4
            quantity |= {"megapixels": megapixels, "steps": steps}
        call.bill(amount, operation="edit" if edit else "generate", quantity=quantity)


def _error(status: int, type_: str, message: str, param: str | None, code: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": type_, "param": param, "code": code}}, status)
