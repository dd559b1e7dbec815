"""What all emulators of one sandbox share: clock, chance, painter, files, invoice, faults, and the record of calls."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from router.sandbox.faults import FaultPlan
from router.sandbox.invoice import Invoice
from router.sandbox.pictures import Painter, Size

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Latency:
    """Log-normal time of one picture of one megapixel: its median and 95th percentile, in seconds."""

    p50: float
    p95: float

    def draw(self, rng: random.Random) -> float:
        sigma = math.log(self.p95 / self.p50) / 1.6449
        return self.p50 * math.exp(sigma * rng.gauss(0, 1))


@dataclass(slots=True)
class StoredFile:
    """A file behind a link, as a provider's delivery host keeps it."""

    data: bytes
    media_type: str
    provider: str
    expires: float | None  # on the sandbox's clock; None: never
    gone_status: int = 404
    needs_user_agent: bool = False


class Kept(OrderedDict[str, T]):
    """What an emulator remembers by id: jobs, predictions, tasks. The oldest give way beyond ``limit``."""

    def __init__(self, limit: int = 2000) -> None:
        super().__init__()
        self._limit = limit

    def __setitem__(self, key: str, value: T) -> None:
        super().__setitem__(key, value)
        while len(self) > self._limit:
            self.popitem(last=False)


class Files:
    """Delivered and uploaded files by host and path, the oldest dropped beyond ``limit`` bytes."""

    def __init__(self, limit: int = 128 << 20) -> None:
        self._files: OrderedDict[str, StoredFile] = OrderedDict()
        self._bytes = 0
        self._limit = limit

    def put(self, path: str, file: StoredFile) -> None:
        """``path`` begins with the host: ``fal.media/files/...``."""
        if old := self._files.pop(path, None):
            self._bytes -= len(old.data)
        self._files[path] = file
        self._bytes += len(file.data)
        while self._bytes > self._limit and len(self._files) > 1:
            self._bytes -= len(self._files.popitem(last=False)[1].data)

    def get(self, path: str) -> StoredFile | None:
        return self._files.get(path)

    def clear(self) -> None:
        self._files.clear()
        self._bytes = 0


class Calls:
    """Which exchanges arrived, counted by provider and endpoint, with the last ones in full but without secrets."""

    def __init__(self, keep: int = 200) -> None:
        self._keep = keep
        self.clear()

    def clear(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.billed: Counter[str] = Counter()
        self.last: dict[str, deque[dict[str, Any]]] = {}

    def arrived(self, provider: str, endpoint: str, record: dict[str, Any]) -> None:
        self.counts.setdefault(provider, Counter())[endpoint] += 1
        self.last.setdefault(provider, deque(maxlen=self._keep)).append(record)

    def summary(self, provider: str) -> dict[str, Any]:
        counts = self.counts.get(provider, Counter())
        return {
            "total": counts.total(),
            "billed": self.billed[provider],
            "endpoints": dict(sorted(counts.items())),
            "last": list(self.last.get(provider, ())),
        }


class World:
    """One sandbox's state. ``time_scale`` stretches the providers' usual latencies; 0 makes them instant."""

    def __init__(self, *, seed: int = 0, time_scale: float = 0.1) -> None:
        if time_scale < 0:
            raise ValueError("time_scale must not be negative")
        self.seed = seed
        self.time_scale = time_scale
        self.painter = Painter()
        self.invoice = Invoice()
        self.files = Files()
        self.calls = Calls()
        self.closing = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._start = time.time()
        self._tick = time.monotonic()
        self.restart()

    def restart(self) -> None:
        """Back to the state at the start: the same seed gives the same latencies, ids and seeds again."""
        for task in self._tasks:
            task.cancel()
        self._rngs: dict[str, random.Random] = {}
        self.faults = FaultPlan(self.now, self.rng("faults"))
        self.invoice.clear()
        self.files.clear()
        self.calls.clear()

    def now(self) -> float:
        """Unix seconds that never go backwards."""
        return self._start + time.monotonic() - self._tick

    def rng(self, name: str) -> random.Random:
        """A source of chance of its own for each name, so that one provider's traffic does not move another's."""
        if name not in self._rngs:
            self._rngs[name] = random.Random(f"{self.seed}/{name}")  # noqa: S311 - not for secrets
        return self._rngs[name]

    def identifier(self, name: str, length: int = 32) -> str:
        """A fresh hexadecimal id."""
        return hashlib.sha256(self.rng(name).randbytes(32)).hexdigest()[:length]

    def seconds(self, name: str, latency: Latency, size: Size, n: int) -> float:
        """How long the provider needs for this work, unscaled. Affine in megapixels; siblings are partly shared."""
        work = size[0] * size[1] / 1_048_576 * float(n**0.6)
        return latency.draw(self.rng(f"latency/{name}")) * (0.4 + 0.6 * work)

    async def wait(self, seconds: float) -> None:
        """Spend a provider's time."""
        if seconds * self.time_scale > 0:
            await asyncio.sleep(seconds * self.time_scale)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside the requests until done or the sandbox closes: queued jobs, webhooks."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        self.closing.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.painter.close()


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers for the record: everything that can carry a key is masked."""
    secret = {"authorization", "x-key", "api-key", "x-goog-api-key", "cookie", "proxy-authorization"}
    return {name: "***" if name.lower() in secret else value for name, value in headers.items()}
