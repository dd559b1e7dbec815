"""Runware: an array of tasks by HTTP or WebSocket (client 0.5.24, documentation, 2026-11-20).

``data`` and ``errors`` can come together. Every picture's ``cost`` in dollars is reported on request, and is what
the invoice says. The cost of the open models follows compute: proportional to the side of the picture and the steps.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from math import isqrt
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

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
from router.sandbox.pictures import MEDIA_TYPES, Brief, Size
from router.sandbox.sizes import megapixels
from router.sandbox.webhooks import deliver
from router.sandbox.world import Kept, Latency

FORMATS = {"JPG": "jpeg", "PNG": "png", "WEBP": "webp"}
_CENT = Decimal("0.0001")  # costs are quoted to four decimals


@dataclass(frozen=True, slots=True)
class _Model:
    """Dollars of a 1024x1024 picture at the usual steps; ``further`` of a partner's megapixels after the first."""

    price: Decimal
    steps: int = 20
    further: Decimal | None = None
    multiple: int = 64
    latency: Latency = field(default=Latency(2.5, 5.0))


MODELS: Mapping[str, _Model] = {
    "runware:100@1": _Model(Decimal("0.0006"), steps=4, latency=Latency(0.7, 1.5)),  # FLUX.1 schnell
    "runware:101@1": _Model(Decimal("0.0038"), steps=28),  # FLUX.1 dev
    "runware:400@1": _Model(Decimal("0.0076"), steps=28, multiple=16, latency=Latency(4.0, 8.0)),  # FLUX.2 dev
    "bfl:5@1": _Model(Decimal("0.03"), further=Decimal("0.015"), multiple=16, latency=Latency(6.5, 14.0)),  # FLUX.2 pro
}
"""Prices: copies of runware.ai/pricing, 2026; only the returned cost counts."""


