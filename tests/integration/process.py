"""A real router in its own process, on the sandbox providers, and the sandbox's own books beside it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

KEY = "integration-test-key"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true answer of a condition that something else brings about."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        threading.Event().wait(0.02)
    raise AssertionError("it did not happen")


class RouterProcess:
    """``python -m router serve --sandbox`` with its ledger, pictures and log in ``directory``.

    ``config``: instead of the sandbox and the shipped configuration. ``more``: read after the shipped one.
    """

    def __init__(
        self,
        directory: Path,
        *,
        key: str | None = KEY,
        speed: float = 0.02,
        env: Mapping[str, str] | None = None,
        config: Path | None = None,
        more: Path | None = None,
    ) -> None:
        self.directory = directory
        self._config = ["--config", str(config)] if config else ["--sandbox", "--sandbox-speed", str(speed)]
        if more:
            self._config += ["--config", "providers.yaml", "--config", str(more)]
        self.ledger_url = f"sqlite:///{directory}/ledger.db"
        self.log_path = directory / "router.log"
        self._env = dict(env or {})
        self._key = key
        self.start()

    def start(self) -> None:
        env = {
            **os.environ,
            "PIXELROUTE_LEDGER": self.ledger_url,
            "PIXELROUTE_MEDIA": str(self.directory / "media"),
            **({"PIXELROUTE_API_KEY": self._key} if self._key else {}),
            **self._env,
        }
        command = [sys.executable, "-m", "router", "serve", *self._config]
        command += ["--port", "0", "--log-format", "json"]
        earlier = len(self.events("serving")) if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
        self._wait_ready(earlier)

    def _wait_ready(self, earlier: int) -> None:
        """Until it says where it listens; ``earlier``: how often its predecessors have said so in the same log."""
        for _ in range(6000):
            said = self.events("serving")[earlier:]
            if said:
                self.port = int(httpx.URL(said[0]["url"]).port or 0)
                self.base = f"http://127.0.0.1:{self.port}"
                assert httpx.get(f"{self.base}/readyz", timeout=10.0).status_code == 200
                return
            try:  # not a sleep for luck: wait for the process's end for a moment, and look again
                self.process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
            break
        raise AssertionError("the router did not become ready:\n" + self.log_path.read_text())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def events(self, name: str) -> list[dict[str, Any]]:
        whole = self.log_path.read_text().rpartition("\n")[0]  # of the last line the end may not be written yet
        lines = [json.loads(line) for line in whole.split("\n") if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def left(self) -> list[dict[str, Any]]:
        """The log lines of requests whose client left, of which no line of an earlier answer can come in between."""
        return [line for line in self.events("request") if line["outcome"] == "cancelled"]

    def line(self, answer: Any) -> dict[str, Any]:
        """The log line of an answered request, which the router writes after the client has the answer."""
        wanted = answer.headers["x-request-id"]
        [line] = until(lambda: [line for line in self.events("request") if line["request_id"] == wanted])
        return dict(line)

    @property
    def sandbox(self) -> str:
        return str(self.events("sandbox")[-1]["url"])

    def calls(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.sandbox}/_control/calls").raise_for_status().json())

    def invoice(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.sandbox}/_control/invoice").raise_for_status().json())

    def fault(self, provider: str, fault: str, *, count: int | None = None, **params: Any) -> None:
        order = {"provider": provider, "fault": fault, "params": params, "count": count}
        httpx.post(f"{self.sandbox}/_control/faults", json=order).raise_for_status()

    def reset(self) -> None:
        httpx.post(f"{self.sandbox}/_control/reset").raise_for_status()

    def post(self, path: str, body: Any = None, *, key: str | None = KEY, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        headers |= more.pop("headers", {})
        if body is not None:
            more["json"] = body
        return httpx.post(self.base + path, headers=headers, timeout=60.0, **more)
