"""Every way to fail x every adapter, through the whole gateway: HTTP in, a scripted provider, the ledger behind."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.api import build_app, routes
from router.app import offers_for
from router.clock import Clock
from router.config import Settings, load
from router.delivery import Delivery
from router.gateway import Gateway
from router.ledger import Ledger, Reports
from router.pool import PoolTransport
from router.providers import ADAPTERS
from router.routing import Selector
from router.transport import Transport
from tests.router.loopback import closed_port, host
from tests.router.test_gateway import Shelf, Watch
from tests.router.upstreams import BILLED, CASES, CELLS, PROVIDERS, SPARE, Upstream, table

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
SILENCE_S = 0.15  # how long an attempt may take where the provider says nothing


@functools.cache
def shipped() -> Settings:
    """The installation as it is delivered, with its billing facts."""
    return load([ROOT / "providers.yaml"], {}, keyless=True)


def settings_at(port: int, first: str, first_port: int) -> Settings:
    """The same, every provider on this host, and the first one where it is told to be."""
    providers = {}
    for name, provider in shipped().providers.items():
        base = f"http://127.0.0.1:{first_port if name == first else port}/{name}"
        urls = dict.fromkeys(ADAPTERS[provider.adapter].urls, base)
        providers[name] = replace(provider, urls=urls, key="the-key-of-this-test", result_hosts=())
    return replace(shipped(), providers=providers)


@dataclass
class Desk:
    """A client of the gateway, and what it cannot see."""

    client: httpx.AsyncClient
    upstream: Upstream
    url: str
    pauses: list[float]

    async def ask(self, *others: str) -> httpx.Response:
        body = {"model": PROVIDERS[self.upstream.name], "models": list(others), "prompt": "a lake"}
        return await self.client.post("/v1/images/generations", json=body | {"response_format": "b64_json"})

    def rows(self) -> list[Any]:
        with Reports(self.url) as reports:
            [request] = reports.recent(10)
        return sorted(request.attempts, key=lambda attempt: attempt.opening.attempt_no)


@asynccontextmanager
async def desk(case: str, name: str, directory: Path) -> AsyncIterator[Desk]:
    upstream, pauses = Upstream(case, name), []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async with host(upstream.answer) as there:
        settings = settings_at(there.port, name, closed_port() if case == "cannot be reached" else there.port)
        if case == "silence":
            hurried = replace(settings.providers[name], timeout_s=SILENCE_S)
            settings = replace(settings, providers={**settings.providers, name: hurried})
        url = f"sqlite:///{directory}/ledger.db"
        ledger, transport = Ledger(directory / "ledger.db", reserve_bytes=0), Transport(PoolTransport(), sleep=pause)
        ids = itertools.count(1)
        gateway = Gateway(
            offers=offers_for(settings),
            selector=Selector(settings.routing, settings.priors, random.Random(1)),
            transport=transport,
            ledger=ledger,
            delivery=Delivery(transport, Shelf(), max_bytes=10**8),
            observer=Watch(),  # type: ignore[arg-type]
            clock=Clock(lambda: datetime.now(UTC), time.monotonic, lambda: f"att_{next(ids)}", pause),
            timeout_s=30.0,
        )
        await ledger.start()
        app = build_app(routes(gateway))
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router.test") as client:
                yield Desk(client, upstream, url, pauses)
        finally:
            await gateway.close(1.0)
            await transport.aclose()
            await ledger.close()


STATES = {"no": "void", "maybe": "unknown", "yes": "settled"}


@pytest.mark.parametrize(("case", "name"), CELLS)
async def test_with_another_target_behind(case: str, name: str, tmp_path: Path) -> None:
    expected, billed = CASES[case], BILLED[case][name]
    async with desk(case, name, tmp_path) as at:
        answer = await at.ask(SPARE)
        first, *others = at.rows()
        assert (first.state, first.settlement.error_kind) == (STATES[billed], expected.kind)
        assert not first.settlement.delivered
        assert at.upstream.asked.get(name, 0) == (0 if expected.kind == "not_sent" else 1)
        if expected.moves:
            assert answer.status_code == 200, answer.text
            metadata = answer.json()["metadata"]
            assert metadata["executed_model"] == SPARE
            assert [attempt["billed"] for attempt in metadata["attempts"]] == [billed, "yes"]
            assert [row.opening.role for row in others] == ["failover"]
            assert at.upstream.asked["gpu-fast"] == 1
        else:  # no refusal goes elsewhere, nothing is made again after a failed download
            assert (answer.status_code, answer.json()["error"]["code"]) == (expected.status, expected.code)
            assert answer.headers["x-should-retry"] == "false"
            assert others == []
            assert "gpu-fast" not in at.upstream.asked
        assert at.upstream.downloads == (4 if case == "download fails" else 0)


@pytest.mark.parametrize(("case", "name"), CELLS)
async def test_alone(case: str, name: str, tmp_path: Path) -> None:
    expected, billed = CASES[case], BILLED[case][name]
    calls = expected.again[billed]
    async with desk(case, name, tmp_path) as at:
        answer = await at.ask()
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (expected.status, expected.code), error
        soon = "retry-after" in answer.headers  # then clients send it again by themselves
        assert answer.headers.get("x-should-retry") == ("false" if not expected.resend else None if soon else "true")
        rows = at.rows()
        assert [row.opening.role for row in rows] == ["first", *["retry"] * (calls - 1)]
        assert {row.state for row in rows} == {STATES[billed]}
        assert at.upstream.asked.get(name, 0) == (0 if expected.kind == "not_sent" else calls)
        assert soon == (case == "429")
        if soon:
            assert answer.headers["retry-after"] == "1"
            assert len([pause for pause in at.pauses if pause >= 1.0]) == calls - 1  # no sooner than it said
        assert "the-key-of-this-test" not in answer.text
        assert str(at.client.base_url.host) not in error["message"]


def test_every_adapter_has_its_column_and_every_class_its_row() -> None:
    columns = {shipped().providers[name].adapter for name in PROVIDERS}
    assert columns == set(ADAPTERS)
    kinds = {case.kind for case in CASES.values()}
    assert kinds == {
        "not_sent", "auth", "rate_limited", "bad_request", "refused", "server_error", "no_answer", "unusable",
        "download_failed",
    }  # fmt: skip


def test_the_table_is_documented_as_it_is_tested() -> None:
    text = (ROOT / "router" / "routing" / "README.md").read_text()
    assert table() in text, f"router/routing/README.md must hold this table:\n\n{table()}"
