"""What every emulated provider has in common: arriving calls, faults before and after the work, files, billing.

An emulator is a class with routes per host and ``error()``, the provider's way of saying that something is wrong.
Its handlers read straight: admit the call, check the input, make the pictures, bill, answer.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from router.sandbox import faults
from router.sandbox.answers import Broken, Hang
from router.sandbox.faults import Fault, UnknownFault
from router.sandbox.pictures import MEDIA_TYPES, Brief, Size
from router.sandbox.world import Latency, StoredFile, World, without_secrets

MAX_DOWNLOAD = 50 << 20


class Problem(Exception):
    """Ends a handler with this answer."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"answer {response.status_code}")
        self.response = response


@dataclass(frozen=True, slots=True)
class Wrong:
    """What is wrong with a call. Providers differ in which of it they tell."""

    kind: str  # invalid, unauthenticated, no_credit, not_found, refused, rate_limited, server_error, too_large
    message: str = ""  # empty: in the provider's usual words
    status: int | None = None  # instead of the provider's usual one
    param: str | None = None
    retry_after: float | None = None  # seconds
    code: str | None = None


class Call:
    """One exchange as the emulator sees it: the request, what was asked to go wrong, and who is serving it."""

    def __init__(self, emulator: Emulator, request: Request, step: str) -> None:
        self.emulator = emulator
        self.world = emulator.world
        self.request = request
        self.step = step
        self.id = self.world.identifier(emulator.name)
        self.model = ""
        self.faults: tuple[Fault, ...] = ()  # what goes wrong in this exchange
        self.later: tuple[Fault, ...] = ()  # what was asked for a later exchange of the same job
        self.billed = False
        self.record: dict[str, Any] = {
            "id": self.id,
            "at": round(self.world.now(), 6),
            "step": step,
            "method": request.method,
            "path": request.url.path,
            "headers": without_secrets(request.headers),
        }

    # What arrived

    async def json(self) -> dict[str, Any]:
        """The JSON object in the body; a Problem of the provider's kind if there is none."""
        body = await self.any_json()
        if not isinstance(body, dict):
            raise Problem(self.emulator.problem("invalid", "The request body must be a JSON object."))
        return body

    async def any_json(self) -> Any:
        try:
            body = json.loads(await self.request.body())
        except (ValueError, UnicodeDecodeError):
            raise Problem(
                self.emulator.problem("invalid", "We could not parse the JSON body of your request.")
            ) from None
        self.record["body"] = brief_of(body)
        return body

    def link(self, path: str) -> str:
        """Where this sandbox serves ``host/path``, as the caller reaches it."""
        scope = self.request.scope
        root = scope.get("app_root_path", "")
        return f"{self.request.url.scheme}://{self.request.url.netloc}{root}/{path}"

    # What goes wrong

    async def admit(self, model: str, prompt: str = "", carried: Iterable[Fault] = ()) -> str:
        """Find out what shall go wrong, and let it go wrong if it comes before the work. The plain model id.

        ``carried`` are the faults an earlier exchange of the same job was asked to keep for later.
        """
        try:
            self.model, by_model = faults.split_model(model)
            by_header = faults.parse(self.request.headers.get("x-sandbox-fault", ""))
            by_prompt = tuple(faults.in_prompt(prompt))
        except UnknownFault as problem:
            raise Problem(self.emulator.problem("invalid", str(problem))) from None
        asked = (*by_header, *by_model, *by_prompt, *carried)
        now = tuple(fault for fault in asked if fault.params.get("on", self.step) in ("any", self.step))
        self.later = tuple(fault for fault in asked if fault not in now)
        self.faults = (*now, *self.world.faults.ordered(self.emulator.name, self.model, self.step))
        self.record["model"] = self.model
        if self.faults:
            self.record["faults"] = [fault.kind for fault in self.faults]
        for fault in self.faults:
            if (response := await self._before(fault)) is not None:
                raise Problem(response)
        return self.model

    def fault(self, kind: str) -> Fault | None:
        return next((fault for fault in self.faults if fault.kind == kind), None)

    def webhook_times(self) -> int:
        twice = self.fault("duplicate_webhook")
        return int(twice.number("times", 2)) if twice else 1

    async def _before(self, fault: Fault) -> Response | None:
        problem = self.emulator.problem
        match fault.kind:
            case "delay" if "seconds" in fault.params:
                await asyncio.sleep(fault.number("seconds", 0))
            case "hang":
                return Hang(fault.number("seconds", 600), self.world.closing)
            case "stuck" if not self.emulator.has_jobs:
                return Hang(fault.number("seconds", 600), self.world.closing)
            case "reset" if not fault.flag("billed"):
                return Broken(None, 0)
            case "rate_limited":
                return problem("rate_limited", retry_after=fault.number("retry_after", 1) or None)
            case "concurrency" if self.emulator.in_flight > fault.number("limit", 1):
                return problem("rate_limited", retry_after=fault.number("retry_after", 1) or None)
            case "server_error" if not fault.flag("billed"):
                return problem("server_error", status=int(fault.number("status", 500)))
            case "unauthenticated" | "no_credit":
                return problem(fault.kind)
            case "failed" if not self.emulator.has_jobs:
                return problem("server_error", "The model failed to produce a picture.")
            case _:
                pass
        return None

    def finish(self, response: Response) -> Response:
        """The answer as it leaves, after everything that goes wrong behind the work."""
        for fault in self.faults:
            match fault.kind:
                case "server_error" if fault.flag("billed"):
                    response = self.emulator.problem("server_error", status=int(fault.number("status", 500)))
                case "reset":
                    return Broken(None, 0)
                case "cut" if response.body:
                    return Broken(response, fault.number("share", 0.5))
                case "truncated" if response.body:
                    kept = bytes(response.body)[: int(len(response.body) * fault.number("share", 0.5))]
                    response = Response(kept, response.status_code, media_type=response.headers.get("content-type"))
                case "wrong_type":
                    response = HTMLResponse("<!doctype html><title>Welcome</title><h1>It works!</h1>")
                case _:
                    pass
        return response

    # The work

    async def work(self, latency: Latency, size: Size, n: int) -> float:
        """Take the time the provider would take; the seconds it would report."""
        seconds = self.world.seconds(f"{self.emulator.name}/{self.model}", latency, size, n)
        if slow := self.fault("delay"):
            seconds *= slow.number("factor", 1)
        await self.world.wait(seconds)
        return seconds

    def amount_of_pictures(self, asked: int) -> int:
        """How many pictures are made: as asked, unless a fault says otherwise."""
        if self.fault("empty") or self.fault("text_only"):
            return 0
        if fewer := self.fault("fewer"):
            return max(0, min(asked, int(fewer.number("n", asked - 1))))
        return asked

    def real_size(self, asked: Size) -> Size:
        if wrong := self.fault("wrong_size"):
            width, height = wrong.number("width", asked[0] // 2), wrong.number("height", asked[1] // 2)
            return max(1, int(width)), max(1, int(height))
        return asked

    async def paint(self, brief: Brief) -> bytes:
        if self.fault("corrupt"):
            return b"these bytes are no picture"
        try:
            return await self.world.painter.paint(brief)
        except ValueError as problem:
            raise Problem(self.emulator.problem("invalid", f"Could not make the picture: {problem}.")) from None

    def bill(
        self, amount: Decimal, *, operation: str, quantity: Mapping[str, Any], model: str = "", note: str | None = None
    ) -> None:
        """Write this call on the provider's invoice, unless it costs nothing."""
        if not amount:
            return
        self.billed = True
        self.record["billed"] = f"{amount:f}"
        self.world.calls.billed[self.emulator.name] += 1
        self.world.invoice.add(
            self.emulator.name,
            request_id=self.id,
            model=model or self.model,
            operation=operation,
            amount=amount,
            quantity=quantity,
            at=self.world.now(),
            note=note,
        )

    def publish(
        self, path: str, data: bytes, format: str, *, lifetime_s: float | None = None, gone_status: int = 404
    ) -> str:
        """Put a picture on the delivery host; its URL. ``path`` begins with the host."""
        world = self.world
        expires = None if lifetime_s is None else world.now() + lifetime_s
        if dead := self.fault("expired_link"):
            expires, gone_status = 0.0, int(dead.number("status", gone_status))
        media_type = MEDIA_TYPES.get(format, "application/octet-stream")
        plain = path.partition("?")[0]
        world.files.put(plain, StoredFile(data, media_type, self.emulator.name, expires, gone_status))
        return self.link(path)

    async def fetch(self, source: str) -> bytes:
        """The bytes behind a URL or data URI, as a provider loads an input picture. Raises ValueError."""
        if source.startswith("data:"):
            head, _, payload = source.partition(",")
            if not head.endswith(";base64"):
                return urllib.parse.unquote_to_bytes(payload)
            return decode_base64(payload)
        own = self.link("")
        if source.startswith(own):
            file = self.world.files.get(source.removeprefix(own).partition("?")[0])
            if file is None:
                raise ValueError("the file does not exist")
            return file.data
        if not source.startswith(("http://", "https://")):
            raise ValueError("not a URL")
        return await asyncio.to_thread(_download, source)


class Emulator(ABC):
    """One provider. Subclasses say which routes they have on which hosts, and how a problem looks."""

    name: ClassVar[str]
    key: ClassVar[str]  # the only key it accepts
    hosts: ClassVar[Sequence[str]]  # every host it answers for, delivery hosts included
    has_jobs: ClassVar[bool] = False  # work goes on behind the answer

    def __init__(self, world: World) -> None:
        self.world = world
        self.start()

    def start(self) -> None:
        """(Re)create what this emulator remembers between calls."""
        self.in_flight = 0

    @abstractmethod
    def routes(self, host: str) -> Sequence[BaseRoute]: ...

    @abstractmethod
    def error(self, wrong: Wrong) -> Response:
        """An error in the provider's own shape."""

    def problem(
        self,
        kind: str,
        message: str = "",
        *,
        status: int | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        code: str | None = None,
    ) -> Response:
        """An error of this ``Wrong``, as the provider says it."""
        return self.error(Wrong(kind, message, status, param, retry_after, code))

    def authorized(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {self.key}"

    def stamp(self, call: Call, response: Response) -> None:
        """Add the headers the provider puts on every answer."""
        response.headers["x-request-id"] = call.id

    def route(
        self,
        path: str,
        handler: Callable[[Call], Awaitable[Response]],
        *,
        method: str = "POST",
        step: str = "create",
        open: bool = False,
    ) -> Route:
        """A route of this provider: counted, authenticated unless ``open``, faults applied."""

        async def answer(request: Request) -> Response:
            call = Call(self, request, step)
            self.world.calls.arrived(self.name, f"{method} {request.scope['root_path']}{path}", call.record)
            counted = step == "create"
            self.in_flight += counted
            try:
                if not open and not self.authorized(request):
                    raise Problem(self.problem("unauthenticated"))
                response = await handler(call)
            except Problem as problem:
                response = problem.response
            finally:
                self.in_flight -= counted
            self.stamp(call, response)
            response = call.finish(response)
            call.record["status"] = response.status_code
            call.request = Request(request.scope)  # a job keeps its call: without the body, which may be large
            return response

        return Route(path, answer, methods=[method])

    def files_route(self, host: str, path: str = "/{path:path}") -> Route:
        """Delivery of published pictures: public, and gone once they expired."""

        async def deliver(call: Call) -> Response:
            await call.admit("")
            if dead := call.fault("expired_link"):
                return Response(status_code=int(dead.number("status", 404)))
            file = self.world.files.get(f"{host}{call.request.scope['path'].partition(host)[2]}")
            if file is None:
                return Response("Not found", 404, media_type="text/plain")
            if file.expires is not None and self.world.now() >= file.expires:
                return Response("Expired", file.gone_status, media_type="text/plain")
            if file.needs_user_agent and not call.request.headers.get("user-agent"):
                return Response("Forbidden", 403, media_type="text/plain")
            return Response(file.data, media_type=file.media_type, headers={"cache-control": "public, max-age=3600"})

        return self.route(path, deliver, method="GET", step="file", open=True)


# Small helpers of all emulators ------------------------------------------------------------------------------------


def decode_base64(text: str) -> bytes:
    """Raises ValueError for anything that is no base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as problem:
        raise ValueError("not base64") from problem


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def brief_of(value: Any) -> Any:
    """A JSON value for the record: long strings are cut."""
    if isinstance(value, str):
        return value if len(value) <= 300 else f"{value[:60]}... ({len(value)} characters)"
    if isinstance(value, dict):
        return {key: brief_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [brief_of(item) for item in value[:20]]
    return value


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object; an empty one for everything else."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """A JSON array; an empty one for everything else."""
    return value if isinstance(value, list) else []


def whole(value: Any) -> int | None:
    """An integer that was sent as one; None for everything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"user-agent": "sandbox"})  # noqa: S310 - scheme checked by the caller
    try:
        with urllib.request.urlopen(request, timeout=15) as response:  # noqa: S310 - as above
            data: bytes = response.read(MAX_DOWNLOAD + 1)
    except OSError as problem:
        raise ValueError("the file could not be downloaded") from problem
    if len(data) > MAX_DOWNLOAD:
        raise ValueError("the file is too large")
    return data
