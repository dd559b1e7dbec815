"""What past requests would have cost, and how long they would have taken, under another policy, price book or set of
providers.

The ledger's requests are played again in the order of their time against the real ``Selector``. Where it chooses the
target that was used, what happened then happens again. Where it chooses another, that target's own recorded outcome
is taken, drawn from those nearest in time for the same kind of work: its slow hours stay slow. What no record says is
guessed from the selector's belief, and counted, so that a reader knows how much of the answer is a guess.
"""

from __future__ import annotations

import bisect
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeVar

from pricing import ImageSize
from router import booking
from router.blob import Blob
from router.errors import CONSEQUENCES, Billed, ErrorKind, ProviderError, RequestError
from router.ledger import Opening, Settlement, State
from router.offers import Offers
from router.records import record
from router.routing import Candidate, Decision, Infeasible, Outcome, RouteRequest, Selector, unpack
from router.routing.work import Work
from router.types import ImageRequest, InputImage, Operation, Preferences

T = TypeVar("T", int, float)

NEAREST = 20  # recorded outcomes that one is drawn from
OF_CLASS = 5  # with fewer of the same work class, those of the whole operation count
_BILLED = {State.SETTLED: Billed.YES, State.VOID: Billed.NO, State.UNKNOWN: Billed.MAYBE}
# Why a candidate was out at the time, where the selector finds out by itself. Everything else lies in the request.
_OF_THE_MOMENT = ("ejected", "probe", "full", "blocked", "limit", "rate_limited", "tried")


@record
class Seen:
    """One recorded attempt: how it ended, and what it cost beside what had been expected."""

    target: str
    operation: str
    work: str  # class of work
    at: float  # seconds since the epoch, when it left
    latency_s: float
    kind: ErrorKind | None  # None: a success
    billed: Billed
    cost_nanos: int
    predicted_nanos: int

    def cost_at(self, price_nanos: int) -> int:
        """The same outcome at another price: it deviates from what is expected by the same share. Exact, half even."""
        if self.predicted_nanos == 0:
            return self.cost_nanos
        quotient, rest = divmod(price_nanos * self.cost_nanos, self.predicted_nanos)
        up = 2 * rest > self.predicted_nanos or (2 * rest == self.predicted_nanos and quotient % 2)
        return quotient + bool(up)


@record
class Past:
    """One recorded request, ready to be routed again."""

    at: float  # seconds since the epoch, when its first attempt left
    route: RouteRequest
    attempts: tuple[Seen, ...]
    delivered: bool
    waited_s: float
    currency: str
    mode: str  # why its first target was chosen

    @property
    def own_fault(self) -> Seen | None:
        """What became of it, if that was its own doing: refused content or a bad parameter, wherever it goes."""
        last = self.attempts[-1]
        return last if last.kind in (ErrorKind.REFUSED, ErrorKind.BAD_REQUEST) else None


