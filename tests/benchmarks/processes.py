"""Processes under measurement: started, pinned to a core, and their CPU time and memory read from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
PROXY_CORE = {CORES[0]}
OTHER_CORES = set(CORES[1:]) or PROXY_CORE


class Process:
    """A Python module in its own process, on the cores it is given."""

    def __init__(self, args: Sequence[str], cores: set[int], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *args],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,  # a file, for a pipe that nobody reads stops its writer
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
        self.pid = self._process.pid

    def first_line(self) -> str:
        """The first line it prints."""
        while "\n" not in (text := self.log.read_text()):
            if self._process.poll() is not None:
                raise RuntimeError(f"the process ended: {text[-2000:]}")
            time.sleep(0.01)
        return text.partition("\n")[0]

    def wait_ready(self, url: str, timeout_s: float = 30.0) -> float:
        """Seconds until the URL answers 200."""
        started = time.perf_counter()
        while time.perf_counter() - started < timeout_s:
            if self._process.poll() is not None:
                raise RuntimeError(f"the process ended: {self.log.read_text()[-4000:]}")
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
                if answer.status == 200:
                    return time.perf_counter() - started
            time.sleep(0.02)
        raise RuntimeError(f"not ready after {timeout_s} s: {self.log.read_text()[-4000:]}")

    def cpu_s(self) -> float:
        """CPU seconds, user and system, of this process and its descendants, the dead included."""
        return sum(_cpu_ticks(pid) for pid in _tree(self.pid)) / TICK

    def rss_mb(self) -> float:
        return sum(_status(pid, "VmRSS") for pid in _tree(self.pid)) / 1024

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])


def _status(pid: int, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name + ":")), 0)
