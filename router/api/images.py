"""POST /v1/images/generations, /edits and /variations: authenticate, bound, read, parse, run, answer."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive, Scope, Send

from router.api import wire
from router.api.auth import Authenticator
from router.api.forms import FormError, FormReader, Part
from router.api.http import Exchange, Guarded, Intake, Reservation, send_json, unless_gone
from router.api.ports import Fetch, GatewayPort
from router.api.reply import OFF_LOOP, completed_headers, dump, encode_completed
from router.api.requests import Requests, send_accepted
from router.api.streaming import Events
from router.blob import Blob
from router.errors import RequestError
from router.limits import Limiter, Slot
from router.types import ImageRequest, Operation


@dataclass(frozen=True, slots=True)
class Face:
    """What all image endpoints share."""

    gateway: GatewayPort
    requests: Requests
    auth: Authenticator
    intake: Intake
    fetch: Fetch | None = None
    public_url: str | None = None
    started: Callable[[str], None] = lambda operation: None  # an observer's: a request of this operation has come in
    limiters: Mapping[str, Limiter] = field(default_factory=dict)  # by client key
    routers: Callable[[], int] = lambda: 1  # that hold the limits together

    def base_url(self, exchange: Exchange, scope: Scope) -> str:
        """Where clients reach us: the configured address, else what this one used."""
        if self.public_url:
            return self.public_url.rstrip("/")
        return f"{scope.get('scheme', 'http')}://{exchange.header(b'host') or 'localhost'}"


class Images(Guarded):
    """One of the three operations."""

    operation: Operation

    def __init__(self, face: Face) -> None:
        self._face = face

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        face = self._face
        exchange.operation = self.operation.value
        face.started(exchange.operation)
        caller = exchange.caller = face.auth.caller(exchange)
        dry_run = exchange.asks("dryRun")
        explain = exchange.asks("explain") or exchange.headers.get(b"x-pixelroute-explain") in (b"1", b"true")
        limiter = face.limiters.get(caller.key) if not dry_run else None
        reservation = face.intake.reserve(exchange)
        started = False
        try:
            if limiter is not None:
                reservation.slot = self._enter(exchange, limiter)
            request = await self.read(exchange, receive, reservation)
            exchange.model = request.model
            if dry_run:
                await send_json(send, 200, dump(face.gateway.quote(request, caller)))
                return
            events = Events(request, send) if request.stream else None
            base_url = face.base_url(exchange, scope)
            claim, earlier = await face.requests.repeated(exchange, request, caller)
            if isinstance(earlier, bytes):
                await send_json(send, 200, earlier, [(b"idempotent-replayed", b"true")])
                return
            if limiter is not None and earlier is None:
                limiter.images(request.n, time.perf_counter(), face.routers())
            record = earlier or face.requests.start(
                exchange,
                request,
                caller,
                reservation,
                base_url=base_url,
                emit=events.emit if events is not None else None,
                routing=explain,
                claim=claim,
            )
            started = earlier is None
        finally:
            if not started:
                reservation.release()
        if events is not None:
            if earlier is not None:
                await events.start()  # the first one's was told when a provider had taken the work
            await events.run(face.requests, record, exchange, receive)
            return
        if request.later:
            await face.requests.accepted(record)
            await send_accepted(record, send)
            return
        completed = exchange.completed = await face.requests.wait(record, receive)
        body = await encode_completed(completed, request, base_url=base_url)
        headers = completed_headers(completed, exchange.elapsed_s - completed.provider_s)
        await send_json(send, 200, body, headers)

    def _enter(self, exchange: Exchange, limiter: Limiter) -> Slot:
        """The request's place among those of its key; RequestError 429 if there is none."""
        now, routers = time.perf_counter(), self._face.routers()
        try:
            return limiter.enter(now, routers)
        finally:
            exchange.limits = limiter.headers(now, routers)

    @abstractmethod
    async def read(self, exchange: Exchange, receive: Receive, reservation: Reservation) -> ImageRequest:
        """The request from the body. RequestError names the first thing wrong with it."""


