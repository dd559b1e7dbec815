"""The application around a fake gateway, and clients for it."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import httpx
import pytest
from starlette.applications import Starlette

from router.api import Exchange, build_app, routes
from router.types import NO_PREFERENCES, Preferences
from tests.router.api.fake import FakeGateway

KEY = "sk-test-3kQ9"


@dataclass(frozen=True)
class Key:
    name: str = "tests"
    secret: str = KEY
    team: str | None = "research"
    project: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    preferences: Preferences = NO_PREFERENCES


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def seen() -> list[Exchange]:
    """Every exchange that ended, as the log would see it."""
    return []


@pytest.fixture
def make_app(gateway: FakeGateway, seen: list[Exchange]) -> Callable[..., Starlette]:
    def make(**options: object) -> Starlette:
        found = routes(gateway, **({"keys": [Key()]} | options))  # type: ignore[arg-type]
        return build_app(found, finished=seen.append)

    return make


@pytest.fixture
def make_client(make_app: Callable[..., Starlette]) -> Callable[..., httpx.AsyncClient]:
    def make(**options: object) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(make_app(**options))
        return httpx.AsyncClient(
            transport=transport, base_url="http://router.test", headers={"Authorization": f"Bearer {KEY}"}
        )

    return make


@pytest.fixture
async def client(make_client: Callable[..., httpx.AsyncClient]) -> AsyncIterator[httpx.AsyncClient]:
    async with make_client() as client:
        yield client