class Refused(Exception):
    """A task that ends with an entry in ``errors``."""

    def __init__(self, code: str, message: str, parameter: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.entry = {"code": code, "message": message, "parameter": parameter, "type": "string"}


class Runware(Emulator):
    name = "runware"
    key = "sandbox-runware"
    hosts: ClassVar = ("api.runware.ai", "ws-api.runware.ai", "im.runware.ai")

    def start(self) -> None:
        super().start()
        self._later: Kept[list[dict[str, Any]] | None] = Kept()  # asynchronous tasks; None while they run
        self._uploads: Kept[bytes] = Kept(100)

    def routes(self, host: str) -> Sequence[BaseRoute]:
        match host:
            case "api.runware.ai":
                return [self.route("/v1", self.tasks, open=True)]
            case "ws-api.runware.ai":
                return [WebSocketRoute("/v1", self.talk)]
            case _:
                return [self.files_route(host)]

    def error(self, wrong: Wrong) -> Response:
        match wrong.kind:
            case "unauthenticated":
                refused = Refused("invalidApiKey", "Invalid API key.", "apiKey", 401)
            case "no_credit":
                refused = Refused("insufficientCredits", "Insufficient credits.", None, 402)
            case "rate_limited":
                refused = Refused("rateLimitExceeded", "Too many requests.", None, 429)
            case "server_error":
                refused = Refused(
                    "internalServerError", wrong.message or "Internal server error.", None, wrong.status or 500
                )
            case "refused":
                refused = Refused("contentModerated", "The content was flagged by the moderation.", "positivePrompt")
            case _:
                refused = Refused(
                    "invalidParameter", wrong.message or "Invalid request.", wrong.param, wrong.status or 400
                )
        reply = _errors([refused.entry], refused.status)
        if wrong.retry_after is not None and wrong.kind == "rate_limited":
            reply.headers["retry-after"] = f"{wrong.retry_after:g}"
        return reply

    # Two ways in

    async def tasks(self, call: Call) -> Response:
        tasks = await call.any_json()
        if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
            raise Problem(self.problem("invalid", "The body must be an array of tasks."))
        authorized = call.request.headers.get("authorization") == f"Bearer {self.key}"
        if tasks[0].get("taskType") == "authentication":
            authorized = tasks.pop(0).get("apiKey") == self.key
        if not authorized:
            raise Problem(self.problem("unauthenticated"))
        data, errors, status = await self._perform(call, tasks)
        if not errors:
            return JSONResponse({"data": data})
        return JSONResponse({**({"data": data} if data else {}), "errors": errors}, 200 if data else status)

    async def talk(self, socket: WebSocket) -> None:
        """One WebSocket connection: authentication first, then tasks, each answered when it is done."""
        await socket.accept()
        known = False
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                for task in await socket.receive_json():
                    if task.get("taskType") == "authentication":
                        known = task.get("apiKey") == self.key
                        session = {"taskType": "authentication", "connectionSessionUUID": str(uuid.uuid4())}
                        bad = {"code": "invalidApiKey", "message": "Invalid API key.", "taskType": "authentication"}
                        await socket.send_json({"data": [session]} if known else {"errors": [bad]})
                    elif task.get("taskType") == "ping":
                        await socket.send_json({"data": [{"taskType": "ping", "pong": True}]})
                    elif known:
                        job = asyncio.ensure_future(self._answer(socket, task))
                        running.add(job)
                        job.add_done_callback(running.discard)
        except (WebSocketDisconnect, ValueError, AttributeError):
            for job in running:
                job.cancel()

    async def _answer(self, socket: WebSocket, task: dict[str, Any]) -> None:
        call = Call(self, Request({**socket.scope, "type": "http", "method": "POST", "scheme": "http"}), "create")
        self.world.calls.arrived(self.name, "WS /ws-api.runware.ai/v1", call.record)
        try:
            data, errors, _ = await self._perform(call, [task])
        except Problem as problem:
            data, errors = [], [{**_entry_of(problem), "taskUUID": task.get("taskUUID")}]
        for item in data:
            await socket.send_json({"data": [item]})
        if errors:
            await socket.send_json({"errors": errors})

    # Tasks

    async def _perform(
        self, call: Call, tasks: Sequence[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
        data: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        status = 400
        for task in tasks:
            about = {"taskType": task.get("taskType"), "taskUUID": task.get("taskUUID")}
            try:
                match task.get("taskType"):
                    case "imageInference":
                        data += await self._inference(call, task, about)
                    case "getResponse":
                        data += await self._response(call, str(task.get("taskUUID")))
                    case "imageUpload":
                        data.append({**about, **self._upload(str(task.get("image", "")))})
                    case _:
                        raise Refused("invalidTaskType", "Unknown task type.", "taskType")
            except Refused as refused:
                status = refused.status
                errors.append({**refused.entry, "documentation": "https://runware.ai/docs", **about})
        return data, errors, status

    async def _response(self, call: Call, task_uuid: str) -> list[dict[str, Any]]:
        call.step = "poll"
        await call.admit("")
        if task_uuid not in self._later:
            raise Refused("taskNotFound", "No such task.", "taskUUID", 404)
        entries = self._later[task_uuid]
        if entries is None:
            return [{"taskType": "imageInference", "taskUUID": task_uuid, "status": "processing"}]
        return entries

    def _upload(self, image: str) -> dict[str, Any]:
        try:
            data = decode_base64(image.rpartition(",")[2])
        except ValueError:
            raise Refused("invalidImage", "The image is no base64.", "image") from None
        name = str(uuid.UUID(self.world.identifier("runware/upload")))
        self._uploads[name] = data
        return {"imageUUID": name}

    async def _inference(self, call: Call, task: dict[str, Any], about: dict[str, Any]) -> list[dict[str, Any]]:
        prompt = task.get("positivePrompt")
        if not isinstance(prompt, str) or not 1 <= len(prompt) <= 3000:
            raise Refused("invalidPositivePrompt", "Needs 1 to 3000 characters.", "positivePrompt")
        name = await call.admit(str(task.get("model", "")), prompt)
        model = MODELS.get(name)
        if model is None:
            raise Refused("invalidModel", f"Model {name!r} is not known.", "model")
        try:
            uuid.UUID(str(task.get("taskUUID")))
        except ValueError:
            raise Refused("invalidTaskUUID", "Needs a UUID.", "taskUUID") from None
        size = (self._number(task, "width", 1024, 128, 2048), self._number(task, "height", 1024, 128, 2048))
        if size[0] % model.multiple or size[1] % model.multiple:
            raise Refused("invalidWidth", f"Needs multiples of {model.multiple}.", "width")
        steps = self._number(task, "steps", model.steps, 1, 100)
        n = self._number(task, "numberResults", 1, 1, 20)
        seed = self._number(task, "seed", self.world.rng("runware/seed").randrange(2**31), 0, 2**63)
        sources, source_sizes = await self._sources(call, task)
        if call.fault("refused"):
            raise Refused("contentModerated", "The content was flagged by the moderation.", "positivePrompt")

        async def make() -> list[dict[str, Any]]:
            await call.work(model.latency, size, n)
            real = call.real_size(size)
            cost = self._cost(model, real, steps, source_sizes)
            made = call.amount_of_pictures(n)
            results = []
            for index in range(made):
                format = FORMATS[self._word(task, "outputFormat", "JPG", tuple(FORMATS))]
                brief = Brief(name, prompt, seed + index, real, format, 0, sources)
                image = self._deliver(call, await call.paint(brief), format, str(task.get("outputType", "URL")))
                entry = {**about, "imageUUID": self._uuid(), **image, "seed": seed + index, "status": "success"}
                if mapping(task.get("safety")).get("checkContent") or task.get("checkNSFW"):
                    entry["NSFWContent"] = False
                results.append({**entry, "cost": float(cost)} if task.get("includeCost") else entry)
            operation = "edit" if sources else "generate"
            call.bill(cost * made, operation=operation, quantity={"images": made, "per_image": cost, "steps": steps})
            return results

        if task.get("deliveryMethod") == "async":
            self._later[about["taskUUID"]] = None
            self.world.spawn(self._make_later(call, about["taskUUID"], make(), task.get("webhookURL")))
            return [about]
        return await make()

    async def _make_later(self, call: Call, task_uuid: str, making: Any, webhook: Any) -> None:
        entries = await making
        self._later[task_uuid] = entries
        if webhook:
            await deliver(str(webhook), {"data": entries}, times=call.webhook_times())

    def _cost(self, model: _Model, size: Size, steps: int, sources: Sequence[Size]) -> Decimal:
        """Dollars of one picture."""
        if model.further is not None:
            further = megapixels(size) - 1 + sum(megapixels(source, cap=4) for source in sources)
            return model.price + model.further * further
        side = isqrt(size[0] * size[1])
        cost = model.price * side / 1024 * steps / model.steps
        return max(_CENT, cost.quantize(_CENT, ROUND_HALF_UP))

    def _number(self, task: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
        value = task.get(name)
        if value is None:
            return default
        if whole(value) is None or not low <= value <= high:
            raise Refused(f"invalid{name[0].upper()}{name[1:]}", f"Needs an integer of {low} to {high}.", name)
        return int(value)

    def _word(self, task: Mapping[str, Any], name: str, default: str, allowed: Sequence[str]) -> str:
        value = task.get(name, default)
        if value not in allowed:
            raise Refused(f"invalid{name[0].upper()}{name[1:]}", f"Needs one of {', '.join(allowed)}.", name)
        return str(value)

    async def _sources(self, call: Call, task: Mapping[str, Any]) -> tuple[tuple[bytes, ...], list[Size]]:
        given = [*(listing(task.get("referenceImages")) or listing(mapping(task.get("inputs")).get("referenceImages")))]
        if task.get("seedImage"):
            given.insert(0, task["seedImage"])
        sources, sizes = [], []
        for picture in given:
            text = str(picture.get("image", "")) if isinstance(picture, dict) else str(picture)
            try:
                if (data := self._uploads.get(text)) is None:
                    data = await call.fetch(text) if ":" in text[:8] else decode_base64(text)
            except ValueError:
                raise Refused("invalidReferenceImages", "The image could not be loaded.", "referenceImages") from None
            size = await self.world.painter.measure(data)
            if size is None:
                raise Refused("invalidReferenceImages", "The image could not be decoded.", "referenceImages")
            sources.append(data)
            sizes.append(size)
        return tuple(sources), sizes

    def _deliver(self, call: Call, picture: bytes, format: str, output: str) -> dict[str, str]:
        match output:
            case "base64Data":
                return {"imageBase64Data": encode_base64(picture)}
            case "dataURI":
                return {"imageDataURI": f"data:{MEDIA_TYPES[format]};base64,{encode_base64(picture)}"}
            case "URL":
                path = f"im.runware.ai/image/ws/2/ii/{self._uuid()}.{'jpg' if format == 'jpeg' else format}"
                return {"imageURL": call.publish(path, picture, format)}
            case _:
                raise Refused("invalidOutputType", "Needs one of URL, base64Data, dataURI.", "outputType")

    def _uuid(self) -> str:
        return str(uuid.UUID(self.world.identifier("runware/image")))


def _errors(entries: list[dict[str, Any]], status: int) -> Response:
    documentation = {"documentation": "https://runware.ai/docs", "taskType": "imageInference"}
    return JSONResponse({"errors": [{**entry, **documentation} for entry in entries]}, status)


def _entry_of(problem: Problem) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(bytes(problem.response.body))["errors"][0]
    return entry
