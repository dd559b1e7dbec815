"""The media store: links, lifetimes, limits, purging, over a real directory."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from router.api import build_app, routes
from router.mediastore import Directory, Media, MediaStore
from router.objectstore import Bucket
from tests.router.api.fake import FakeGateway, picture
from tests.router.s3server import ACCESS, BUCKET, REGION, SECRET, S3Server
from tests.router.serving import served

pytestmark = pytest.mark.anyio

KEY = b"k" * 32
PNG = picture()


class Clock:
    """Unix seconds that stand still."""

    now = 1_795_000_000.0

    def __call__(self) -> float:
        return self.now


class Local:
    """A directory, and what a test must see of it."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.root, self._clock = root, clock
        self.blobs = Directory(root)

    def pictures(self) -> list[str]:
        return sorted(path.name for path in (self.root / "pictures").glob("*/*"))

    def stamp(self, age_s: float, name: str = "") -> None:
        """Make everything written so far, or one picture, this old."""
        for path in self.root.rglob("*"):
            if name in path.name:
                os.utime(path, (self._clock.now - age_s, self._clock.now - age_s))


class Remote:
    """The same over the S3 protocol."""

    def __init__(self, server: S3Server, url: str, clock: Clock) -> None:
        self.server, self._clock = server, clock
        self.blobs = Bucket(
            BUCKET, endpoint=url, region=REGION, prefix="/pixelroute/", access_key_id=ACCESS, secret_access_key=SECRET
        )

    def pictures(self) -> list[str]:
        return sorted(key.rpartition("/")[2] for key in self.server.objects if "/pictures/" in key)

    def stamp(self, age_s: float, name: str = "") -> None:
        for key, stored in self.server.objects.items():
            if name in key:
                stored.modified = self._clock.now - age_s


Backend = Local | Remote


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["directory", "s3"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Backend]:
    if request.param == "directory":
        yield Local(tmp_path, clock)
        return
    server = S3Server()
    async with served(server.app()) as url:
        yield Remote(server, url, clock)
        assert all(key.startswith("pixelroute/") for key in server.objects)


@pytest.fixture
def store(backend: Backend, clock: Clock) -> MediaStore:
    return MediaStore(backend.blobs, key=KEY, lifetime_s=3600, max_bytes=10_000, now=clock)


async def opened(store: MediaStore, link: str) -> Media | None:
    parts = urlsplit(link)
    return await store.open(parts.path.rpartition("/")[2], parts.query)


async def content(media: Media) -> bytes:
    return b"".join([chunk async for chunk in media.chunks()])


async def test_what_is_put_comes_back(store: MediaStore) -> None:
    link = await store.put(PNG, "png", "req_1")
    assert link.startswith("/v1/media/")
    media = await opened(store, link)
    assert media is not None
    assert (media.media_type, media.length, media.max_age_s) == ("image/png", len(PNG), 3600)
    assert await content(media) == PNG


async def test_the_same_picture_is_kept_once(store: MediaStore, backend: Backend) -> None:
    first, second, third = [
        await store.put(data, "png", request)
        for data, request in ((PNG, "req_1"), (PNG, "req_2"), (picture(9, 9), "req_2"))
    ]
    assert first == second != third
    assert len(backend.pictures()) == 2


async def test_links_cannot_be_forged(store: MediaStore, tmp_path: Path) -> None:
    link = urlsplit(await store.put(PNG, "png", "req_1"))
    name, query = link.path.rpartition("/")[2], dict(parse_qsl(link.query))
    assert await MediaStore(Directory(tmp_path), key=b"o" * 32).open(name, link.query) is None
    later = str(int(query["expires"]) + 1)
    for bad_name, bad_query in [
        (name, ""),
        (name, f"expires={later}&signature={query['signature']}"),
        (name, f"expires={query['expires']}&signature="),
        (name, f"expires={query['expires']}&signature={query['signature'][:-1]}"),
        (name, f"expires={query['expires']}&signature=é"),
        (name, f"expires=x&signature={query['signature']}"),
        (name, "expires=" + "9" * 5000 + f"&signature={query['signature']}"),
        (name.replace(".png", ".gif"), link.query),
        ("../../etc/passwd", link.query),
        ("..%2f" + name, link.query),
        ("", link.query),
    ]:
        assert await store.open(bad_name, bad_query) is None


async def test_links_die_on_time(store: MediaStore, clock: Clock) -> None:
    link = await store.put(PNG, "png", "req_1")
    clock.now += 3599
    media = await opened(store, link)
    assert media is not None
    assert media.max_age_s == 1
    clock.now += 1
    assert await opened(store, link) is None
    renewed = await store.put(PNG, "png", "req_2")  # the same picture again: the old link stays dead
    assert await opened(store, link) is None
    assert await opened(store, renewed) is not None


