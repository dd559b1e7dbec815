"""Shared by all tests: driving an adapter's flow by hand, and builders of the values that travel through the router."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from pricing import ImageSize
from router.blob import Blob
from router.errors import ProviderError
from router.providers.base import Call, Flow, Job, Partial, Read, Step
from router.types import ImageRequest, ImageResult, InputImage, Operation, Target


@dataclass
class Played:
    """What a flow did: its steps in order, and how it ended."""

    steps: list[Step] = field(default_factory=list)
    returned: ImageResult | None = None
    error: ProviderError | None = None

    @property
    def calls(self) -> list[Call]:
        return [step for step in self.steps if isinstance(step, Call)]

    @property
    def jobs(self) -> list[Job]:
        return [step for step in self.steps if isinstance(step, Job)]

    @property
    def partials(self) -> list[Partial]:
        return [step for step in self.steps if isinstance(step, Partial)]

    @property
    def result(self) -> ImageResult:
        """What the flow returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        assert self.returned is not None
        return self.returned

    def failure(self) -> ProviderError:
        assert self.error is not None, f"the flow returned {self.returned}"
        return self.error

    def sent(self, index: int = 0) -> Any:
        """The JSON body of a call."""
        return orjson.loads(self.calls[index].request.read())


def play(flow: Flow, *responses: httpx.Response, chunk: int = 1000) -> Played:
    """Run a flow to its end, answering its calls with ``responses`` in order.

    A streamed call's body is handed out in pieces of ``chunk`` bytes. Fails if the flow wants more answers, or leaves
    some unused.
    """
    played = Played()
    waiting = iter(responses)
    body: Iterator[bytes] = iter(())
    answer: Any = None
    try:
        while True:
            step = flow.send(answer)
            played.steps.append(step)
            answer = None
            match step:
                case Call():
                    reply = next(waiting, None)
                    assert reply is not None, f"the flow asks once more: {step.request.method} {step.request.url}"
                    if step.stream:
                        body = iter([reply.content[i : i + chunk] for i in range(0, len(reply.content), chunk)])
                        answer = httpx.Response(reply.status_code, headers=reply.headers, stream=_Unread())
                    else:
                        answer = reply
                case Read():
                    answer = next(body, b"")
                case Job() | Partial():
                    pass
    except StopIteration as stop:
        played.returned = stop.value
    except ProviderError as raised:
        played.error = raised
    assert next(waiting, None) is None, "the flow ended before it had asked for all answers"
    return played


class _Unread(httpx.SyncByteStream):
    """The body of a streamed answer: reading it past the flow's ``Read`` steps is a mistake."""

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("a streamed body is read with Read()")


def reply(body: Any = None, status: int = 200, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """A provider's answer: JSON of a value, or bytes as they are."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return httpx.Response(status, headers={"content-type": "application/json", **(headers or {})}, content=content)


_FIXTURES = Path(__file__).parent / "router" / "providers" / "fixtures"


def documented(name: str, /, *, http: int | None = None, **changes: Any) -> httpx.Response:
    """A provider's answer as its documentation shows it, from ``fixtures/<provider>/<name>.json``.

    ``changes`` replace top-level fields of its body.
    """
    kept = orjson.loads((_FIXTURES / f"{name}.json").read_bytes())
    body = kept["body"]
    return reply(body | changes if changes else body, http or kept.get("status", 200), kept.get("headers"))


SIZE = ImageSize(1024, 1024)
PNG_BYTES = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f64540"
    "0000000049454e44ae426082"
)
"""A picture of one transparent pixel."""
PNG = InputImage(data=Blob(PNG_BYTES), format="png", size=ImageSize(1, 1))


def image_request(**changes: Any) -> ImageRequest:
    """A plain generation of one 1024x1024 picture, with changes."""
    values: dict[str, Any] = {
        "operation": Operation.GENERATE,
        "model": "flux.2-dev-turbo",
        "prompt": "A serene mountain landscape at sunset",
        "size": SIZE,
    }
    return ImageRequest(**(values | changes))


def edit_request(**changes: Any) -> ImageRequest:
    """A plain edit of one small source picture, with changes."""
    return image_request(**({"operation": Operation.EDIT, "images": (PNG,)} | changes))


def target(provider: str = "fal", model: str = "flux.2-dev-turbo", **changes: Any) -> Target:
    """A target that can do everything, with changes."""
    values: dict[str, Any] = {
        "key": f"{provider}/{model}",
        "provider": provider,
        "model": model,
        "endpoints": {Operation.GENERATE: model, Operation.EDIT: f"{model}/edit"},
        "max_images": 4,
        "max_inputs": 4,
        "formats": ("png", "jpeg", "webp"),
    }
    return Target(**(values | changes))


def returned(steps: Generator[None, None, Any]) -> Any:
    """What they return, taken without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
