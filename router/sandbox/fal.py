"""fal.ai: synchronous runs, the queue, and the CDN (fal documentation and client, 2026-11-20).

Billed quantity: a megapixel is 2^20 px, each output and each input picture is rounded up on its own, inputs above
4 MP count as 4. The quantity is in ``x-fal-billable-units`` of the run reply and of the queue's result.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from router.sandbox.emulator import Call, Emulator, EventStream, Problem, encode_base64, whole
from router.sandbox.pictures import MEDIA_TYPES, Brief, Size
from router.sandbox.webhooks import deliver
from router.sandbox.world import Latency, StoredFile

PRESETS: Mapping[str, Size] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
MEGAPIXEL = 1_048_576


def _megapixels(size: Size, cap: int | None = None) -> int:
    units = max(1, -(-(size[0] * size[1]) // MEGAPIXEL))
    return units if cap is None else min(units, cap)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One app on fal: what it takes, makes and costs.

    ``first`` and ``further`` are dollars per unit; a unit is a megapixel, or a picture with ``per_image``.
    """

    first: Decimal
    further: Decimal
    edit: bool = False
    per_image: bool = False
    max_images: int = 4  # 1: the app has no num_images
    min_side: int = 512
    max_side: int = 2048
    default_size: str = "landscape_4_3"
    default_format: str = "png"
    formats: tuple[str, ...] = ("png", "jpeg", "webp")
    flags: bool = True  # has_nsfw_concepts and timings in the reply
    bills_inputs: bool = True
    latency: Latency = field(default=Latency(3.232, 8.957))


def _endpoints() -> dict[str, Endpoint]:
    """Prices: fal guide of FLUX.2 turbo and fal model pages, 2026-11."""
    usd = Decimal
    table = {
        "fal-ai/flux-2/turbo": Endpoint(usd("0.008"), usd("0.008")),
        "fal-ai/flux-2/flash": Endpoint(usd("0.005"), usd("0.005"), latency=Latency(2.1, 5.5)),
        "fal-ai/flux-2": Endpoint(usd("0.012"), usd("0.012"), latency=Latency(5.5, 13.0)),
        "fal-ai/flux-2-pro": Endpoint(
            usd("0.03"), usd("0.015"), max_images=1, default_format="jpeg", formats=("jpeg", "png"), flags=False,
            latency=Latency(7.0, 15.0),
        ),
        "fal-ai/flux-2-max": Endpoint(
            usd("0.07"), usd("0.03"), max_images=1, default_format="jpeg", formats=("jpeg", "png"), flags=False,
            latency=Latency(11.0, 22.0),
        ),
        "fal-ai/flux-2-flex": Endpoint(
            usd("0.05"), usd("0.05"), max_images=1, default_format="jpeg", formats=("jpeg", "png"), flags=False,
            latency=Latency(9.0, 19.0),
        ),
    }  # fmt: skip
    for name, app in list(table.items()):
        table[f"{name}/edit"] = replace(app, edit=True, default_size="square_hd" if app.flags else "auto")
    table["fal-ai/flux-2/edit"] = replace(table["fal-ai/flux-2/edit"], default_size="auto")
    old = {"min_side": 64, "max_side": 14142, "default_format": "jpeg", "formats": ("jpeg", "png")}
    table["fal-ai/flux/schnell"] = Endpoint(usd("0.003"), usd("0.003"), latency=Latency(1.1, 2.6), **old)  # type: ignore[arg-type]
    table["fal-ai/flux/dev"] = Endpoint(usd("0.025"), usd("0.025"), latency=Latency(4.2, 9.0), **old)  # type: ignore[arg-type]
    table["fal-ai/bytedance/seedream/v4/text-to-image"] = Endpoint(
        usd("0.03"), usd("0.03"), per_image=True, min_side=960, max_side=4096, flags=False, latency=Latency(9.0, 18.0)
    )
    table["fal-ai/bytedance/seedream/v4/edit"] = Endpoint(
        usd("0.03"), usd("0.03"), per_image=True, edit=True, bills_inputs=False, min_side=960, max_side=4096,
        flags=False, latency=Latency(9.0, 18.0),
    )  # fmt: skip
    return table


