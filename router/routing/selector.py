"""The selector: one object that chooses targets and learns from what happens. No I/O, no clock, no global state.

    decision = selector.choose(request, now)
    selector.on_start(decision.target, request, now, attempt_id)
    selector.on_end(attempt_id, Outcome.success(), later)

More than one gateway drives it: so do the simulator, and the replay of past requests through another policy.
"""

from __future__ import annotations

import math
import random as random_module
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

from router.errors import Billed, ErrorKind
from router.records import changed
from router.routing.breaker import CLOSED, PROBE, STUCK
from router.routing.budget import Budget
from router.routing.constraints import constrain, prefer_whole
from router.routing.decision import Decision
from router.routing.failover import Next, next_step, rescue_delay
from router.routing.fleet import Fleet
from router.routing.policy import BY_SHARE, Ask, Row, normal_cdf, pick
from router.routing.request import LIMIT_S, Candidate, Infeasible, Outcome, Result, RouteRequest, Sample
from router.routing.settings import Prior, RoutingSettings
from router.routing.stats import FAIL_SAMPLES, Arm, Flight
from router.routing.work import SizeLaw, Work

NANOS = 1e9
SESSION_S = 900.0
SESSIONS = 10_000
SURE_IN_TIME = 3.0  # standard deviations between the median and the limit from which the limit does not matter
BILL_SAMPLES = 2.0  # what the stated billing facts count as
SEEMS_STUCK = 0.5  # that a call at a target that is ejected as stuck never ends, whatever its own age
LEAST_SILENT_S = 5.0  # such a call has so long all the same: a quick target may be late for once
RETRIES = 3.0  # of the same target that can be saved up
BILL_UNKNOWN = "bill_unknown"  # why a target may not take a rescue