async def test_sweep_removes_what_is_old(store: MediaStore, backend: Backend) -> None:
    await store.put(PNG, "png", "req_old")
    backend.stamp(age_s=3601)
    kept = await store.put(picture(9, 9), "png", "req_new")
    assert await store.sweep() == 1
    assert backend.pictures() == [kept[len("/v1/media/") :].partition("?")[0]]
    if isinstance(backend, Local):
        assert [path.name for path in (backend.root / "requests").iterdir()] == ["req_new"]
    else:
        assert not [key for key in backend.server.objects if "req_old" in key]


async def test_making_a_picture_again_keeps_it(store: MediaStore, backend: Backend) -> None:
    await store.put(PNG, "png", "req_1")
    backend.stamp(age_s=3601)
    await store.put(PNG, "png", "req_2")
    assert await store.sweep() == 0
    assert len(backend.pictures()) == 1


async def test_sweep_keeps_within_the_size_limit(store: MediaStore, backend: Backend) -> None:
    pictures = [os.urandom(4000) for _ in range(4)]
    links = []
    for age, data in zip((400, 300, 200, 100), pictures, strict=True):
        links.append(await store.put(data, "png", "req_1"))
        backend.stamp(age, links[-1][len("/v1/media/") :].partition("?")[0])
    assert await store.sweep() == 2
    assert [await opened(store, link) is not None for link in links] == [False, False, True, True]


async def test_the_keeper_sweeps_when_much_comes_in(backend: Backend) -> None:
    store = MediaStore(backend.blobs, key=KEY, max_bytes=10_000)
    keeper = asyncio.create_task(store.run())
    for _ in range(12):
        await store.put(os.urandom(2000), "png", "req_1")
    async with asyncio.timeout(5):
        while len(backend.pictures()) > 5:  # noqa: ASYNC110 - what is waited for is the file system
            await asyncio.sleep(0.01)
    keeper.cancel()


async def test_purge_by_request(store: MediaStore, backend: Backend) -> None:
    shared, own = picture(5, 5), picture(6, 6)
    link = await store.put(shared, "png", "req_1")
    await store.put(own, "png", "req_1")
    await store.put(shared, "png", "req_2")
    assert await store.purge("req_1") == 1
    assert await opened(store, link) is not None  # req_2 made it too
    assert await store.purge("req_1") == 0
    assert await store.purge("req_2") == 1
    assert backend.pictures() == []
    assert await store.purge("../../x") == 0


async def test_what_a_request_made(store: MediaStore, backend: Backend, clock: Clock) -> None:
    first, second = picture(7, 5), picture(6, 4, "webp")
    await store.put(first, "png", "req_1")
    await store.put(PNG, "png", "req_2")
    backend.stamp(600)
    await store.put(second, "webp", "req_1")
    await store.put(first, "png", "req_1")  # again, as after a crash
    found = await store.pictures("req_1")
    assert {(str(image.size), image.format) for image in found} == {("7x5", "png"), ("6x4", "webp")}
    [old] = await store.pictures("req_2")
    media = await opened(store, old.url or "")
    assert media is not None
    assert (await content(media), media.max_age_s) == (PNG, 3000)  # no longer than it is kept
    assert [await store.pictures(name) for name in ("req_3", "../../x")] == [(), ()]
    clock.now += 3000
    assert await store.pictures("req_2") == ()


async def test_a_picture_that_is_gone(store: MediaStore) -> None:
    link = await store.put(PNG, "png", "req_1")
    await store.purge("req_1")
    assert await opened(store, link) is None


async def test_many_writers_of_one_picture(store: MediaStore, backend: Backend) -> None:
    data = os.urandom(300_000)
    links = await asyncio.gather(*(store.put(data, "png", f"req_{number}") for number in range(20)))
    assert len(set(links)) == 1
    media = await opened(store, links[0])
    assert media is not None
    assert await content(media) == data
    if isinstance(backend, Local):
        assert list((backend.root / "incoming").iterdir()) == []


