"""Rounds of load on a proxy: its CPU time per request, what the client saw, and what ended up in the ledger."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.processes import OTHER_CORES, PROXY_CORE, ROOT, Process
from tests.benchmarks.scenarios import SCENARIOS, Scenario, body, configuration

Start = Callable[[str, Path], contextlib.AbstractContextManager["Proxy"]]

KEY = "bench-client-key"
IN_FLIGHT = 64  # requests held at once when memory is measured


@dataclass(frozen=True, slots=True)
class Proxy:
    """Something between load and upstream. The floor knows no models: its path says which reply is wanted."""

    name: str
    process: Process
    port: int
    ready_s: float
    model_in_path: bool

    def path(self, scenario: Scenario) -> str:
        return f"/{scenario.reply}{scenario.path}" if self.model_in_path else scenario.path


@contextlib.contextmanager
def upstream(folder: Path) -> Iterator[tuple[Process, int]]:
    process = Process(["-m", "tests.benchmarks.upstream"], OTHER_CORES, folder / "upstream.log")
    try:
        yield process, int(process.first_line())
    finally:
        process.stop()


@contextlib.contextmanager
def floor(upstream_url: str, folder: Path) -> Iterator[Proxy]:
    port = _free_port()
    args = [
        "-m",
        "uvicorn",
        "tests.benchmarks.floor:app",
        "--port",
        str(port),
        "--loop",
        "uvloop",
        "--http",
        "httptools",
    ]
    args += ["--no-access-log", "--log-level", "warning", "--backlog", "1024"]
    process = Process(args, PROXY_CORE, folder / "floor.log", {"FLOOR_UPSTREAM": upstream_url})
    try:
        yield Proxy("floor", process, port, process.wait_ready(f"http://127.0.0.1:{port}/"), model_in_path=True)
    finally:
        process.stop()


@contextlib.contextmanager
def router(upstream_url: str, folder: Path, under: Sequence[str] = ()) -> Iterator[Proxy]:
    """The real program with everything on. ``under``: arguments of a profiler that Python runs it with."""
    port = _free_port()
    env = {
        "PIXELROUTE_LEDGER": f"sqlite:///{folder / 'ledger.db'}",
        "PIXELROUTE_API_KEY": KEY,
        "BENCH_PROVIDER_KEY": "bench-provider-key",
    }
    config = configuration(upstream_url, folder)
    args = [*under, "-m", "router", "serve", "--config", str(config), "--port", str(port), "--log-format", "json"]
    process = Process(args, PROXY_CORE, folder / "router.log", env)
    try:
        ready_s = process.wait_ready(f"http://127.0.0.1:{port}/readyz")
        yield Proxy("router", process, port, ready_s, model_in_path=False)
    finally:
        process.stop()


def load(scenario: Scenario, port: int, path: str, folder: Path, seconds: float) -> dict[str, Any]:
    """One run of the load generator; RuntimeError unless every answer was a picture."""
    file, media_type = body(scenario, folder)
    plan = {
        "port": port,
        "path": path,
        "headers": f"Authorization: Bearer {KEY}\r\nContent-Type: {media_type}\r\n",
        "body": str(file),
        "seconds": seconds,
        "connections": scenario.connections,
        "rate": scenario.rate,
        "delay_ms": scenario.delay_ms,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.load"],
        input=json.dumps(plan).encode(),
        cwd=ROOT,
        capture_output=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, OTHER_CORES),
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    report: dict[str, Any] = json.loads(done.stdout)
    if report["errors"]:
        raise RuntimeError(f"{scenario.name}: {report['errors']}")
    return report


def measured(scenario: Scenario, proxy: Proxy, host: Process, folder: Path, seconds: float) -> dict[str, Any]:
    """One round. ``others_busy``: share of a core that upstream and load took; near 1 they were the bottleneck."""
    cpu, other, children, started = proxy.process.cpu_s(), host.cpu_s(), os.times(), time.perf_counter()
    report = load(scenario, proxy.port, proxy.path(scenario), folder, seconds)
    wall, after = time.perf_counter() - started, os.times()
    spent = proxy.process.cpu_s() - cpu
    loading = after.children_user + after.children_system - children.children_user - children.children_system
    return report | {
        "cpu_ms": spent * 1000 / report["requests"],
        "per_s": report["requests"] / report["seconds"],
        "proxy_busy": spent / wall,
        "others_busy": (host.cpu_s() - other + loading) / wall / len(OTHER_CORES),
    }


def median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round with the median CPU cost, with the median of every latency."""
    middle = sorted(rounds, key=lambda each: each["cpu_ms"])[len(rounds) // 2]
    latencies = {
        kind: {point: statistics.median(each[kind][point] for each in rounds) for point in middle[kind]}
        for kind in ("latency_ms", "added_ms")
    }
    return middle | latencies | {"rounds_cpu_ms": [round(each["cpu_ms"], 3) for each in rounds]}


def memory(start: Start, upstream_url: str, folder: Path) -> dict[str, float]:
    """MB of resident memory per 4 MB edit, and per 4 MB base64 reply, in flight.

    Each in a fresh process: freed memory is rarely given back, so an earlier peak would hide a later one.
    """
    held = replace(SCENARIOS[0], connections=IN_FLIGHT, delay_ms=(2500, 2500))
    scenarios = {"edit": replace(held, name="M1", edit=True), "reply": replace(held, name="M2", reply="huge")}
    found: dict[str, float] = {}
    for kind, scenario in scenarios.items():
        own = folder / scenario.name
        own.mkdir()
        with start(upstream_url, own) as proxy:
            load(SCENARIOS[1], proxy.port, proxy.path(SCENARIOS[1]), own, 0.5)
            found[kind] = _growth(scenario, proxy, own) / IN_FLIGHT
    return found


def _growth(scenario: Scenario, proxy: Proxy, folder: Path) -> float:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            load(scenario, proxy.port, proxy.path(scenario), folder, 0.5)
        except BaseException as error:
            failures.append(error)

    before = peak = proxy.process.rss_mb()
    runner = threading.Thread(target=run)
    runner.start()
    while runner.is_alive():
        peak = max(peak, proxy.process.rss_mb())
        runner.join(0.02)
    if failures:
        raise failures[0]
    return peak - before


def ledger_rows(folder: Path) -> tuple[int, int]:
    """(attempts, attempts settled with an amount) in the router's ledger."""
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as ledger:
        attempts = ledger.execute("SELECT count(*) FROM attempt").fetchone()[0]
        settled = ledger.execute("SELECT count(*) FROM entry WHERE kind = 'settled' AND amount_nanos > 0").fetchone()[0]
    return attempts, settled


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
