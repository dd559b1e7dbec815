"""DeepInfra: the OpenAI-compatible paths and the native one, which reports its cost (documentation, 2026-11).

The price of the FLUX models is continuous in pixels and in steps: nothing is rounded but the bill, to 10^-9 USD.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import ClassVar

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.emulator import Call, Problem, Wrong, encode_base64
from router.sandbox.invoice import NANO
from router.sandbox.openai_shape import Fields, OpenAIShape
from router.sandbox.pictures import Brief, Size
from router.sandbox.world import Latency


@dataclass(frozen=True, slots=True)
class _Model:
    """Dollars of a picture; with ``steps`` of one of 1024x1024 at so many steps, with ``scales`` of that size."""

    price: Decimal
    scales: bool = True
    steps: int | None = None
    usual_steps: int = 28
    inputs: int = 0
    latency: Latency = field(default=Latency(4.0, 9.0))


MODELS: Mapping[str, _Model] = {
    "black-forest-labs/FLUX-2-dev": _Model(Decimal("0.01"), steps=28, inputs=4),
    "black-forest-labs/FLUX-2-klein-4b": _Model(Decimal("0.014"), inputs=4, latency=Latency(1.3, 3.0)),
    "black-forest-labs/FLUX-1-schnell": _Model(Decimal("0.0005"), steps=1, usual_steps=4, latency=Latency(0.6, 1.4)),
    "black-forest-labs/FLUX-1-dev": _Model(Decimal("0.009"), steps=25, usual_steps=25),
    "black-forest-labs/FLUX-2-max": _Model(Decimal("0.07"), scales=False, inputs=4, latency=Latency(11.0, 22.0)),
    "black-forest-labs/FLUX-1.1-pro": _Model(Decimal("0.04"), scales=False),
}
"""Prices: deepinfra.com model pages and pricing, 2026."""


@dataclass(frozen=True, slots=True)
class _Order:
    name: str
    model: _Model
    prompt: str
    n: int
    size: Size
    steps: int
    seed: int
    sources: tuple[bytes, ...] = ()


class DeepInfra(OpenAIShape):
    name = "deepinfra"
    key = "sandbox-deepinfra"
    hosts: ClassVar = ("api.deepinfra.com",)

    def routes(self, host: str) -> Sequence[BaseRoute]:
        return [
            self.route("/v1/openai/images/generations", self.generate),
            self.route("/v1/openai/images/edits", self.edit),
            self.route("/v1/openai/images/variations", self.variations),
            self.route("/v1/inference/{model:path}", self.native),
        ]

    def error(self, wrong: Wrong) -> Response:
        match wrong.kind:
            case "unauthenticated":
                return _error(401, "User is not authenticated.")
            case "no_credit":
                return _error(402, "Insufficient balance.")
            case "not_found":
                return _error(404, wrong.message or "Model is not available.")
            case "rate_limited":
                reply = _error(429, "Model busy, retry later.")
                if wrong.retry_after is not None:
                    reply.headers["retry-after"] = f"{wrong.retry_after:g}"
                return reply
            case "server_error":
                return _error(wrong.status or 500, wrong.message or "Internal server error.")
            case _:
                return _error(400, wrong.message or "Bad request.")

    async def generate(self, call: Call) -> Response:
        return await self._serve(call, "generate", await call.json(), [])

    async def edit(self, call: Call) -> Response:
        fields, sources, _ = await self.form(call)
        if not sources:
            raise self.reject("image is required.", "image")
        return await self._serve(call, "edit", fields, sources)

    async def variations(self, call: Call) -> Response:
        fields, sources, _ = await self.form(call)
        if not sources:
            raise self.reject("image is required.", "image")
        return await self._serve(call, "variation", {**fields, "prompt": "a variation"}, sources)

    async def _serve(self, call: Call, operation: str, fields: Fields, sources: list[bytes]) -> Response:
        prompt = self.prompt(fields)
        name, model = await self._model(call, str(fields.get("model") or ""), prompt, len(sources))
        self.word(fields, "response_format", "b64_json", ("b64_json",))
        await self.measured(sources)
        n, size = self.integer(fields, "n", 1, 1, 4), self._size(*self.size(fields, (1024, 1024)))
        order = _Order(name, model, prompt, n, size, model.usual_steps, 0, tuple(sources))
        if call.fault("refused"):
            raise Problem(self.problem("refused", "The prompt was flagged as inappropriate."))
        pictures, _, _ = await self._make(call, order, operation)
        return JSONResponse({"created": int(time.time()), "data": [{"b64_json": each} for each in pictures]})

    async def native(self, call: Call) -> Response:
        """The provider's own path: more options, the cost and the flags of moderation."""
        try:
            fields = await call.json()
            prompt = self.prompt(fields)
            sources = await self._referenced(call, fields)
            name, model = await self._model(call, call.request.path_params["model"], prompt, len(sources))
            await self.measured(sources)
            order = _Order(
                name,
                model,
                prompt,
                self.integer(fields, "num_images", 1, 1, 4),
                self._size(
                    self.integer(fields, "width", 1024, 128, 2048), self.integer(fields, "height", 1024, 128, 2048)
                ),
                self.integer(fields, "num_inference_steps", model.usual_steps, 1, 100),
                self.integer(fields, "seed", self.world.rng("deepinfra/seed").randrange(2**32), 0, 2**64),
                tuple(sources),
            )
        except Problem as problem:
            raise Problem(_native(problem.response)) from None
        refused = call.fault("refused") is not None
        pictures, seconds, cost = await self._make(call, order, "edit" if order.sources else "generate", refused)
        status = {"status": "succeeded", "runtime_ms": round(seconds * 1000), "cost": float(cost)}
        body = {
            "request_id": call.id,
            "inference_status": {**status, "tokens_generated": None, "tokens_input": None},
            "images": [f"data:image/png;base64,{picture}" for picture in pictures],
            "nsfw_content_detected": refused,
            "seed": str(order.seed),
            "version": "sandbox",
            "created_at": datetime.fromtimestamp(self.world.now(), UTC).isoformat(),
        }
        return JSONResponse(body)

    async def _model(self, call: Call, asked: str, prompt: str, inputs: int) -> tuple[str, _Model]:
        name = await call.admit(asked, prompt)
        model = MODELS.get(name)
        if model is None:
            raise Problem(self.problem("not_found", f"Model {name} is not available."))
        if inputs > model.inputs:
            raise self.reject(f"This model takes at most {model.inputs} images.", "image")
        return name, model

    def _size(self, width: int, height: int) -> Size:
        if not all(128 <= side <= 2048 and side % 8 == 0 for side in (width, height)):
            raise self.reject("Sides must be 128 to 2048 pixels, multiples of 8.", "size")
        return width, height

    async def _referenced(self, call: Call, fields: Fields) -> list[bytes]:
        given = fields.get("images") or ([fields["image"]] if fields.get("image") else [])
        try:
            return [await call.fetch(str(source)) for source in given]
        except ValueError:
            raise self.reject("The image could not be loaded.", "image") from None

    async def _make(
        self, call: Call, order: _Order, operation: str, blank: bool = False
    ) -> tuple[list[str], float, Decimal]:
        """The pictures as base64, the seconds they took, and what they cost."""
        seconds = await call.work(order.model.latency, order.size, order.n)
        size = call.real_size(order.size)
        made = call.amount_of_pictures(order.n)
        pictures = []
        for index in range(made):
            brief = Brief(order.name, order.prompt, order.seed, size, "png", index, order.sources, blank=blank)
            pictures.append(encode_base64(await call.paint(brief)))
        cost = order.model.price * made
        if order.model.scales:
            cost = cost * size[0] * size[1] / (1024 * 1024)
        if order.model.steps:
            cost = cost * order.steps / order.model.steps
        cost = cost.quantize(NANO)
        call.bill(cost, operation=operation, quantity={"images": made, "size": list(size), "steps": order.steps})
        return pictures, seconds, cost


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)


def _native(response: Response) -> Response:
    """The same problem as the native path writes it."""
    message = json.loads(bytes(response.body))["error"]["message"]
    return JSONResponse({"detail": {"error": message}}, response.status_code)
