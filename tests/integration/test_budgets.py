"""A budget outlives a kill -9: what was spent is read from the ledger, and what may have been billed is held."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from router.ledger import Reports
from tests.integration.process import RouterProcess, until
from tests.integration.test_crash import GENERATE, in_background, states

MODEL = {"model": "gpu-fast/flux.2-dev-turbo", "prompt": "a lake"}
CONFIG = """
keys:
  shop: {secret_env: SHOP_KEY, budget: {month: "0.060"}}   # five pictures of 0.012
"""


def test_x20_a_killed_router_has_not_forgotten_what_its_keys_spent(tmp_path: Path) -> None:
    config = tmp_path / "budget.yaml"
    config.write_text(CONFIG)
    router = RouterProcess(tmp_path, key=None, env={"SHOP_KEY": "shop-key"}, more=config)
    try:
        assert router.post(GENERATE, MODEL, key="shop-key").status_code == 200
        clients: list[threading.Thread] = [in_background(router, "sandbox-hang", key="shop-key") for _ in range(2)]
        until(lambda: states(router).get("open") == 2)
        router.kill()
        for client in clients:
            client.join()
        router.start()
        shown = httpx.get(f"{router.base}/metrics").text
        assert 'pixelroute_budget_spent_usd{id="shop",period="month",scope="key"} 0.036' in shown
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: router.post(GENERATE, MODEL, key="shop-key"), range(6)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429, 429]
        assert {answer.json()["error"]["code"] for answer in answers if answer.status_code == 429} == {
            "insufficient_quota"
        }
        with Reports(router.ledger_url) as reports:
            [row] = reports.costs("key")
        assert (row.cost_nanos, row.unsettled_nanos) == (36_000_000, 24_000_000)
        assert router.stop() == 0
    finally:
        if router.process.poll() is None:
            router.kill()
