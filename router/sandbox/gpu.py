"""Hosts of one's own that speak the OpenAI Images API, as LocalAI or vLLM do: a fast dear one, a slow cheap one.

Both run the FLUX.2 [dev] Turbo weights. Their prices are an operator's internal ones: each output and each input
picture counts its megapixels of 2^20 px, rounded up on its own, inputs above 4 MP as 4. Refused and failed calls
are free. ``README.md`` lists the further models, made for hard cases.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.emulator import Call, Problem, encode_base64
from router.sandbox.openai_shape import Fields, OpenAIShape
from router.sandbox.pictures import Brief, Size
from router.sandbox.sizes import megapixels, text
from router.sandbox.world import Latency

NO_PICTURE: Size = (1, 1)  # stands for an input that cannot be measured


@dataclass(frozen=True, slots=True)
class Weights:
    """One model on a host of this kind."""

    edits: bool = True
    sizes: Sequence[Size] = ()  # empty: 256 to 2048 per side
    formats: Sequence[str] = ("png", "jpeg", "webp")
    default_format: str = "png"
    max_images: int = 4
    max_inputs: int = 4
    anything: bool = (
        False  # takes every size, mask and markup, and inputs that are no pictures, which count one megapixel
    )


MODELS: Mapping[str, Weights] = {
    "flux.2-dev-turbo": Weights(),
    "text-to-image-only": Weights(edits=False),
    "fixed-sizes": Weights(sizes=((512, 512), (768, 768), (1024, 1024), (1344, 768), (768, 1344)), max_images=1),
    "one-at-a-time": Weights(max_images=1, max_inputs=1),
    "jpeg-only": Weights(formats=("jpeg",), default_format="jpeg"),
    "accepts-anything": Weights(max_images=10, max_inputs=16, anything=True),
}


class GpuHost(OpenAIShape):
    """An operator-owned host; subclasses give it a name, a speed and a price."""

    latency: ClassVar[Latency]
    per_megapixel: ClassVar[Decimal]

    def routes(self, host: str) -> Sequence[BaseRoute]:
        return [
            self.route("/v1/images/generations", self.generate),
            self.route("/v1/images/edits", self.edit),
            self.route("/v1/models", self.models, method="GET", step="other"),
            self.files_route(host, "/files/{path:path}"),
        ]

    async def generate(self, call: Call) -> Response:
        return await self._serve(call, "generate", await call.json(), [])

    async def edit(self, call: Call) -> Response:
        fields, sources, over = await self.form(call)
        if not sources:
            raise self.reject("Missing required parameter: 'image'.", "image", "missing_required_parameter")
        return await self._serve(call, "edit", fields, sources, tuple(over))

    async def models(self, call: Call) -> Response:
        data = [{"id": name, "object": "model", "created": 1_766_966_400, "owned_by": self.name} for name in MODELS]
        return JSONResponse({"object": "list", "data": data})

    async def _serve(
        self, call: Call, operation: str, fields: Fields, sources: list[bytes], over: Sequence[str] = ()
    ) -> Response:
        prompt = self.prompt(fields)
        name = await call.admit(str(fields.get("model") or "flux.2-dev-turbo"), prompt)
        weights = MODELS.get(name)
        if weights is None:
            raise Problem(self.problem("not_found", f"The model '{name}' does not exist.", param="model"))
        if operation == "edit" and not weights.edits:
            raise self.reject(f"The model '{name}' does not edit images.", "model", "unsupported_operation")
        if over and not weights.anything:
            raise self.reject(f"This model takes no {over[0]}.", over[0], "unsupported_parameter")
        if len(sources) > weights.max_inputs:
            raise self.reject(f"Too many images: at most {weights.max_inputs}.", "image")
        n = self.integer(fields, "n", 1, 1, weights.max_images)
        size = self._size(fields, weights)
        format = self.word(fields, "output_format", weights.default_format, weights.formats)
        delivery = self.word(fields, "response_format", "url", ("url", "b64_json"))
        quality = self.integer(fields, "output_compression", 90, 0, 100)
        seed = self.integer(fields, "seed", -1, -1, 2**64 - 1)
        sizes = await self._measured(sources, weights)
        readable = tuple(source for source, size in zip(sources, sizes, strict=True) if size != NO_PICTURE)
        self.refuse(call)
        await call.work(self.latency, size, n)
        made, real = call.amount_of_pictures(n), call.real_size(size)
        if seed < 0:
            seed = self.world.rng(f"{self.name}/seed").randrange(2**32)
        data = []
        for index in range(made):
            brief = Brief(name, prompt, seed, real, format, index, readable, max(1, quality))
            data.append(self._deliver(call, await call.paint(brief), format, delivery))
        self._bill(call, operation, [real] * len(data), sizes)
        return JSONResponse({"created": int(time.time()), "data": data})

    async def _measured(self, sources: Sequence[bytes], weights: Weights) -> list[Size]:
        if not weights.anything:
            return await self.measured(sources)
        return [await self.world.painter.measure(source) or NO_PICTURE for source in sources]

    def _size(self, fields: Fields, weights: Weights) -> Size:
        size = self.size(fields, (1024, 1024))
        if weights.sizes and size not in weights.sizes:
            known = ", ".join(text(size) for size in weights.sizes)
            raise self.reject(f"Invalid size. Supported sizes: {known}.", "size")
        low, high = (16, 4096) if weights.anything else (256, 2048)
        if min(size) < low or max(size) > high:
            raise self.reject(f"Invalid size: {low} to {high} pixels per side.", "size")
        return size

    def _deliver(self, call: Call, picture: bytes, format: str, delivery: str) -> dict[str, Any]:
        if delivery == "b64_json":
            return {"b64_json": encode_base64(picture)}
        name = self.world.identifier(f"{self.name}/file", 24)
        return {"url": call.publish(f"{self.hosts[0]}/files/{name}.{format}", picture, format, lifetime_s=3600)}

    def _bill(self, call: Call, operation: str, outputs: Sequence[Size], inputs: Sequence[Size]) -> None:
        made = sum(megapixels(size) for size in outputs)
        taken = sum(megapixels(size, cap=4) for size in inputs)
        call.bill(
            (made + taken) * self.per_megapixel,
            operation=operation,
            quantity={"megapixels_out": made, "megapixels_in": taken},
        )


class GpuFast(GpuHost):
    name = "gpu-fast"
    key = "sandbox-gpu-fast"
    hosts: ClassVar = ("gpu-fast.local",)
    latency = Latency(1.9, 4.2)
    per_megapixel = Decimal("0.012")


class GpuSpot(GpuHost):
    name = "gpu-spot"
    key = "sandbox-gpu-spot"
    hosts: ClassVar = ("gpu-spot.local",)
    latency = Latency(6.5, 16.0)
    per_megapixel = Decimal("0.005")
