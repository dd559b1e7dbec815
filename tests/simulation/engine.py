"""The discrete-event engine: virtual time, no sleeping. It plays the gateway for whichever policy is under test."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tests.simulation.world import ATTEMPT_LIMIT_S, WARM_UP_S, Law, Provider, Regime, Request, Scenario

ATTEMPTS = 3
PATIENCE = 3  # times a request waits for a closed pool to open
LOST = 0.05  # dollars that a lost request costs
MAYBE_BILLED = 0.5  # share of calls without an answer that are billed all the same
LOOKS = ("explore", "probe")
WATCH_S = 1.0


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ends."""

    kind: str  # success, error, no_answer, rate_limited, refused, cancelled
    seconds: float
    dollars: float
    retry_after_s: float | None = None


class Policy(Protocol):
    """What is under test. Providers are numbers."""

    mode: str  # why the last choice was made: explore and probe are looks, everything else is service

    def choose(self, request: Request, now: float) -> tuple[int | None, float | None]:
        """The provider for the next attempt; or None and the seconds to wait, if waiting helps."""

    def started(self, attempt: int, provider: int, request: Request, now: float) -> None: ...

    def ended(self, attempt: int, provider: int, request: Request, end: End, now: float) -> None: ...

    def rescue_s(self, request: Request) -> float | None:
        """Seconds after which a second provider is asked beside the one just chosen; None: never."""

    def stuck(self, now: float) -> Sequence[tuple[int, Request, float]]:
        """Attempts that turn out to need one after all, with their requests, and when."""


@dataclass(slots=True)
class World:
    """What a policy may ask for: which providers exist, what they charge, and (the oracle) how busy they are."""

    scenario: Scenario
    in_flight: list[int]
    now: float = 0.0

    @classmethod
    def of(cls, scenario: Scenario) -> World:
        return cls(scenario, [0] * len(scenario.providers))

    def price(self, index: int, request: Request) -> float:
        return self.scenario.providers[index].price * request.megapixels * request.images

    def exists(self, index: int) -> bool:
        return self.scenario.providers[index].since_s <= self.now


@dataclass(slots=True)
class Run:
    """What came of one run. Everything but ``firsts`` leaves the warm-up out."""

    cost: float = 0.0  # dollars of all attempts + value of time x seconds + what lost requests cost
    dollars: float = 0.0
    wasted: float = 0.0  # dollars of attempts that delivered nothing
    looked: float = 0.0  # dollars of first attempts that were looks, and of rescues
    answered: int = 0  # requests that were not refused
    delivered: int = 0
    requests: int = 0
    looks: int = 0
    rescues: int = 0
    limited: int = 0  # requests that met a 429
    latencies: list[float] = field(default_factory=list)
    firsts: list[tuple[float, int]] = field(default_factory=list)  # every first pick: when and which


def outcome(provider: Provider, regime: Regime, request: Request, index: int, law: Law, busy: int) -> End:
    """What this provider does with this request now; ``busy`` calls are running there already."""
    luck = request.luck[index]
    price = provider.price * request.megapixels * request.images
    if regime.cap is not None and busy >= regime.cap:
        return End("rate_limited", 0.2, 0.0, luck.retry_after)
    seconds = provider.p50_s * regime.slow * law.factor(request.megapixels, request.images)
    seconds *= math.exp(provider.sigma * luck.z)
    maybe = price if luck.bill < MAYBE_BILLED else 0.0
    if regime.hangs:
        return End("no_answer", ATTEMPT_LIMIT_S, maybe)
    if luck.fail < (provider.fails if regime.fails is None else regime.fails):
        if regime.fast_fail:
            return End("error", 0.2 + 0.8 * luck.part, 0.0)
        billed = price if luck.bill < provider.bills_failures else 0.0
        return End("error", min(seconds * luck.part, ATTEMPT_LIMIT_S), billed)
    if seconds >= ATTEMPT_LIMIT_S:
        return End("no_answer", ATTEMPT_LIMIT_S, maybe)
    if request.refused:
        return End("refused", 0.5 * seconds, 0.0)
    return End("success", seconds, price)


