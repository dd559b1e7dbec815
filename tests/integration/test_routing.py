"""Routing as operators see it: the live table, and taking a target out by hand."""

from __future__ import annotations

import httpx
import pytest

from tests.integration.process import KEY, RouterProcess
from tests.integration.test_commands import pixelroute

ADMIN = "the-admin-key-of-this-test"
TARGET = "gpu-fast/flux.2-dev-turbo"


@pytest.fixture
def steered(tmp_path):
    process = RouterProcess(tmp_path, env={"PIXELROUTE_ADMIN_KEY": ADMIN})
    yield process
    assert process.stop() == 0


def test_a_drained_target_gets_nothing_until_it_is_undrained(steered: RouterProcess):
    env = {"PIXELROUTE_ADMIN_KEY": ADMIN}
    pinned = {"model": TARGET, "prompt": "a lake"}
    assert steered.post("/v1/images/generations", pinned).status_code == 200
    assert pixelroute("drain", TARGET, "--url", steered.base, env=env).returncode == 0
    refused = steered.post("/v1/images/generations", pinned)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "all_providers_failed"
    elsewhere = steered.post("/v1/images/generations", pinned | {"model": "flux.2-dev-turbo"})
    assert elsewhere.json()["metadata"]["provider"] != "gpu-fast"
    assert pixelroute("undrain", TARGET, "--url", steered.base, env=env).returncode == 0
    assert steered.post("/v1/images/generations", pinned).status_code == 200


def test_what_is_drained_stays_so_over_a_crash(steered: RouterProcess):
    env = {"PIXELROUTE_ADMIN_KEY": ADMIN}
    pinned = {"model": TARGET, "prompt": "a lake"}
    said = pixelroute("drain", TARGET, "--url", steered.base, env=env)
    assert said.stdout.strip() == f"{TARGET}: drained at this router"
    steered.kill()
    steered.start()
    assert steered.post("/v1/images/generations", pinned).status_code == 503
    answer = steered.post(f"/v1/routing/{TARGET}/undrain", headers={"authorization": f"Bearer {ADMIN}"}).json()
    assert (answer["drained"], answer["reach"]) == (False, {"kept": True, "told": None})
    steered.kill()
    steered.start()
    assert steered.post("/v1/images/generations", pinned).status_code == 200


def test_only_the_admin_key_steers(steered: RouterProcess):
    answer = pixelroute("drain", TARGET, "--url", steered.base, env={"PIXELROUTE_ADMIN_KEY": KEY})
    assert answer.returncode == 1
    assert "admin key" in answer.stderr
    answer = pixelroute("drain", "gpu-fast/nothing", "--url", steered.base, env={"PIXELROUTE_ADMIN_KEY": ADMIN})
    assert answer.returncode == 1
    assert "no target" in answer.stderr
    assert ADMIN not in steered.log_path.read_text()


def test_without_an_admin_key_nobody_steers(router: RouterProcess):
    answer = router.post(f"/v1/routing/{TARGET}/drain")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_key_not_set")


def test_the_live_table_tells_what_the_router_believes(router: RouterProcess):
    router.post("/v1/images/generations", {"model": TARGET, "prompt": "a lake"})
    assert httpx.get(f"{router.base}/v1/routing").status_code == 401
    headers = {"authorization": f"Bearer {KEY}"}
    table = httpx.get(f"{router.base}/v1/routing", headers=headers).raise_for_status().json()
    assert table["scope"] == {
        "sharing": "off", "other_routers": 0, "reckoned": "this router",
        "hour": "this router", "hour_from_s": None, "hour_until_s": None,
    }  # fmt: skip
    facts = table["targets"][TARGET]["generate"]
    assert 0 < facts["p50_s"] <= facts["p95_s"]
    assert facts["samples"] > 0
    assert facts["success_low"] <= facts["success_high"]


def test_the_console_shows_it_to_people(router: RouterProcess):
    router.post("/v1/images/generations", {"model": TARGET, "prompt": "<script>alert(1)</script>"})
    assert httpx.get(f"{router.base}/console").status_code == 401
    page = httpx.get(f"{router.base}/console", auth=("anybody", KEY))
    assert page.status_code == 200
    assert TARGET in page.text
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    docs = httpx.get(f"{router.base}/docs")
    assert docs.status_code == 200
    assert f'base_url="{router.base}/v1"' in docs.text.replace("&#34;", '"')


def test_what_was_learnt_survives_a_crash(steered: RouterProcess):
    headers = {"authorization": f"Bearer {KEY}"}

    def facts():
        table = httpx.get(f"{steered.base}/v1/routing", headers=headers).raise_for_status().json()
        return table["targets"][TARGET]["generate"]

    for _ in range(4):
        assert steered.post("/v1/images/generations", {"model": TARGET, "prompt": "a lake"}).status_code == 200
    before = facts()
    steered.kill()
    steered.start()
    after = facts()
    assert 3.0 < after["samples"] <= before["samples"] + 0.01
    assert after["basis"] == "measured"  # its pace is that of these samples, and goes on ageing while a router starts
    assert after["hour"]["p50_s"] == before["hour"]["p50_s"]
    assert after["hour"]["classes"].keys() == before["hour"]["classes"].keys()
