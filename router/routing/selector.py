"""The selector: one object that chooses targets and learns from what happens. No I/O, no clock, no global state.

    decision = selector.choose(request, now)
    selector.on_start(decision.target, request, now, attempt_id)
    selector.on_end(attempt_id, Outcome.success(), later)

Two more callers than one gateway drive it: the simulator, and the replay of past requests through another policy.
"""

from __future__ import annotations

import math
import random as random_module
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router.errors import Billed, ErrorKind
from router.routing.breaker import CLOSED, Breaker
from router.routing.decision import Decision
from router.routing.failover import Next, next_step, rescue_delay
from router.routing.policy import Ask, Row, normal_cdf, pick
from router.routing.request import Candidate, Infeasible, Outcome, Result, RouteRequest, Sample
from router.routing.settings import Preset, Prior, RoutingSettings
from router.routing.stats import Arm, Flight, SizeLaw, Window, wilson, work_class

NANOS = 1e9
SESSION_S = 900.0
SESSIONS = 10_000


class _Model:
    """What the selector keeps per model: budgets for looking around and for waste, and who was where."""

    __slots__ = ("at", "credit", "last_pick", "median", "sessions", "rate", "since", "spend", "waste")

    def __init__(self) -> None:
        self.credit = 1.0  # requests that may explore
        self.last_pick: float | None = None
        self.since = 0.0
        self.rate = 0.0  # first attempts per second, over ten minutes
        self.median = 0.0  # of the best indices: what a small request is
        self.at = 0.0
        self.spend = 0.0  # nanos, decaying over an hour
        self.waste = 0.0
        self.sessions: dict[str, tuple[str, float]] = {}

    def arrival(self, now: float) -> float:
        """A request comes in; the seconds since the one before."""
        if self.last_pick is None:
            self.last_pick = self.since = now
            return 0.0
        gap = max(now - self.last_pick, 0.0)
        self.last_pick = now
        span = 600.0
        self.rate = self.rate * math.exp(-gap / span) + 1.0 / span
        return gap

    def age(self, now: float) -> None:
        keep = math.exp(-max(0.0, now - self.at) / 3600.0)
        self.spend *= keep
        self.waste *= keep
        self.at = max(now, self.at)


