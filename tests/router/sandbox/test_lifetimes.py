"""What expires: links, predictions, orders. The sandbox's clock is moved, nobody waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from router.sandbox import KEYS, build
from router.sandbox.world import Files, Kept, StoredFile, World

pytestmark = pytest.mark.anyio


class Box:
    def __init__(self) -> None:
        app = build(time_scale=0)
        self.world: World = app.state.world
        self.emulators = app.state.emulators
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sandbox.test")

    def later(self, seconds: float) -> None:
        self.world._tick -= seconds


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    box = Box()
    async with box.http:
        yield box
    await box.world.close()


async def test_bfl_results_live_ten_minutes(box: Box) -> None:
    headers = {"x-key": KEYS["bfl"]}
    body = {"prompt": "a", "width": 64, "height": 64}
    ticket = (await box.http.post("/api.bfl.ai/v1/flux-dev", headers=headers, json=body)).json()
    task: dict[str, Any] = {"status": "Pending"}
    while task["status"] == "Pending":
        await anyio.sleep(0.001)
        task = (await box.http.get(ticket["polling_url"], headers=headers)).json()
    assert task["result"]["sample"].startswith("http://sandbox.test/delivery-eu1.bfl.ai/")
    for passed, status in ((0, 200), (590, 200), (20, 403)):
        box.later(passed)
        assert (await box.http.get(task["result"]["sample"])).status_code == status


async def test_replicate_forgets_after_an_hour(box: Box) -> None:
    url = "/api.replicate.com/v1/models/black-forest-labs/flux-schnell/predictions"
    headers = {"Authorization": f"Bearer {KEYS['replicate']}", "Prefer": "wait"}
    body = {"input": {"prompt": "a", "megapixels": "0.25"}}
    made = (await box.http.post(url, headers=headers, json=body)).json()
    assert (await box.http.get(made["output"][0])).status_code == 200
    box.later(3601)
    assert (await box.http.get(made["output"][0])).status_code == 404
    later = (await box.http.get(made["urls"]["get"], headers=headers)).json()
    assert (later["status"], later["data_removed"], later["output"]) == ("succeeded", True, None)


async def test_links_follow_the_host_the_caller_used(box: Box) -> None:
    headers = {"Authorization": f"Key {KEYS['fal']}", "Host": "emulators.example:81"}
    body = {"prompt": "a", "image_size": "square"}
    reply = await box.http.post("/fal.run/fal-ai/flux-2/turbo", headers=headers, json=body)
    assert reply.json()["images"][0]["url"].startswith("http://emulators.example:81/fal.media/files/")


async def test_control_names_hosts_and_keys(box: Box) -> None:
    body = (await box.http.get("/_control/")).json()
    assert body["time_scale"] == 0
    assert {name: provider["key"] for name, provider in body["providers"].items()} == dict(KEYS)


async def test_a_job_does_not_keep_the_body_it_came_with(box: Box) -> None:
    headers = {"Authorization": f"Key {KEYS['fal']}"}
    await box.http.post("/queue.fal.run/fal-ai/flux-2/turbo", headers=headers, json={"prompt": "a" * 10_000})
    (job,) = box.emulators["fal"]._jobs.values()
    assert not hasattr(job.call.request, "_body")
    assert "a" * 1000 not in str(box.world.calls.summary("fal"))


def test_memory_is_bounded() -> None:
    kept: Kept[int] = Kept(3)
    for number in range(10):
        kept[str(number)] = number
    assert list(kept) == ["7", "8", "9"]
    files = Files(limit=100)
    for number in range(10):
        files.put(str(number), StoredFile(bytes(30), "image/png", "fal", None))
    assert [files.get(str(number)) is not None for number in range(10)] == [False] * 7 + [True] * 3
