"""What people are told of a target: figures with number, interval and age, kept apart by how calls ended."""

from __future__ import annotations

import math
import random
import time
from operator import itemgetter

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.routing import Candidate, Outcome, Prior, RouteRequest, Selector
from router.routing.hour import CLASSES, PHASES, Hour
from router.routing.request import Result
from router.routing.sketch import P95_SAMPLES, Histogram, Window, wilson
from router.routing.work import Work
from tests.helpers import returned

TARGETS = ("a/m", "b/m")


def asked(images: int = 1, megapixels: float = 1.0, quality: str | None = None) -> RouteRequest:
    candidates = tuple(Candidate(name, name[0], 10**7, 10**7) for name in TARGETS)
    return RouteRequest("m", "generate", candidates, images, megapixels, quality)


def run(selector: Selector, request: RouteRequest, outcome: Outcome, start: float, seconds: float, **phases: float):
    attempt = f"{start}"
    selector.on_start("a/m", request, start, attempt)
    for phase, after_s in phases.items():
        selector.on_progress(attempt, phase, start + after_s)
    selector.on_end(attempt, outcome, start + seconds)


def hour(selector: Selector, now: float):
    return returned(selector.hour("generate", "a/m", now))


def test_every_phase_is_measured_from_the_start_of_the_attempt():
    selector = Selector()
    for n in range(P95_SAMPLES):
        run(selector, asked(), Outcome.success(), 10.0 * n, 3.0, submitted=0.2, queued=1.0, first_byte=2.5, lunch=2.6)
    facts = hour(selector, 600.0)
    assert facts["p50_s"] == pytest.approx(3.0, rel=0.011)
    assert facts["p95_sure"]
    found = {name: (phase["n"], phase["p50_s"]) for name, phase in facts["phases"].items()}
    assert found == {
        "submitted": (59, pytest.approx(0.2, rel=0.011)),
        "queued": (59, pytest.approx(1.0, rel=0.011)),
        "first_byte": (59, pytest.approx(2.5, rel=0.011)),
    }


def test_a_percentile_from_few_samples_says_so():
    selector = Selector()
    for n in range(P95_SAMPLES - 1):
        run(selector, asked(), Outcome.success(), 10.0 * n, 3.0)
    assert (hour(selector, 600.0)["n"], hour(selector, 600.0)["p95_sure"]) == (58, False)


def test_ends_are_counted_apart_and_only_the_targets_own_count_for_its_success():
    selector = Selector()
    ends = {
        "success": (Outcome.success(), 9),
        "failure": (Outcome.failure(), 1),
        "rate_limited": (Outcome.rate_limited(), 2),
        "blocked": (Outcome.blocked(), 3),
        "refused": (Outcome.refused(), 4),
        "neutral": (Outcome.neutral(), 5),
        "cancelled": (Outcome.cancelled(), 6),
    }
    now = 0.0
    for outcome, times in ends.values():
        for _ in range(times):
            run(selector, asked(), outcome, now, 1.0)
            now += 2.0
    facts = hour(selector, now)
    assert facts["results"] == {name: times for name, (_, times) in ends.items()}
    assert (facts["success"], facts["success_low"], facts["success_high"]) == (0.9, 0.59585, 0.98212)  # Wilson, 9 of 10


def test_classes_of_work_are_kept_apart_and_a_new_one_is_reckoned_from_the_others():
    selector = Selector()
    for n in range(40):
        run(selector, asked(1, 1.0), Outcome.success(), 20.0 * n, 2.0)
        run(selector, asked(4, 4.0, "high"), Outcome.success(), 20.0 * n + 10.0, 9.0)
    run(selector, asked(2, 2.0), Outcome.failure(), 900.0, 1.0)
    classes = hour(selector, 901.0)["classes"]
    assert list(classes) == ["1 MP x 1", "2 MP x 2", "4 MP x 4 high"]
    assert classes["1 MP x 1"]["p50_s"] == pytest.approx(2.0, rel=0.011)
    assert classes["4 MP x 4 high"]["p50_s"] == pytest.approx(9.0, rel=0.011)
    assert classes["1 MP x 1"]["success"] == 1.0
    fresh = classes["2 MP x 2"]
    assert (fresh["n"], fresh["p50_s"], fresh["success"]) == (0, None, 0.0)
    assert 2.0 < fresh["reckoned_p50_s"] < 9.0


def test_classes_that_are_too_many_are_not_shown_and_yet_counted():
    selector, other = Selector(replica="one"), Selector(replica="two")
    for n in range(CLASSES + 10):
        run(selector, asked(n + 1), Outcome.success(), 10.0 * n, 2.0)
    other.merge(selector.delta(800.0), 800.0)
    for machine in selector, other:
        facts = hour(machine, 800.0)
        assert (facts["n"], len(facts["classes"])) == (CLASSES + 10, CLASSES)


