"""A gateway that makes pictures of its own: what the HTTP face is tested against."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pybase64
from PIL import Image

from pricing import ImageSize
from router.api.ports import Emit
from router.blob import Blob
from router.errors import RequestError
from router.types import (
    Accepted,
    AttemptSummary,
    Caller,
    Completed,
    GeneratedImage,
    ImageRequest,
    Operation,
    PartialImage,
    Warn,
)

PROMPT = {"prompt": "a cat", "model": "flux.2-dev-turbo"}
MODELS = ("flux.2-dev-turbo", "fal/flux.2-dev-turbo", "gpt-image-2")


def picture(width: int = 8, height: int = 6, form: str = "png", mode: str = "RGB", **options: Any) -> bytes:
    """A small real picture."""
    image = Image.effect_noise((width, height), 60).convert("RGB").convert(mode)
    out = io.BytesIO()
    image.save(out, form.upper(), **options)
    return out.getvalue()


def mask(width: int = 8, height: int = 6) -> bytes:
    image = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, width // 2, height))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG whose header promises far too many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@dataclass
class FakeGateway:
    """Implements GatewayPort. ``behave`` may raise, wait, or change what comes out."""

    behave: Callable[[ImageRequest, Emit | None], Any] | None = None
    change: dict[str, Any] = field(default_factory=dict)
    data: bytes = field(default_factory=picture)
    requests: list[ImageRequest] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    resumed: list[tuple[str, ImageRequest, bool]] = field(default_factory=list)
    defaults: dict[Operation, str] = field(default_factory=dict)
    forwards: bool = False
    abandoned: list[str] = field(default_factory=list)
    stops: Callable[[str], bool] = lambda request_id: False
    past: dict[tuple[str, str], Completed] = field(default_factory=dict)  # what a ledger would remember, by id and key

    async def run(
        self,
        request: ImageRequest,
        caller: Caller,
        *,
        request_id: str,
        emit: Emit | None = None,
        routing: bool = False,
    ) -> Completed:
        if request.model not in MODELS and not request.model.startswith(("gpt-image", "dall-e", "chatgpt")):
            raise RequestError(
                404, f"The model '{request.model}' does not exist.", code="model_not_found", param="model"
            )
        self.requests.append(request)
        self.callers.append(caller)
        self.ids.append(request_id)
        if self.behave is not None:
            done = self.behave(request, emit)
            if asyncio.iscoroutine(done):
                await done
        elif emit is not None:
            await emit(Accepted())
            for index in range(request.partial_images):
                await emit(PartialImage(self.image("b64_json"), index))
        form = request.response_format or (
            "b64_json"
            if request.model.startswith(("gpt-image", "chatgpt-image")) or request.stream
            else "both"
            if request.operation is Operation.EDIT
            else "url"
        )
        completed = Completed(
            request_id=request_id,
            created=1_795_218_184,
            operation=request.operation,
            model=request.model,
            executed_model="fal/flux.2-dev-turbo",
            provider="fal",
            provider_name="fal.ai",
            images=tuple(self.image(form) for _ in range(request.n)),
            response_format=form,
            cost_nanos=8_000_000 * request.n,
            currency="USD",
            items=({"type": "output", "metric": "megapixel", "amount": "0.008"},),
            attempts=(AttemptSummary("fal", "fal/flux.2-dev-turbo", "success", 12, 8_000_000, "yes", "cheapest"),),
            reason="cheapest",
            output_format="png",
            size=ImageSize(8, 6),
            routing={"candidates": []} if routing else None,
            provider_s=0.0,
            warnings=(Warn("size_changed", "The provider made another size.", "size"),),
        )
        completed = self.past[request_id, caller.key] = replace(completed, **self.change)
        return completed

    def abandon(self, request_id: str) -> bool:
        self.abandoned.append(request_id)
        return self.stops(request_id)

    async def resume(self, request_id: str, request: ImageRequest, *, awaited: bool) -> Completed:
        self.resumed.append((request_id, request, awaited))
        return await self.run(request, Caller(), request_id=request_id)

    async def recorded(self, request_id: str, key: str, images: Sequence[GeneratedImage]) -> Completed | None:
        completed = self.past.get((request_id, key))
        return completed and replace(completed, images=tuple(images), response_format="url")

    def image(self, form: str) -> GeneratedImage:
        return GeneratedImage(
            b64=Blob(pybase64.b64encode(self.data)) if form != "url" else None,
            url="/v1/media/abc.png?sig=1" if form != "b64_json" else None,
            size=ImageSize(8, 6),
            format="png",
        )

    def check(self, request: ImageRequest, caller: Caller) -> None:
        self.quote(request, caller)

    def quote(self, request: ImageRequest, caller: Caller) -> dict[str, Any]:
        return {"estimated": True, "model": request.model, "total_cost_micros": 8000, "cost": str(Decimal("0.008"))}

    def models(self, caller: Caller) -> list[dict[str, Any]]:
        return [self._model(name) for name in MODELS]

    def model(self, name: str, caller: Caller) -> dict[str, Any] | None:
        return self._model(name) if name in MODELS else None

    def _model(self, name: str) -> dict[str, Any]:
        prices = {Operation.GENERATE: Decimal("0.008")}  # values and keys that JSON does not have
        return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "test", "prices": prices}

    def forwards_undecodable(self, model: str) -> bool:
        return self.forwards

    def default_model(self, operation: Operation) -> str | None:
        return self.defaults.get(operation)