class Engine:
    """One run: all arrivals through one policy."""

    def __init__(self, world: World, policy: Policy, value_of_time: float) -> None:
        self._world = world
        self._policy = policy
        self._value_of_time = value_of_time
        self._regimes = [_Forecast(provider) for provider in world.scenario.providers]
        self._events: list[tuple[float, int, str, Request, int, End | None]] = []
        self._serial = 0
        self._run = Run()
        self._next_watch = math.inf

    def run(self, arrivals: list[Request]) -> Run:
        self._events = [(request.at, i, "arrive", request, -1, None) for i, request in enumerate(arrivals)]
        self._serial = len(arrivals)
        heapq.heapify(self._events)
        while self._events:
            if self._next_watch <= self._events[0][0]:
                self._watch()
                continue
            now, number, what, request, index, end = heapq.heappop(self._events)
            self._world.now = now
            if what == "arrive":
                self._attempt(request, now)
            elif number not in request.running:
                continue  # cancelled meanwhile
            elif end is None:
                if len(request.running) == 1 and len(request.tried) < ATTEMPTS:
                    self._attempt(request, now)
            else:
                self._ended(request, number, index, end, now)
        return self._run

    def _watch(self) -> None:
        """Have the policy look at what is running, every second while something is."""
        now = self._world.now = self._next_watch
        for attempt, request, at in self._policy.stuck(now):
            heapq.heappush(self._events, (at, attempt, "rescue", request, -1, None))
        self._next_watch = now + WATCH_S if any(self._world.in_flight) else math.inf

    def _attempt(self, request: Request, now: float) -> None:
        world, policy, run = self._world, self._policy, self._run
        index, wait = policy.choose(request, now)
        counts = request.at >= WARM_UP_S
        if index is None:
            if request.running:
                return  # a rescue with nowhere to go
            if wait is None or request.waits >= PATIENCE or wait > ATTEMPT_LIMIT_S:
                self._finish(request, now, "lost")
                return
            request.waits += 1
            self._push(now + max(wait, 0.05), "arrive", request)
            return
        if not request.tried:
            run.firsts.append((now, index))
            request.look = policy.mode in LOOKS
            run.looks += counts and request.look
        elif request.running:
            request.look = True
            run.rescues += counts
        regime = self._regimes[index].at(now)
        provider = world.scenario.providers[index]
        end = outcome(provider, regime, request, index, world.scenario.law, world.in_flight[index])
        rescue = policy.rescue_s(request) if len(request.tried) < ATTEMPTS - 1 else None
        request.tried.append(index)
        world.in_flight[index] += 1
        self._next_watch = min(self._next_watch, now + WATCH_S)
        number = self._push(now + end.seconds, "end", request, index, end)
        request.running[number] = index, end
        policy.started(number, index, request, now)
        if rescue is not None and rescue < end.seconds:
            heapq.heappush(self._events, (now + rescue, number, "rescue", request, index, None))

    def _ended(self, request: Request, number: int, index: int, end: End, now: float) -> None:
        self._book(request, number, index, end, now)
        if end.kind in ("success", "refused"):
            # The other copy, if there is one, is cancelled. What it would have been billed, it is billed.
            for other, (loser, would) in list(request.running.items()):
                self._book(request, other, loser, replace(would, kind="cancelled"), now)
            self._finish(request, now, end.kind)
        elif request.running:
            return
        elif len(request.tried) >= ATTEMPTS:
            self._finish(request, now, "lost")
        else:
            self._attempt(request, now)

    def _book(self, request: Request, number: int, index: int, end: End, now: float) -> None:
        del request.running[number]
        self._world.in_flight[index] -= 1
        self._policy.ended(number, index, request, end, now)
        request.spent += end.dollars
        if request.at >= WARM_UP_S:
            run = self._run
            if end.kind == "rate_limited":
                run.limited += 1
            elif end.kind != "success":
                run.wasted += end.dollars
            if request.look:
                run.looked += end.dollars
                request.look = False

    def _finish(self, request: Request, now: float, kind: str) -> None:
        if request.at < WARM_UP_S:
            return
        run, waited = self._run, now - request.at
        run.requests += 1
        run.dollars += request.spent
        run.cost += request.spent + self._value_of_time * waited
        if kind == "refused":
            return
        run.answered += 1
        if kind == "success":
            run.delivered += 1
            run.latencies.append(waited)
        else:
            run.cost += LOST

    def _push(self, at: float, what: str, request: Request, index: int = -1, end: End | None = None) -> int:
        self._serial += 1
        heapq.heappush(self._events, (at, self._serial, what, request, index, end))
        return self._serial


class _Forecast:
    """A provider's weather, read forward in time."""

    def __init__(self, provider: Provider) -> None:
        self._weather = provider.weather
        self._i = 0

    def at(self, now: float) -> Regime:
        weather = self._weather
        while self._i + 1 < len(weather) and weather[self._i + 1][0] <= now:
            self._i += 1
        return weather[self._i][1]