@dataclass(slots=True)
class Side:
    """One side of the comparison."""

    requests: int = 0
    delivered: int = 0
    failed: int = 0  # requests that got no picture, but for those whose own fault it was
    refused: int = 0
    attempts: int = 0
    guessed: int = 0  # attempts whose outcome no record tells
    looks: int = 0  # first choices that were explorations or probes
    money_nanos: int = 0
    predicted_nanos: int = 0  # what the first choices were expected to cost
    seconds: list[float] = field(default_factory=list)  # that clients waited for their pictures
    firsts: Counter[str] = field(default_factory=Counter)  # first choices by target

    def quantile(self, q: float) -> float | None:
        """Seconds by nearest rank; None without any."""
        if not self.seconds:
            return None
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, max(0, -int(-q * len(ordered) // 1) - 1))]

    def close(self, delivered: bool, refused: bool, waited_s: float) -> None:
        self.requests += 1
        self.refused += refused
        self.delivered += delivered
        self.failed += not (delivered or refused)
        if delivered:
            self.seconds.append(waited_s)


# --- reading the record ----------------------------------------------------------------------------------------------


class History:
    """The requests of a period, by their attempts in the ledger's order.

    ``offers`` makes the candidates anew, for other price books or providers; None: those that were recorded, at the
    prices of their day. ``policy`` routes every request, those that named one included; None: as each was.
    """

    def __init__(
        self,
        *,
        timeout_s: float,
        offers: Offers | None = None,
        policy: str | None = None,
        only: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> None:
        self._timeout_s = timeout_s
        self._offers = offers
        self._policy = policy
        self._only = frozenset(only)
        self._ignore = frozenset(ignore)
        self.left_out: Counter[str] = Counter()  # requests that cannot be played again, by reason
        self.requests = 0  # of which anything was read
        self.outcomes: Counter[str] = Counter()  # recorded by target
        self._seen: dict[tuple[str, str], list[Seen]] = defaultdict(list)
        self._times: dict[tuple[str, str], list[float]] = {}

    def read(self, attempts: Iterable[tuple[Opening, Settlement]]) -> list[Past]:
        """The requests in the order of their time; what is left out is counted."""
        groups: dict[str, list[tuple[Opening, Settlement]]] = {}
        slim: dict[str, tuple[RouteRequest, str] | None] = {}
        for opening, ended in attempts:
            try:
                decision = unpack(opening.decision)
                chosen = decision.chosen
                price = chosen.price if chosen is not None else opening.estimate_nanos
                if opening.request_id not in slim:
                    slim[opening.request_id] = self._route(opening, decision), decision.mode
            except (KeyError, TypeError, ValueError, IndexError):
                slim[opening.request_id] = None  # of an older router, or not a decision
                continue
            except RequestError:
                slim[opening.request_id] = None
                self.left_out["nobody can serve it there"] += 1
                continue
            # The decision is large, and has said what it had to say.
            opening = replace(opening, decision={"price": price}, price={})
            groups.setdefault(opening.request_id, []).append((opening, ended))
        past = []
        for request_id, group in groups.items():
            known = slim[request_id]
            if known is None:
                continue
            found = self._past(group, *known)
            if found is not None:
                past.append(found)
        self.left_out["decision not readable"] += (
            sum(known is None for known in slim.values()) - self.left_out["nobody can serve it there"]
        )
        self.requests = len(slim)
        common = Counter(one.currency for one in past).most_common(1)
        kept = [one for one in past if one.currency == common[0][0]]
        self.left_out["in another currency"] += len(past) - len(kept)
        self.left_out = +self.left_out
        for outcomes in self._seen.values():
            outcomes.sort(key=lambda seen: seen.at)
        self._times = {key: [seen.at for seen in outcomes] for key, outcomes in self._seen.items()}
        return sorted(kept, key=lambda one: one.at)

    def draw(self, target: str, request: RouteRequest, at: float, random: Random) -> Seen | None:
        """An outcome of this target for such work near this time; None if none was recorded."""
        work = Work.of(request.images, request.megapixels, request.quality).name
        for key, least in ((f"{request.operation} {work}", OF_CLASS), (request.operation, 1)):
            outcomes = self._seen.get((target, key), ())
            if len(outcomes) >= least:
                middle = bisect.bisect_left(self._times[target, key], at)
                first = max(0, min(middle - NEAREST // 2, len(outcomes) - NEAREST))
                return random.choice(outcomes[first : first + NEAREST])
        return None

    def _past(self, group: list[tuple[Opening, Settlement]], asked: RouteRequest, mode: str) -> Past | None:
        group.sort(key=lambda pair: pair[0].attempt_no)
        seen = tuple(_seen(opening, ended, asked) for opening, ended in group)
        for one in seen:
            if one.kind is None or CONSEQUENCES[one.kind].health != "neutral":
                self.outcomes[one.target] += 1
                for key in (one.operation, f"{one.operation} {one.work}"):
                    self._seen[one.target, key].append(one)
        delivered = next((ended for _, ended in group if ended.delivered), None)
        if delivered is None and seen[-1].kind is ErrorKind.CANCELLED:
            self.left_out["given up by the client or the router"] += 1
            return None
        began, ended_at = group[0][0].opened_at, (delivered or group[-1][1]).recorded_at
        return Past(
            at=began.timestamp(),
            route=asked,
            attempts=seen,
            delivered=delivered is not None,
            waited_s=max(0.0, (ended_at - began).total_seconds()),
            currency=group[0][1].currency,
            mode=mode,
        )

    def _route(self, opening: Opening, decision: Decision) -> RouteRequest:
        if self._offers is not None:
            asked = self._offered(opening, self._offers, {row.target: row.why for row in decision.rows})
        else:
            asked = _recorded(opening, decision, self._timeout_s)
        sort = self._policy or decision.ask.preset
        candidates = tuple(
            replace(one, excluded=one.excluded or self._shut(one.target, one.provider)) for one in asked.candidates
        )
        wanted = Preferences(sort=sort, order=decision.ask.order if self._policy is None else ())
        return replace(asked, preferences=wanted, candidates=candidates)

    def _shut(self, target: str, provider: str) -> str | None:
        names = {target, provider}
        if self._only and not names & self._only:
            return "only"
        return "ignore" if names & self._ignore else None

    def _offered(self, opening: Opening, offers: Offers, why: Mapping[str, str | None]) -> RouteRequest:
        request = _asked(opening, offers)
        asked = offers.order(request, opening.opened_at).routed(request, self._timeout_s)
        # What the caller had ruled out stays so.
        return replace(
            asked,
            candidates=tuple(
                replace(one, excluded=one.excluded or _lasting(why.get(one.target))) for one in asked.candidates
            ),
        )


def _lasting(why: str | None) -> str | None:
    return None if why is None or why.partition(":")[0] in _OF_THE_MOMENT or why == "fallback" else why


def _recorded(opening: Opening, decision: Decision, timeout_s: float) -> RouteRequest:
    """The request as it was routed: its candidates and their prices are in its decision."""
    return RouteRequest(
        model=opening.model,
        operation=opening.operation,
        candidates=tuple(
            Candidate(
                row.target,
                row.provider,
                row.price,
                row.price,
                excluded=_lasting(row.why),
                weight=row.weight,
                priority=row.priority,
                rank=int(row.why == "fallback"),
                failure_bills=row.bill,
                limit_s=row.limit_s,
            )
            for row in decision.rows
        ),
        images=decision.ask.images,
        megapixels=decision.ask.megapixels,
        quality=opening.expected.get("attributes", {}).get("quality"),
        deadline_s=timeout_s,
        session=opening.user,
    )


def _asked(opening: Opening, offers: Offers) -> ImageRequest:
    """The client's request as far as the ledger tells: not its mask, background or provider's own fields."""
    expected = opening.expected
    calls = max(1, expected.get("requests", 1))
    inputs = expected["inputs"][: len(expected["inputs"]) // calls]
    quality = expected.get("attributes", {}).get("quality")
    reached = offers.reach(opening.target)
    if reached is not None and quality is not None:  # from the provider's word back to OpenAI's
        quality = next((ours for ours, theirs in reached[0].qualities.items() if str(theirs) == quality), quality)
    return ImageRequest(
        operation=Operation(opening.operation),
        model=opening.requested_model,
        prompt="x" * (expected.get("prompt_characters", 0) // calls),
        n=opening.images,
        size=ImageSize.parse(expected["size"]) if expected.get("size") else None,
        quality=quality,
        images=tuple(InputImage(Blob(), "png", ImageSize.parse(size) if size else None) for size in inputs),
        stream=bool(expected.get("partial_images")),
        partial_images=expected.get("partial_images", 0),
        user=opening.user,
    )


def _seen(opening: Opening, ended: Settlement, asked: RouteRequest) -> Seen:
    return Seen(
        target=opening.target,
        operation=opening.operation,
        work=Work.of(asked.images, asked.megapixels, asked.quality).name,
        at=opening.opened_at.timestamp(),
        latency_s=(ended.latency_ms or 0) / 1000,
        kind=ErrorKind(ended.error_kind) if ended.error_kind else None,
        billed=_BILLED[ended.state],
        cost_nanos=ended.amount_nanos,
        predicted_nanos=opening.decision["price"],
    )


# --- playing it again ------------------------------------------------------------------------------------------------


def recorded(past: Iterable[Past]) -> Side:
    """What the ledger says of the requests."""
    side = Side()
    for one in past:
        side.attempts += len(one.attempts)
        side.money_nanos += sum(seen.cost_nanos for seen in one.attempts)
        side.predicted_nanos += one.attempts[0].predicted_nanos
        side.firsts[one.attempts[0].target] += 1
        side.looks += one.mode in ("explore", "probe")
        side.close(one.delivered, one.own_fault is not None, one.waited_s)
    return side


@dataclass(slots=True)
class _Play:
    """One request being played."""

    past: Past
    left: list[Seen]  # its own attempts, each of which happens again at most once
    number: int = 0  # of the attempt
    again: str | None = None  # target to be tried once more
    tried: list[str] = field(default_factory=list)


class Replay:
    """One run of the requests through one selector, which learns from what it chooses."""

    def __init__(self, history: History, selector: Selector, random: Random) -> None:
        self._history = history
        self._selector = selector
        self._random = random
        self._side = Side()
        self._events: list[tuple[float, int, _Play, tuple[str, Seen, int] | None]] = []
        self._serial = 0

    def run(self, past: Sequence[Past], tick: Callable[[], object] = lambda: None) -> Side:
        """The other side of the comparison. ``tick`` is called once per request."""
        for one in past:
            self._push(one.at, _Play(one, list(one.attempts)), None)
        while self._events:
            now, _, play, running = heapq.heappop(self._events)
            if running is not None:
                self._ended(play, now, *running)
            else:
                if play.number == 0:
                    tick()
                self._attempt(play, now)
        return self._side

    def _push(self, at: float, play: _Play, running: tuple[str, Seen, int] | None) -> None:
        self._serial += 1
        heapq.heappush(self._events, (at, self._serial, play, running))

    def _attempt(self, play: _Play, now: float) -> None:
        past, side = play.past, self._side
        if play.again is not None:
            candidate = next(one for one in past.route.candidates if one.target == play.again)
            guess = Seen(play.again, past.route.operation, "", now, 1.0, ErrorKind.NOT_SENT, Billed.NO, 0, 0)
            play.again = None
            self._start(play, candidate.target, candidate.price_nanos, guess, now)
            return
        try:
            decision = self._selector.choose(past.route, now, tuple(play.tried), now - past.at)
        except Infeasible:
            side.close(False, False, now - past.at)
            return
        row = decision.chosen
        if row is None:
            side.close(False, False, now - past.at)
            return
        if play.number == 0:
            side.firsts[row.target] += 1
            side.predicted_nanos += row.price
            side.looks += decision.mode in ("explore", "probe")
        good = self._random.random() < row.p
        billed = Billed.YES if good or self._random.random() < row.bill else Billed.NO
        guess = Seen(
            row.target,
            past.route.operation,
            "",
            now,
            row.mean_s if good else row.fail_s,
            None if good else ErrorKind.SERVER_ERROR,
            billed,
            row.price if billed is Billed.YES else 0,
            row.price,
        )
        self._start(play, row.target, row.price, guess, now)

    def _start(self, play: _Play, target: str, price_nanos: int, guess: Seen, now: float) -> None:
        seen = self._outcome(play, target, now)
        if seen is None:
            seen = guess
            self._side.guessed += 1
        cost_nanos = seen.cost_at(price_nanos)
        play.number += 1
        self._side.attempts += 1
        self._side.money_nanos += cost_nanos
        attempt_id = f"{id(play)}.{play.number}"
        self._selector.on_start(target, play.past.route, now, attempt_id)
        self._push(now + seen.latency_s, play, (attempt_id, replace(seen, target=target), cost_nanos))

    def _outcome(self, play: _Play, target: str, now: float) -> Seen | None:
        """What happened there, else what happened to others there; None if no record tells."""
        past = play.past
        if past.own_fault is not None:
            return past.own_fault
        for i, seen in enumerate(play.left):
            if seen.target == target:
                return play.left.pop(i)
        return self._history.draw(target, past.route, now, self._random)

    def _ended(self, play: _Play, now: float, attempt_id: str, seen: Seen, cost_nanos: int) -> None:
        past, selector = play.past, self._selector
        if seen.kind is None:
            selector.on_end(attempt_id, Outcome.success(seen.latency_s, cost_nanos), now)
            self._side.close(True, False, now - past.at)
            return
        error = ProviderError(seen.kind, "", billed=seen.billed)
        selector.on_end(attempt_id, booking.outcome(error, cost_nanos), now)
        following = selector.after(
            past.route,
            seen.kind,
            seen.billed,
            play.number,
            now - past.at,
            now,
            target=seen.target,
            tried=play.tried,
        )
        if following.action == "stop":
            self._side.close(False, past.own_fault is not None, now - past.at)
            return
        if following.action == "retry":
            play.again = seen.target
        else:
            play.tried.append(seen.target)
        self._push(now + following.delay_s, play, None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The record beside several runs, which differ by the luck of the draws."""

    recorded: Side
    runs: tuple[Side, ...]
    currency: str
    history: History

    def spread(self, metric: Callable[[Side], T]) -> tuple[T, T, T]:
        """The median run's value, the lowest and the highest."""
        values = sorted(metric(run) for run in self.runs)
        return values[(len(values) - 1) // 2], values[0], values[-1]


def compare(
    history: History,
    past: Sequence[Past],
    selector: Callable[[int], Selector],
    runs: int,
    seed: int,
    tick: Callable[[], object] = lambda: None,
) -> Comparison:
    """Play the requests ``runs`` times, each with its own draws, through a fresh ``selector(seed)``."""
    played = tuple(
        Replay(history, selector(seed + i), Random(f"{seed} {i}")).run(past, tick)  # noqa: S311 - no secret
        for i in range(runs)
    )
    return Comparison(recorded(past), played, past[0].currency if past else "USD", history)
