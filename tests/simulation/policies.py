"""The policies that are compared: the router's own selector, six baselines, and an oracle.

All share the engine's failover, and all but the selector (which has its own) share ``_Shared``: Retry-After is obeyed,
and a target that has just failed too often is left out for a while, as the peers do it.
"""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.routing import Candidate, Decision, Outcome, Prior, RouteRequest, RoutingSettings, Selector
from router.types import Preferences
from tests.simulation.engine import MAYBE_BILLED, End, Policy, World
from tests.simulation.world import ATTEMPT_LIMIT_S, Request


@dataclass(frozen=True, slots=True)
class _Running:
    """A call, as the selector knows it."""

    id: str
    request: Request
    decision: Decision
    since: float


class SelectorPolicy:
    """The router's policy code itself, driven as the gateway drives it."""

    def __init__(
        self,
        world: World,
        seed: int,
        settings: RoutingSettings | None = None,
        preset: str | None = None,
        replica: str = "",
        known: bool = False,
    ) -> None:
        self.world = world
        priors = {f"{p.name}/m": Prior(p.p50_s, p.p95_s, 1.0 - p.fails) for p in world.scenario.providers}
        self.selector = Selector(settings, priors if known else {}, random.Random(seed), replica)
        self.preferences = Preferences(sort=preset)
        self.mode = ""
        self._decision: Decision | None = None
        self._running: dict[int, _Running] = {}  # by attempt
        self._names = [f"{provider.name}/m" for provider in world.scenario.providers]
        self._index = {name: i for i, name in enumerate(self._names)}

    def _request(self, request: Request) -> RouteRequest:
        asked = request.lent
        if asked is None:
            world = self.world
            asked = request.lent = RouteRequest(
                "m",
                "generate",
                tuple(
                    Candidate(name, name[:-2], round(world.price(i, request) * 1e9), 0, limit_s=ATTEMPT_LIMIT_S)
                    for i, name in enumerate(self._names)
                    if world.exists(i)
                ),
                request.images,
                request.megapixels,
                preferences=self.preferences,
            )
        assert isinstance(asked, RouteRequest)
        return asked

    def choose(self, request: Request, now: float) -> tuple[int | None, float | None]:
        tried = [self._names[i] for i in request.tried]
        if request.running:
            return self._rescue(request, now, tried), None
        decision = self._decision = self.selector.choose(self._request(request), now, tried)
        self.mode = decision.mode
        if decision.target is None:
            return None, decision.retry_after_s
        return self._index[decision.target], None

    def _rescue(self, request: Request, now: float, tried: list[str]) -> int | None:
        """Where the second copy of a silent call goes."""
        (silent,) = request.running
        first = self._running[silent].decision
        own = f"{request.id}.{len(tried) + 1}"
        decision = self.selector.rescue(self._request(request), first, now, tried, now - request.at, own)
        if decision is None:
            return None
        self._decision, self.mode = decision, decision.mode
        assert decision.target is not None
        return self._index[decision.target]

    def started(self, attempt: int, provider: int, request: Request, now: float) -> None:
        assert self._decision is not None
        call = self._running[attempt] = _Running(f"{request.id}.{len(request.tried)}", request, self._decision, now)
        self.selector.on_start(self._names[provider], self._request(request), now, call.id)

    def ended(self, attempt: int, provider: int, request: Request, end: End, now: float) -> None:
        self.selector.on_end(self._running.pop(attempt).id, to_outcome(end), now)

    def rescue_s(self, request: Request) -> float | None:
        assert self._decision is not None
        return self.selector.rescue_after(self._request(request), self._decision, self.world.now)

    def stuck(self, now: float) -> list[tuple[int, Request, float]]:
        stuck = self.selector.stuck(now)
        calls = []
        for attempt, call in self._running.items() if stuck else ():
            if call.id in stuck:
                after_s = self.selector.rescue_after(self._request(call.request), call.decision, now)
                if after_s is not None:
                    calls.append((attempt, call.request, max(now, call.since + after_s)))
        return calls