def test_the_hour_slides():
    selector = Selector()
    run(selector, asked(), Outcome.success(), 0.0, 2.0, first_byte=1.0)
    assert hour(selector, 3000.0)["n"] == 1
    late = hour(selector, 4000.0)
    assert (late["n"], late["results"], late["phases"]["first_byte"]["n"]) == (0, {}, 0)
    assert selector.snapshot(4000.0)["a/m"]["generate"]["age_s"] == 3998.0


# --- several routers ----------------------------------------------------------------------------------------------

CLOCKS = (0.0, 100.0, -7_000.5, 86_399.9)  # what the replicas' clocks read at the start
KINDS = (Work.of(1, 1.0, None), Work.of(4, 1.0, "high"), Work.of(1, 4.0, None))
WHOLE = 3290.0  # whatever the slots, all of so many seconds is within the hour

attempts = st.lists(
    st.tuples(
        st.floats(0.0, WHOLE),  # when it ended
        st.sampled_from(Result),
        st.floats(0.01, 600.0),  # seconds
        st.sampled_from(KINDS),
        st.sampled_from(PHASES),
        st.integers(0, len(CLOCKS) - 1),  # where
        st.booleans(),  # whether that replica tells now what it has
    ),
    max_size=80,
).map(lambda found: sorted(found, key=itemgetter(0)))


class Routers:
    """Hours of several routers, each on its own clock; what they tell arrives late and in any order."""

    def __init__(self) -> None:
        self.hours = [Hour() for _ in CLOCKS]
        self._told: list[tuple[int, float, bytes]] = []

    def attempt(self, at, result, seconds, work, phase, where) -> None:
        add(self.hours[where], at + CLOCKS[where], result, seconds, work, phase)

    def tell(self, where: int, at: float) -> None:
        told = self.hours[where].told(at + CLOCKS[where])
        if told is not None:
            self._told.append((where, at, orjson.dumps(told)))

    def hear(self, rng: random.Random) -> None:
        rng.shuffle(self._told)
        for where, at, told in self._told:
            for other, hour in enumerate(self.hours):
                if other != where:
                    hour.hear(orjson.loads(told), at + CLOCKS[other])
        self._told.clear()

    def snapshots(self, at: float):
        return [figures(hour, at + clock) for hour, clock in zip(self.hours, CLOCKS, strict=True)]


def figures(hour: Hour, at: float):
    return returned(hour.snapshot(at, lambda kind: 1.0))


def add(hour: Hour, at: float, result: Result, seconds: float, work: Work, phase: str) -> None:
    hour.reached(phase, seconds / 2.0, at)
    hour.ended(result, seconds, work, at)


@settings(max_examples=60, deadline=None)
@given(attempts, st.randoms(use_true_random=False))
def test_routers_that_tell_each_other_count_what_one_would_that_had_seen_all(attempts, rng):
    routers, one = Routers(), Hour()
    for at, *attempt, where, tells in attempts:
        add(one, at, *attempt)
        routers.attempt(at, *attempt, where)
        if tells:
            routers.tell(where, at)
        if rng.random() < 0.2:
            routers.hear(rng)
    for where in range(len(CLOCKS)):
        routers.tell(where, WHOLE)
    routers.hear(rng)
    for where in range(len(CLOCKS)):
        routers.tell(where, WHOLE)  # what was heard is no news
    assert not routers._told
    expected = figures(one, WHOLE)
    assert routers.snapshots(WHOLE) == [expected] * len(CLOCKS)
    took = sorted(seconds for _, result, seconds, *_ in attempts if result is Result.SUCCESS)
    for figure, q in (("p50_s", 0.5), ("p95_s", 0.95)):
        exact = took[math.ceil(q * len(took)) - 1] if took else None
        assert expected[figure] == (exact if exact is None else pytest.approx(exact, rel=0.0101, abs=1e-4))


@settings(max_examples=60, deadline=None)
@given(attempts, st.floats(0.0, 7200.0))
def test_an_attempt_leaves_the_hour_of_all_routers_when_it_leaves_that_of_its_own(attempts, later):
    routers, alone = Routers(), Routers()
    for at, *attempt, where, tells in attempts:
        routers.attempt(at, *attempt, where)
        alone.attempt(at, *attempt, where)
        if tells:
            routers.tell(where, at)
    for where in range(len(CLOCKS)):
        routers.tell(where, WHOLE)
    routers.hear(random.Random(1))

    def ended(snapshots) -> list[int]:
        return [sum(snapshot["results"].values()) for snapshot in snapshots]

    # Its own leave to the second, those of others to a tick.
    at = WHOLE + later
    before = sum(ended(alone.snapshots(at - Window.TICK_S)))
    own = ended(alone.snapshots(at))
    after = sum(ended(alone.snapshots(at + Window.TICK_S)))
    for its, merged in zip(own, ended(routers.snapshots(at)), strict=True):
        assert max(after, its) <= merged <= before


