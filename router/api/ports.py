"""What the HTTP face needs from the rest of the program. ``router.app`` plugs the real ones in, tests their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from router.types import Accepted, Caller, Completed, GeneratedImage, ImageRequest, Operation, PartialImage

Emit = Callable[[Accepted | PartialImage], Awaitable[None]]


class GatewayPort(Protocol):
    """The use case. Every method raises RequestError for what the client must be told."""

    async def run(
        self,
        request: ImageRequest,
        caller: Caller,
        *,
        request_id: str,
        emit: Emit | None = None,
        routing: bool = False,
    ) -> Completed:
        """Make the pictures. ``emit`` is told when the status may be committed, and of real partial pictures."""
        ...

    def abandon(self, request_id: str) -> bool:
        """Nobody waits for a running request any more, nor will ask for it. Whether it ends now."""
        ...

    async def resume(self, request_id: str, request: ImageRequest, *, awaited: bool) -> Completed:
        """The result of a request that an earlier process left behind, as far as a provider still has it.

        ``request``: what form it is to have. ``awaited``: its client knows its id.
        """
        ...

    async def recorded(self, request_id: str, key: str, images: Sequence[GeneratedImage]) -> Completed | None:
        """The answer that a request of this client key had in the past; ``images``: its pictures, as they are kept."""
        ...

    def check(self, request: ImageRequest, caller: Caller) -> None:
        """RequestError if the request would be refused now."""
        ...

    def quote(self, request: ImageRequest, caller: Caller) -> dict[str, Any]:
        """What it would cost: the body of a dry run."""
        ...

    def models(self, caller: Caller) -> list[dict[str, Any]]:
        """OpenAI model objects of everything this caller may use, aliases included."""
        ...

    def model(self, name: str, caller: Caller) -> dict[str, Any] | None: ...

    def forwards_undecodable(self, model: str) -> bool:
        """Whether this model is given source pictures in formats that we do not read; False if there is no such."""
        ...

    def default_model(self, operation: Operation) -> str | None: ...


class Fetch(Protocol):
    """Downloads a picture that a client named by URL: public addresses only. RequestError if it cannot be had."""

    async def __call__(self, url: str, *, max_bytes: int) -> bytes: ...
