"""fal.ai: synchronous runs, the queue, storage (fal documentation and client 1.0, 2026-11-20).

The billed quantity stands in ``x-fal-billable-units`` of a run's reply and of a queued request's result. A queued
request is worked on whether or not anybody asks for it; COMPLETED does not mean success.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.answers import EventStream
from router.sandbox.emulator import Call, Emulator, Problem, Wrong, encode_base64
from router.sandbox.fal_apps import APPS, PRESETS, App, Order, check, infrastructure_error, model_error, plain
from router.sandbox.pictures import MEDIA_TYPES, Brief, Size
from router.sandbox.webhooks import deliver
from router.sandbox.world import Kept, StoredFile

QUEUE_SHARE = 0.15  # a queued request waits this part of the usual time before it runs


@dataclass(slots=True)
class _Job:
    """One request in the queue."""

    call: Call
    endpoint_id: str
    status: str = "IN_QUEUE"
    reply: Response | None = None
    error: str | None = None
    error_type: str | None = None
    inference_s: float | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def move(self, status: str) -> None:
        self.status = status
        self.changed.set()
        self.changed = asyncio.Event()

    def end(self, reply: Response) -> None:
        """COMPLETED with this reply; anything but 200 is an error the status tells of."""
        self.reply = reply
        if reply.status_code != 200:
            body = json.loads(bytes(reply.body))
            self.error_type = body.get("error_type")
            self.error = body["detail"] if self.error_type else f"Invalid status code: {reply.status_code}"
        self.move("COMPLETED")


class Fal(Emulator):
    name = "fal"
    key = "sandbox-id:sandbox-secret"
    hosts: ClassVar = ("fal.run", "queue.fal.run", "rest.fal.ai", "api.fal.ai", "fal.media", "v3.fal.media")
    has_jobs = True

    def start(self) -> None:
        super().start()
        self._jobs: Kept[_Job] = Kept()

    def authorized(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Key {self.key}"

    def routes(self, host: str) -> Sequence[BaseRoute]:
        match host:
            case "fal.run":
                return [self.route("/{endpoint:path}", self.run)]
            case "queue.fal.run":
                job = "/{app:path}/requests/{request_id}"
                return [
                    self.route(f"{job}/status/stream", self.stream_status, method="GET", step="poll"),
                    self.route(f"{job}/status", self.status, method="GET", step="poll"),
                    self.route(f"{job}/cancel", self.cancel, method="PUT", step="cancel"),
                    self.route(job, self.result, method="GET", step="result"),
                    self.route("/{endpoint:path}", self.submit),
                ]
            case "rest.fal.ai":
                return [
                    self.route("/storage/auth/token", self.upload_token, step="other"),
                    self.route("/storage/upload/initiate", self.initiate_upload, step="other"),
                ]
            case "api.fal.ai":
                return [self.route("/v1/models/pricing", self.pricing, method="GET", step="other")]
            case "v3.fal.media":
                return [
                    self.route("/files/upload", self.upload, step="upload", open=True),
                    self.route("/files/{path:path}", self.put_file, method="PUT", step="upload", open=True),
                    self.files_route(host),
                ]
            case _:
                return [self.files_route(host)]

    def error(self, wrong: Wrong) -> Response:
        match wrong.kind:
            case "unauthenticated":
                return plain(401, wrong.message or "Cannot access application. Authentication is required.")
            case "no_credit":
                return plain(403, wrong.message or "User is locked. Reason: Exhausted balance.")
            case "not_found":
                return plain(404, wrong.message or "Not found")
            case "rate_limited":  # no Retry-After: fal documents none
                return plain(429, wrong.message or "Concurrent requests limit reached.")
            case "server_error":
                words = {502: "runner_incomplete_response", 503: "runner_scheduling_failure", 504: "request_timeout"}
                return infrastructure_error(
                    wrong.status or 500, words.get(wrong.status or 500, "runner_server_error"), wrong.message
                )
            case "refused":
                return model_error(
                    "content_policy_violation", ["body", "prompt"], wrong.message or "The content was flagged."
                )
            case _:
                return model_error(
                    "value_error", ["body", *([wrong.param] if wrong.param else [])], wrong.message or "Invalid input."
                )

    def stamp(self, call: Call, response: Response) -> None:
        response.headers["x-fal-request-id"] = call.request.path_params.get("request_id", call.id)

    # Runs

    async def run(self, call: Call) -> Response:
        endpoint_id, app = self._app(call)
        _start_deadline(call)
        body = await call.json()
        await call.admit(endpoint_id, _prompt(body))
        return (await self._make(call, app, check(app, body)))[0]

    async def submit(self, call: Call) -> Response:
        endpoint_id, app = self._app(call)
        start_s = _start_deadline(call)
        body = await call.json()
        job = _Job(call, await call.admit(endpoint_id, _prompt(body)))
        self._jobs[call.id] = job
        webhook = call.request.query_params.get("fal_webhook")
        job.task = self.world.spawn(self._process(job, app, body, start_s, webhook))
        ticket = {"request_id": call.id, **_links(call, job)}
        if webhook:
            return JSONResponse({**ticket, "gateway_request_id": call.id})
        return JSONResponse({"status": "IN_QUEUE", "queue_position": 0, **ticket})

    async def _process(self, job: _Job, app: App, body: Mapping[str, Any], start_s: float, webhook: str | None) -> None:
        """What becomes of a queued request."""
        call, wait = job.call, QUEUE_SHARE * app.latency.p50
        await self.world.wait(wait)
        if wait * self.world.time_scale > start_s:
            late = infrastructure_error(504, "request_timeout", "Request timed out")
            late.headers["X-Fal-Request-Timeout-Type"] = "user"
            job.end(late)
            return
        job.move("IN_PROGRESS")
        if call.fault("stuck"):
            return
        try:
            if call.fault("failed"):
                raise Problem(infrastructure_error(500, "internal_error", "The runner failed."))
            reply, job.inference_s = await self._make(call, app, check(app, body))
        except Problem as problem:
            reply = problem.response
        job.end(reply)
        if webhook:
            message = {
                "request_id": call.id,
                "gateway_request_id": call.id,
                "status": "ERROR" if job.error else "OK",
                "payload": json.loads(bytes(reply.body)),
                "error": f"Invalid status code: {reply.status_code}" if job.error else None,
            }
            headers = {
                "X-Fal-Webhook-Request-Id": call.id,
                "X-Fal-Webhook-User-Id": "sandbox",
                "X-Fal-Webhook-Timestamp": str(int(self.world.now())),
            }
            await deliver(webhook, message, times=call.webhook_times(), headers=headers)

    def _app(self, call: Call) -> tuple[str, App]:
        endpoint_id = call.request.path_params["endpoint"]
        app = APPS.get(endpoint_id.partition("--")[0])
        if app is None:
            raise Problem(plain(404, f"Application '{endpoint_id}' not found"))
        return endpoint_id, app

    async def _make(self, call: Call, app: App, order: Order) -> tuple[Response, float]:
        """One model run: the reply and its inference time."""
        sources, source_sizes = await self._load(call, order.urls)
        asked = order.size or (source_sizes[0] if source_sizes else PRESETS["square_hd"])
        size, n = call.real_size(asked), call.amount_of_pictures(order.n)
        seed = self.world.rng("fal/seed").randrange(2**32) if order.seed is None else order.seed
        refused = call.fault("refused") is not None
        seconds = round(await call.work(app.latency, size, order.n), 6)
        if refused and not app.flags:
            raise Problem(model_error(app.refusal, ["body", "prompt"], "The content could not be processed."))
        images = []
        for index in range(n):
            brief = Brief(call.model, order.prompt, seed, size, order.format, index, sources, blank=refused)
            images.append(self._image(call, await call.paint(brief), order, size))
        made, taken = app.units([size] * n, source_sizes)
        call.bill(
            app.dollars(order, size, n, made + taken),
            operation="edit" if app.edit else "generate",
            quantity={"units": made + taken, "unit": "images" if app.per_image else "megapixels", "inputs": taken},
        )
        body: dict[str, Any] = {"images": images, "seed": seed}
        if app.describes:
            unmeasured = [{**image, "width": None, "height": None} for image in images]
            body = {"images": unmeasured, "description": "A picture."}
        if app.flags:
            body |= {"timings": {"inference": seconds}, "has_nsfw_concepts": [refused] * n, "prompt": order.prompt}
        headers = {"x-fal-billable-units": str(made + taken)} if app.tariff is None else {}
        return JSONResponse(body, headers=headers), seconds

    async def _load(self, call: Call, urls: Sequence[str]) -> tuple[tuple[bytes, ...], list[Size]]:
        sources, sizes = [], []
        for place, url in enumerate(urls):
            where = ["body", "image_urls", place]
            try:
                sources.append(await call.fetch(url))
            except ValueError as problem:
                text = f"Failed to download the file: {problem}"
                raise Problem(model_error("file_download_error", where, text)) from None
            size = await self.world.painter.measure(sources[-1])
            if size is None:
                raise Problem(model_error("image_load_error", where, "Failed to load the image."))
            sizes.append(size)
        return tuple(sources), sizes

    def _image(self, call: Call, data: bytes, order: Order, size: Size) -> dict[str, Any]:
        media_type = MEDIA_TYPES[order.format]
        name = f"{self.world.identifier('fal/file', 24)}.{order.format}"
        if order.sync_mode:
            url = f"data:{media_type};base64,{encode_base64(data)}"
        else:
            url = call.publish(f"fal.media/files/b/{name}", data, order.format)
        about = {"url": url, "content_type": media_type, "file_name": name, "file_size": len(data)}
        return {**about, "width": size[0], "height": size[1]}

    # The queue

    async def status(self, call: Call) -> Response:
        job = await self._job(call)
        return JSONResponse(self._status(call, job), 200 if job.status == "COMPLETED" else 202)

    async def stream_status(self, call: Call) -> Response:
        job = await self._job(call)

        async def events() -> AsyncIterator[bytes]:
            while True:
                changed = job.changed
                yield b"data: " + json.dumps(self._status(call, job)).encode() + b"\n\n"
                if job.status == "COMPLETED":
                    return
                await changed.wait()

        return EventStream(events())

    async def result(self, call: Call) -> Response:
        job = await self._job(call)
        if job.reply is None:
            return plain(400, "Request is still in progress")
        headers = {name: value for name, value in job.reply.headers.items() if name != "content-length"}
        return Response(bytes(job.reply.body), job.reply.status_code, headers=headers)

    async def cancel(self, call: Call) -> Response:
        job = self._jobs.get(call.request.path_params["request_id"])
        await call.admit(job.call.model if job else "")
        if job is None:
            return JSONResponse({"status": "NOT_FOUND"}, 404)
        if job.status == "COMPLETED":
            return JSONResponse({"status": "ALREADY_COMPLETED"}, 400)
        if job.status == "IN_QUEUE" or job.call.fault("stuck"):  # one that runs finishes all the same, and is billed
            if job.task is not None:
                job.task.cancel()
            job.end(infrastructure_error(499, "client_cancelled", "Request cancelled by the client"))
        return JSONResponse({"status": "CANCELLATION_REQUESTED"}, 202)

    async def _job(self, call: Call) -> _Job:
        job = self._jobs.get(call.request.path_params["request_id"])
        if job is None:
            await call.admit("")
        else:
            await call.admit(job.endpoint_id, carried=job.call.later)
        if job is None or call.request.path_params["app"] != _shortened(job.endpoint_id):
            raise Problem(plain(404, "Request not found"))
        return job

    def _status(self, call: Call, job: _Job) -> dict[str, Any]:
        body: dict[str, Any] = {"status": job.status, "request_id": job.call.id, **_links(call, job)}
        if job.status == "IN_QUEUE":
            return {**body, "queue_position": 0}
        body["logs"] = None
        if call.request.query_params.get("logs") in ("1", "true"):
            at = datetime.fromtimestamp(job.call.record["at"], UTC).replace(tzinfo=None)
            line = {"message": "Loading the model", "level": "INFO", "source": "USER"}
            body["logs"] = [{**line, "timestamp": at.isoformat(timespec="microseconds")}]
        if job.status == "COMPLETED":
            body["metrics"] = {} if job.inference_s is None else {"inference_time": job.inference_s}
            if job.error:
                body["error"] = job.error
                if job.error_type:
                    body["error_type"] = job.error_type
        return body

    # Storage and prices

    async def upload_token(self, call: Call) -> Response:
        expires = datetime.fromtimestamp(self.world.now() + 3600, UTC).isoformat()
        token = {"token": self.world.identifier("fal/token"), "token_type": "Bearer", "expires_at": expires}
        return JSONResponse({**token, "base_url": call.link("v3.fal.media")})

    async def upload(self, call: Call) -> Response:
        return JSONResponse({"access_url": await self._keep(call, self._free_path())})

    async def initiate_upload(self, call: Call) -> Response:
        body = await call.json()
        url = call.link(f"{self._free_path()}_{body.get('file_name', 'file')}")
        return JSONResponse({"upload_url": url, "file_url": url})

    async def put_file(self, call: Call) -> Response:
        await self._keep(call, f"v3.fal.media/files/{call.request.path_params['path']}")
        return Response()

    def _free_path(self) -> str:
        return f"v3.fal.media/files/{self.world.identifier('fal/file', 24)}"

    async def _keep(self, call: Call, path: str) -> str:
        await call.admit("")
        media_type = call.request.headers.get("content-type", "application/octet-stream")
        self.world.files.put(path, StoredFile(await call.request.body(), media_type, self.name, None))
        return call.link(path)

    async def pricing(self, call: Call) -> Response:
        prices = []
        for endpoint_id in call.request.query_params.getlist("endpoint_id") or APPS:
            if app := APPS.get(endpoint_id):
                unit = (
                    "images" if app.per_image else "megapixels" if app.first == app.further else "processed megapixels"
                )
                price = {"endpoint_id": endpoint_id, "unit_price": float(app.further), "unit": unit, "currency": "USD"}
                prices.append(price)
        return JSONResponse({"prices": prices})


def _links(call: Call, job: _Job) -> dict[str, str]:
    url = call.link(f"queue.fal.run/{_shortened(job.endpoint_id)}/requests/{job.call.id}")
    return {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}


def _shortened(endpoint_id: str) -> str:
    """Status, result and cancel are addressed by owner and app only; the rest of the id is dropped."""
    parts = endpoint_id.split("/")
    return "/".join(parts[: 3 if parts[0] in ("workflows", "comfy") else 2])


def _prompt(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    return prompt if isinstance(prompt, str) else ""


def _start_deadline(call: Call) -> float:
    """Seconds within which the request must have been started. How fal refuses what is no number is not documented."""
    text = call.request.headers.get("x-fal-request-timeout")
    try:
        return float(text) if text is not None else float("inf")
    except ValueError:
        raise Problem(infrastructure_error(400, "bad_request", "X-Fal-Request-Timeout is not a number")) from None