ENDPOINTS: Mapping[str, Endpoint] = _endpoints()


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
    cancelled: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class _Input:
    """A validated model input."""

    app: Endpoint
    prompt: str
    size: Size
    n: int
    seed: int
    format: str
    sync_mode: bool
    sources: tuple[bytes, ...]
    source_sizes: tuple[Size, ...]


class Fal(Emulator):
    name = "fal"
    key = "sandbox-id:sandbox-secret"
    hosts: ClassVar = ("fal.run", "queue.fal.run", "rest.fal.ai", "api.fal.ai", "fal.media", "v3.fal.media")
    has_jobs = True

    def start(self) -> None:
        super().start()
        self._jobs: dict[str, _Job] = {}

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

    def problem(
        self,
        kind: str,
        message: str = "",
        *,
        status: int | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> Response:
        match kind:
            case "unauthenticated":
                return _plain(401, message or "Cannot access application. Authentication is required.")
            case "no_credit":
                return _plain(403, message or "User is locked. Reason: Exhausted balance.")
            case "not_found":
                return _plain(404, message or "Not found")
            case "rate_limited":  # fal documents no Retry-After
                return _plain(429, message or "Concurrent requests limit reached.")
            case "server_error":
                word = {502: "runner_incomplete_response", 503: "runner_scheduling_failure", 504: "request_timeout"}
                return _infrastructure(status or 500, word.get(status or 500, "runner_server_error"), message)
            case "refused":
                return _detail("content_policy_violation", ["body", "prompt"], message or "The content was flagged.")
            case _:
                return _detail("value_error", ["body", *([param] if param else [])], message or "Invalid input.")

    def stamp(self, call: Call, response: Response) -> None:
        response.headers["x-fal-request-id"] = call.request.path_params.get("request_id", call.id)

    # Runs

    async def run(self, call: Call) -> Response:
        endpoint_id, app = self._app(call)
        asked = await self._admitted(call, endpoint_id, app)
        return await self._make(call, asked)

    async def submit(self, call: Call) -> Response:
        endpoint_id, app = self._app(call)
        body = await call.json()
        model = await call.admit(endpoint_id, _prompt_of(body))
        job = _Job(call, model)
        self._jobs[call.id] = job
        webhook = call.request.query_params.get("fal_webhook")
        job.task = self.world.spawn(self._process(job, body, app, webhook))
        links = self._links(call, endpoint_id, call.id)
        if webhook:
            return JSONResponse({"request_id": call.id, "gateway_request_id": call.id, "status": "IN_QUEUE", **links})
        return JSONResponse({"status": "IN_QUEUE", "request_id": call.id, "queue_position": 0, **links})

    async def _process(self, job: _Job, body: dict[str, Any], app: Endpoint, webhook: str | None) -> None:
        """What happens to a queued request: it waits, it runs, it ends; nobody needs to look."""
        call = job.call
        await self.world.wait(0.15 * app.latency.p50)
        try:
            if call.fault("stuck"):
                self._move(job, "IN_PROGRESS")
                return
            deadline = call.request.headers.get("x-fal-request-timeout")
            if deadline and _seconds(deadline) < 0.15 * app.latency.p50 * self.world.time_scale:
                reply = _infrastructure(504, "request_timeout", "Request timed out")
                reply.headers["X-Fal-Request-Timeout-Type"] = "user"
                job.reply, job.error, job.error_type = reply, "Request timed out", "request_timeout"
                return
            self._move(job, "IN_PROGRESS")
            asked = await self._checked(call, body, app)
            if call.fault("failed"):
                raise Problem(_infrastructure(500, "internal_error", "The runner failed."))
            started = self.world.now()
            job.reply = await self._make(call, asked, job)
            job.inference_s = job.inference_s or self.world.now() - started
        except Problem as problem:
            job.reply = problem.response
            content = json.loads(bytes(problem.response.body))
            job.error_type = content.get("error_type") if isinstance(content, dict) else None
            job.error = f"Invalid status code: {problem.response.status_code}"
        finally:
            if job.reply is not None:
                self._move(job, "COMPLETED")
        if webhook and job.reply is not None:
            payload = json.loads(bytes(job.reply.body))
            message = {
                "request_id": call.id,
                "gateway_request_id": call.id,
                "status": "ERROR" if job.error else "OK",
                "payload": payload,
                "error": job.error,
            }
            await deliver(webhook, message, times=call.webhook_times(), headers={"X-Fal-Webhook-Request-Id": call.id})

    def _move(self, job: _Job, status: str) -> None:
        job.status = status
        job.changed.set()
        job.changed = asyncio.Event()

    # The queue

    async def status(self, call: Call) -> Response:
        job = await self._job(call)
        body = self._status(call, job)
        return JSONResponse(body, 200 if job.status == "COMPLETED" else 202)

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
        if job.status != "COMPLETED" or job.reply is None:
            return _plain(400, "Request is still in progress")
        return _copy(job.reply)

    async def cancel(self, call: Call) -> Response:
        request_id = call.request.path_params["request_id"]
        await call.admit("")
        job = self._jobs.get(request_id)
        if job is None:
            return JSONResponse({"status": "NOT_FOUND"}, 404)
        if job.status == "COMPLETED":
            return JSONResponse({"status": "ALREADY_COMPLETED"}, 400)
        if job.status == "IN_QUEUE" or job.call.fault("stuck"):  # a running one may still finish, and is then billed
            if job.task is not None:
                job.task.cancel()
            job.reply = _infrastructure(499, "client_cancelled", "Request cancelled by client")
            job.error, job.error_type = "Request cancelled by client", "client_cancelled"
            self._move(job, "COMPLETED")
        return JSONResponse({"status": "CANCELLATION_REQUESTED"}, 202)

    async def _job(self, call: Call) -> _Job:
        request_id = call.request.path_params["request_id"]
        job = self._jobs.get(request_id)
        await call.admit(job.endpoint_id if job else "", carried=job.call.later if job else ())
        parts = call.request.path_params["app"].split("/")
        if job is None or parts != _shortened(job.endpoint_id).split("/"):
            raise Problem(_plain(404, "Request not found"))
        return job

    def _status(self, call: Call, job: _Job) -> dict[str, Any]:
        body: dict[str, Any] = {
            "status": job.status,
            "request_id": job.call.id,
            **self._links(call, job.endpoint_id, job.call.id),
        }
        if job.status == "IN_QUEUE":
            return {**body, "queue_position": 0}
        logs: list[dict[str, str]] | None = None
        if call.request.query_params.get("logs") in ("1", "true"):
            logs = [
                {"message": "Loading the pipeline", "level": "INFO", "source": "USER", "timestamp": _stamp(job.call)}
            ]
        body["logs"] = logs
        if job.status == "COMPLETED":
            body["metrics"] = {} if job.inference_s is None else {"inference_time": round(job.inference_s, 4)}
            if job.error:
                body |= {"error": job.error, **({"error_type": job.error_type} if job.error_type else {})}
        return body

    def _links(self, call: Call, endpoint_id: str, request_id: str) -> dict[str, str]:
        url = call.link(f"queue.fal.run/{_shortened(endpoint_id)}/requests/{request_id}")
        return {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}

    # One model run

    def _app(self, call: Call) -> tuple[str, Endpoint]:
        endpoint_id = call.request.path_params["endpoint"]
        app = ENDPOINTS.get(endpoint_id.partition("--")[0])
        if app is None:
            raise Problem(_plain(404, f"Application '{endpoint_id}' not found"))
        return endpoint_id, app

    async def _admitted(self, call: Call, endpoint_id: str, app: Endpoint) -> _Input:
        body = await call.json()
        await call.admit(endpoint_id, _prompt_of(body))
        return await self._checked(call, body, app)

    async def _checked(self, call: Call, body: dict[str, Any], app: Endpoint) -> _Input:
        """The model's own validation: 422 with a list of what is wrong."""
        faults: list[dict[str, Any]] = []
        prompt = body.get("prompt")
        if "prompt" not in body:
            faults.append(_fault("missing", ["body", "prompt"], "Field required", body))
        elif not isinstance(prompt, str):
            faults.append(_fault("value_error", ["body", "prompt"], "Input should be a valid string", prompt))
        n = body.get("num_images", 1) if app.max_images > 1 else 1
        if whole(n) is None:
            faults.append(_fault("value_error", ["body", "num_images"], "Input should be a valid integer", n))
        elif not 1 <= n <= app.max_images:
            faults.append(_bound(["body", "num_images"], n, 1, app.max_images))
        format = body.get("output_format", app.default_format)
        if format not in app.formats:
            faults.append(_fault("one_of", ["body", "output_format"], f"Input should be one of {app.formats}", format))
        seed = body.get("seed")
        if seed is None:
            seed = self.world.rng("fal/seed").randrange(2**32)
        elif whole(seed) is None:
            faults.append(_fault("value_error", ["body", "seed"], "Input should be a valid integer", seed))
        urls = body.get("image_urls", ()) if app.edit else ()
        if app.edit and not (isinstance(urls, list) and urls and all(isinstance(url, str) for url in urls)):
            word = "missing" if "image_urls" not in body else "sequence_too_short"
            faults.append(_fault(word, ["body", "image_urls"], "At least one image URL is required", urls))
        if faults:
            raise Problem(JSONResponse({"detail": faults}, 422))
        sources, source_sizes = await self._load(call, list(urls)[:4])
        size = self._size(body.get("image_size"), app, source_sizes)
        sync = body.get("sync_mode") is True
        return _Input(app, str(prompt), size, n, seed, format, sync, sources, source_sizes)

    def _size(self, asked: Any, app: Endpoint, sources: Sequence[Size]) -> Size:
        where = ["body", "image_size"]
        if asked is None:
            asked = app.default_size
        if asked == "auto" and app.default_size == "auto":
            return sources[0] if sources else PRESETS["square_hd"]
        if isinstance(asked, str):
            if asked not in PRESETS:
                raise Problem(_detail("one_of", where, f"Input should be one of {', '.join(PRESETS)}", asked))
            return PRESETS[asked]
        if not isinstance(asked, dict):
            raise Problem(_detail("value_error", where, "Input should be a preset or an object", asked))
        sides = []
        for name in ("width", "height"):
            side = asked.get(name, 512)
            if whole(side) is None:
                raise Problem(_detail("value_error", [*where, name], "Input should be a valid integer", side))
            if not app.min_side <= side <= app.max_side:
                word, bound = (
                    ("greater_than_equal", app.min_side) if side < app.min_side else ("less_than_equal", app.max_side)
                )
                raise Problem(_detail(word, [*where, name], f"Input should be {word.replace('_', ' ')} {bound}", side))
            sides.append(side)
        return sides[0], sides[1]

    async def _load(self, call: Call, urls: Sequence[str]) -> tuple[tuple[bytes, ...], tuple[Size, ...]]:
        sources, sizes = [], []
        for place, url in enumerate(urls):
            where = ["body", "image_urls", place]
            try:
                data = await call.fetch(url)
            except ValueError as problem:
                raise Problem(
                    _detail("file_download_error", where, f"Failed to download the file: {problem}")
                ) from None
            size = await self.world.painter.measure(data)
            if size is None:
                raise Problem(_detail("image_load_error", where, "Failed to load the image."))
            sources.append(data)
            sizes.append(size)
        return tuple(sources), tuple(sizes)

    async def _make(self, call: Call, asked: _Input, job: _Job | None = None) -> Response:
        app = asked.app
        size, n = call.real_size(asked.size), call.amount_of_pictures(asked.n)
        refused = call.fault("refused") is not None
        seconds = await call.work(app.latency, size, asked.n)
        if job is not None:
            job.inference_s = seconds
        if refused and not app.flags:
            raise Problem(self.problem("refused"))
        images = []
        for index in range(n):
            prompt = "" if refused else asked.prompt
            sources = () if refused else asked.sources
            brief = Brief(call.model, prompt, asked.seed, size, asked.format, index, sources)
            data = await call.paint(brief)
            media_type = MEDIA_TYPES[asked.format]
            name = f"{self.world.identifier('fal/file', 24)}.{asked.format}"
            url = (
                f"data:{media_type};base64,{encode_base64(data)}"
                if asked.sync_mode
                else call.publish(f"fal.media/files/b/{name}", data, asked.format)
            )
            image = {"url": url, "content_type": media_type, "width": size[0], "height": size[1]}
            images.append({**image, "file_name": name, "file_size": len(data)})
        units = self._bill(call, asked, [size] * n)
        body: dict[str, Any] = {"images": images, "seed": asked.seed}
        if app.flags:
            body |= {
                "timings": {"inference": round(seconds, 4)},
                "has_nsfw_concepts": [refused] * n,
                "prompt": asked.prompt,
            }
        return JSONResponse(body, headers={"x-fal-billable-units": f"{units:f}"})

    def _bill(self, call: Call, asked: _Input, outputs: Sequence[Size]) -> Decimal:
        """Write the invoice; the units for the header. The first unit of a run may have a price of its own."""
        app = asked.app
        if app.per_image:
            made, taken = len(outputs), 0
        else:
            made = sum(_megapixels(size) for size in outputs)
            taken = sum(_megapixels(size, cap=4) for size in asked.source_sizes) if app.bills_inputs else 0
        units = made + taken
        amount = app.first + app.further * (units - 1) if units else Decimal(0)
        call.bill(
            amount,
            operation="edit" if app.edit else "generate",
            quantity={"units": units, "unit": "images" if app.per_image else "megapixels", "out": made, "in": taken},
        )
        return Decimal(units)

    # Storage and prices

    async def upload_token(self, call: Call) -> Response:
        return JSONResponse(
            {
                "token": self.world.identifier("fal/token"),
                "token_type": "Bearer",
                "base_url": call.link("v3.fal.media"),
                "expires_at": datetime.fromtimestamp(self.world.now() + 3600, UTC).isoformat(),
            }
        )

    async def upload(self, call: Call) -> Response:
        url = await self._keep(call, f"v3.fal.media/files/{self.world.identifier('fal/file', 24)}")
        return JSONResponse({"access_url": url})

    async def initiate_upload(self, call: Call) -> Response:
        body = await call.json()
        url = call.link(f"v3.fal.media/files/{self.world.identifier('fal/file', 24)}_{body.get('file_name', 'file')}")
        return JSONResponse({"upload_url": url, "file_url": url})

    async def put_file(self, call: Call) -> Response:
        await self._keep(call, f"v3.fal.media/files/{call.request.path_params['path']}")
        return Response(status_code=200)

    async def _keep(self, call: Call, path: str) -> str:
        media_type = call.request.headers.get("content-type", "application/octet-stream")
        self.world.files.put(path, StoredFile(await call.request.body(), media_type, self.name, None))
        return call.link(path)

    async def pricing(self, call: Call) -> Response:
        prices = []
        for endpoint_id in call.request.query_params.getlist("endpoint_id") or list(ENDPOINTS):
            if app := ENDPOINTS.get(endpoint_id):
                unit = "images" if app.per_image else "megapixels"
                price = {"endpoint_id": endpoint_id, "unit_price": float(app.further), "unit": unit, "currency": "USD"}
                prices.append(price)
        return JSONResponse({"prices": prices, "next_cursor": None, "has_more": False})


# fal's shapes --------------------------------------------------------------------------------------------------------


def _plain(status: int, text: str) -> Response:
    return JSONResponse({"detail": text}, status)


def _fault(word: str, where: Sequence[Any], text: str, value: Any = None) -> dict[str, Any]:
    return {
        "loc": list(where),
        "msg": text,
        "type": word,
        "url": f"https://docs.fal.ai/errors/#{word}",
        "ctx": {},
        "input": value,
    }


def _bound(where: Sequence[Any], value: int, low: int, high: int) -> dict[str, Any]:
    word, bound = ("greater_than_equal", low) if value < low else ("less_than_equal", high)
    return _fault(word, where, f"Input should be {word.replace('_', ' ')} {bound}", value)


def _detail(word: str, where: Sequence[Any], text: str, value: Any = None) -> Response:
    return JSONResponse({"detail": [_fault(word, where, text, value)]}, 422, headers={"X-Fal-Retryable": "false"})


def _infrastructure(status: int, word: str, text: str = "") -> Response:
    body = {"detail": text or word.replace("_", " ").capitalize(), "error_type": word}
    return JSONResponse(body, status, headers={"X-Fal-Error-Type": word})


def _shortened(endpoint_id: str) -> str:
    """Status, result and cancel are addressed by owner and app only; the rest of the id is dropped."""
    parts = endpoint_id.partition("--")[0].split("/")
    keep = 3 if parts[0] in ("workflows", "comfy") else 2
    return "/".join(parts[:keep])


def _prompt_of(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    return prompt if isinstance(prompt, str) else ""


def _copy(reply: Response) -> Response:
    headers = {name: value for name, value in reply.headers.items() if name != "content-length"}
    return Response(bytes(reply.body), reply.status_code, headers=headers)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _stamp(call: Call) -> str:
    return datetime.fromtimestamp(call.record["at"], UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
