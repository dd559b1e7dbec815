"""One router process for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.process import RouterProcess


@pytest.fixture(scope="session")
def shared_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    process = RouterProcess(tmp_path_factory.mktemp("router"))
    yield process
    assert process.stop() == 0


@pytest.fixture
def router(shared_router: RouterProcess) -> RouterProcess:
    shared_router.reset()
    return shared_router
