"""The world: providers, what goes wrong with them and when, and the luck of every request.

Luck is drawn per request and provider from the seed, not from the order of events, so that all policies of a run meet
exactly the same requests, the same weather and the same good and bad draws.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

Z95 = 1.6448536269514722
ATTEMPT_LIMIT_S = 60.0
WARM_UP_S = 20 * 60.0
FAULT_S = 40 * 60.0, 65 * 60.0
END_S = 120 * 60.0
REFUSED = 0.02  # share of requests that every provider refuses for their content


@dataclass(frozen=True, slots=True)
class Regime:
    """How a provider behaves for a while."""

    slow: float = 1.0  # latency factor
    fails: float | None = None  # share of calls that end in a 5xx; None: the provider's usual share
    fast_fail: bool = False  # they fail in under a second (a dead host), not part-way through the work
    hangs: bool = False  # never answers
    cap: int | None = None  # calls at once; more are answered 429


CLEAR = Regime()


@dataclass(frozen=True, slots=True)
class Provider:
    name: str
    price: float  # dollars per megapixel
    p50_s: float
    p95_s: float
    fails: float = 0.003
    bills_failures: float = 0.0
    since_s: float = 0.0  # when it is added to the pool
    weather: tuple[tuple[float, Regime], ...] = ((0.0, CLEAR),)  # (from, regime), ascending

    @property
    def sigma(self) -> float:
        return math.log(self.p95_s / self.p50_s) / Z95

    def regime(self, now: float) -> Regime:
        current = CLEAR
        for since, regime in self.weather:
            if since > now:
                break
            current = regime
        return current


@dataclass(frozen=True, slots=True)
class Law:
    """How latency grows with work: affine in megapixels x images^0.6, or a power, per world."""

    fixed: float = 0.3
    exponent: float = 1.0
    images: float = 0.6

    def factor(self, megapixels: float, images: int) -> float:
        work = (megapixels * images**self.images) ** self.exponent
        return self.fixed + (1.0 - self.fixed) * work


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    providers: tuple[Provider, ...]
    watched: int | None = None  # the provider the fault is on
    law: Law = Law()
    weather_seeded: bool = False  # the weather is drawn from the seed

    def seeded(self, seed: int) -> Scenario:
        """The scenario of one seed: with its weather, if that is random."""
        if not self.weather_seeded:
            return self
        rng = random.Random(f"weather {self.name} {seed}")
        return replace(self, providers=tuple(replace(p, weather=_random_weather(rng)) for p in self.providers))


FAL = Provider("fal", 0.008, 3.232, 8.957, 0.002)
POOL = (
    FAL,
    Provider("quick", 0.012, 1.9, 4.2),
    Provider("cheap", 0.005, 6.5, 16.0),
    Provider("flaky", 0.004, 4.2, 14.0, 0.4, bills_failures=0.3),
    Provider("premium", 0.020, 1.5, 2.6, 0.001),
    Provider("slow", 0.010, 9.0, 20.0),
)
EQUAL = (
    FAL,
    Provider("b", 0.008, 3.7, 9.0),
    Provider("c", 0.008, 4.2, 10.0),
    Provider("d", 0.008, 5.0, 12.0),
    Provider("e", 0.008, 6.5, 16.0),
    Provider("f", 0.008, 9.0, 20.0),
)


def _fault(providers: Sequence[Provider], faults: dict[int, Regime]) -> tuple[Provider, ...]:
    start, end = FAULT_S
    return tuple(
        replace(p, weather=((0.0, CLEAR), (start, faults[i]), (end, CLEAR))) if i in faults else p
        for i, p in enumerate(providers)
    )


def _with(providers: Sequence[Provider], index: int, **changes: object) -> tuple[Provider, ...]:
    changed = list(providers)
    changed[index] = replace(changed[index], **changes)  # type: ignore[arg-type]
    return tuple(changed)


def _random_weather(rng: random.Random) -> tuple[tuple[float, Regime], ...]:
    """Clear for 25 minutes on average, then 2 to 12 minutes of something."""
    kinds: tuple[Callable[[], Regime], ...] = (
        lambda: Regime(slow=rng.uniform(1.5, 6.0)),
        lambda: Regime(fails=rng.uniform(0.1, 0.8)),
        lambda: Regime(fails=1.0, fast_fail=True),
        lambda: Regime(hangs=True),
        lambda: Regime(cap=rng.randint(1, 5)),
        lambda: Regime(slow=rng.uniform(0.3, 0.8)),
    )
    weather: list[tuple[float, Regime]] = [(0.0, CLEAR)]
    at = rng.expovariate(1 / 1500.0)
    while at < END_S:
        weather.append((at, rng.choice(kinds)()))
        at += rng.uniform(120.0, 720.0)
        weather.append((at, CLEAR))
        at += rng.expovariate(1 / 1500.0)
    return tuple(weather)


SLOW = Regime(slow=4.0)
BROWN_OUT = Regime(fails=0.3)
OUTAGE = Regime(fails=1.0, fast_fail=True)
HANG = Regime(hangs=True)
NEW = Provider("new", 0.006, 1.8, 4.0, since_s=FAULT_S[0])

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("steady", POOL),
    Scenario("slow x4", _fault(POOL, {0: SLOW}), 0),
    Scenario("30 % 5xx", _fault(POOL, {0: BROWN_OUT}), 0),
    Scenario("outage", _fault(POOL, {0: OUTAGE}), 0),
    Scenario("hang", _fault(POOL, {0: HANG}), 0),
    Scenario("429 cap", _fault(POOL, {0: Regime(cap=5)}), 0),
    Scenario("cheap+flaky", _with(POOL, 3, price=0.002, fails=0.5)),
    Scenario("new better", (*POOL, NEW), len(POOL)),
    Scenario("silent gain", _with(POOL, 2, weather=((0.0, CLEAR), (FAULT_S[0], Regime(slow=0.2)))), 2),
    Scenario("correlated", _fault(POOL, {0: OUTAGE, 1: BROWN_OUT, 2: Regime(slow=2.0)}), 0),
    Scenario("random", POOL, weather_seeded=True),
    Scenario("eq steady", EQUAL),
    Scenario("eq slow x4", _fault(EQUAL, {0: SLOW}), 0),
    Scenario("eq 30 % 5xx", _fault(EQUAL, {0: BROWN_OUT}), 0),
    Scenario("eq outage", _fault(EQUAL, {0: OUTAGE}), 0),
    Scenario("eq hang", _fault(EQUAL, {0: HANG}), 0),
    Scenario("eq random", EQUAL, weather_seeded=True),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


@dataclass(frozen=True, slots=True)
class Luck:
    """What one request would meet at one provider."""

    z: float  # of its latency
    fail: float  # uniform: fails if below the share
    part: float  # how far the work had come when it failed
    bill: float  # uniform: billed if below the share
    retry_after: float | None  # of a 429, where it says


@dataclass(slots=True)
class Request:
    """One client request, and its luck with each provider."""

    id: int
    at: float
    megapixels: float
    images: int
    refused: bool
    luck: tuple[Luck, ...]
    tried: list[int] = field(default_factory=list)
    running: dict[int, tuple[int, Any]] = field(default_factory=dict)  # attempt -> provider and how it will end
    look: bool = False  # the attempt that is booked next was made for the sake of what it tells
    spent: float = 0.0
    waits: int = 0
    lent: object = None  # a policy may keep its own view of the request here


def requests(per_minute: float, seed: int) -> list[Request]:
    """Poisson arrivals over two hours; equal for all scenarios and policies."""
    return [Request(i, *drawn) for i, drawn in enumerate(_drawn(per_minute, seed))]


@lru_cache(10)  # drawing takes as long as simulating a simple policy does
def _drawn(per_minute: float, seed: int) -> list[tuple[float, float, int, bool, tuple[Luck, ...]]]:
    rng = random.Random(f"requests {per_minute} {seed}")
    drawn: list[tuple[float, float, int, bool, tuple[Luck, ...]]] = []
    at = rng.expovariate(per_minute / 60.0)
    while at < END_S:
        megapixels = rng.choices((1.0, 2.0, 4.0), (0.65, 0.2, 0.15))[0]
        images = rng.choices((1, 2, 4), (0.82, 0.12, 0.06))[0]
        refused = rng.random() < REFUSED
        luck = tuple(
            Luck(
                rng.gauss(0.0, 1.0),
                rng.random(),
                rng.random(),
                rng.random(),
                rng.choice((None, rng.uniform(1.0, 10.0))),
            )
            for _ in range(7)
        )
        drawn.append((at, megapixels, images, refused, luck))
        at += rng.expovariate(per_minute / 60.0)
    return drawn