class Selector:
    """Chooses targets by live evidence. Times are seconds on one clock of the caller's; nothing here reads a clock."""

    def __init__(
        self,
        settings: RoutingSettings | None = None,
        priors: Mapping[str, Prior] | None = None,
        random: random_module.Random | None = None,
        replica: str = "",
    ) -> None:
        """``priors`` by target. ``random`` is the only source of chance; ``replica`` names this one among several."""
        self.settings = settings or RoutingSettings()
        self._random = random or random_module.Random(0)  # noqa: S311 - a choice, no secret
        self._fleet = Fleet(self.settings, dict(priors or {}), self._random, replica)
        self._budgets: dict[str, Budget] = {}  # by model
        self._sessions: dict[tuple[str, str], tuple[str, float]] = {}  # by model and session: target and when
        self._flights: dict[str, Flight] = {}  # by attempt id
        self._retries: dict[str, tuple[float, float]] = {}  # by target: retries left, and when that was
        self._reserved: dict[str, tuple[str, int]] = {}  # by attempt id of a rescue: model, and nanos held for it
        self._stuck: list[str] = []  # attempt ids of calls at targets that were just found stuck

    # -- choosing

    def choose(self, request: RouteRequest, now: float, tried: Sequence[str] = (), elapsed_s: float = 0.0) -> Decision:
        """The target for this request's next attempt.

        ``tried`` are the targets of its earlier attempts, ``elapsed_s`` the part of its deadline that is gone.
        Raises Infeasible when the caller's constraints can be met by no candidate. A probe that is handed out is
        reserved for a few seconds, and a look is paid for; otherwise nothing changes until ``on_start``.
        """
        s = self.settings
        preferences = request.preferences
        name = preferences.sort or s.preset
        preset = s.presets.get(name)
        if preset is None:
            preset = s.presets["balanced"]
        budget = self._budget(request.model)
        first = not tried
        if first:
            budget.arrival(now)
        rows = self._rows(request, now, tried, elapsed_s)
        if preferences.constrains or [c for c in request.candidates if c.limits or c.rank]:
            constrain(request, rows, tried)
        if request.lesser:
            prefer_whole(request, rows)
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
            self._session(request, now) if first and request.session is not None else None,
            s.sticky,
            self._random.random() if name in BY_SHARE else None,
            budget.toll if first and not preferences.order else math.inf,
            s.optimism,
            budget.typical,
            budget.rate,
            s.change_every_s,
            s.recover_every_s,
            s.probe_every_s,
        )
        chosen, mode = pick(rows, ask)
        if chosen is None:
            return Decision(ask, rows, None, mode, now, _retry_after(rows, now))
        if first:
            budget.chosen(chosen.index, chosen.price)
            if mode == "probe" or mode == "explore":
                budget.look(chosen.price)
            if request.session is not None:
                self._remember(request, chosen.target, now)
        if chosen.why == PROBE:
            self._fleet.breakers[chosen.target].claim(now)
        return Decision(ask, rows, chosen, mode, now, None)

    def _rows(self, request: RouteRequest, now: float, tried: Sequence[str], elapsed_s: float) -> list[Row]:
        """Every candidate with what is believed of it for this request's work.

        The hot path: whatever does not depend on the request is kept in the arms between events.
        """
        fleet = self._fleet
        if now > fleet.others_until:
            fleet.forget_silent(now)
        operation = request.operation
        arms = fleet.arms.get(operation, {})
        concurrency = self.settings.concurrency
        stuck = self.settings.stuck
        left_s = math.inf if request.deadline_s is None else max(request.deadline_s - elapsed_s, 1e-3)
        work = Work.of(request.images, request.megapixels, request.quality)
        law: SizeLaw | None = None
        load = grows = limit_s = ln_limit = 0.0
        rows: list[Row] = []
        for candidate in request.candidates:
            target = candidate.target
            arm = arms.get(target)
            if arm is None:
                arm = fleet.arm(operation, target, candidate.provider)
                arms = fleet.arms[operation]
            breaker = arm.breaker
            if now >= arm.fresh_until:
                arm.refresh(now)
                if arm.silence > stuck and breaker.state == CLOSED:
                    self._eject_stuck(arm, now)
                if arm.pace.weight == 0.0:
                    arm.pace.suppose(fleet.peers_pace(operation, arm))
            pace = arm.pace
            if arm.law is not law:
                law = arm.law
                load = law.load(work if candidate.megapixels is None else _work(request, candidate))
                grows = math.exp(load)
            reliability = arm.reliability
            p, sigma = reliability.p, pace.sigma
            ln_median = pace.m + load
            mean_s = pace.mean_s * grows
            # A failure takes as long as the recent ones did, or as it usually does.
            fail_s = mean_s * (FAIL_SAMPLES * arm.fails_after + arm.fail_shares) / (FAIL_SAMPLES + arm.failures)
            limit = candidate.limit_s
            if limit > left_s:
                limit = left_s
            if fail_s > limit:
                fail_s = limit
            if limit != limit_s:
                limit_s, ln_limit = limit, math.log(limit)
            if ln_limit - ln_median < SURE_IN_TIME * sigma:
                # Some would be too slow: they end at the limit as failures, and the successes are the quicker ones.
                z = (ln_limit - ln_median) / sigma
                in_time = max(normal_cdf(z), 1e-3)
                mean_s *= normal_cdf(z - sigma) / in_time
                lost_s = (1.0 - p) * fail_s + p * (1.0 - in_time) * limit_s
                p *= in_time
                fail_s = lost_s / (1.0 - p)
            in_flight = breaker.in_flight
            crowd = in_flight + breaker.elsewhere + 1
            if crowd > breaker.proven:
                # Nobody knows whether it can do so many at once: reckon with up to twice the time.
                mean_s *= min(crowd / breaker.proven, 2.0)
            why = candidate.excluded
            until: float | None = None
            if why is not None:
                pass
            elif target in tried:
                why = "tried"
            elif concurrency or breaker.watched:
                why, until = breaker.check(now, concurrency.get(target, math.inf))
                if why is None and self._provider_full(candidate.provider):
                    why = "limit"
            failures, billed = arm.bills
            row = Row(
                target,
                candidate.provider,
                candidate.price_nanos,
                p,
                mean_s,
                fail_s,
                (BILL_SAMPLES * candidate.failure_bills + billed) / (BILL_SAMPLES + failures),
                ln_median,
                sigma,
                pace.sd,
                arm.successes + arm.failures,
                now - arm.seen,
                pace.off,
                pace.off_sd,
                in_flight,
                why,
                candidate.weight,
                candidate.priority,
                limit_s,
                reliability.assumed,
                reliability.ill,
                reliability.well_p,
                mean_s * pace.well,
            )
            if why is not None:
                row.until = until
                if why == PROBE:
                    row.fail_s = arm.last_fail_s
            rows.append(row)
        return rows

    def _provider_full(self, provider: str) -> bool:
        limit = self.settings.concurrency.get(provider)
        return limit is not None and self._fleet.in_flight.get(provider, 0) >= limit

    def _budget(self, model: str) -> Budget:
        budget = self._budgets.get(model)
        if budget is None:
            budget = self._budgets[model] = Budget(self.settings)
        return budget

    def _session(self, request: RouteRequest, now: float) -> str | None:
        target, at = self._sessions.get((request.model, request.session or ""), (None, -math.inf))
        return target if now - at <= SESSION_S else None

    def _remember(self, request: RouteRequest, target: str, now: float) -> None:
        key = request.model, request.session or ""
        self._sessions.pop(key, None)
        if len(self._sessions) >= SESSIONS:
            del self._sessions[next(iter(self._sessions))]  # the one that was heard of longest ago
        self._sessions[key] = target, now

    # -- learning

    def on_start(self, target: str, request: RouteRequest, now: float, attempt_id: str) -> None:
        """An attempt leaves for ``target``."""
        fleet = self._fleet
        provider, price, work, limit_s = target.partition("/")[0], 0, _work(request, None), LIMIT_S
        for candidate in request.candidates:
            if candidate.target == target:
                provider, price, work = candidate.provider, candidate.price_nanos, _work(request, candidate)
                limit_s = candidate.limit_s
                break
        arm = fleet.arm(request.operation, target, provider)
        if arm.pace.weight == 0.0:
            arm.pace.adopt(fleet.peers_pace(request.operation, arm))
        flight = Flight(arm, now, work, price, request.model, limit_s)
        fleet.started(flight, attempt_id)
        self._flights[attempt_id] = flight

    def on_progress(self, attempt_id: str, phase: str, now: float) -> None:
        """The attempt reached a phase at ``now``: ``submitted`` (a job was accepted), ``queued`` (it left the
        provider's queue) or ``first_byte``. For people only; the choice rests on how long whole calls take."""
        flight = self._flights.get(attempt_id)
        if flight is not None:
            flight.arm.hour.reached(phase, now - flight.start, now)

    def on_end(self, attempt_id: str, outcome: Outcome, now: float) -> None:
        """The attempt ended. An id that is not running is ignored, so that it is safe to report twice."""
        flight = self._flights.pop(attempt_id, None)
        if self._reserved and (held := self._reserved.pop(attempt_id, None)) is not None:
            self._budget(held[0]).release(held[1], started=flight is not None)
        if flight is None:
            return
        fleet, arm = self._fleet, flight.arm
        breaker = arm.breaker
        fleet.ended(flight, attempt_id)
        seconds = outcome.latency_s if outcome.latency_s is not None else now - flight.start
        arm.hour.ended(outcome.result, seconds, flight.work, now)
        cost = outcome.cost_nanos
        match outcome.result:
            case Result.SUCCESS:
                keep = breaker.succeeded(flight.probe, flight.busy, now)
                if keep is not None:
                    arm.recovered(keep)
                arm.on_success(seconds, flight.work, flight.start, now)
                self._budget(flight.model).book(flight.price if cost is None else cost, 0.0, now)
            case Result.FAILURE:
                self._failed(flight, seconds, outcome, now)
                lost = cost if cost is not None else 0 if outcome.billed is False else flight.price
                self._budget(flight.model).book(lost, lost, now)
            case Result.RATE_LIMITED:
                breaker.limited(flight.probe, outcome.retry_after_s, now)
            case Result.BLOCKED:
                breaker.blocked(now)
            case Result.CANCELLED:
                if (flight.probe and not outcome.unwanted) or arm.on_limit(seconds, flight, now) > 0.5:
                    self._failed(flight, seconds, outcome, now)
                lost = flight.price if cost is None else cost
                self._budget(flight.model).book(lost, 0.0 if outcome.unwanted else lost, now)
            case Result.REFUSED | Result.NEUTRAL:
                if cost:
                    self._budget(flight.model).book(cost, cost, now)

    def _failed(self, flight: Flight, seconds: float, outcome: Outcome, now: float) -> None:
        arm = flight.arm
        breaker = arm.breaker
        if outcome.timed_out and arm.on_limit(seconds, flight, now) < 0.5 and not flight.probe:
            return  # slow, as its work explains, and cut short by the limit
        arm.on_failure(seconds, flight.load, now, billed=outcome.billed, news=breaker.state == CLOSED)
        arm.refresh(now)
        breaker.failed(flight.probe, arm.reliability.well_p, arm.successes, arm.failures, now)

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
        unsent: int = 0,
        refused_elsewhere: bool = False,
    ) -> Next:
        """What to do after a failed attempt: the table of ``failover``, with this moment's budgets.

        ``attempt_no`` counts from 1, ``unsent`` of them never reached a provider; ``elapsed_s`` is the time since the
        client's request came in, held against its deadline; ``tried`` are all targets tried so far, ``target`` the one
        that failed.
        """
        s = self.settings
        target = target or (tried[-1] if tried else "")
        price = next((c.price_nanos for c in request.candidates if c.target == target), 0)
        others = self._others(request, now, (*tried, target), elapsed_s)
        left, at = self._retries.get(target, (RETRIES, now))
        left = min(RETRIES, left + max(now - at, 0.0) / s.retry_every_s)
        step = next_step(
            kind,
            billed,
            attempt_no=attempt_no,
            unsent=unsent,
            attempts=s.attempts,
            others=others,
            remaining_s=request.deadline_s - elapsed_s if request.deadline_s is not None else None,
            retry_after_s=retry_after_s,
            retry_after_cap_s=s.retry_after_cap_s,
            affordable=self._budget(request.model).affords(price, now),
            retry_allowed=left >= 1.0,
            refused_elsewhere=refused_elsewhere,
            draw=self._random.random(),
        )
        self._retries[target] = left - (step.action == "retry" and kind is not ErrorKind.NOT_SENT), now
        return step

    def _others(self, request: RouteRequest, now: float, tried: Sequence[str], elapsed_s: float) -> bool:
        """Whether another target stands ready that the constraints allow."""
        rows = self._rows(request, now, tried, elapsed_s)
        try:
            constrain(request, rows, tried)
        except Infeasible:
            return False
        return any(row.why in (None, PROBE, "full") for row in rows)

    def rescue_after(
        self, request: RouteRequest, decision: Decision, now: float, *, wanted: bool = False
    ) -> float | None:
        """Seconds of silence after which a second copy elsewhere is worth its price.

        None if it never is, if nothing stands behind the chosen target, if nobody knows what the loser would cost, if
        the budgets of rescues and of waste are spent, or if it is neither ``wanted`` for this request nor by
        ``settings.rescue``. A call at a target that is ejected as stuck is rescued in any case while the budgets last,
        its probes among them: it would be repeated elsewhere once it is given up, only much later.
        """
        chosen = decision.chosen
        if chosen is None:
            return None
        hangs = self._hangs(chosen.target)
        if hangs:
            stuck = SEEMS_STUCK
        elif wanted or self.settings.rescue:
            stuck = self._fleet.arm(decision.ask.operation, chosen.target, chosen.provider).stalls
        else:
            return None
        unsure = self._unsure(request, decision)
        second = decision.second(unsure)
        if second is None or chosen.target in unsure:
            return None
        if not self._budget(decision.ask.model).affords_rescue(second.price, now):
            return None
        delay_s = rescue_delay(
            chosen.ln_median,
            chosen.sigma,
            stuck_share=stuck,
            backup_mean_s=second.mean_s,
            backup_price_nanos=second.price,
            value_of_time=decision.ask.value_of_time,
            limit_s=chosen.limit_s,
        )
        return delay_s if delay_s is None or not hangs else max(delay_s, LEAST_SILENT_S)

    def rescue(
        self,
        request: RouteRequest,
        first: Decision,
        now: float,
        tried: Sequence[str],
        elapsed_s: float,
        attempt_id: str,
    ) -> Decision | None:
        """The choice of a second copy's target, beside the silent one that ``first`` chose, the last of ``tried``.

        None if no other is in good health or the budgets do not cover it. Its price is held in the budget until
        ``on_end(attempt_id)``, so that a hang of many calls does not start more than the budget has.
        """
        unsure = self._unsure(request, first)
        if unsure:
            candidates = tuple(
                changed(c, excluded=c.excluded or BILL_UNKNOWN) if c.target in unsure else c for c in request.candidates
            )
            request = changed(request, candidates=candidates)
        try:
            decision = self.choose(request, now, tried, elapsed_s)
        except Infeasible:
            return None
        if decision.chosen is None or decision.mode == "panic":
            return None
        budget = self._budget(request.model)
        if not budget.affords_rescue(decision.chosen.price, now):
            return None
        budget.rescue(decision.chosen.price)
        self._reserved[attempt_id] = request.model, decision.chosen.price
        return decision

    def stuck(self, now: float) -> Sequence[str]:
        """Attempt ids of the calls that run at targets found stuck, each once.

        Found so now, by a choice, or by another replica since this was last asked. What a second copy of a call is
        worth, ``rescue_after`` says.
        """
        for _, arm in self._fleet.every():
            if arm.flights and arm.breaker.state == CLOSED:
                arm.refresh(now)
                if arm.silence > self.settings.stuck:
                    self._eject_stuck(arm, now)
        calls, self._stuck = self._stuck, []
        return [attempt_id for attempt_id in calls if attempt_id in self._flights]

    def _hangs(self, target: str) -> bool:
        """Whether it is ejected as stuck: its calls most likely never end."""
        breaker = self._fleet.breaker(target)
        return breaker.reason == STUCK and breaker.state != CLOSED

    def _eject_stuck(self, arm: Arm, now: float) -> None:
        arm.breaker.eject(STUCK, now)
        arm.seen, arm.last_fail_s = now, max(flight.limit_s for flight in arm.flights.values())
        self._stuck += self._running_at(arm.target)

    def _running_at(self, target: str) -> list[str]:
        return [attempt_id for attempt_id, flight in self._flights.items() if flight.arm.target == target]

    def _unsure(self, request: RouteRequest, first: Decision) -> frozenset[str]:
        """Targets that must have no part in a rescue: what the call that loses costs there, nobody knows."""
        if self.settings.rescue_unknown_bills or self._hangs(first.target or ""):
            return frozenset()
        return frozenset(candidate.target for candidate in request.candidates if not candidate.bills_known)

    # -- operating

    def drain(self, target: str) -> None:
        """Take a target out by hand; running attempts go on."""
        self._fleet.breaker(target).drain(True)

    def undrain(self, target: str) -> None:
        """Let it in again; a pause after a refused credential or an empty account is over as well."""
        breaker = self._fleet.breaker(target)
        breaker.drain(False)
        breaker.unblock()

    def warm(self, samples: Iterable[Sample], now: float) -> None:
        """Learn from past attempts, oldest first, so that a restart does not forget. Other replicas are not told:
        what was worth telling was told when it happened.

        What is dated later than ``now``, by a clock that was set back since, counts as having just happened: evidence
        from the future would not age, and hide what comes until then.
        """
        for sample in samples:
            at = min(sample.at, now)
            arm = self._fleet.arm(sample.operation, sample.target, sample.target.partition("/")[0])
            work = Work.of(sample.images, sample.megapixels, sample.quality)
            arm.refresh(at)  # as it was before every request: a sample is judged by what was believed then
            arm.hour.ended(sample.result, sample.latency_s, work, at)
            if sample.result is Result.SUCCESS:
                if arm.pace.weight == 0.0:
                    arm.pace.adopt(self._fleet.peers_pace(sample.operation, arm))
                arm.on_success(sample.latency_s, work, at - sample.latency_s, at)
            elif sample.result is Result.FAILURE:
                arm.on_failure(sample.latency_s, arm.law.load(work), at)
            self._fleet.warmed = max(self._fleet.warmed, at)
        for _, arm in self._fleet.every():
            arm.told()
            arm.hour.told(self._fleet.warmed)

    def snapshot(self, now: float) -> dict[str, Any]:
        """The live table, JSON-ready: per target and operation what the router believes, and on how much it rests."""
        return self._fleet.snapshot(now)

    def hour(self, operation: str, target: str, now: float) -> Generator[None, None, dict[str, Any]]:
        """What the last hour measured of a target in that table, JSON-ready: for people, and returned in steps, since
        as a whole it takes milliseconds. Between them the selector may be used."""
        return self._fleet.hour(operation, target, now)

    def on_news(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called when something has happened that other replicas should hear of at once: a target was
        ejected or let in again, or said when to ask again. It must not call back."""
        self._fleet.on_news = tell

    def others(self, now: float) -> int:
        """How many other replicas are heard of."""
        return self._fleet.others(now)

    def delta(self, now: float) -> dict[str, Any]:
        """What other replicas should know, JSON-ready: everything learnt since the last call."""
        return self._fleet.delta(now)

    def merge(self, delta: Mapping[str, Any], now: float) -> None:
        """Take in what another replica's ``delta`` said at ``now``. Its own comes back without effect."""
        known = [target for target in delta["gates"] if self._hangs(target)]
        self._fleet.merge(delta, now)
        for target in delta["gates"]:
            if target not in known and self._hangs(target):
                self._stuck += self._running_at(target)


def _work(request: RouteRequest, candidate: Candidate | None) -> Work:
    """What this candidate has to do for the request."""
    its = candidate.megapixels if candidate is not None else None
    return Work.of(request.images, request.megapixels if its is None else its, request.quality)


def _retry_after(rows: Sequence[Row], now: float) -> float | None:
    """Seconds until the first closed candidate opens, if one will; a full one is worth asking in a second."""
    waits = [row.until - now for row in rows if row.until is not None]
    waits += [1.0 for row in rows if row.why in ("limit", "full")]
    return max(0.0, min(waits)) if waits else None