async def test_leftovers_of_a_crash_are_cleared(tmp_path: Path) -> None:
    Directory(tmp_path)
    old, new = tmp_path / "incoming" / "old", tmp_path / "incoming" / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    Directory(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


async def test_documents(store: MediaStore, backend: Backend) -> None:
    await store.remember("req_1", b"one")
    await store.remember("req_1", b"two")
    await store.remember("req_2", b"other")
    await store.remember("../x", b"escape")
    assert await store.recall("req_1") == b"two"
    assert await store.recall("req_3") is None
    assert await store.recall("../x") is None
    await store.purge("req_1")
    assert await store.recall("req_1") is None
    await store.remember("job_a_1", b"")
    await store.remember("job_a_2", b"")
    await store.remember("job_b_1", b"")
    assert await store.remembered("job_a_") == ["job_a_1", "job_a_2"]
    await store.forget("job_a_1")
    await store.forget("job_a_1")
    assert await store.remembered("job_a_") == ["job_a_2"]
    backend.stamp(age_s=3601)
    await store.remember("req_4", b"new")
    await store.sweep()
    assert await store.recall("req_2") is None
    assert await store.recall("req_4") == b"new"


async def test_storage_that_fails_is_an_os_error(clock: Clock) -> None:
    server = S3Server()
    async with served(server.app()) as url:
        bucket = Bucket(BUCKET, endpoint=url, region=REGION, access_key_id=ACCESS, secret_access_key="wrong")
        with pytest.raises(OSError, match="object storage failed"):
            await bucket.write("a" * 64 + ".png", PNG, "req_1")
        with pytest.raises(OSError, match="object storage failed"):
            await bucket.read("a" * 64 + ".png")
        assert server.objects == {}


def test_the_server_checks_signatures_as_aws_does() -> None:
    """The example of "Signature Calculations for the Authorization Header" in the S3 API reference, read 2026-11-28."""
    server = S3Server(
        access="AKIAIOSFODNN7EXAMPLE", secret="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", region="us-east-1"
    )
    headers = {
        "host": "examplebucket.s3.amazonaws.com",
        "range": "bytes=0-9",
        "x-amz-content-sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "x-amz-date": "20130524T000000Z",
        "authorization": "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    }
    assert server.check_signature("GET", "/test.txt", "", headers, b"") is None
    assert server.check_signature("PUT", "/test.txt", "", headers, b"") == "SignatureDoesNotMatch"


async def test_the_signing_key_is_made_once(backend: Backend) -> None:
    first, *others = await asyncio.gather(*(backend.blobs.signing_key() for _ in range(5)))
    assert len(first) == 32
    assert {first, *others, await backend.blobs.signing_key()} == {first}
    stores = [MediaStore(backend.blobs), MediaStore(backend.blobs)]  # two replicas
    for store in stores:
        await store.start()
    assert await opened(stores[1], await stores[0].put(PNG, "png", "req_1")) is not None
    if isinstance(backend, Local):
        assert (backend.root / ".signing-key").stat().st_mode & 0o777 == 0o600
        assert list((backend.root / "incoming").iterdir()) == []


async def test_objects_carry_their_type(clock: Clock) -> None:
    server = S3Server()
    async with served(server.app()) as url:
        remote = Remote(server, url, clock)
        await remote.blobs.write("a" * 64 + ".webp", PNG, "req_1")
    assert next(stored.content_type for key, stored in server.objects.items() if "pictures" in key) == "image/webp"


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        MediaStore(Directory(tmp_path), key=b"short")


# --- over HTTP --------------------------------------------------------------------------------------------------


async def test_r4_r15_served(store: MediaStore, clock: Clock) -> None:
    link = await store.put(PNG, "png", "req_1")
    app = build_app(routes(FakeGateway(), media=store))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router.test") as client:
        response = await client.get(link)
        assert (response.status_code, response.content) == (200, PNG)
        headers = response.headers
        assert (headers["content-type"], headers["content-length"]) == ("image/png", str(len(PNG)))
        assert headers["cache-control"] == "public, max-age=3600, immutable"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-request-id"]
        assert (await client.get(link, headers={"Authorization": "Bearer whatever"})).status_code == 200
        head = await client.head(link)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(PNG)))
        unchanged = await client.get(link, headers={"If-None-Match": headers["etag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        for bad in (link[:-1], link.partition("?")[0], "/v1/media/x", "/v1/media/%2e%2e%2fpasswd"):
            response = await client.get(bad)
            assert response.status_code == 404
            assert response.json()["error"]["type"] == "invalid_request_error"
        clock.now += 3600
        assert (await client.get(link)).json()["error"]["code"] == "media_not_found"


async def test_parts_of_a_picture(store: MediaStore) -> None:
    link = await store.put(PNG, "png", "req_1")
    app = build_app(routes(FakeGateway(), media=store))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router.test") as client:

        async def get(asked: str, **headers: str) -> httpx.Response:
            return await client.get(link, headers={"Range": asked} | headers)

        whole = len(PNG)
        for asked, start, stop in [("bytes=0-9", 0, 10), ("bytes=10-", 10, whole), ("bytes=-5", whole - 5, whole)]:
            part = await get(asked)
            assert (part.status_code, part.content) == (206, PNG[start:stop])
            assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{whole}"
            assert part.headers["content-length"] == str(stop - start)
        assert (await get(f"bytes=3-{10**9}")).content == PNG[3:]
        for everything in ("bytes=0-1,5-6", "lines=1-2", "bytes=-"):
            answer = await get(everything)
            assert (answer.status_code, answer.content) == (200, PNG)
        beyond = await get(f"bytes={whole}-")
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{whole}")
        etag = (await client.head(link)).headers["etag"]
        assert (await get("bytes=0-1", **{"If-Range": etag})).status_code == 206
        assert (await get("bytes=0-1", **{"If-Range": '"other"'})).status_code == 200


async def test_a_sweep_that_fails_is_tried_again(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    store, swept = MediaStore(backend.blobs, key=KEY), asyncio.Event()

    async def fail() -> int:
        monkeypatch.setattr(store, "sweep", succeed)
        raise OSError("object storage failed")

    async def succeed() -> int:
        swept.set()
        return 0

    monkeypatch.setattr(store, "sweep", fail)
    keeper = asyncio.create_task(store.run(every_s=0))
    async with asyncio.timeout(5):
        await swept.wait()
    keeper.cancel()
