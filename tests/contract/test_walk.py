"""The contract walked from A1 to X30: each id is one thing that a real client does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract import answers, edits, failures, generations, surface
from tests.contract.walk import IDS, ROWS, Walk

pytestmark = pytest.mark.xdist_group("contract")
TABLES = (surface, generations, edits, answers, failures)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    walk = Walk(tmp_path_factory.mktemp("walk"))
    yield walk
    assert walk.close() == 0
    assert not walk.router.events("unhandled error")


@pytest.mark.parametrize("name", IDS)
def test_it_holds(whole: Walk, name: str) -> None:
    whole.router.reset()
    ROWS[name].check(whole)


def test_every_id_has_its_row() -> None:
    assert sorted(ROWS) == sorted(IDS)


@pytest.mark.parametrize(("name", "test"), [(name, row.elsewhere) for name, row in ROWS.items() if row.elsewhere])
def test_what_is_shown_elsewhere_is_there(name: str, test: str) -> None:
    path, _, function = test.partition("::")
    assert f"def {function}(" in (ROOT / path).read_text(), f"{name}: {test}"