class ReplicasPolicy:
    """Several selectors that share the traffic in turn, and every ``delay_s`` tell each other what they learnt."""

    def __init__(self, world: World, seed: int, replicas: int, delay_s: float, dead_from_s: float = math.inf) -> None:
        self._all = [SelectorPolicy(world, 1000 * seed + i, replica=f"r{i}") for i in range(replicas)]
        self._delay_s = delay_s
        self._next_s = delay_s
        self._dead_from_s = dead_from_s  # the store that carries their messages is gone
        self.mode = ""

    def _of(self, request: Request, now: float) -> SelectorPolicy:
        while self._next_s <= now:
            if self._next_s < self._dead_from_s:
                told = [policy.selector.delta(self._next_s) for policy in self._all]
                for policy in self._all:
                    for delta in told:
                        policy.selector.merge(json.loads(json.dumps(delta)), self._next_s)
            self._next_s += self._delay_s
        return self._all[request.id % len(self._all)]

    def choose(self, request: Request, now: float) -> tuple[int | None, float | None]:
        policy = self._of(request, now)
        choice = policy.choose(request, now)
        self.mode = policy.mode
        return choice

    def started(self, attempt: int, provider: int, request: Request, now: float) -> None:
        self._of(request, now).started(attempt, provider, request, now)

    def ended(self, attempt: int, provider: int, request: Request, end: End, now: float) -> None:
        self._of(request, now).ended(attempt, provider, request, end, now)

    def rescue_s(self, request: Request) -> float | None:
        return self._all[request.id % len(self._all)].rescue_s(request)

    def stuck(self, now: float) -> list[tuple[int, Request, float]]:
        return [call for policy in self._all for call in policy.stuck(now)]


def to_outcome(end: End) -> Outcome:
    """An attempt's end in the selector's vocabulary."""
    match end.kind:
        case "success":
            return Outcome.success()
        case "error":
            return Outcome.failure(billed=end.dollars > 0)
        case "no_answer":
            return Outcome.failure(timed_out=True)
        case "rate_limited":
            return Outcome.rate_limited(end.retry_after_s)
        case "cancelled":
            return Outcome.cancelled()
    return Outcome.neutral()


class _Shared:
    """Retry-After, and a cooldown of 5 s after a 429 or when over half of at least five calls of a minute failed."""

    mode = "best"

    def __init__(self, world: World, seed: int, value_of_time: float) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.value_of_time = value_of_time
        n = len(world.scenario.providers)
        self.closed_until = [0.0] * n
        self.minute: list[deque[tuple[float, bool]]] = [deque() for _ in range(n)]
        self.started_at: dict[int, float] = {}

    def choose(self, request: Request, now: float) -> tuple[int | None, float | None]:
        world = self.world
        rest = [i for i in range(len(self.closed_until)) if world.exists(i) and i not in request.tried]
        pool = [i for i in rest if self.closed_until[i] <= now]
        if not pool:
            return None, min((self.closed_until[i] - now for i in rest), default=None)
        return self.rank(pool, request, now), None

    def rank(self, pool: list[int], request: Request, now: float) -> int:
        raise NotImplementedError

    def started(self, attempt: int, provider: int, request: Request, now: float) -> None:
        self.started_at[attempt] = now

    def ended(self, attempt: int, provider: int, request: Request, end: End, now: float) -> None:
        if end.kind == "rate_limited":
            self.closed_until[provider] = now + (end.retry_after_s or 5.0)
        minute = self.minute[provider]
        minute.append((now, end.kind in ("error", "no_answer")))
        while minute[0][0] < now - 60.0:
            minute.popleft()
        if len(minute) >= 5 and sum(bad for _, bad in minute) > 0.5 * len(minute):
            self.closed_until[provider] = max(self.closed_until[provider], now + 5.0)
            minute.clear()
        self.learn(provider, request, end, now - self.started_at.pop(attempt))

    def learn(self, provider: int, request: Request, end: End, seconds: float) -> None: ...

    def rescue_s(self, request: Request) -> float | None:
        return None

    def stuck(self, now: float) -> list[tuple[int, Request, float]]:
        return []


class RoundRobin(_Shared):
    turn = -1

    def rank(self, pool: list[int], request: Request, now: float) -> int:
        self.turn += 1
        return pool[self.turn % len(pool)]


class Weighted(_Shared):
    """Drawn by 1 / price."""

    def rank(self, pool: list[int], request: Request, now: float) -> int:
        return self.random.choices(pool, [1.0 / self.world.price(i, request) for i in pool])[0]


class LowestCost(_Shared):
    def rank(self, pool: list[int], request: Request, now: float) -> int:
        return min(pool, key=lambda i: (self.world.price(i, request), i))


class MeanOfTen(_Shared):
    """The lowest mean of the last ten raw seconds; unused counts as 0, a timeout as 1000 s, other failures as none."""

    def __init__(self, world: World, seed: int, value_of_time: float) -> None:
        super().__init__(world, seed, value_of_time)
        self.last: list[deque[float]] = [deque(maxlen=10) for _ in self.closed_until]

    def rank(self, pool: list[int], request: Request, now: float) -> int:
        means = [sum(self.last[i]) / len(self.last[i]) if self.last[i] else 0.0 for i in pool]
        low = min(means)
        return self.random.choice([i for i, mean in zip(pool, means, strict=True) if mean <= low])

    def learn(self, provider: int, request: Request, end: End, seconds: float) -> None:
        if end.kind == "success":
            self.last[provider].append(seconds)
        elif end.kind == "no_answer":
            self.last[provider].append(1000.0)


