"""All targets as they are known: their evidence, their gates, and what replicas tell each other about them."""

from __future__ import annotations

import math
import random as random_module
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any

from router.routing.breaker import CLOSED, Breaker
from router.routing.settings import Prior, RoutingSettings
from router.routing.sketch import wilson
from router.routing.stats import Z95, Arm, Flight
from router.routing.work import Kind, SizeLaw

FORGET_REPLICA_S = 30.0  # a replica not heard of for so long has nothing in flight


class Fleet:
    """Arms by operation and target, and one breaker per target. Created on first sight."""

    def __init__(
        self, settings: RoutingSettings, priors: Mapping[str, Prior], random: random_module.Random, replica: str
    ) -> None:
        self.settings = settings
        self.arms: dict[str, dict[str, Arm]] = {}
        self.breakers: dict[str, Breaker] = {}
        self.in_flight: dict[str, int] = {}  # by provider
        self._priors = priors
        self._random = random
        self._replica = replica
        self._laws: dict[tuple[str, str], SizeLaw] = {}  # by operation and model
        self._providers: dict[str, str] = {}  # by target
        self._others: dict[str, tuple[float, Mapping[str, int]]] = {}  # by replica: when told, in flight by target
        self.others_until = math.inf
        self.on_news: Callable[[], None] | None = None
        self.warmed = -math.inf  # the latest attempt that was learnt from the past, and so is never told

    def arm(self, operation: str, target: str, provider: str) -> Arm:
        arms = self.arms.setdefault(operation, {})
        arm = arms.get(target)
        if arm is None:
            law = self._laws.setdefault((operation, target.partition("/")[2]), SizeLaw())
            arm = arms[target] = Arm(target, law, self.breaker(target), self._priors.get(target), self.settings)
            self._providers[target] = provider
        return arm

    def breaker(self, target: str) -> Breaker:
        breaker = self.breakers.get(target)
        if breaker is None:
            breaker = self.breakers[target] = Breaker(self.settings, self._random, self._tell)
        return breaker

    def peers_pace(self, operation: str, arm: Arm) -> float:
        """What an unknown target is taken for: the middle of the paces of the model's known ones, else what its prior
        says."""
        paces = sorted(
            other.pace.m for other in self.arms[operation].values() if other.law is arm.law and other.pace.weight > 0.0
        )
        return paces[len(paces) // 2] if paces else arm.pace.mu

    def started(self, flight: Flight, attempt_id: str) -> None:
        target, breaker = flight.arm.target, flight.arm.breaker
        flight.probe = breaker.started(attempt_id)
        flight.busy = breaker.in_flight
        flight.arm.flights[attempt_id] = flight
        provider = self._providers[target]
        self.in_flight[provider] = self.in_flight.get(provider, 0) + 1

    def ended(self, flight: Flight, attempt_id: str) -> None:
        target = flight.arm.target
        del flight.arm.flights[attempt_id]
        flight.arm.touch()
        flight.arm.breaker.ended(attempt_id)
        self.in_flight[self._providers[target]] -= 1

    # -- the live table

    def snapshot(self, now: float) -> dict[str, Any]:
        """Per target and operation what is believed, JSON-ready, and on how much that rests."""
        self.forget_silent(now)
        table: dict[str, Any] = {}
        for operation, arm in self.every():
            breaker = arm.breaker
            arm.refresh(now)
            if arm.pace.weight == 0.0:
                arm.pace.suppose(self.peers_pace(operation, arm))
            n = arm.successes + arm.failures
            low, high = wilson(arm.successes, n)
            median = math.exp(arm.pace.m)
            why, until = breaker.check(now, math.inf)
            table.setdefault(arm.target, {})[operation] = {
                # What the next request is reckoned with: one picture of one megapixel
                "p50_s": round(median, 4),
                "p95_s": round(median * math.exp(Z95 * arm.pace.sigma), 4),
                "success": round(arm.reliability.p, 5),
                "success_low": round(low, 5),
                "success_high": round(high, 5),
                "samples": round(n, 2),
                "basis": "measured" if arm.reliability.n > 0.0 else "prior" if arm.pace.weight > 0.0 else "model",
                "age_s": round(now - arm.seen, 1) if arm.seen > -math.inf else None,
                "changed": arm.pace.off > 0.5,
                "in_flight": len(arm.flights),
                "in_flight_elsewhere": breaker.elsewhere,
                "cap": None if math.isinf(breaker.cap) else int(breaker.cap),
                # Its gates
                "state": breaker.state if breaker.state != CLOSED else "closed" if why in (None, "full") else "open",
                "reason": why if why is not None else None,
                "until_s": round(until - now, 1) if until is not None else None,
            }
        return table

    def hour(self, operation: str, target: str, now: float) -> Generator[None, None, dict[str, Any]]:
        """What the last hour measured, here and elsewhere, as it came."""
        arm = self.arms[operation][target]
        return arm.hour.snapshot(now, partial(_median_s, arm))

    def every(self) -> Iterator[tuple[str, Arm]]:
        for operation in sorted(self.arms):
            for target in sorted(self.arms[operation]):
                yield operation, self.arms[operation][target]

    # -- replicas

    def _tell(self) -> None:
        if self.on_news is not None:
            self.on_news()

    def others(self, now: float) -> int:
        """How many other replicas are heard of."""
        self.forget_silent(now)
        return len(self._others)

    def delta(self, now: float) -> dict[str, Any]:
        """What this replica has learnt since the last call: sums to add, and states with their age. JSON-ready."""
        arms: list[dict[str, Any]] = []
        hours: list[dict[str, Any]] = []
        for operation, arm in self.every():
            name = {"operation": operation, "target": arm.target, "provider": self._providers[arm.target]}
            sums = arm.told()
            if any(sums):
                arms.append(name | {"sums": sums, "seen_s": now - arm.seen if arm.seen > -math.inf else None})
            hour = arm.hour.told(now)
            if hour is not None:
                hours.append(name | hour)
        gates: dict[str, dict[str, Any]] = {}
        for target in sorted(self.breakers):
            gate = self.breakers[target].told(now)
            if gate:
                gates[target] = gate
        busy = {target: b.in_flight for target, b in sorted(self.breakers.items()) if b.in_flight}
        return {
            "replica": self._replica,
            "arms": arms,
            "hours": hours,
            "gates": gates,
            "in_flight": busy,
            "warmed_s": now - self.warmed if self.warmed > -math.inf else None,
        }

    def merge(self, delta: Mapping[str, Any], now: float) -> None:
        """Take in another replica's delta, as it was told at ``now``, which may be some time ago.

        The order in which several replicas' arrive makes no difference but rounding; one replica's arrive in its order.
        """
        if delta["replica"] == self._replica:
            return
        for told in delta["arms"]:
            arm = self.arm(told["operation"], told["target"], told["provider"])
            if arm.pace.weight == 0.0 and told["sums"][0] > 0.0:
                arm.pace.adopt(self.peers_pace(told["operation"], arm))
            arm.absorb(told["sums"], now, told["seen_s"])
        for told in delta["hours"]:
            self.arm(told["operation"], told["target"], told["provider"]).hour.hear(told, now)
        for target, gate in delta["gates"].items():
            self.breaker(target).hear(gate, now)
        self._others[delta["replica"]] = now, delta["in_flight"]
        self._count_others()

    def forget_silent(self, now: float) -> None:
        """Drop what replicas had in flight that are no longer heard of."""
        if now <= self.others_until:
            return
        for replica in [name for name, (told, _) in self._others.items() if now - told > FORGET_REPLICA_S]:
            del self._others[replica]
        self._count_others()

    def _count_others(self) -> None:
        for breaker in self.breakers.values():
            breaker.elsewhere = 0
        for _, busy in self._others.values():
            for target, calls in busy.items():
                self.breaker(target).elsewhere += calls
        oldest = min((told for told, _ in self._others.values()), default=math.inf)
        self.others_until = oldest + FORGET_REPLICA_S


def _median_s(arm: Arm, kind: Kind) -> float:
    return math.exp(arm.pace.m + arm.law.kind_load(kind))
