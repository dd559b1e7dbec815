"""A seeded small part of the simulation, held to bounds somewhat above what `python -m tests.simulation` prints."""

from __future__ import annotations

import pytest

from tests.simulation.figures import OURS, Lab, Setup
from tests.simulation.policies import BASELINES, Ours


@pytest.mark.parametrize(
    ("name", "bound"), [("steady", 3.0), ("outage", 4.0), ("hang", 6.0), ("30 % 5xx", 5.0), ("eq hang", 5.0)]
)
def test_the_selector_stays_near_the_oracle_and_ahead_of_the_others(name, bound):
    lab, setup = Lab(), Setup(name, 20, range(2))
    ours = lab.regret(setup, OURS, Ours())
    assert ours <= bound
    for other in ("lowest mean of ten", "p2c peak EWMA"):
        assert ours < lab.regret(setup, other, BASELINES[other])
