"""What operators took out by hand: kept beside the ledger, and known to every replica.

Each target has one word, in or out, with the time at which it was said; the newest word holds, wherever it was said. A
restart finds the words in a small file of its own, replicas find them at the server that they share (``sharing``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import orjson

from router.records import record

log = logging.getLogger(__name__)

STEP_S = 0.001  # a word is newer than the one it answers, whatever the clocks of the routers say


@record
class Word:
    """What was said last of a target."""

    out: bool
    at: float  # seconds since the epoch, on the clock of the router that was told


class Drains:
    """The operators' words. ``apply(target, out)`` is called for each that changes something.

    ``targets`` are those of this installation; what is said of any other is left alone.
    """

    def __init__(
        self,
        path: Path,
        targets: Collection[str],
        apply: Callable[[str, bool], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._targets = frozenset(targets)
        self._apply = apply
        self._clock = clock
        self._words: dict[str, Word] = {}
        self._turn = asyncio.Lock()

    @property
    def words(self) -> Mapping[str, Word]:
        return self._words

    async def load(self) -> None:
        """Say again what was said before the restart. A file that is none of ours is left out, and logged."""
        try:
            text = await asyncio.to_thread(self._path.read_bytes)
            found = {target: (word["out"], word["at"]) for target, word in orjson.loads(text).items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            log.error("what was drained before cannot be read from %s: %s", self._path, error)
            return
        self._take(found)

    async def say(self, target: str, out: bool) -> bool:
        """The operator's word, to this router. It holds at once; True when it is on disk as well."""
        known = self._words.get(target)
        now = self._clock()
        self._take({target: (out, now if known is None else max(now, known.at + STEP_S))})
        return await self._keep()

    async def hear(self, words: Mapping[str, tuple[Any, Any]]) -> None:
        """Words that were said to other replicas, whatever was sent: newer ones hold here as well."""
        if self._take(words):
            await self._keep()

    def _take(self, words: Mapping[str, tuple[Any, Any]]) -> bool:
        news = False
        for target, (out, at) in words.items():
            sound = isinstance(out, bool) and isinstance(at, float | int) and math.isfinite(at)
            known = self._words.get(target)
            if target not in self._targets or not sound or (known is not None and known.at >= at):
                continue
            self._words[target] = Word(out, float(at))
            news = True
            self._apply(target, out)
            log.warning("target %s: %s", "drained" if out else "undrained", target)
        return news

    async def _keep(self) -> bool:
        async with self._turn:
            words = {target: {"out": word.out, "at": word.at} for target, word in sorted(self._words.items())}
            try:
                await asyncio.to_thread(_replace, self._path, orjson.dumps(words))
            except OSError as error:
                log.error("what is drained cannot be kept for a restart: %s", error)
                return False
        return True


def _replace(path: Path, content: bytes) -> None:
    """The file with new content: the old or the new one after a crash, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    with contextlib.suppress(OSError):  # not every file system can sync a directory
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
