"""The media store: links, lifetimes, limits, purging, over a real directory."""

import asyncio
import os
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from router.api import build_app, routes
from router.mediastore import Directory, Media, MediaStore
from tests.router.api.fake import FakeGateway, picture

pytestmark = pytest.mark.anyio

KEY = b"k" * 32
PNG = picture()


class Clock:
    """Unix seconds that stand still. Files take their times from it as well."""

    def __init__(self, root: Path) -> None:
        self.now = 1_795_000_000.0
        self._root = root

    def __call__(self) -> float:
        return self.now

    def stamp(self, age_s: float) -> None:
        """Make everything written so far this old."""
        for path in self._root.rglob("*"):
            os.utime(path, (self.now - age_s, self.now - age_s))


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> MediaStore:
    return MediaStore(Directory(tmp_path), key=KEY, lifetime_s=3600, max_bytes=10_000, now=clock)


async def opened(store: MediaStore, link: str) -> Media | None:
    parts = urlsplit(link)
    return await store.open(parts.path.rpartition("/")[2], parts.query)


async def content(media: Media) -> bytes:
    return b"".join([chunk async for chunk in media.chunks()])


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "pictures").glob("*/*"))


async def test_what_is_put_comes_back(store: MediaStore) -> None:
    link = await store.put(PNG, "png", "req_1")
    assert link.startswith("/v1/media/")
    media = await opened(store, link)
    assert media is not None
    assert (media.media_type, media.length, media.max_age_s) == ("image/png", len(PNG), 3600)
    assert await content(media) == PNG


async def test_the_same_picture_is_kept_once(store: MediaStore, tmp_path: Path) -> None:
    first, second, third = [
        await store.put(data, "png", request)
        for data, request in ((PNG, "req_1"), (PNG, "req_2"), (picture(9, 9), "req_2"))
    ]
    assert first == second != third
    assert len(files(tmp_path)) == 2


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


async def test_sweep_removes_what_is_old(store: MediaStore, clock: Clock, tmp_path: Path) -> None:
    await store.put(PNG, "png", "req_old")
    clock.stamp(age_s=3601)
    kept = await store.put(picture(9, 9), "png", "req_new")
    assert await store.sweep() == 1
    assert files(tmp_path) == [kept[len("/v1/media/") :].partition("?")[0]]
    assert [path.name for path in (tmp_path / "requests").iterdir()] == ["req_new"]


async def test_making_a_picture_again_keeps_it(store: MediaStore, clock: Clock, tmp_path: Path) -> None:
    await store.put(PNG, "png", "req_1")
    clock.stamp(age_s=3601)
    await store.put(PNG, "png", "req_2")
    assert await store.sweep() == 0
    assert len(files(tmp_path)) == 1


async def test_sweep_keeps_within_the_size_limit(store: MediaStore, clock: Clock, tmp_path: Path) -> None:
    pictures = [os.urandom(4000) for _ in range(4)]
    links = []
    for age, data in zip((400, 300, 200, 100), pictures, strict=True):
        links.append(await store.put(data, "png", "req_1"))
        name = links[-1][len("/v1/media/") :].partition("?")[0]
        os.utime(tmp_path / "pictures" / name[:2] / name, (clock.now - age, clock.now - age))
    assert await store.sweep() == 2
    assert [await opened(store, link) is not None for link in links] == [False, False, True, True]


async def test_the_keeper_sweeps_when_much_comes_in(tmp_path: Path) -> None:
    store = MediaStore(Directory(tmp_path), key=KEY, max_bytes=10_000)
    keeper = asyncio.create_task(store.run())
    for _ in range(12):
        await store.put(os.urandom(2000), "png", "req_1")
    async with asyncio.timeout(5):
        while len(files(tmp_path)) > 5:  # noqa: ASYNC110 - what is waited for is the file system
            await asyncio.sleep(0.01)
    keeper.cancel()


async def test_purge_by_request(store: MediaStore, tmp_path: Path) -> None:
    shared, own = picture(5, 5), picture(6, 6)
    link = await store.put(shared, "png", "req_1")
    await store.put(own, "png", "req_1")
    await store.put(shared, "png", "req_2")
    assert await store.purge("req_1") == 1
    assert await opened(store, link) is not None  # req_2 made it too
    assert await store.purge("req_1") == 0
    assert await store.purge("req_2") == 1
    assert files(tmp_path) == []
    assert await store.purge("../../x") == 0


async def test_a_picture_that_is_gone(store: MediaStore) -> None:
    link = await store.put(PNG, "png", "req_1")
    await store.purge("req_1")
    assert await opened(store, link) is None


async def test_many_writers_of_one_picture(store: MediaStore, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    links = await asyncio.gather(*(store.put(data, "png", f"req_{number}") for number in range(20)))
    assert len(set(links)) == 1
    media = await opened(store, links[0])
    assert media is not None
    assert await content(media) == data
    assert list((tmp_path / "incoming").iterdir()) == []


async def test_leftovers_of_a_crash_are_cleared(tmp_path: Path) -> None:
    Directory(tmp_path)
    old, new = tmp_path / "incoming" / "old", tmp_path / "incoming" / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    Directory(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


async def test_documents(store: MediaStore, clock: Clock) -> None:
    await store.remember("req_1", b"one")
    await store.remember("req_1", b"two")
    await store.remember("req_2", b"other")
    await store.remember("../x", b"escape")
    assert await store.recall("req_1") == b"two"
    assert await store.recall("req_3") is None
    assert await store.recall("../x") is None
    await store.purge("req_1")
    assert await store.recall("req_1") is None
    clock.stamp(age_s=3601)
    await store.remember("req_4", b"new")
    await store.sweep()
    assert await store.recall("req_2") is None
    assert await store.recall("req_4") == b"new"


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
