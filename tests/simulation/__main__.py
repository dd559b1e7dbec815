"""``python -m tests.simulation``: cost above the oracle's, in percent, of the router's selector and of what others do.

General cost is dollars of all attempts, plus the worth of the client's seconds, plus $0.05 for a request that is lost.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from router.routing import PRESETS, RoutingSettings
from tests.simulation.engine import Policy, World, run
from tests.simulation.policies import LowestCost, MeanOfTen, Oracle, PeakEwma, RoundRobin, SelectorPolicy, Weighted
from tests.simulation.world import BY_NAME, SCENARIOS, Scenario, requests

Make = Callable[[World, int, float], Policy]

POLICIES: dict[str, Make] = {
    "selector": lambda world, seed, value: SelectorPolicy(world, seed, value, RoutingSettings()),
    "round robin": RoundRobin,
    "weighted": Weighted,
    "lowest cost": LowestCost,
    "mean of ten": MeanOfTen,
    "p2c ewma": PeakEwma,
}


def cost(scenario: Scenario, make: Make, per_minute: float, seed: int, value_of_time: float) -> float:
    """General cost of one run; all policies meet the same requests and the same luck."""
    scenario = scenario.seeded(seed)
    world = World(scenario, [0] * len(scenario.providers))
    policy = make(world, seed, value_of_time)
    return run(scenario, policy, world, requests(scenario, per_minute, seed), value_of_time).cost


def regrets(scenario: Scenario, names: list[str], per_minute: float, seeds: int, value_of_time: float) -> list[float]:
    """Percent above the oracle, over all seeds together."""
    best = sum(cost(scenario, Oracle, per_minute, seed, value_of_time) for seed in range(seeds))
    return [
        100.0 * (sum(cost(scenario, POLICIES[n], per_minute, s, value_of_time) for s in range(seeds)) / best - 1.0)
        for n in names
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"some of: {', '.join(BY_NAME)}")
    parser.add_argument("--per-minute", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", action="append", choices=POLICIES, help="compare only these policies")
    options = parser.parse_args()
    names = options.only or list(POLICIES)
    value = PRESETS["balanced"].value_of_time
    chosen = [BY_NAME[name] for name in options.scenarios] or list(SCENARIOS)
    print(f"{'% above the oracle':22}" + "".join(f"{name:>14}" for name in names))
    rows = []
    for scenario in chosen:
        rows.append(regrets(scenario, names, options.per_minute, options.seeds, value))
        print(f"{scenario.name:22}" + "".join(f"{value:14.1f}" for value in rows[-1]), flush=True)
    means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
    print(f"{'mean':22}" + "".join(f"{value:14.1f}" for value in means))


if __name__ == "__main__":
    main()
