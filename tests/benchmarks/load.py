"""The load generator: one process, raw sockets, latencies of every request.

``python -m tests.benchmarks.load``: reads a JSON plan from standard input, prints a JSON report.
Plan: port, path, headers (text), body (file), seconds, and either connections (each sends again once answered) or
rate per second (Poisson, whether answered or not); delay_ms [low, high] asks the upstream to wait, through the prompt.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from tests.benchmarks.wire import Messages

MARK = b"@00000"
PATIENCE_S = 15.0  # how long the last answers may take


class Client(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._messages = Messages(keep=512)
        self._started = 0.0
        self._delay = 0
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, started: float) -> None:
        self._started, self.busy = started, True
        request, self._delay = self._load.request()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        for head, body, length in self._messages.feed(data):
            self.busy = False
            self._load.answered(self, self._started, self._delay, head, body, length)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self._load.failed("connection lost")


class Load:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        body = Path(plan["body"]).read_bytes()
        head = (
            f"POST {plan['path']} HTTP/1.1\r\nHost: 127.0.0.1\r\n{plan['headers']}Content-Length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        at = self._request.index(MARK)
        self._before, self._after = self._request[:at], self._request[at + len(MARK) :]
        self._random = random.Random(7)
        self.sent = 0
        self.latencies: list[float] = []
        self.added: list[float] = []
        self.errors: dict[str, int] = {}
        self.lengths: set[int] = set()
        self.first = self.last = 0.0
        self._idle: list[Client] = []
        self._stop = 0.0
        self._done = asyncio.Event()

    def request(self) -> tuple[bytes, int]:
        self.sent += 1
        low, high = self.plan["delay_ms"]
        if high == 0:
            return self._request, 0
        delay = self._random.randint(low, high)
        return self._before + b"@%05d" % delay + self._after, delay

    def answered(self, client: Client, started: float, delay: int, head: bytes, body: bytes, length: int) -> None:
        now = time.perf_counter()
        self.latencies.append(now - started)
        self.added.append(now - started - delay / 1000)
        self.last = now
        if head[9:12] != b"200":
            self.failed(f"{head[9:12].decode()}: {body[:200].decode(errors='replace')}")
        elif b"b64_json" not in body and b'"url"' not in body:
            self.failed(f"no picture: {body[:200].decode(errors='replace')}")
        self.lengths.add(length)
        if self.plan.get("rate"):
            self._idle.append(client)
            self._check_done()
        elif now < self._stop:
            client.send(now)
        else:
            self._check_done()

    def failed(self, why: str) -> None:
        self.errors[why] = self.errors.get(why, 0) + 1
        self._check_done()

    def _check_done(self) -> None:
        if (
            time.perf_counter() >= self._stop
            and len(self.latencies) + self.errors.get("connection lost", 0) >= self.sent
        ):
            self._done.set()

    async def connect(self) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: Client(self), "127.0.0.1", self.plan["port"])
        return client

    async def run(self) -> dict[str, Any]:
        clients = [await self.connect() for _ in range(self.plan.get("connections") or 0)]
        self.first = time.perf_counter()
        self._stop = self.first + self.plan["seconds"]
        if rate := self.plan.get("rate"):
            await self._poisson(rate)
        else:
            for client in clients:
                client.send(time.perf_counter())
        try:
            await asyncio.wait_for(self._done.wait(), self.plan["seconds"] + PATIENCE_S)
        except TimeoutError:
            self.failed(f"no answer to {self.sent - len(self.latencies)} requests")
        return self.report()

    async def _poisson(self, rate: float) -> None:
        due = self.first
        while due < self._stop:
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            client = self._idle.pop() if self._idle else await self.connect()
            client.send(due)
            due += self._random.expovariate(rate)

    def report(self) -> dict[str, Any]:
        latencies, added = sorted(self.latencies), sorted(self.added)
        return {
            "requests": len(latencies),
            "errors": self.errors,
            "seconds": self.last - self.first,
            "lengths": [min(self.lengths, default=0), max(self.lengths, default=0)],
            "latency_ms": _points(latencies),
            "added_ms": _points(added),
        }


def _points(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    last = len(values) - 1
    return {name: round(values[round(last * at)] * 1000, 3) for name, at in (("p50", 0.5), ("p99", 0.99), ("max", 1))}


async def main() -> None:
    report = await Load(json.loads(sys.stdin.read())).run()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    uvloop.run(main())
