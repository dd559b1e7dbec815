"""Pictures in S3-compatible object storage, for installations with several replicas or no disk of their own.

Objects under the prefix: ``pictures/ab/abc....png``; ``requests/{id}/{picture}`` and ``makers/{picture}/{id}``, both
empty, say who made what, so that nothing is ever read, changed and written back; ``documents/{id}``; ``signing-key``.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from router.media import MEDIA_TYPES
from router.mediastore import REQUEST_ID, Chunks, Stored

_CHUNK = 256 * 1024


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Storage that fails is an OSError to the rest of the program, as a full disk is."""
    try:
        yield
    except BaseError as error:
        raise OSError(f"object storage failed: {type(error).__name__}") from error


class Bucket:
    """Blobs in one bucket. Credentials left out come from the environment or the machine's role."""

    def __init__(
        self,
        bucket: str,
        *,
        endpoint: str | None = None,
        region: str = "us-east-1",
        prefix: str = "",
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> None:
        config: dict[str, str] = {"aws_region": region}
        if endpoint is not None:
            config["aws_endpoint"] = endpoint
        if access_key_id is not None and secret_access_key is not None:
            config |= {"aws_access_key_id": access_key_id, "aws_secret_access_key": secret_access_key}
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._store = S3Store(
            bucket,
            config=config,  # type: ignore[arg-type]  # its TypedDict knows these keys only in lower case literals
            client_options={"allow_http": endpoint is not None and endpoint.startswith("http://"), "timeout": "30s"},
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        )

    async def signing_key(self) -> bytes:
        path = f"{self._prefix}signing-key"
        with _as_os_error():
            # Whoever comes first makes it, and all replicas use that one.
            with suppress(AlreadyExistsError):
                await self._store.put_async(path, secrets.token_bytes(32), mode="create")
            return bytes(await (await self._store.get_async(path)).bytes_async())

    async def write(self, name: str, data: bytes, request_id: str) -> None:
        kind = MEDIA_TYPES.get(name.rpartition(".")[2], "application/octet-stream")
        with _as_os_error():
            # Written even if it is there: that is what refreshes its age.
            await self._store.put_async(self._picture(name), data, attributes={"Content-Type": kind})
            if REQUEST_ID.fullmatch(request_id):
                await asyncio.gather(
                    self._store.put_async(f"{self._prefix}requests/{request_id}/{name}", b""),
                    self._store.put_async(f"{self._prefix}makers/{name}/{request_id}", b""),
                )

    async def read(self, name: str) -> tuple[int, Chunks] | None:
        path = self._picture(name)
        with _as_os_error():
            try:
                found = await self._store.get_async(path)
            except FileNotFoundError:
                return None
        length = found.meta["size"]

        async def chunks(start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
            with _as_os_error():
                wanted = (start, length if stop is None else stop)
                part = found if wanted == (0, length) else await self._store.get_async(path, options={"range": wanted})
                async for chunk in part.stream(min_chunk_size=_CHUNK):
                    yield bytes(chunk)

        return length, chunks

    async def delete(self, names: Iterable[str]) -> None:
        names = list(names)
        doomed = [self._picture(name) for name in names]
        for name in names:
            doomed += [path for path, _, _ in await self._list(f"makers/{name}/")]
        await self._remove(doomed)

    async def remember(self, request_id: str, document: bytes) -> None:
        if REQUEST_ID.fullmatch(request_id):
            with _as_os_error():
                await self._store.put_async(f"{self._prefix}documents/{request_id}", document)

    async def recall(self, request_id: str) -> bytes | None:
        if not REQUEST_ID.fullmatch(request_id):
            return None
        with _as_os_error():
            try:
                found = await self._store.get_async(f"{self._prefix}documents/{request_id}")
                return bytes(await found.bytes_async())
            except FileNotFoundError:
                return None

    async def forget(self, request_id: str) -> None:
        if REQUEST_ID.fullmatch(request_id):
            await self._remove([f"{self._prefix}documents/{request_id}"])

    async def remembered(self, prefix: str) -> list[str]:
        # Storage lists by folder: what lies in this one is told apart here.
        names = [path.rpartition("/")[2] for path, _, _ in await self._list("documents/")]
        return [name for name in names if name.startswith(prefix)]

    async def scan(self) -> list[Stored]:
        found = await self._list("pictures/")
        return [Stored(path.rpartition("/")[2], length, touched) for path, length, touched in found]

    async def made(self, request_id: str) -> list[Stored]:
        if not REQUEST_ID.fullmatch(request_id):
            return []
        noted = sorted(await self._list(f"requests/{request_id}/"), key=lambda note: note[2])
        found = []
        for name in [path.rpartition("/")[2] for path, _, _ in noted]:
            with _as_os_error(), suppress(FileNotFoundError):
                facts = await self._store.head_async(self._picture(name))
                found.append(Stored(name, facts["size"], facts["last_modified"].timestamp()))
        return found

    async def purge(self, request_id: str) -> int:
        if not REQUEST_ID.fullmatch(request_id):
            return 0
        notes = [path for path, _, _ in await self._list(f"requests/{request_id}/")]
        names = [path.rpartition("/")[2] for path in notes]
        own = []
        for name in names:
            makers = {path.rpartition("/")[2] for path, _, _ in await self._list(f"makers/{name}/")}
            if makers == {request_id}:
                own.append(self._picture(name))
        notes += [f"{self._prefix}makers/{name}/{request_id}" for name in names]
        await self._remove([*own, *notes, f"{self._prefix}documents/{request_id}"])
        return len(own)

    async def forget_before(self, moment: float) -> None:
        listed = [*await self._list("requests/"), *await self._list("makers/"), *await self._list("documents/")]
        await self._remove([path for path, _, touched in listed if touched < moment])

    def _picture(self, name: str) -> str:
        return f"{self._prefix}pictures/{name[:2]}/{name}"

    async def _list(self, below: str) -> list[tuple[str, int, float]]:
        """Path, length and Unix seconds of every object below a path of ours."""
        found = []
        with _as_os_error():
            async for page in self._store.list(self._prefix + below):
                found += [(meta["path"], meta["size"], meta["last_modified"].timestamp()) for meta in page]
        return found

    async def _remove(self, paths: list[str]) -> None:
        if paths:
            with _as_os_error():
                await self._store.delete_async(paths)
