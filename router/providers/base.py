"""What a provider adapter is: a generator that says which HTTP exchanges make a picture, and never performs one.

A flow yields steps and is sent each step's answer; it returns an ImageResult or raises ProviderError:

    response = yield Call(request, billable=True)     # -> httpx.Response, body read
    yield Job(id)                                     # -> None; durably noted before the flow goes on
    response = yield Call(poll, after_s=0.5)
    return ImageResult(...)

Submit, poll and fetch read as straight code, and a test drives the flow by hand. Everything that is the same for all
providers is the transport's: credentials, trusted hosts, deadlines, timing, connection errors, redaction.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import httpx

from router.errors import ErrorKind, ProviderError
from router.records import record
from router.types import GeneratedImage, ImageRequest, ImageResult, Target


@record
class Call:
    """Perform this exchange. The answer is an ``httpx.Response`` whose body has been read.

    ``billable``: once it is sent, the provider may charge. ``after_s``: wait this long first (polling).
    ``stream``: the answer comes as soon as its headers do; the flow then reads the body with ``Read()``.
    ``deadline``: the header that tells the provider how many seconds are left of the attempt, where it takes one.
    """

    request: httpx.Request
    billable: bool = False
    after_s: float = 0.0
    stream: bool = False
    deadline: Callable[[float], tuple[bytes, bytes]] | None = None


@record
class Read:
    """Send me the next bytes of the streamed answer; ``b""`` at its end."""


@record
class Job:
    """The provider accepted the work under this id: note it durably, so that a restart can resume and settle it."""

    id: str
    state: Mapping[str, str]  # what ``resume`` needs: URLs and ids, never a secret


@record
class Partial:
    """A real partial picture for a streaming client."""

    image: GeneratedImage
    index: int


Step = Call | Read | Job | Partial
Flow = Generator[Step, Any, ImageResult]


@dataclass(frozen=True, slots=True)
class Auth:
    """How a provider takes its key: ``header: prefix + key``. The key itself stays in the transport."""

    header: str = "Authorization"
    prefix: str = "Bearer "


class Adapter(Protocol):
    """One provider's wire format. Stateless but for its base URLs; safe to share between requests."""

    auth: ClassVar[Auth]
    urls: ClassVar[Mapping[str, str]]
    """The provider's public base URLs by name, without a trailing slash; configuration may replace them."""

    def __init__(self, urls: Mapping[str, str]) -> None: ...

    def run(self, request: ImageRequest, target: Target) -> Flow:
        """The exchanges that make this picture. ``request.n`` is never more than ``target.max_images``."""
        ...

    def resume(self, job: Job, request: ImageRequest | None, target: Target) -> Flow:
        """Go on with a job that was submitted before a restart; ProviderError(NO_ANSWER) if that is impossible."""
        ...

    def cancel(self, job: Job) -> Call | None:
        """The exchange that stops a job, or None if the provider has none."""
        ...


class Hosted:
    """What adapters share: their base URLs, and the answers of a provider that keeps no jobs."""

    auth: ClassVar[Auth] = Auth()
    urls: ClassVar[Mapping[str, str]] = {}
    settings: ClassVar[frozenset[str]] = frozenset()
    """Names in ``Target.options`` that steer the adapter instead of being sent."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        unknown = urls.keys() - self.urls.keys()
        if unknown:
            raise ValueError(f"unknown URL name {min(unknown)!r}; this adapter has {', '.join(self.urls)}")
        self.base = {name: urls.get(name, address).rstrip("/") for name, address in self.urls.items()}

    def resume(self, job: Job, request: ImageRequest | None, target: Target) -> Flow:
        raise ProviderError(ErrorKind.NO_ANSWER, "The provider keeps no jobs that could be asked about.")
        yield  # pragma: no cover - makes this a generator, so that the error comes where a flow's errors come

    def cancel(self, job: Job) -> Call | None:
        return None