@given(
    parts=st.lists(st.lists(st.floats(0.01, 600.0), max_size=60), min_size=1, max_size=4),
    q=st.sampled_from([0.5, 0.95, 0.99]),
)
def test_merged_sketches_are_within_one_percent_of_the_sorted_list(parts, q):
    merged = Histogram()
    for part in parts:
        sketch = Histogram()
        for seconds in part:
            sketch.add(Histogram.bucket(seconds))
        merged.merge(sketch)
    everything = sorted(seconds for part in parts for seconds in part)
    assert merged.n == len(everything)
    if everything:
        exact = everything[min(max(1, math.ceil(q * len(everything))), len(everything)) - 1]
        assert merged.quantiles(q) == [pytest.approx(exact, rel=0.0101)]
    else:
        assert merged.quantiles(q) == [None]


@pytest.mark.parametrize(
    ("good", "n", "low", "high"),
    [(11, 11, 0.7411, 1.0), (0, 0, 0.0, 1.0), (0, 10, 0.0, 0.2775), (50, 100, 0.4038, 0.5962)],
)
def test_wilsons_interval(good, n, low, high):
    assert wilson(good, n) == pytest.approx((low, high), abs=1e-4)


# --- a full hour --------------------------------------------------------------------------------------------------


def test_a_window_that_is_read_and_told_again_and_again_counts_everything_once():
    """Whatever is read, told or heard in between, it is the same as all of it in one histogram."""
    rng = random.Random(5)
    window, other, added = Window(), Window(), []
    now = 0.0
    for _ in range(2000):
        now += rng.expovariate(0.1)
        bucket = rng.randrange(-50, 50)
        side = rng.choice((window, other))
        side.add(bucket, now)
        added.append((now, bucket))
        match rng.randrange(6):
            case 0:
                window.hear(other.told(now), now)
            case 1:
                other.hear(window.told(now), now)
            case 2:
                window.read(now)
    window.hear(other.told(now), now)
    expected, dropped = Histogram(), 0
    for at, bucket in added:
        # An attempt of five minutes leaves as a whole; what was told leaves with a tick's difference.
        if (at // Window.SLOT_S + Window.SLOTS) * Window.SLOT_S > now:
            expected.add(bucket)
        else:
            dropped += 1
    assert dropped > 1000
    assert (window.read(now).counts, window.read(now).n) == (expected.counts, expected.n)


def busy(classes: int) -> Hour:
    """An hour in which every slot of every class has most of the buckets there are between a second and a minute."""
    rng, filled = random.Random(8), Hour()
    works = [Work.of(1 + n % 4, 0.25 * 2.0 ** (n // 4 % 8), "high" if n >= 32 else None) for n in range(classes)]
    for slot in range(Window.SLOTS):
        for work in works:
            for _ in range(150):
                add(filled, slot * Window.SLOT_S, Result.SUCCESS, rng.lognormvariate(1.5, 0.6), work, "queued")
    return filled


def test_no_step_of_reading_a_full_hour_keeps_requests_waiting():
    filled, now = busy(CLASSES), Window.SLOTS * Window.SLOT_S - 1.0

    def longest_s() -> float:
        steps, longest = filled.snapshot(now, lambda kind: 1.0), 0.0
        for _ in range(CLASSES + 1):
            began = time.thread_time()
            next(steps, None)
            longest = max(longest, time.thread_time() - began)
        assert next(steps, "ended") == "ended"
        return longest

    assert min(longest_s() for _ in range(5)) < 0.002


# --- before anything has been measured ----------------------------------------------------------------------------


def facts_of(selector: Selector, target: str, now: float):
    selector.choose(asked(), now)
    facts = selector.snapshot(now)[target]["generate"]
    return facts["basis"], facts["p50_s"], facts["p95_s"]


@pytest.mark.parametrize(
    ("priors", "basis", "p50", "p95"),
    [
        ({"a/m": Prior(2.0, 6.0)}, "prior", 2.0, 6.0),
        ({"a/m": Prior(2.0, 6.0, samples=0.0)}, "model", 2.0, 6.0),
        ({"a/m": Prior(None, 78.0, samples=0.0)}, "model", 29.07, 78.0),  # the usual spread under a p95
        ({"b/m": Prior(9.0, 20.0)}, "model", 9.0, None),  # what the model's other target does
        ({"a/m": Prior(2.0, 6.0, samples=0.0), "b/m": Prior(9.0, 20.0)}, "model", 9.0, None),
        ({"b/other": Prior(30.0, 60.0)}, "model", 5.0, None),  # another model says nothing
    ],
)
def test_an_unused_target_begins_with_its_prior_its_peers_or_what_is_expected_of_the_model(priors, basis, p50, p95):
    selector = Selector(priors=priors, random=random.Random(0))
    found = facts_of(selector, "a/m", 1.0)
    assert found[:2] == (basis, pytest.approx(p50, rel=1e-3))
    assert p95 is None or found[2] == pytest.approx(p95, rel=1e-3)
    run(selector, asked(), Outcome.success(), 2.0, 3.0)
    assert facts_of(selector, "a/m", 10.0)[0] == "measured"
