"""Client keys with rate limits: who is let in, who is told to wait, and what counts."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.api import Exchange
from router.limits import Limiter, RateLimits
from router.mediastore import Directory, MediaStore
from tests.router.api.conftest import Key
from tests.router.api.fake import FakeGateway, picture
from tests.router.api.test_errors import problem
from tests.router.api.test_requests import ended

pytestmark = pytest.mark.anyio

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
OK = {"prompt": "a cat", "model": "flux.2-dev-turbo"}
OTHER = "sk-another"

Make = Callable[..., httpx.AsyncClient]


def limited(make_client: Make, media: MediaStore | None = None, routers: int = 1, **limits: int) -> httpx.AsyncClient:
    limiters = [Limiter("tests", RateLimits(**limits))]
    keys = [Key(), Key(name="other", secret=OTHER)]
    return make_client(limiters=limiters, keys=keys, media=media, routers=lambda: routers)


def told(response: httpx.Response) -> dict[str, str]:
    return {name[12:]: value for name, value in response.headers.items() if name.startswith("x-ratelimit-")}


async def test_x19_the_one_too_many_waits(make_client: Make, gateway: FakeGateway, seen: list[Exchange]) -> None:
    async with limited(make_client, requests_per_minute=2) as client:
        for left in ("1", "0"):
            answer = await client.post(GENERATE, json=OK)
            assert answer.status_code == 200
            assert told(answer)["remaining-requests"] == left
        refused = await client.post(GENERATE, json=OK)
        error = problem(refused)
        assert (refused.status_code, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
        assert error["param"] is None
        assert "2 requests per minute" in error["message"]
        assert "x-should-retry" not in refused.headers
        assert 29_000 < int(refused.headers["retry-after-ms"]) <= 30_000
        assert refused.headers["retry-after"] == "30"
        limit = told(refused)
        assert (limit["limit-requests"], limit["remaining-requests"]) == ("2", "0")
        assert 59.0 < float(limit["reset-requests"].removesuffix("s").replace("1m0", "60")) <= 60.0
        assert len(gateway.requests) == 2
        assert seen[-1].caller is not None
        assert (await client.post(GENERATE, json=OK, headers={"Authorization": f"Bearer {OTHER}"})).status_code == 200


async def test_it_is_told_before_the_body_is_read_and_after_the_key(make_client: Make) -> None:
    async def body() -> Any:
        raise AssertionError("the body was read")
        yield b""

    async with limited(make_client, requests_per_minute=1) as client:
        await client.post(GENERATE, json=OK)
        for content in (body(), b"{"):
            kind = {"Content-Type": "application/json"}
            assert (await client.post(GENERATE, content=content, headers=kind)).status_code == 429
        wrong = await client.post(GENERATE, json=OK, headers={"Authorization": "Bearer wrong"})
        assert (wrong.status_code, told(wrong)) == (401, {})


async def test_looking_is_free(make_client: Make) -> None:
    async with limited(make_client, requests_per_minute=1, images_per_minute=1, in_flight=1) as client:
        for _ in range(3):
            assert (await client.post(GENERATE + "?dryRun=true", json=OK | {"n": 4})).status_code == 200
            assert (await client.get("/v1/models")).status_code == 200
        assert (await client.post(GENERATE, json=OK)).status_code == 200
        assert (await client.post(GENERATE + "?dryRun=true", json=OK)).status_code == 200


async def test_pictures_a_minute(make_client: Make, gateway: FakeGateway) -> None:
    async with limited(make_client, images_per_minute=4) as client:
        answer = await client.post(GENERATE, json=OK | {"n": 3})
        assert (answer.status_code, told(answer)) == (200, {})
        refused = await client.post(GENERATE, json=OK | {"n": 2})
        assert (refused.status_code, problem(refused)["code"]) == (429, "rate_limit_exceeded")
        assert "4 images per minute" in problem(refused)["message"]
        assert refused.headers["retry-after"] == "15"
        form = {"files": {"image": picture()}, "data": OK}
        assert (await client.post(EDIT, **form)).status_code == 200
        assert (await client.post(EDIT, **form)).status_code == 429
        assert [request.n for request in gateway.requests] == [3, 1]


async def test_at_once(make_client: Make, gateway: FakeGateway) -> None:
    go_on, begun = asyncio.Event(), asyncio.Semaphore(0)

    async def wait(*_: Any) -> None:
        begun.release()
        await go_on.wait()

    gateway.behave = wait
    async with limited(make_client, in_flight=2) as client:
        running = [asyncio.create_task(client.post(GENERATE, json=OK)) for _ in range(2)]
        for _ in running:
            await begun.acquire()
        refused = await client.post(GENERATE, json=OK)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "2 requests at once" in problem(refused)["message"]
        go_on.set()
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
        assert (await client.post(GENERATE, json=OK)).status_code == 200


async def test_whatever_ends_gives_its_place_back(make_client: Make, gateway: FakeGateway) -> None:
    async with limited(make_client, in_flight=1, images_per_minute=3) as client:
        for body, status in ((b"{", 400), (b'{"prompt": "a", "model": "nope"}', 404), (b"x", 400)):
            answer = await client.post(GENERATE, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == status
        assert (await client.post(GENERATE, json=OK | {"n": 2})).status_code == 200
        assert (await client.post(GENERATE, json=OK)).headers["retry-after"] == "20"  # of pictures, not of places

        def fail(*_: Any) -> None:
            raise KeyError("a bug")

    gateway.behave = fail
    async with limited(make_client, in_flight=1) as client:
        for _ in range(2):
            assert (await client.post(GENERATE, json=OK)).status_code == 500


async def test_a_job_keeps_its_place_until_it_ends(make_client: Make, gateway: FakeGateway, tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def wait(*_: Any) -> None:
        await go_on.wait()

    gateway.behave = wait
    async with limited(make_client, MediaStore(Directory(tmp_path)), in_flight=1) as client:
        job = await client.post(GENERATE, json=OK | {"background": True})
        assert job.status_code == 202
        assert (await client.post(GENERATE, json=OK)).status_code == 429
        go_on.set()
        await ended(client, job.json()["id"])
        gateway.behave = None
        assert (await client.post(GENERATE, json=OK)).status_code == 200


async def test_what_is_answered_from_memory_makes_no_pictures(make_client: Make, tmp_path: Path) -> None:
    key, kept = {"Idempotency-Key": "order-1"}, OK | {"model": "gpt-image-2"}
    async with limited(make_client, MediaStore(Directory(tmp_path)), images_per_minute=1) as client:
        for _ in range(3):
            assert (await client.post(GENERATE, json=kept, headers=key)).status_code == 200
        assert (await client.post(GENERATE, json=OK, headers={"Idempotency-Key": "order-2"})).status_code == 429


async def test_routers_that_share_let_their_part_through(make_client: Make) -> None:
    async with limited(make_client, routers=2, requests_per_minute=4) as client:
        answers = [await client.post(GENERATE, json=OK) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[-1].headers["retry-after"] == "30"