class PeakEwma(_Shared):
    """Power of two choices over the peak EWMA of latency times calls in flight; decay 10 s."""

    DECAY_S = 10.0

    def __init__(self, world: World, seed: int, value_of_time: float) -> None:
        super().__init__(world, seed, value_of_time)
        self.ewma = [1.0] * len(self.closed_until)
        self.at = [0.0] * len(self.closed_until)

    def rank(self, pool: list[int], request: Request, now: float) -> int:
        two = self.random.sample(pool, 2) if len(pool) > 1 else pool
        return min(two, key=lambda i: self.ewma[i] * (self.world.in_flight[i] + 1))

    def learn(self, provider: int, request: Request, end: End, seconds: float) -> None:
        if end.kind in ("rate_limited", "refused"):
            return
        keep = math.exp(-(self.world.now - self.at[provider]) / self.DECAY_S)
        self.at[provider] = self.world.now
        decayed = self.ewma[provider] * keep + seconds * (1.0 - keep)
        self.ewma[provider] = max(seconds, decayed)


class Oracle(_Shared):
    """Knows every provider's present distribution and cap, not the draws. Nothing is left out, nothing learnt."""

    def choose(self, request: Request, now: float) -> tuple[int | None, float | None]:
        world = self.world
        best, lowest = None, math.inf
        for i in range(len(world.scenario.providers)):
            if world.exists(i) and i not in request.tried:
                index = true_index(world, i, request, now, self.value_of_time)
                if index < lowest:
                    best, lowest = i, index
        return best, None if best is not None else 1.0

    def ended(self, attempt: int, provider: int, request: Request, end: End, now: float) -> None: ...


def true_index(world: World, i: int, request: Request, now: float, value_of_time: float) -> float:
    """Expected dollars until a success when provider i is tried first, from what is really so at this moment."""
    scenario = world.scenario
    provider = scenario.providers[i]
    regime = provider.regime(now)
    if regime.cap is not None and world.in_flight[i] >= regime.cap:
        return math.inf
    price = world.price(i, request)
    median = provider.p50_s * regime.slow * scenario.law.factor(request.megapixels, request.images)
    sigma = provider.sigma
    z = math.log(ATTEMPT_LIMIT_S / median) / sigma
    late = 0.5 * math.erfc(z * math.sqrt(0.5))
    # The mean of the log-normal below the limit: slower calls end there, as failures.
    mean = median * math.exp(0.5 * sigma**2) * 0.5 * math.erfc((sigma - z) * math.sqrt(0.5)) / max(1.0 - late, 1e-9)
    fails = provider.fails if regime.fails is None else regime.fails
    if regime.hangs:
        fails, late = 0.0, 1.0
    p = max((1.0 - fails) * (1.0 - late), 1e-6)
    lost_s = fails * (0.6 if regime.fast_fail else 0.5 * mean) + (1.0 - fails) * late * ATTEMPT_LIMIT_S
    billed = 0.0 if regime.fast_fail else fails * provider.bills_failures
    lost = (billed + (1.0 - fails) * late * MAYBE_BILLED) * price + value_of_time * lost_s
    return price + value_of_time * mean + lost / p


Maker = Callable[[World, int, float], Policy]
BASELINES: Mapping[str, Maker] = {
    "round robin": RoundRobin,
    "weighted 1/price": Weighted,
    "lowest mean of ten": MeanOfTen,
    "lowest cost": LowestCost,
    "p2c peak EWMA": PeakEwma,
}


@dataclass(frozen=True, slots=True)
class Ours:
    """Makes the selector. An object, so that it can be handed to another process; so is ``Replicas``."""

    settings: RoutingSettings | None = None
    preset: str | None = None
    known: bool = False  # every target has a prior, as from `prior:` in providers.yaml; else nothing is known of any

    def __call__(self, world: World, seed: int, value_of_time: float) -> Policy:
        return SelectorPolicy(world, seed, self.settings, self.preset, known=self.known)


@dataclass(frozen=True, slots=True)
class Replicas:
    """Makes several selectors that share what they learn."""

    count: int
    delay_s: float
    dead_from_s: float = math.inf

    def __call__(self, world: World, seed: int, value_of_time: float) -> Policy:
        return ReplicasPolicy(world, seed, self.count, self.delay_s, self.dead_from_s)
