"""A seeded small part of the simulation, held to bounds somewhat above what `python -m tests.simulation` prints."""

from __future__ import annotations

import pytest

from router.routing import PRESETS
from tests.simulation.__main__ import regrets
from tests.simulation.world import BY_NAME

VALUE = PRESETS["balanced"].value_of_time


@pytest.mark.parametrize(
    ("name", "bound"), [("steady", 3.0), ("outage", 4.0), ("hang", 6.0), ("30 % 5xx", 5.0), ("eq hang", 5.0)]
)
def test_the_selector_stays_near_the_oracle_and_ahead_of_the_others(name, bound):
    ours, mean_of_ten, peak_ewma = regrets(BY_NAME[name], ["selector", "mean of ten", "p2c ewma"], 20.0, 2, VALUE)
    assert ours <= bound
    assert ours < mean_of_ten
    assert ours < peak_ewma
