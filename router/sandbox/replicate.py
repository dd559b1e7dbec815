"""Replicate: predictions that are waited for, polled or announced by webhook (client 1.0.7, documentation, 2026-11-20).

A failed or refused prediction is an HTTP success with ``status: failed``. Official models are billed by picture or
megapixel and only when they succeed; community models by the seconds they ran, in any case.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar

from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.emulator import Call, Emulator, Problem, Wrong, listing, whole
from router.sandbox.pictures import Brief, Size
from router.sandbox.sizes import MEGAPIXEL, from_ratio, megapixels
from router.sandbox.webhooks import deliver
from router.sandbox.world import Kept, Latency, StoredFile

LIFETIME_S = 3600  # outputs and data are deleted after an hour
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"sandbox-webhook-signing-key").decode()
_FORMATS = {"webp": "webp", "jpg": "jpeg", "png": "png"}


@dataclass(frozen=True, slots=True)
class _Model:
    """Dollars for a run, a picture, a megapixel in or out, a second."""

    per_run: Decimal = Decimal(0)
    per_image: Decimal = Decimal(0)
    per_megapixel: Decimal = Decimal(0)
    per_second: Decimal = Decimal(0)
    many: bool = False  # a list of outputs; else one string
    inputs: str | None = None  # the field that takes pictures
    cold_start_s: float = 0.0
    latency: Latency = field(default=Latency(5.0, 11.0))


MODELS: Mapping[str, _Model] = {
    "black-forest-labs/flux-schnell": _Model(per_image=Decimal("0.003"), many=True, latency=Latency(0.9, 2.0)),
    "black-forest-labs/flux-dev": _Model(per_image=Decimal("0.025"), many=True, latency=Latency(3.2, 7.0)),
    "black-forest-labs/flux-1.1-pro": _Model(per_image=Decimal("0.04")),
    "black-forest-labs/flux-2-pro": _Model(
        per_run=Decimal("0.015"), per_megapixel=Decimal("0.015"), inputs="input_images", latency=Latency(7.0, 15.0)
    ),
    "black-forest-labs/flux-2-flex": _Model(
        per_megapixel=Decimal("0.06"), inputs="input_images", latency=Latency(9.0, 19.0)
    ),
    "community/sdxl": _Model(per_second=Decimal("0.000975"), many=True, cold_start_s=8.0, latency=Latency(6.0, 9.0)),
}
"""Prices: replicate.com/pricing, 2026-10-07, and component lists of FLUX.2; community: seconds of an L40S."""


@dataclass(frozen=True, slots=True)
class _Order:
    prompt: str
    size: Size
    n: int
    seed: int
    format: str
    quality: int
    sources: tuple[bytes, ...]
    source_sizes: tuple[Size, ...]


@dataclass(slots=True)
class _Prediction:
    call: Call
    owner_name: str
    input: Mapping[str, Any]
    status: str = "starting"
    output: Any = None
    error: str | None = None
    logs: str = ""
    predict_time: Decimal | None = None
    created: float = 0.0
    started: float | None = None
    completed: float | None = None
    removed: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Replicate(Emulator):
    name = "replicate"
    key = "r8_sandbox"
    hosts: ClassVar = ("api.replicate.com", "replicate.delivery")
    has_jobs = True

    def start(self) -> None:
        super().start()
        self._predictions: Kept[_Prediction] = Kept()

    def routes(self, host: str) -> Sequence[BaseRoute]:
        if host == "replicate.delivery":
            return [self.files_route(host)]
        one = "/v1/predictions/{id}"
        return [
            self.route("/v1/predictions", self.create),
            self.route("/v1/predictions", self.listing, method="GET", step="other"),
            self.route(one, self.get, method="GET", step="poll"),
            self.route(f"{one}/cancel", self.cancel, step="cancel"),
            self.route("/v1/models/{owner}/{name}/predictions", self.create),
            self.route("/v1/models/{owner}/{name}", self.model, method="GET", step="other"),
            self.route("/v1/deployments/{owner}/{name}/predictions", self.create),
            self.route("/v1/webhooks/default/secret", self.secret, method="GET", step="other"),
            self.route("/v1/files", self.upload, step="upload"),
        ]

    def error(self, wrong: Wrong) -> Response:
        match wrong.kind:
            case "unauthenticated":
                return _error(401, "Unauthenticated", "You did not pass a valid authentication token")
            case "no_credit":
                return _error(402, "Insufficient credit", "You have insufficient credit to run this model.")
            case "not_found":
                return _error(404, "Not found", wrong.message or "The requested resource could not be found.")
            case "rate_limited":
                seconds = wrong.retry_after or 1
                text = f"Request was throttled. Your rate limit resets in ~{seconds:g}s."
                reply = _error(429, "Too many requests", text)
                if wrong.retry_after is not None:
                    reply.headers["retry-after"] = f"{wrong.retry_after:g}"
                return reply
            case "server_error":
                return _error(wrong.status or 500, "Internal server error", wrong.message or "Something went wrong.")
            case _:
                field_name = wrong.param or "prompt"
                invalid = {"type": "invalid", "field": f"input.{field_name}", "description": wrong.message}
                text = f"- input.{field_name}: {wrong.message}\n"
                return _error(422, "Input validation failed", text, invalid_fields=[invalid])

    # Predictions

    async def create(self, call: Call) -> Response:
        body = await call.json()
        limit = _duration(call.request.headers.get("cancel-after"))
        given = body.get("input")
        if not isinstance(given, dict):
            raise Problem(_error(422, "Input validation failed", "- input is required\n"))
        parts = call.request.path_params
        name = f"{parts['owner']}/{parts['name']}" if parts else str(body.get("version", "")).partition(":")[0]
        prompt = given.get("prompt")
        name = await call.admit(name, prompt if isinstance(prompt, str) else "")
        model = MODELS.get(name)
        if model is None:
            raise Problem(self.problem("not_found", "The specified model or version does not exist."))
        order = await self._checked(call, model, given)
        prediction = _Prediction(call, name, given, created=self.world.now())
        self._predictions[call.id] = prediction
        prediction.task = self.world.spawn(self._process(prediction, model, order, body))
        if limit is not None:
            self.world.spawn(self._cancel_after(prediction, limit))
        wait = _prefer_wait(call.request.headers.get("prefer"))
        if wait:
            try:
                await asyncio.wait_for(prediction.ended.wait(), wait)
            except TimeoutError:
                return JSONResponse(self._shown(call, prediction), 202)
        return JSONResponse(self._shown(call, prediction), 201)

    async def get(self, call: Call) -> Response:
        return JSONResponse(self._shown(call, await self._found(call)))

    async def listing(self, call: Call) -> Response:
        newest = sorted(self._predictions.values(), key=lambda each: -each.created)[:100]
        return JSONResponse({"previous": None, "next": None, "results": [self._shown(call, each) for each in newest]})

    async def cancel(self, call: Call) -> Response:
        prediction = await self._found(call)
        self._stop(prediction)
        return JSONResponse(self._shown(call, prediction))

    async def _found(self, call: Call) -> _Prediction:
        prediction = self._predictions.get(call.request.path_params["id"])
        if prediction is None:
            await call.admit("")
            raise Problem(self.problem("not_found", "Prediction not found."))
        await call.admit(prediction.owner_name, carried=prediction.call.later)
        return prediction

    def _stop(self, prediction: _Prediction) -> None:
        """Cancelled before it started: aborted and free; afterwards: the seconds it ran are billed."""
        if prediction.ended.is_set():
            return
        if prediction.task is not None:
            prediction.task.cancel()
        now = self.world.now()
        if prediction.started is None:
            self._end(prediction, "aborted")
        else:
            prediction.predict_time = _seconds(now - prediction.started)
            self._bill_seconds(prediction, MODELS[prediction.owner_name])
            self._end(prediction, "canceled")

    async def _cancel_after(self, prediction: _Prediction, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._stop(prediction)

    def _end(self, prediction: _Prediction, status: str) -> None:
        prediction.status = status
        prediction.completed = self.world.now()
        prediction.ended.set()

    async def _process(self, prediction: _Prediction, model: _Model, order: _Order, body: Mapping[str, Any]) -> None:
        call = prediction.call
        await self.world.wait(model.cold_start_s)
        await asyncio.sleep(0)
        prediction.started = self.world.now()
        prediction.status = "processing"
        if call.fault("stuck"):
            return
        seconds = await call.work(model.latency, order.size, order.n)
        prediction.predict_time = _seconds(seconds)
        outputs = []
        if call.fault("refused"):
            prediction.error = "NSFW content detected. Try running it again, or try a different prompt."
        elif call.fault("failed"):
            prediction.error = "The model failed: CUDA out of memory"
        else:
            try:
                outputs = await self._paint(call, order)
            except Problem:
                prediction.error = "The input could not be processed"
        if prediction.error is None:
            prediction.logs = f"Using seed: {order.seed}\n"
            prediction.output = outputs if model.many else next(iter(outputs), None)
            self._bill(prediction, model, order, len(outputs))
        self._bill_seconds(prediction, model)
        self._end(prediction, "failed" if prediction.error else "succeeded")
        if isinstance(webhook := body.get("webhook"), str) and self._wants_completed(body):
            await self._announce(webhook, prediction)

    async def _paint(self, call: Call, order: _Order) -> list[str]:
        links = []
        size = call.real_size(order.size)
        made = call.amount_of_pictures(order.n)
        for index in range(made):
            brief = Brief(
                call.model, order.prompt, order.seed, size, _FORMATS[order.format], index, order.sources, order.quality
            )
            data = await call.paint(brief)
            path = f"replicate.delivery/xezq/{call.id}/out-{index}.{order.format}"
            links.append(call.publish(path, data, _FORMATS[order.format], lifetime_s=LIFETIME_S))
        return links

    def _bill(self, prediction: _Prediction, model: _Model, order: _Order, made: int) -> None:
        out = megapixels(prediction.call.real_size(order.size)) * made
        into = sum(megapixels(size, cap=4) for size in order.source_sizes)
        amount = model.per_run + model.per_image * made + model.per_megapixel * (out + into)
        prediction.call.bill(
            amount if made else Decimal(0),
            operation="edit" if order.sources else "generate",
            quantity={"images": made, "megapixels_out": out, "megapixels_in": into},
        )

    def _bill_seconds(self, prediction: _Prediction, model: _Model) -> None:
        seconds = prediction.predict_time or Decimal(0)
        prediction.call.bill(model.per_second * seconds, operation="generate", quantity={"seconds": seconds})

    # Checks

    async def _checked(self, call: Call, model: _Model, given: Mapping[str, Any]) -> _Order:
        def wrong(name: str, text: str) -> Problem:
            return Problem(self.problem("invalid", text, param=name))

        def number(name: str, default: int, low: int, high: int) -> int:
            value = given.get(name, default)
            if whole(value) is None:
                raise wrong(name, "Invalid type. Expected: integer")
            if value < low:
                raise wrong(name, f"Must be greater than or equal to {low}")
            if value > high:
                raise wrong(name, f"Must be less than or equal to {high}")
            return int(value)

        if not isinstance(given.get("prompt"), str):
            raise wrong("prompt", "prompt is required")
        format = given.get("output_format", "webp")
        if not isinstance(format, str) or format not in _FORMATS:
            raise wrong("output_format", 'must be one of "webp", "jpg", "png"')
        pictures = given.get(model.inputs or "", [])
        if not isinstance(pictures, list) or len(pictures) > 8:
            raise wrong(model.inputs or "input_images", "must be a list of at most 8 images")
        sources = []
        for picture in pictures:
            try:
                sources.append(await call.fetch(str(picture)))
            except ValueError:
                raise wrong(model.inputs or "", "Does not match format 'uri'") from None
        sizes = [await self.world.painter.measure(source) for source in sources]
        if None in sizes:
            raise wrong(model.inputs or "", "could not be decoded")
        source_sizes = tuple(size for size in sizes if size is not None)
        ratio = given.get("aspect_ratio", "1:1")
        if ratio == "custom":
            size = (number("width", 1024, 256, 2048), number("height", 1024, 256, 2048))
        elif ratio == "match_input_image" and source_sizes:
            size = source_sizes[0]
        else:
            amounts = {"0.25": 0.25, "1": 1.0, "0.5 MP": 0.5, "1 MP": 1.0, "2 MP": 2.0, "4 MP": 4.0}
            amount = amounts.get(str(given.get("megapixels") or given.get("resolution") or "1"), 1.0)
            try:
                size = from_ratio(str(ratio), int(amount * MEGAPIXEL), 32)
            except ValueError:
                raise wrong("aspect_ratio", "is not a known aspect ratio") from None
        seed = given.get("seed")
        if seed is None:
            seed = self.world.rng("replicate/seed").randrange(2**31)
        elif whole(seed) is None:
            raise wrong("seed", "Invalid type. Expected: integer")
        return _Order(
            given["prompt"],
            size,
            number("num_outputs", 1, 1, 4) if model.many else 1,
            int(seed),
            str(format),
            max(1, number("output_quality", 80, 0, 100)),
            tuple(sources),
            source_sizes,
        )

    # What is shown

    def _shown(self, call: Call, prediction: _Prediction) -> dict[str, Any]:
        now, id_ = self.world.now(), prediction.call.id
        if prediction.completed is not None and now >= prediction.completed + LIFETIME_S:
            prediction.removed, prediction.output = True, None
        url = call.link(f"api.replicate.com/v1/predictions/{id_}")
        metrics: dict[str, float] = {}
        if prediction.predict_time is not None and prediction.completed is not None:
            metrics["predict_time"] = float(prediction.predict_time)
            metrics["total_time"] = round(prediction.completed - prediction.created, 6)
        return {
            "id": id_,
            "model": prediction.owner_name,
            "version": "dp-sandbox",
            "input": {} if prediction.removed else dict(prediction.input),
            "logs": prediction.logs,
            "output": prediction.output,
            "data_removed": prediction.removed,
            "error": prediction.error,
            "source": "api",
            "status": prediction.status,
            "created_at": _iso(prediction.created),
            "started_at": _iso(prediction.started),
            "completed_at": _iso(prediction.completed),
            "metrics": metrics,
            "urls": {"get": url, "cancel": f"{url}/cancel", "web": f"https://replicate.com/p/{id_}", "stream": url},
        }

    async def model(self, call: Call) -> Response:
        name = f"{call.request.path_params['owner']}/{call.request.path_params['name']}"
        if name not in MODELS:
            raise Problem(self.problem("not_found"))
        owner, _, short = name.partition("/")
        version: dict[str, Any] = {
            "id": "0" * 64,
            "created_at": _iso(0.0),
            "cog_version": "0.16.0",
            "openapi_schema": {},
        }
        about = {"owner": owner, "name": short, "description": "", "visibility": "public", "run_count": 0}
        return JSONResponse({**about, "url": f"https://replicate.com/{name}", "latest_version": version})

    # Webhooks and files

    async def secret(self, call: Call) -> Response:
        return JSONResponse({"key": WEBHOOK_SECRET})

    def _wants_completed(self, body: Mapping[str, Any]) -> bool:
        return "completed" in (listing(body.get("webhook_events_filter")) or ["completed"])

    async def _announce(self, webhook: str, prediction: _Prediction) -> None:
        message = self._shown(prediction.call, prediction)
        stamp, id_ = str(int(self.world.now())), f"msg_{prediction.call.id}"
        key = base64.b64decode(WEBHOOK_SECRET.removeprefix("whsec_"))
        signed = f"{id_}.{stamp}.{json.dumps(message)}".encode()
        signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        headers = {"webhook-id": id_, "webhook-timestamp": stamp, "webhook-signature": f"v1,{signature}"}
        await deliver(webhook, message, times=prediction.call.webhook_times(), headers=headers)

    async def upload(self, call: Call) -> Response:
        await call.admit("")
        async with call.request.form(max_part_size=1 << 26) as form:
            content = form.get("content")
            if not isinstance(content, UploadFile):
                raise Problem(_error(422, "Input validation failed", "content is required"))
            data = await content.read()
            media_type = content.content_type or "application/octet-stream"
        path = f"replicate.delivery/files/{call.id}"
        self.world.files.put(path, StoredFile(data, media_type, self.name, self.world.now() + 86_400))
        about = {
            "id": call.id,
            "name": content.filename,
            "content_type": media_type,
            "size": len(data),
            "etag": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "checksums": {"sha256": hashlib.sha256(data).hexdigest()},
            "metadata": {},
            "created_at": _iso(self.world.now()),
            "expires_at": _iso(self.world.now() + 86_400),
            "urls": {"get": call.link(path)},
        }
        return JSONResponse(about, 201)


def _error(status: int, title: str, detail: str, **more: Any) -> Response:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "instance": "/sandbox", **more}
    return JSONResponse(body, status, media_type="application/problem+json")


def _prefer_wait(header: str | None) -> float:
    match = re.search(r"\bwait(?:=(\d+))?", header or "")
    return 0 if match is None else min(60, int(match.group(1) or 60))


def _duration(text: str | None) -> float | None:
    """Seconds of a header such as 30s, 1m or 1m30s. What Replicate says to another form is not documented."""
    if text is None:
        return None
    match = re.fullmatch(r"(?=\d)(?:(\d+)m)?(?:(\d+)s)?", text)
    if match is None:
        raise Problem(_error(422, "Invalid header", f"- Cancel-After: {text!r} is not a duration\n"))
    minutes, seconds = (int(part or 0) for part in match.groups())
    return float(minutes * 60 + seconds)


def _seconds(seconds: float) -> Decimal:
    return Decimal(str(round(seconds, 6)))


def _iso(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
