"""Two routers that share what they learn through Redis, and do without it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.process import KEY, RouterProcess
from tests.integration.test_commands import pixelroute
from tests.router.redisserver import RedisServer

ROOT = Path(__file__).parents[2]
TARGET = "gpu-fast/flux.2-dev-turbo"
PINNED = {"model": TARGET, "prompt": "a lake"}
ADMIN = "the-admin-key-of-this-test"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def routers(
    server: RedisServer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RouterProcess]]:
    shared = tmp_path / "shared.yaml"
    shared.write_text("routing: {shared: {every_s: 0.5}}\n")
    env = {
        "PIXELROUTE_ADMIN_KEY": ADMIN,
        "PIXELROUTE_REDIS": server.url,
        "PIXELROUTE_CONFIG": f"{ROOT / 'providers.yaml'}:{shared}",
    }
    started = [RouterProcess(tmp_path_factory.mktemp(name), env=env, speed=0.02) for name in ("one", "two")]
    yield started
    for router in started:
        assert router.stop() == 0


def table(router: RouterProcess) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {KEY}"}
    return dict(httpx.get(f"{router.base}/v1/routing", headers=headers).raise_for_status().json())


def facts(router: RouterProcess) -> dict[str, Any]:
    return dict(table(router)["targets"].get(TARGET, {}).get("generate", {}))


def until(true: Any, within_s: float = 15.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)


def metric(router: RouterProcess, series: str) -> float:
    lines = httpx.get(f"{router.base}/metrics").text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"pixelroute_{series} "))


def test_routers_learn_from_each_other_and_do_without_the_server(server: RedisServer, routers: list[RouterProcess]):
    one, two = routers
    for _ in range(3):
        assert one.post("/v1/images/generations", PINNED).status_code == 200
    until(lambda: facts(two).get("samples", 0) > 2.5)
    assert metric(two, 'sharing_state{state="up"}') == 1
    assert metric(two, "sharing_replicas") == 1
    scope = table(two)["scope"]
    assert scope.pop("hour_until_s") < 10.0
    assert scope == {
        "sharing": "up", "other_routers": 1, "reckoned": "all routers", "hour": "all routers", "hour_from_s": 3600.0,
    }  # fmt: skip
    assert facts(two)["hour"]["results"] == {"success": 3}
    # That a provider refuses the key of one router, the other need not find out.
    one.fault("gpu-fast", "unauthenticated", count=1)
    assert one.post("/v1/images/generations", PINNED).status_code == 502
    until(lambda: facts(two).get("reason") == "blocked")
    server.kill()
    until(lambda: metric(one, 'sharing_state{state="down"}') == 1)
    assert one.post("/v1/images/generations", {"model": "flux.2-dev-turbo", "prompt": "a lake"}).status_code == 200
    assert httpx.get(f"{one.base}/readyz").status_code == 200
    server.start()
    until(lambda: metric(one, 'sharing_state{state="up"}') == 1 and metric(two, 'sharing_state{state="up"}') == 1)


def test_one_command_drains_a_target_at_every_router(server: RedisServer, routers: list[RouterProcess]):
    one, two = routers
    env = {"PIXELROUTE_ADMIN_KEY": ADMIN}
    until(lambda: metric(one, "sharing_replicas") == metric(two, "sharing_replicas") == 1)
    assert two.post("/v1/images/generations", PINNED).status_code == 200
    said = pixelroute("drain", TARGET, "--url", one.base, env=env)
    assert said.stdout.strip() == f"{TARGET}: drained at this router, and all routers that share with it"
    until(lambda: two.post("/v1/images/generations", PINNED).status_code == 503, within_s=3.0)
    server.kill()  # what it knew is lost, the routers' files are not
    two.kill()
    two.start()
    assert two.post("/v1/images/generations", PINNED).status_code == 503
    said = pixelroute("undrain", TARGET, "--url", two.base, env=env)
    assert "told as soon as the shared server answers" in said.stdout
    assert one.post("/v1/images/generations", PINNED).status_code == 503
    server.start()
    until(lambda: one.post("/v1/images/generations", PINNED).status_code == 200)
