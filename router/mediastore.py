"""Pictures that need a URL, kept by content for a limited time and served over signed links.

A picture's name is the SHA-256 of its bytes, so the same picture is stored once. A link carries its expiry and an HMAC
over both: it cannot be guessed, and it dies on time even where the file lives on because a later request made the same
picture again.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs

from router.media import MEDIA_TYPES, probe
from router.types import GeneratedImage

log = logging.getLogger(__name__)

PATH = "/v1/media/"
"""Where links point."""

_NAME = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{2,5}")
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CHUNK = 256 * 1024
_HEAD = 64 * 1024  # enough of a picture to read its header


class Chunks(Protocol):
    """A picture's bytes, or some of them."""

    def __call__(self, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Media:
    """A stored picture, ready to be sent."""

    name: str
    media_type: str
    length: int
    max_age_s: int  # how long the link still lives
    chunks: Chunks


@dataclass(frozen=True, slots=True)
class Stored:
    """One picture that is kept. ``touched``: Unix seconds of the last time a request made it."""

    name: str
    length: int
    touched: float


class Blobs(Protocol):
    """Where bytes are kept. Names are our own and safe as file names and object keys. What fails is an OSError."""

    async def signing_key(self) -> bytes:
        """The key of the links to what is kept here, made once: links outlive a restart and hold at all replicas."""
        ...

    async def write(self, name: str, data: bytes, request_id: str) -> None:
        """Keep the picture and note which request made it. Writing what is there already only refreshes it."""
        ...

    async def read(self, name: str) -> tuple[int, Chunks] | None:
        """Length and content, None if it is not there."""
        ...

    async def delete(self, names: Iterable[str]) -> None: ...

    async def scan(self) -> list[Stored]:
        """All pictures that are kept."""
        ...

    async def made(self, request_id: str) -> list[Stored]:
        """The pictures that a request made, as far as they are still kept, in the order in which they came in."""
        ...

    async def purge(self, request_id: str) -> int:
        """Forget a request and delete its pictures, but those that another request made too; how many went."""
        ...

    async def remember(self, request_id: str, document: bytes) -> None:
        """Keep what there is to say about a request."""
        ...

    async def recall(self, request_id: str) -> bytes | None: ...

    async def forget(self, request_id: str) -> None:
        """Drop the document; pictures stay."""
        ...

    async def remembered(self, prefix: str) -> list[str]:
        """The ids that begin so and have a document."""
        ...

    async def forget_before(self, moment: float) -> None:
        """Forget every request last written before this, Unix seconds; their pictures go on their own."""
        ...


class MediaStore:
    """Signed links over a Blobs. ``key`` signs, changing it kills all links; without one ``start`` asks the Blobs."""

    def __init__(
        self,
        blobs: Blobs,
        *,
        key: bytes | None = None,
        lifetime_s: int = 24 * 3600,
        max_bytes: int = 10 * 2**30,
        now: Callable[[], float] = time.time,
    ) -> None:
        if key is not None and len(key) < 16:
            raise ValueError("the signing key needs at least 16 bytes")
        self._blobs = blobs
        self._key = key or b""
        self._lifetime_s = lifetime_s
        self._max_bytes = max_bytes
        self._now = now
        self._written = 0  # bytes since the last sweep
        self._crowded = asyncio.Event()

    async def start(self) -> None:
        """Learn the key. OSError if the storage cannot be reached: better said now than when a picture is paid."""
        if not self._key:
            self._key = await self._blobs.signing_key()

    async def put(self, data: bytes, format: str, request_id: str) -> str:
        """Keep a picture; the path and query of its link."""
        digest = await asyncio.to_thread(_sha256, data) if len(data) > _CHUNK else _sha256(data)
        name = f"{digest}.{format}"
        await self._blobs.write(name, data, request_id)
        self._written += len(data)
        if self._written > self._max_bytes // 16:
            self._crowded.set()
        return self.link(name)

    def link(self, name: str, since: float | None = None) -> str:
        """A link to a stored picture that lives for the store's lifetime from ``since``, Unix seconds, or from now."""
        expires = int(self._now() if since is None else since) + self._lifetime_s
        return f"{PATH}{name}?expires={expires}&signature={self._signature(name, expires)}"

    async def open(self, name: str, query: str) -> Media | None:
        """The picture behind a link; None for links that are forged, expired, or whose picture is gone."""
        values = parse_qs(query)
        given, until = values.get("signature", [""])[0], values.get("expires", [""])[0]
        if not _NAME.fullmatch(name) or not (until.isascii() and until.isdigit() and len(until) < 12):
            return None
        expires = int(until)
        if not hmac.compare_digest(given.encode(), self._signature(name, expires).encode()):
            return None
        if expires <= self._now():
            return None
        found = await self._blobs.read(name)
        if found is None:
            return None
        length, chunks = found
        media_type = MEDIA_TYPES.get(name.rpartition(".")[2], "application/octet-stream")
        return Media(name, media_type, length, int(expires - self._now()), chunks)

    async def pictures(self, request_id: str) -> tuple[GeneratedImage, ...]:
        """What a request made, as long as all of it lives: links, sizes and formats."""
        found = []
        for stored in await self._blobs.made(request_id):
            link = self.link(stored.name, stored.touched)
            media = await self.open(stored.name, link.partition("?")[2])
            if media is None:
                return ()
            head = b"".join([chunk async for chunk in media.chunks(0, min(media.length, _HEAD))])
            known = probe(head)
            size, form = (known.size, known.format) if known is not None else (None, stored.name.rpartition(".")[2])
            found.append(GeneratedImage(url=link, size=size, format=form))
        return tuple(found)

    async def purge(self, request_id: str) -> int:
        """Delete the pictures of one request, unless another request made the same ones; how many went."""
        return await self._blobs.purge(request_id)

    async def remember(self, request_id: str, document: bytes) -> None:
        """Keep a document about a request for the store's lifetime: durable when this returns."""
        await self._blobs.remember(request_id, document)

    async def recall(self, request_id: str) -> bytes | None:
        return await self._blobs.recall(request_id)

    async def forget(self, request_id: str) -> None:
        """Drop the document; pictures stay."""
        await self._blobs.forget(request_id)

    async def remembered(self, prefix: str) -> list[str]:
        """The ids that begin so and have a document."""
        return sorted(await self._blobs.remembered(prefix))

    async def sweep(self) -> int:
        """Delete what has outlived its last link, then the oldest until the rest fits; how many went."""
        self._written = 0
        self._crowded.clear()
        kept = sorted(await self._blobs.scan(), key=lambda stored: stored.touched)
        total, dead = sum(stored.length for stored in kept), self._now() - self._lifetime_s
        doomed = []
        for stored in kept:
            if stored.touched > dead and total <= self._max_bytes:
                break
            doomed.append(stored.name)
            total -= stored.length
        await self._blobs.delete(doomed)
        await self._blobs.forget_before(dead)
        return len(doomed)

    async def run(self, every_s: float = 600.0) -> None:
        """Sweep at intervals, and sooner when much has come in. Runs until cancelled."""
        while True:
            try:
                await self.sweep()
            except OSError as problem:
                log.warning("the media store could not be swept: %s", problem)
            try:
                async with asyncio.timeout(every_s):
                    await self._crowded.wait()
            except TimeoutError:
                pass

    def _signature(self, name: str, expires: int) -> str:
        return hmac.new(self._key, f"{name}\n{expires}".encode(), hashlib.sha256).hexdigest()[:43]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Directory:
    """Pictures in a local directory, which several processes may share.

    ``pictures/ab/abc....png`` are the pictures, ``requests/req_...`` one line per picture that a request made,
    ``documents/req_...`` what else is to be remembered of it, ``incoming/`` files being written.
    """

    def __init__(self, root: Path) -> None:
        self._key = root / ".signing-key"
        self._pictures = root / "pictures"
        self._requests = root / "requests"
        self._documents = root / "documents"
        self._incoming = root / "incoming"
        for directory in (self._pictures, self._requests, self._documents, self._incoming):
            directory.mkdir(parents=True, exist_ok=True)
        for leftover in self._incoming.iterdir():  # of a crash; a running write takes no hour
            if leftover.stat().st_mtime < time.time() - 3600:
                leftover.unlink(missing_ok=True)

    async def signing_key(self) -> bytes:
        return await asyncio.to_thread(self._signing_key)

    def _signing_key(self) -> bytes:
        if not self._key.exists():
            part = self._incoming / f"signing-key.{os.getpid()}.{threading.get_ident()}"
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            with suppress(FileExistsError):  # another process was faster: its key is the one
                self._key.hardlink_to(part)
            part.unlink()
        return self._key.read_bytes()

    async def write(self, name: str, data: bytes, request_id: str) -> None:
        await asyncio.to_thread(self._write, name, data, request_id)

    def _write(self, name: str, data: bytes, request_id: str) -> None:
        path = self._path(name)
        try:
            os.utime(path)
        except FileNotFoundError:
            path.parent.mkdir(exist_ok=True)
            self._place(path, data)
        if REQUEST_ID.fullmatch(request_id):
            with (self._requests / request_id).open("a") as notes:
                notes.write(name + "\n")

    def _place(self, path: Path, data: bytes, *, durable: bool = False) -> None:
        """Whole or not at all, for readers and after a crash; ``durable``: on the disk itself before this returns."""
        part = self._incoming / f"{path.name}.{os.getpid()}.{threading.get_ident()}"
        with part.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
        if durable:
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    async def read(self, name: str) -> tuple[int, Chunks] | None:
        path = self._path(name)
        try:
            length = path.stat().st_size
        except FileNotFoundError:
            return None

        async def chunks(start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
            left = (length if stop is None else stop) - start
            file = await asyncio.to_thread(path.open, "rb")
            try:
                file.seek(start)
                while left > 0 and (chunk := await asyncio.to_thread(file.read, min(left, _CHUNK))):
                    left -= len(chunk)
                    yield chunk
            finally:
                file.close()

        return length, chunks

    async def delete(self, names: Iterable[str]) -> None:
        await asyncio.to_thread(_unlink, [self._path(name) for name in names])

    async def remember(self, request_id: str, document: bytes) -> None:
        if REQUEST_ID.fullmatch(request_id):
            await asyncio.to_thread(self._place, self._documents / request_id, document, durable=True)

    async def forget(self, request_id: str) -> None:
        if REQUEST_ID.fullmatch(request_id):
            await asyncio.to_thread(_unlink, [self._documents / request_id])

    async def remembered(self, prefix: str) -> list[str]:
        return await asyncio.to_thread(
            lambda: [name for name in os.listdir(self._documents) if name.startswith(prefix)]
        )

    async def recall(self, request_id: str) -> bytes | None:
        if not REQUEST_ID.fullmatch(request_id):
            return None
        try:
            return await asyncio.to_thread((self._documents / request_id).read_bytes)
        except FileNotFoundError:
            return None

    async def forget_before(self, moment: float) -> None:
        await asyncio.to_thread(self._forget_before, moment)

    def _forget_before(self, moment: float) -> None:
        for path in (*self._requests.iterdir(), *self._documents.iterdir()):
            try:
                if path.stat().st_mtime < moment:
                    path.unlink()
            except FileNotFoundError:
                continue

    async def scan(self) -> list[Stored]:
        return await asyncio.to_thread(self._scan)

    def _scan(self) -> list[Stored]:
        found = []
        for path in self._pictures.glob("*/*"):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue  # another process was faster
            found.append(Stored(path.name, facts.st_size, facts.st_mtime))
        return found

    async def made(self, request_id: str) -> list[Stored]:
        return await asyncio.to_thread(self._made, request_id) if REQUEST_ID.fullmatch(request_id) else []

    def _made(self, request_id: str) -> list[Stored]:
        found = []
        for name in self._noted(self._requests / request_id):
            with suppress(FileNotFoundError):
                facts = self._path(name).stat()
                found.append(Stored(name, facts.st_size, facts.st_mtime))
        return found

    async def purge(self, request_id: str) -> int:
        return await asyncio.to_thread(self._purge, request_id) if REQUEST_ID.fullmatch(request_id) else 0

    def _purge(self, request_id: str) -> int:
        own = set(self._noted(self._requests / request_id))
        for notes in self._requests.iterdir():
            if not own:
                break
            if notes.name != request_id:
                own.difference_update(self._noted(notes))
        doomed = [path for path in map(self._path, own) if path.exists()]
        _unlink([*doomed, self._requests / request_id, self._documents / request_id])
        return len(doomed)

    def _noted(self, path: Path) -> list[str]:
        """The names in a request's notes, each once, in their order."""
        try:
            return list(dict.fromkeys(path.read_text().split()))
        except FileNotFoundError:
            return []

    def _path(self, name: str) -> Path:
        return self._pictures / name[:2] / name


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


_HEADERS: Mapping[str, str] = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "access-control-allow-origin": "*",
}


def response_headers(media: Media) -> dict[str, str]:
    """How a picture is sent: its type, its length, cached until its link dies, never run as a page."""
    return {
        **_HEADERS,
        "content-type": media.media_type,
        "content-length": str(media.length),
        "accept-ranges": "bytes",
        "cache-control": f"public, max-age={media.max_age_s}, immutable",
        "etag": f'"{media.name[:64]}"',
    }


_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def byte_range(header: str, length: int) -> tuple[int, int] | None:
    """The bytes [start, stop) that a Range header asks for; None: all, also where it asks for what we do not offer.

    ValueError if there are no such bytes.
    """
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match[1] == match[2] == "":
        return None  # several ranges, or another unit: a server may answer with everything
    if match[1] == "":
        start, stop = max(0, length - int(match[2])), length
    else:
        start, stop = int(match[1]), min(length, int(match[2]) + 1 if match[2] else length)
    if start >= stop:
        raise ValueError("no such bytes")
    return start, stop
