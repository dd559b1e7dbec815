"""A real Redis server for one test, on a socket of its own; it keeps nothing."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import ConnectionError as RefusedError


class RedisServer:
    """Runs while the context lasts; may be killed, stopped in its tracks and started again."""

    def __init__(self) -> None:
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
        self._process = subprocess.Popen(["redis-server", *own], stdout=subprocess.DEVNULL)
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
        raise AssertionError("redis-server does not answer")

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
