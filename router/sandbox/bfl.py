"""Black Forest Labs: submit, then poll a regional URL (BFL documentation and a published live reply, 2026-11-20).

The submit reply names the price in credits of 0.01 USD; only a task that ends Ready is billed. The polling URL is on
a cluster's host, and no other host knows the task. Results are signed links that die after ten minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.emulator import Call, Emulator, Problem, Wrong, decode_base64, whole
from router.sandbox.pictures import Brief, Size
from router.sandbox.sizes import MEGAPIXEL, from_ratio, megapixels, shrunk
from router.sandbox.webhooks import deliver
from router.sandbox.world import Kept, Latency

LARGEST = 4 * MEGAPIXEL  # larger inputs and outputs are scaled down
LINK_LIFETIME_S = 600
ACTIVE_TASKS = 24


@dataclass(frozen=True, slots=True)
class _Model:
    """Dollars. FLUX.2 pays by the megapixel, older models by the picture (``further`` None)."""

    first: Decimal
    further: Decimal | None = None
    ratio: str | None = None  # default aspect ratio, of models that take no width and height
    pixels: int = MEGAPIXEL
    inputs: int = 8
    latency: Latency = field(default=Latency(6.5, 14.0))


def _flux2(first: str, further: str, p50: float, inputs: int = 8) -> _Model:
    return _Model(Decimal(first), Decimal(further), inputs=inputs, latency=Latency(p50, p50 * 2.2))


MODELS: Mapping[str, _Model] = {
    "flux-2-klein-4b": _flux2("0.014", "0.001", 1.2, 4),
    "flux-2-klein-9b": _flux2("0.015", "0.002", 1.8, 4),
    "flux-2-pro": _flux2("0.03", "0.015", 6.5),
    "flux-2-flex": _flux2("0.05", "0.05", 9.0),
    "flux-2-max": _flux2("0.07", "0.03", 11.0),
    "flux-pro-1.1": _Model(Decimal("0.04"), inputs=0),
    "flux-pro-1.1-ultra": _Model(Decimal("0.06"), ratio="16:9", pixels=4 * MEGAPIXEL, inputs=1),
    "flux-kontext-pro": _Model(Decimal("0.04"), ratio="1:1", inputs=4),
    "flux-kontext-max": _Model(Decimal("0.08"), ratio="1:1", inputs=4),
    "flux-dev": _Model(Decimal("0.025"), inputs=0),
}
"""Prices: bfl.ai/pricing, 2026-11."""


@dataclass(slots=True)
class _Task:
    call: Call
    status: str = "Pending"
    result: dict[str, Any] | None = None
    details: dict[str, Any] | None = None
    progress: float | None = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.call.id,
            "status": self.status,
            "result": self.result,
            "progress": self.progress,
            "details": self.details,
            "preview": None,
        }


@dataclass(frozen=True, slots=True)
class _Order:
    prompt: str
    size: Size
    seed: int
    format: str
    sources: tuple[bytes, ...]
    source_sizes: tuple[Size, ...]


class BFL(Emulator):
    name = "bfl"
    key = "sandbox-bfl"
    hosts: ClassVar = ("api.bfl.ai", "api.eu.bfl.ai", "api.us.bfl.ai", "api.eu2.bfl.ai", "delivery-eu1.bfl.ai")
    cluster: ClassVar = "api.eu2.bfl.ai"  # where all tasks run
    has_jobs = True

    def start(self) -> None:
        super().start()
        self._tasks: Kept[_Task] = Kept()

    def authorized(self, request: Request) -> bool:
        return request.headers.get("x-key") == self.key

    def routes(self, host: str) -> Sequence[BaseRoute]:
        if host.startswith("delivery"):
            return [self.files_route(host)]
        poll = self.poll if host == self.cluster else self.poll_elsewhere
        return [
            self.route("/v1/get_result", poll, method="GET", step="poll"),
            self.route("/v1/credits", self.credits, method="GET", step="other"),
            self.route("/v1/{model}", self.submit),
        ]

    def error(self, wrong: Wrong) -> Response:
        match wrong.kind:
            case "unauthenticated":
                return _detail(403, "Not authenticated - Invalid or missing API key")
            case "no_credit":
                return _detail(402, "Insufficient credits to perform this operation")
            case "not_found":
                return _detail(404, "Not Found")
            case "rate_limited":  # no Retry-After: none is documented
                return _detail(429, f"Too many active tasks: at most {ACTIVE_TASKS}")
            case "server_error":
                return _detail(wrong.status or 500, wrong.message or "Internal Server Error")
            case _:
                detail = {
                    "loc": ["body", *([wrong.param] if wrong.param else [])],
                    "msg": wrong.message,
                    "type": "value_error",
                }
                return _detail(422, [detail]) if wrong.param else _detail(400, wrong.message or "Bad request")

    async def submit(self, call: Call) -> Response:
        body = await call.json()
        prompt = body.get("prompt")
        name = await call.admit(call.request.path_params["model"], prompt if isinstance(prompt, str) else "")
        model = MODELS.get(name)
        if model is None:
            raise Problem(self.problem("not_found"))
        active = sum(task.status == "Pending" for task in self._tasks.values())
        if active >= ACTIVE_TASKS:
            raise Problem(self.problem("rate_limited"))
        order = await self._checked(call, model, body)
        task = self._tasks[call.id] = _Task(call)
        webhook = body.get("webhook_url")
        self.world.spawn(self._process(task, model, order, webhook, body.get("webhook_secret")))
        if webhook:
            return JSONResponse({"id": call.id, "status": "Pending", "webhook_url": webhook})
        reply: dict[str, Any] = {"id": call.id, "polling_url": call.link(f"{self.cluster}/v1/get_result?id={call.id}")}
        if model.further is not None:
            reply["cost"] = float(self._dollars(model, order.size, order.source_sizes) * 100)
            reply["input_mp"] = _decimals(sum(_pixels(size) for size in order.source_sizes))
            reply["output_mp"] = _decimals(_pixels(order.size))
        return JSONResponse(reply)

    async def poll(self, call: Call) -> Response:
        task = self._tasks.get(call.request.query_params.get("id", ""))
        await call.admit(task.call.model if task else "", carried=task.call.later if task else ())
        if task is None:
            return await self.poll_elsewhere(call)
        return JSONResponse(task.as_dict())

    async def poll_elsewhere(self, call: Call) -> Response:
        nothing = {"result": None, "progress": None, "details": None, "preview": None}
        return JSONResponse({"id": call.request.query_params.get("id"), "status": "Task not found", **nothing})

    async def credits(self, call: Call) -> Response:
        return JSONResponse({"credits": float(100_000 - self.world.invoice.total(self.name) * 100)})

    # One task

    async def _checked(self, call: Call, model: _Model, body: Mapping[str, Any]) -> _Order:
        def wrong(field: str, text: str) -> Problem:
            return Problem(self.problem("invalid", text, param=field))

        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            raise wrong("prompt", "Field required")
        sources = []
        for place in range(1, 9):
            name = "input_image" if place == 1 else f"input_image_{place}"
            if body.get(name) is None:
                continue
            try:
                sources.append(await self._load(call, str(body[name])))
            except ValueError as problem:
                raise wrong(name, f"Could not load the image: {problem}") from None
        if len(sources) > model.inputs:
            raise wrong("input_image", f"This model takes at most {model.inputs} images")
        sizes = [await self.world.painter.measure(source) for source in sources]
        if None in sizes:
            raise wrong("input_image", "The image could not be decoded")
        source_sizes = tuple(size for size in sizes if size is not None)
        format = body.get("output_format") or "jpeg"
        if format not in ("jpeg", "png"):
            raise wrong("output_format", "Input should be 'jpeg' or 'png'")
        seed = body.get("seed")
        if seed is None:
            seed = self.world.rng("bfl/seed").randrange(2**32)
        elif whole(seed) is None:
            raise wrong("seed", "Input should be a valid integer")
        tolerance = body.get("safety_tolerance", 2)
        if whole(tolerance) is None or not 0 <= tolerance <= 6:
            raise wrong("safety_tolerance", "Input should be between 0 and 6")
        size = self._size(model, body, source_sizes, wrong)
        return _Order(prompt, size, int(seed), format, tuple(sources), source_sizes)

    def _size(self, model: _Model, body: Mapping[str, Any], sources: Sequence[Size], wrong: Any) -> Size:
        if model.ratio is not None:
            try:
                return from_ratio(str(body.get("aspect_ratio") or model.ratio), model.pixels, 16)
            except ValueError:
                raise wrong("aspect_ratio", "Not an aspect ratio") from None
        default = sources[0] if sources else (1024, 768) if model.further is None else (1024, 1024)
        sides = []
        for name, usual in zip(("width", "height"), default, strict=True):
            side = body.get(name) or usual // 16 * 16
            if whole(side) is None or side < 64 or side % 16:
                raise wrong(name, "Input should be an integer of at least 64, a multiple of 16")
            sides.append(int(side))
        if model.further is None and max(sides) > 1440:
            raise wrong("width", "Input should be less than or equal to 1440")
        return shrunk((sides[0], sides[1]), LARGEST, 16)

    async def _load(self, call: Call, source: str) -> bytes:
        if source.startswith(("http://", "https://", "data:")):
            return await call.fetch(source)
        return decode_base64(source)

    async def _process(self, task: _Task, model: _Model, order: _Order, webhook: Any, secret: Any) -> None:
        call = task.call
        if call.fault("stuck"):
            return
        started = self.world.now()
        seconds = await call.work(model.latency, order.size, 1)
        task.progress = None
        if refused := call.fault("refused"):
            output = refused.params.get("stage") == "output"
            task.status = "Content Moderated" if output else "Request Moderated"
            task.details = {"Moderation Reasons": ["Sexual Content"]}
        elif call.fault("failed"):
            task.status, task.details = "Error", {"error": "The task failed"}
        elif not call.amount_of_pictures(1):
            task.status = "Ready"
        else:
            try:
                sample = await self._paint(call, order)
            except Problem as problem:
                task.status, task.details = "Error", {"error": str(problem)}
            else:
                amount = self._dollars(model, call.real_size(order.size), order.source_sizes)
                quantity = {"credits": amount * 100, "output": list(order.size), "inputs": len(order.sources)}
                call.bill(amount, operation="edit" if order.sources else "generate", quantity=quantity)
                task.result = {
                    "sample": sample,
                    "prompt": order.prompt,
                    "seed": order.seed,
                    "start_time": started,
                    "end_time": self.world.now(),
                    "duration": round(seconds, 3),
                }
                task.status = "Ready"
        if webhook:
            headers = {"X-Webhook-Secret": str(secret)} if secret else {}
            await deliver(str(webhook), task.as_dict(), times=call.webhook_times(), headers=headers)

    async def _paint(self, call: Call, order: _Order) -> str:
        size = call.real_size(order.size)
        data = await call.paint(Brief(call.model, order.prompt, order.seed, size, order.format, sources=order.sources))
        extension = "jpg" if order.format == "jpeg" else order.format
        path = f"delivery-eu1.bfl.ai/results/{call.id[:8]}/{call.id}/sample.{extension}?se=600&sig={call.id[-12:]}"
        return call.publish(path, data, order.format, lifetime_s=LINK_LIFETIME_S, gone_status=403)

    def _dollars(self, model: _Model, size: Size, sources: Sequence[Size]) -> Decimal:
        if model.further is None:
            return model.first
        further = megapixels(size) - 1 + sum(megapixels(source, cap=4) for source in sources)
        return model.first + model.further * further


def _detail(status: int, detail: Any) -> Response:
    return JSONResponse({"detail": detail}, status)


def _pixels(size: Size) -> int:
    return min(LARGEST, size[0] * size[1])


def _decimals(pixels: int) -> float:
    return round(pixels / MEGAPIXEL, 2)