class Generations(Images):
    operation = Operation.GENERATE

    async def read(self, exchange: Exchange, receive: Receive, reservation: Reservation) -> ImageRequest:
        if media_type(exchange) != "application/json":
            raise _unsupported("application/json")
        body = await self._face.intake.whole(exchange, receive, reservation)
        default = self._face.gateway.default_model(self.operation)
        return wire.parse_generation(body, default_model=default, headers=exchange.headers)


class Edits(Images):
    operation = Operation.EDIT

    async def read(self, exchange: Exchange, receive: Receive, reservation: Reservation) -> ImageRequest:
        face, default = self._face, self._face.gateway.default_model(self.operation)
        kind = media_type(exchange)
        if kind == "multipart/form-data":
            parts = await read_form(face.intake, exchange, receive, reservation)
            draft = wire.parse_form(self.operation, parts, default_model=default, headers=exchange.headers)
        elif kind == "application/json" and self.operation is Operation.EDIT:
            body = await face.intake.whole(exchange, receive, reservation)
            parse = wire.parse_edit_json
            if len(body) > OFF_LOOP:
                draft = await asyncio.to_thread(parse, body, default_model=default, headers=exchange.headers)
            else:
                draft = parse(body, default_model=default, headers=exchange.headers)
        else:
            raise _unsupported("multipart/form-data")
        return await self._with_images(draft, receive, reservation)

    async def _with_images(self, draft: wire.Draft, receive: Receive, reservation: Reservation) -> ImageRequest:
        sources: Sequence[str | Blob] = draft.images if draft.mask is None else (*draft.images, draft.mask)
        if all(isinstance(source, Blob) for source in sources):
            loaded: list[Any] = list(sources)
        elif all(isinstance(source, Blob) or source[:5].lower() == "data:" for source in sources):
            loaded = await self._load(sources, draft.param, reservation)
        else:  # others may take long to send them
            loading = asyncio.ensure_future(self._load(sources, draft.param, reservation))
            try:
                loaded = await unless_gone(receive, loading)
            finally:
                loading.cancel()
        mask = None if draft.mask is None else loaded.pop()
        return wire.with_images(draft, loaded, mask, forwards=self._face.gateway.forwards_undecodable)

    async def _load(self, sources: Sequence[str | Blob], param: str, reservation: Reservation) -> list[Blob]:
        """URLs and data URLs as bytes, in order, in all no more than a body may have."""

        async def load(source: str | Blob) -> Blob:
            if isinstance(source, Blob):
                return source
            data = (
                await asyncio.to_thread(wire.from_data_url, source, param)
                if len(source) > OFF_LOOP
                else wire.from_data_url(source, param)
            )
            if data is not None:
                return Blob(data)
            if self._face.fetch is None:
                raise RequestError(
                    400,
                    "This installation does not fetch image URLs; send a data URL.",
                    code="unsupported_value",
                    param=param,
                )
            data = await self._face.fetch(source, max_bytes=self._face.intake.body_bytes)
            reservation.grow(len(data))
            return Blob(data)

        return list(await asyncio.gather(*map(load, sources)))


class Variations(Edits):
    operation = Operation.VARIATION


async def read_form(intake: Intake, exchange: Exchange, receive: Receive, reservation: Reservation) -> list[Part]:
    """A multipart body as its parts, parsed while it arrives."""
    try:
        reader = FormReader(exchange.header(b"content-type"))
        await intake.feed(exchange, receive, reservation, reader.feed)
        return reader.finish()
    except FormError as error:
        raise RequestError(400, str(error)) from None


def media_type(exchange: Exchange) -> str:
    return exchange.header(b"content-type").partition(";")[0].strip().lower()


def _unsupported(wanted: str) -> RequestError:
    return RequestError(400, f"Unsupported content type: send '{wanted}'.", code="unsupported_content_type")