class Selector:
    """Chooses targets by live evidence. Times are seconds on one clock of the caller's; nothing here reads a clock."""

    def __init__(
        self,
        settings: RoutingSettings | None = None,
        priors: Mapping[str, Prior] | None = None,
        random: random_module.Random | None = None,
    ) -> None:
        self.settings = settings or RoutingSettings()
        self._priors = dict(priors or {})
        self._random = random or random_module.Random(0)  # noqa: S311 (a choice, no secret)
        self._arms: dict[str, dict[str, Arm]] = {}  # operation -> target -> Arm
        self._laws: dict[tuple[str, str], SizeLaw] = {}  # by operation and model
        self._breakers: dict[str, Breaker] = {}
        self._providers: dict[str, int] = {}  # in flight, where a provider's concurrency is known
        self._models: dict[str, _Model] = {}
        self._flights: dict[str, Flight] = {}
        self._owners: dict[str, str] = {}  # target -> provider
        self._retries: dict[str, tuple[float, float]] = {}
        self._windows: dict[tuple[str, str, str], Window] = {}

    # -- choosing

    def choose(self, request: RouteRequest, now: float, tried: Sequence[str] = ()) -> Decision:
        """The target for this request's next attempt. ``tried`` are the targets of its earlier attempts.

        Raises Infeasible when the caller's constraints can be met by no candidate. A probe that is handed out is
        reserved for a few seconds; otherwise nothing changes until ``on_start``.
        """
        s = self.settings
        preferences = request.preferences
        preset = self._preset(request)
        model = self._models.get(request.model)
        if model is None:
            model = self._models[request.model] = _Model()
        first = not tried
        rows = self._rows(request, now, tried)
        if (
            preferences.only
            or preferences.ignore
            or preferences.max_cost is not None
            or preferences.max_latency_s is not None
            or preferences.min_success is not None
            or not preferences.allow_fallbacks
        ):
            self._constrain(request, rows, tried)
        explore = follow = False
        if first and len(rows) > 1:
            gap = model.arrival(now)
            share = min(max(s.explore_share, gap / s.explore_every_s), 5 * s.explore_share)
            model.credit = min(model.credit + share, 2.0)
            explore = model.credit >= 1.0 and not preferences.order
            follow = model.credit >= -2.0 and not preferences.order
        name = preferences.sort or s.preset
        draw = self._random.random() if name in ("weighted", "priority") else None
        session = None
        if first and request.session is not None:
            kept = model.sessions.get(request.session)
            if kept is not None and now - kept[1] <= SESSION_S:
                session = kept[0]
        ask = Ask(
            request.model,
            request.operation,
            request.images,
            request.megapixels,
            name,
            preset.value_of_time * NANOS,
            (preset.fail_value if len(tried) + 1 >= s.attempts else preset.failure_aversion) * NANOS,
            first,
            preferences.order,
            session,
            s.sticky,
            explore,
            s.optimism,
            follow,
            model.rate,
            s.change_every_s,
            s.recover_every_s,
            s.probe_every_s,
            s.change_size,
            draw,
        )
        chosen, mode = pick(rows, ask)
        if chosen is None:
            return Decision(ask, rows, None, mode, now, self._retry_after(rows, now))
        if mode == "probe":
            self._breakers[chosen.target].claim(now)
        elif mode == "explore":
            model.credit -= 1.0
        if first and request.session is not None:
            if len(model.sessions) >= SESSIONS:
                model.sessions.clear()
            model.sessions[request.session] = (chosen.target, now)
        return Decision(ask, rows, chosen, mode, now, None)

    def _preset(self, request: RouteRequest) -> Preset:
        presets = self.settings.presets
        return presets.get(request.preferences.sort or self.settings.preset) or presets["balanced"]

    def _rows(self, request: RouteRequest, now: float, tried: Sequence[str]) -> list[Row]:
        arms = self._arms.get(request.operation)
        if arms is None:
            arms = self._arms[request.operation] = {}
        x = (math.log(request.megapixels) if request.megapixels > 0 else 0.0, math.log(request.images))
        work = work_class(request.images, request.megapixels, request.quality)
        s = self.settings
        rows: list[Row] = []
        peers: float | None = None
        for candidate in request.candidates:
            target = candidate.target
            arm = arms.get(target)
            if arm is None:
                arm = self._arm(request.operation, target, candidate.provider)
            breaker = self._breakers[target]
            arm.refresh(now)
            if arm.silence > s.stuck and breaker.state == CLOSED:
                breaker.eject("stuck", now)
                arm.seen = now
                arm.last_fail_s = candidate.limit_s
            m = arm.m
            if arm.weight == 0.0:
                if peers is None:
                    peers = _median([other.m for other in arms.values() if other.weight > 0.0], m)
                m = peers
            sigma = arm.sigma
            ln_median = m + arm.load(x, work)
            mean_s = math.exp(ln_median + 0.5 * sigma * sigma)
            p = arm.p
            fail_s = arm.mean_fail_s(mean_s)
            limit_s = candidate.limit_s
            if request.deadline_s is not None and request.deadline_s < limit_s:
                limit_s = max(request.deadline_s, 1e-3)
            z = (math.log(limit_s) - ln_median) / sigma
            if z < 3.0:
                # Some would be too slow: they end at the limit, and only the quicker ones are successes.
                in_time = max(normal_cdf(z), 1e-3)
                mean_s *= normal_cdf(z - sigma) / in_time
                lost = (1.0 - p) * fail_s + p * (1.0 - in_time) * limit_s
                p *= in_time
                fail_s = lost / (1.0 - p)
            bill = (2.0 * candidate.failure_bills + arm.bills[1]) / (2.0 + arm.bills[0])
            until: float | None = None
            if candidate.excluded is not None:
                why: str | None = candidate.excluded
            elif target in tried:
                why = "tried"
            else:
                limit = s.concurrency.get(target, math.inf) if s.concurrency else math.inf
                why, until = breaker.check(now, limit)
                if (
                    why is None
                    and s.concurrency
                    and self._providers.get(candidate.provider, 0) >= s.concurrency.get(candidate.provider, math.inf)
                ):
                    why = "limit"
            row = Row(
                target,
                candidate.provider,
                candidate.price_nanos,
                p,
                mean_s,
                fail_s,
                bill,
                ln_median,
                sigma,
                arm.successes + arm.failures,
                sigma / math.sqrt(arm.weight + 1.0),
                now - arm.seen if arm.seen is not None else math.inf,
                arm.doubt,
                len(arm.flights),
                why,
                candidate.weight,
                candidate.priority,
            )
            if why == "probe":
                row.well_p = arm.p_long
                row.well_s = math.exp(arm.mu + ln_median - m + 0.5 * sigma * sigma)
                row.fail_s = arm.last_fail_s
            elif arm.shift is not None:
                row.well_s = mean_s * math.exp(arm.mu - m)
            row.until = until
            rows.append(row)
        return rows

    def _constrain(self, request: RouteRequest, rows: Sequence[Row], tried: Sequence[str]) -> None:
        """Exclude what the caller's constraints rule out; Infeasible if that is everything."""
        preferences = request.preferences
        max_cost = float(preferences.max_cost) * NANOS if preferences.max_cost is not None else None
        capable = [row for row, c in zip(rows, request.candidates, strict=True) if c.excluded is None]
        kept: list[Row] = []
        missed: list[tuple[float, str, Row, str]] = []
        for row in capable:
            names = (row.target, row.provider)
            miss: tuple[float, str, str] | None = None
            if preferences.only and not any(name in preferences.only for name in names):
                miss = math.inf, "only", f"is not among {', '.join(preferences.only)}"
            elif any(name in preferences.ignore for name in names):
                miss = math.inf, "ignore", "is to be ignored"
            elif max_cost is not None and row.price > max_cost:
                miss = row.price / max(max_cost, 1.0), "max_cost", f"would cost ${row.price / NANOS:.6g}"
            elif preferences.max_latency_s is not None:
                p95 = math.exp(row.ln_median + 1.645 * row.sigma)
                if p95 > preferences.max_latency_s:
                    miss = p95 / preferences.max_latency_s, "max_latency_s", f"has a p95 of {p95:.1f} s"
            if miss is None and preferences.min_success is not None and row.p < preferences.min_success:
                miss = preferences.min_success / row.p, "min_success", f"succeeds in {row.p:.1%} of attempts"
            if miss is None:
                kept.append(row)
            else:
                missed.append((miss[0], miss[1], row, miss[2]))
                row.why = miss[1]
        if capable and not kept:
            _, name, row, words = min(missed, key=lambda item: item[0])
            raise Infeasible(
                f"no provider meets the routing constraints: the nearest, {row.target}, {words} ({name})",
                row.target,
                name,
            )
        if tried and not preferences.allow_fallbacks and not preferences.order:
            for row in kept:
                row.why = row.why or "no_fallbacks"
        if not preferences.allow_fallbacks and preferences.order:
            for row in kept:
                if row.target not in preferences.order and row.provider not in preferences.order:
                    row.why = row.why or "no_fallbacks"

    def _retry_after(self, rows: Sequence[Row], now: float) -> float | None:
        """Seconds until the first closed candidate opens, if any will; a full one is asked again in a second."""
        waits = [row.until - now for row in rows if row.until is not None and row.why != "tried"]
        waits += [1.0 for row in rows if row.why in ("limit", "full")]
        return max(0.0, min(waits)) if waits else None

    def _arm(self, operation: str, target: str, provider: str) -> Arm:
        arm = self._arms.setdefault(operation, {}).get(target)
        if arm is None:
            arm = self._arms[operation][target] = Arm(
                target, self._law(operation, target), self._priors.get(target), self.settings
            )
            self._owners[target] = provider
            self._breaker(target)
        return arm

    def _law(self, operation: str, target: str) -> SizeLaw:
        return self._laws.setdefault((operation, target.partition("/")[2]), SizeLaw())

    def _breaker(self, target: str) -> Breaker:
        breaker = self._breakers.get(target)
        if breaker is None:
            breaker = self._breakers[target] = Breaker(self.settings, self._random)
        return breaker

    # -- learning

    def on_start(self, target: str, request: RouteRequest, now: float, attempt_id: str) -> None:
        """An attempt leaves for ``target``."""
        candidate = next((c for c in request.candidates if c.target == target), None)
        provider = candidate.provider if candidate is not None else target.partition("/")[0]
        arm = self._arm(request.operation, target, provider)
        x = (math.log(request.megapixels) if request.megapixels > 0 else 0.0, math.log(request.images))
        work = work_class(request.images, request.megapixels, request.quality)
        flight = Flight(arm, now, arm.load(x, work), x, work, candidate.price_nanos if candidate else 0, request.model)
        if arm.weight == 0.0:
            arm.adopt(
                _median([other.m for other in self._arms[request.operation].values() if other.weight > 0.0], arm.mu)
            )
        flight.probe = self._breakers[target].started(attempt_id)
        arm.flights[attempt_id] = flight
        arm.touch()
        self._flights[attempt_id] = flight
        self._providers[provider] = self._providers.get(provider, 0) + 1

    def on_progress(self, attempt_id: str, phase: str, now: float) -> None:
        """The attempt reached a phase: ``submitted``, ``queued`` or ``first_byte``."""
        flight = self._flights.get(attempt_id)
        if flight is not None:
            self._window(flight.arm.target, "", phase).add(max(0.0, now - flight.start), now)

    def on_end(self, attempt_id: str, outcome: Outcome, now: float) -> None:
        """The attempt ended. Unknown ids are ignored, so that it is safe to report twice."""
        flight = self._flights.pop(attempt_id, None)
        if flight is None:
            return
        arm, target = flight.arm, flight.arm.target
        del arm.flights[attempt_id]
        arm.touch()
        self._providers[self._owners[target]] -= 1
        breaker = self._breakers[target]
        breaker.ended(attempt_id)
        latency = outcome.latency_s if outcome.latency_s is not None else max(0.0, now - flight.start)
        cost = outcome.cost_nanos
        match outcome.result:
            case Result.SUCCESS:
                keep = breaker.succeeded(flight.probe)
                if keep is not None:
                    arm.forget(keep)
                arm.on_success(latency, flight.x, flight.work, now, flight.start)
                self._window(target, _class_name(flight), "complete").add(latency, now)
                self._window(target, "", "complete").add(latency, now)
                self._book(flight.model, flight.price if cost is None else cost, 0, now)
            case Result.FAILURE:
                arm.on_failure(
                    latency,
                    now,
                    limited=flight if outcome.timed_out else None,
                    billed=outcome.billed,
                    probe=breaker.state != CLOSED,
                )
                arm.refresh(now)
                breaker.failed(now, flight.probe, arm.p_long, arm.successes, arm.failures)
                lost = cost if cost is not None else (0 if outcome.billed is False else flight.price)
                self._book(flight.model, lost, lost, now)
            case Result.RATE_LIMITED:
                breaker.limited(now, outcome.retry_after_s)
                if flight.probe:
                    breaker.eject(breaker.reason or "rate limit", now)
            case Result.BLOCKED:
                breaker.blocked(now)
            case Result.NEUTRAL | Result.CANCELLED:
                if cost:
                    self._book(flight.model, cost, cost, now)

    def _book(self, model: str, spend: int, waste: int, now: float) -> None:
        entry = self._models.setdefault(model, _Model())
        entry.age(now)
        entry.spend += spend
        entry.waste += waste

    def _window(self, target: str, work: str, phase: str) -> Window:
        return self._windows.setdefault((target, work, phase), Window())

    # -- after a failure

    def after(
        self,
        request: RouteRequest,
        kind: ErrorKind,
        billed: Billed,
        attempt_no: int,
        elapsed_s: float,
        now: float,
        retry_after_s: float | None = None,
        *,
        target: str | None = None,
        tried: Sequence[str] = (),
        refused_elsewhere: bool = False,
    ) -> Next:
        """What to do after a failed attempt: the table of ``failover``, with this moment's budgets.

        ``attempt_no`` counts from 1; ``elapsed_s`` is the time since the client's request came in, held against its
        deadline; ``tried`` are all targets tried so far, ``target`` the one that failed.
        """
        s = self.settings
        target = target or (tried[-1] if tried else "")
        price = next((c.price_nanos for c in request.candidates if c.target == target), 0)
        entry = self._models.setdefault(request.model, _Model())
        entry.age(now)
        affordable = entry.waste + price <= max(s.waste_share * entry.spend, s.waste_floor_calls * price)
        fallbacks = request.preferences.allow_fallbacks or bool(request.preferences.order)
        others = fallbacks and any(
            c.excluded is None and c.target not in tried and c.target != target and self._open(c, now)
            for c in request.candidates
        )
        tokens, at = self._retries.get(target, (3.0, now))
        tokens = min(3.0, tokens + (now - at) / 20.0)
        step = next_step(
            kind,
            billed,
            attempt_no=attempt_no,
            attempts=s.attempts,
            others=others,
            remaining_s=request.deadline_s - elapsed_s if request.deadline_s is not None else None,
            retry_after_s=retry_after_s,
            affordable=affordable,
            retry_allowed=tokens >= 1.0,
            refused_elsewhere=refused_elsewhere,
            draw=self._random.random(),
        )
        if step.action == "retry":
            tokens -= 1.0
        self._retries[target] = tokens, now
        return step

    def _open(self, candidate: Candidate, now: float) -> bool:
        breaker = self._breakers.get(candidate.target)
        return breaker is None or breaker.check(now, math.inf)[0] in (None, "probe", "full")

    def rescue_after(self, decision: Decision, backup: str | None = None) -> float | None:
        """Seconds after which a second copy elsewhere is worth its price; None if never, or nothing stands behind."""
        chosen = decision.candidates[0] if decision.target is not None else None
        others = [c for c in decision.candidates[1:] if c.excluded_by is None and backup in (None, c.target)]
        if chosen is None or not others:
            return None
        second = min(others, key=lambda c: c.score_nanos)
        arm = self._arms[decision.ask.operation][chosen.target]
        return rescue_delay(
            math.log(chosen.p50_s),
            arm.sigma,
            stuck_share=1.0 - arm.p_long,
            backup_mean_s=second.p50_s * 1.2,
            backup_price_nanos=second.price_nanos,
            value_of_time=decision.ask.value_of_time,
        )

    # -- operating

    def drain(self, target: str) -> None:
        """Take a target out by hand; running attempts go on."""
        self._breaker(target).drained = True

    def undrain(self, target: str) -> None:
        self._breaker(target).drained = False

    def warm(self, samples: Iterable[Sample]) -> None:
        """Learn from past attempts, oldest first, so that a restart does not forget."""
        for sample in samples:
            provider = sample.target.partition("/")[0]
            arm = self._arm(sample.operation, sample.target, provider)
            x = (math.log(max(sample.megapixels, 1e-3)), math.log(max(sample.images, 1)))
            work = work_class(sample.images, sample.megapixels, sample.quality)
            if sample.result is Result.SUCCESS:
                arm.on_success(sample.latency_s, x, work, sample.at, sample.at - sample.latency_s)
                self._window(sample.target, "", "complete").add(sample.latency_s, sample.at)
            elif sample.result is Result.FAILURE:
                arm.on_failure(sample.latency_s, sample.at)

    def snapshot(self, now: float) -> dict[str, Any]:
        """The live table, JSON-ready: per target what the router believes and on how much it rests."""
        table: dict[str, Any] = {}
        for operation in sorted(self._arms):
            for target in sorted(self._arms[operation]):
                arm = self._arms[operation][target]
                breaker = self._breakers[target]
                arm.refresh(now)
                low, high = wilson(arm.successes, arm.successes + arm.failures)
                median = math.exp(arm.m)
                why, until = breaker.check(now, math.inf)
                table.setdefault(target, {})[operation] = {
                    "p50_s": round(median, 4),
                    "p95_s": round(median * math.exp(1.6448536269514722 * arm.sigma), 4),
                    "success": round(arm.p, 5),
                    "success_low": round(low, 5),
                    "success_high": round(high, 5),
                    "samples": round(arm.successes + arm.failures, 2),
                    "age_s": round(now - arm.seen, 1) if arm.seen is not None else None,
                    "in_flight": len(arm.flights),
                    "state": "closed" if why is None else breaker.state if breaker.state != CLOSED else why,
                    "reason": why,
                    "until_s": round(until - now, 1) if until is not None else None,
                }
        return table


def _class_name(flight: Flight) -> str:
    return f"{flight.work[0]}/{flight.work[1]}/{flight.work[2] or ''}"


def _median(values: list[float], default: float) -> float:
    if not values:
        return default
    values.sort()
    return values[len(values) // 2]
