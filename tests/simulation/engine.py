"""The discrete-event engine: virtual time, no sleeping. It plays the gateway's part for the policy under test."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field, replace
from typing import Protocol

from tests.simulation.world import ATTEMPT_LIMIT_S, END_S, WARM_UP_S, Law, Provider, Regime, Request, Scenario, requests

ATTEMPTS = 3
PATIENCE = 3  # times a request waits for a closed pool to open
LOST = 0.05  # dollars that a lost request costs
MAYBE_BILLED = 0.5  # share of calls without an answer that are billed all the same


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ends."""

    kind: str  # success, error, no_answer, rate_limited, refused
    seconds: float
    dollars: float
    retry_after_s: float | None = None


class Policy(Protocol):
    """What is under test. Providers are numbers; ``able`` says which exist by now."""

    def choose(self, request: Request, now: float) -> tuple[int | None, float | None]:
        """The provider for the next attempt; or None and the seconds to wait, if waiting helps."""

    def started(self, attempt: int, provider: int, request: Request, now: float) -> None: ...

    def ended(self, attempt: int, provider: int, request: Request, end: End, now: float) -> None: ...

    def rescue_s(self, request: Request) -> float | None:
        """Seconds after which a second provider is asked beside the one just chosen; None: never."""


@dataclass(slots=True)
class World:
    """The state a policy may ask for: which providers exist, and (for the oracle) how busy they are."""

    scenario: Scenario
    in_flight: list[int]
    now: float = 0.0

    def price(self, index: int, request: Request) -> float:
        return self.scenario.providers[index].price * request.megapixels * request.images

    def exists(self, index: int) -> bool:
        return self.scenario.providers[index].since_s <= self.now


@dataclass(slots=True)
class Run:
    """What came of one run, after the warm-up."""

    cost: float = 0.0
    dollars: float = 0.0
    wasted: float = 0.0
    answered: int = 0  # requests that were not refused
    delivered: int = 0
    rescues: int = 0
    limited: int = 0  # requests that met a 429
    loss: dict[str, float] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    firsts: list[tuple[float, int]] = field(default_factory=list)  # every first pick, the warm-up's too
    modes: dict[str, int] = field(default_factory=dict)


def outcome(provider: Provider, regime: Regime, request: Request, index: int, law: Law, busy: int) -> End:
    """What this provider does with this request now; ``busy`` calls are running there already."""
    luck = request.luck[index]
    price = provider.price * request.megapixels * request.images
    if regime.cap is not None and busy >= regime.cap:
        return End("rate_limited", 0.2, 0.0, luck.retry_after)
    work = law.factor(request.megapixels, request.images)
    seconds = provider.p50_s * regime.slow * work * math.exp(provider.sigma * luck.z)
    if regime.hangs:
        return End("no_answer", ATTEMPT_LIMIT_S, price if luck.bill < MAYBE_BILLED else 0.0)
    if luck.fail < (provider.fails if regime.fails is None else regime.fails):
        if regime.fast_fail:
            return End("error", 0.2 + 0.8 * luck.part, 0.0)
        return End(
            "error", min(seconds * luck.part, ATTEMPT_LIMIT_S), price if luck.bill < provider.bills_failures else 0.0
        )
    if seconds >= ATTEMPT_LIMIT_S:
        return End("no_answer", ATTEMPT_LIMIT_S, price if luck.bill < MAYBE_BILLED else 0.0)
    if request.refused:
        return End("refused", 0.5 * seconds, 0.0)
    return End("success", seconds, price)


def run(scenario: Scenario, policy: Policy, world: World, arrivals: list[Request], value_of_time: float) -> Run:
    """Play all arrivals through the policy."""
    result = Run()
    events: list[tuple[float, int, str, tuple]] = [(r.at, i, "arrive", (r,)) for i, r in enumerate(arrivals)]
    heapq.heapify(events)
    serial = len(events)
    regimes = [_Regimes(p) for p in scenario.providers]
    in_flight = world.in_flight

    def finish(request: Request, now: float, kind: str) -> None:
        if request.at < WARM_UP_S:
            return
        waited = now - request.at
        result.dollars += request.spent
        result.cost += request.spent + value_of_time * waited
        if kind == "refused":
            return
        result.answered += 1
        if kind == "success":
            result.delivered += 1
            result.latencies.append(waited)
        else:
            result.cost += LOST

    def attempt(request: Request, now: float) -> None:
        nonlocal serial
        index, wait = policy.choose(request, now)
        if index is None:
            if request.running:
                return  # a rescue with nowhere to go
            if wait is None or request.waits >= PATIENCE or wait > ATTEMPT_LIMIT_S:
                finish(request, now, "lost")
                return
            request.waits += 1
            serial += 1
            heapq.heappush(events, (now + max(wait, 0.05), serial, "arrive", (request,)))
            return
        if not request.tried:
            result.firsts.append((now, index))
        end = outcome(scenario.providers[index], regimes[index].at(now), request, index, scenario.law, in_flight[index])
        rescue = policy.rescue_s(request) if len(request.tried) < ATTEMPTS - 1 else None
        request.tried.append(index)
        in_flight[index] += 1
        serial += 1
        policy.started(serial, index, request, now)
        request.running[serial] = index, end
        heapq.heappush(events, (now + end.seconds, serial, "end", (request, index, end)))
        if rescue is not None and rescue < end.seconds:
            heapq.heappush(events, (now + rescue, serial, "rescue", (request,)))

    def ended(request: Request, number: int, index: int, end: End, now: float) -> None:
        del request.running[number]
        in_flight[index] -= 1
        policy.ended(number, index, request, end, now)
        request.spent += end.dollars
        if request.at >= WARM_UP_S:
            if end.kind == "rate_limited":
                result.limited += 1
            elif end.kind != "success":
                result.wasted += end.dollars

    while events:
        now, number, what, data = heapq.heappop(events)
        world.now = now
        request = data[0]
        if what == "arrive":
            attempt(request, now)
        elif number not in request.running:
            continue  # cancelled meanwhile
        elif what == "rescue":
            if len(request.running) == 1 and len(request.tried) < ATTEMPTS:
                result.rescues += 1
                attempt(request, now)
        else:
            _, index, end = data
            ended(request, number, index, end, now)
            if end.kind in ("success", "refused"):
                # The other copy, if there is one, is cancelled. What it would have been billed, it is billed.
                for other, (loser, would) in list(request.running.items()):
                    ended(request, other, loser, replace(would, kind="cancelled"), now)
                finish(request, now, end.kind)
            elif request.running:
                continue
            elif len(request.tried) >= ATTEMPTS:
                finish(request, now, "lost")
            else:
                attempt(request, now)
    return result


class _Regimes:
    """A provider's weather, read forward in time."""

    def __init__(self, provider: Provider) -> None:
        self._weather = provider.weather
        self._i = 0

    def at(self, now: float) -> Regime:
        weather = self._weather
        while self._i + 1 < len(weather) and weather[self._i + 1][0] <= now:
            self._i += 1
        return weather[self._i][1]


__all__ = ["ATTEMPTS", "END_S", "End", "Policy", "Run", "World", "outcome", "requests", "run"]
