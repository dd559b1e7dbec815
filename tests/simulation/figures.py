"""The figures to reach, each measured by runs of the simulator or by driving the selector directly."""

from __future__ import annotations

import json
import math
import multiprocessing
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Self

from router.routing import Candidate, Outcome, RouteRequest, RoutingSettings, Selector, replay
from tests.benchmarks import decision_bench
from tests.simulation.engine import Engine, Run, World
from tests.simulation.measure import bad_picks, leave_s, median, percentile, return_s
from tests.simulation.policies import BASELINES, Maker, Oracle, Ours, Replicas
from tests.simulation.world import BY_NAME, FAULT_S, SCENARIOS, Scenario, requests

OURS = "pixelroute"
BALANCED, FAST, CHEAP = 0.0015, 0.01, 0.0003  # dollars per second


@dataclass(frozen=True, slots=True)
class Setup:
    """One cell of a table: a scenario at so many requests a minute, from so many seeds."""

    scenario: str
    per_minute: int
    seeds: Sequence[int]
    value_of_time: float = BALANCED


@dataclass(frozen=True, slots=True)
class Result:
    """What a policy made of a setup: sums over the seeds, and medians where it is about moments."""

    cost: float
    success: float
    limited: float  # share of requests that met a 429
    looks: float  # share of first picks, rescues included
    looked: float  # share of spend on them
    wasted: float  # share of spend that delivered nothing
    p50_s: float
    p95_s: float
    p99_s: float
    dollars_per_success: float
    bad: float = math.nan  # first picks on the failing provider while it fails
    leave_s: float = math.nan
    return_s: float = math.nan
    found_s: float = math.nan


class Lab:
    """Runs setups, the seeds side by side in as many processes, and remembers what came of them."""

    def __init__(self, jobs: int = 1, say: Callable[[str], None] = lambda text: None) -> None:
        self._results: dict[tuple[object, ...], Result] = {}
        self._pool = multiprocessing.Pool(jobs) if jobs > 1 else None
        self._say = say

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.terminate()

    def result(self, setup: Setup, name: str, maker: Maker) -> Result:
        key = setup.scenario, setup.per_minute, tuple(setup.seeds), setup.value_of_time, name
        if key not in self._results:
            self._say(f"{setup.scenario}, {setup.per_minute}/min, {len(setup.seeds)} seeds: {name}")
            tasks = [(setup, seed, maker) for seed in setup.seeds]
            runs = self._pool.starmap(play, tasks, 1) if self._pool is not None else starmap(play, tasks)
            self._results[key] = _summary(setup, list(runs))
        return self._results[key]

    def regret(self, setup: Setup, name: str, maker: Maker) -> float:
        """Percent above the oracle."""
        oracle = self.result(setup, "oracle", Oracle)
        return 100.0 * (self.result(setup, name, maker).cost / oracle.cost - 1.0)


def play(setup: Setup, seed: int, maker: Maker) -> Run:
    scenario = BY_NAME[setup.scenario].seeded(seed)
    world = World.of(scenario)
    policy = maker(world, seed, setup.value_of_time)
    return Engine(world, policy, setup.value_of_time).run(requests(setup.per_minute, seed))


def _summary(setup: Setup, runs: Sequence[Run]) -> Result:
    scenario: Scenario = BY_NAME[setup.scenario]
    latencies = [latency for run in runs for latency in run.latencies]
    dollars = sum(run.dollars for run in runs)
    count = sum(run.requests for run in runs)
    delivered = sum(run.delivered for run in runs)
    moments: dict[str, float] = {}
    watched = scenario.watched
    if watched is not None:
        start, end = FAULT_S
        moments = {
            "bad": sum(bad_picks(run, watched) for run in runs) / len(runs),
            "leave_s": median([leave_s(run, watched) for run in runs]),
            "return_s": median([return_s(run, watched, end) for run in runs]),
            "found_s": median([return_s(run, watched, start, 1.0) for run in runs]),
        }
    return Result(
        sum(run.cost for run in runs),
        delivered / max(sum(run.answered for run in runs), 1),
        sum(run.limited for run in runs) / max(count, 1),
        sum(run.looks + run.rescues for run in runs) / max(count, 1),
        sum(run.looked for run in runs) / dollars,
        sum(run.wasted for run in runs) / dollars,
        percentile(latencies, 0.5),
        percentile(latencies, 0.95),
        percentile(latencies, 0.99),
        dollars / max(delivered, 1),
        **moments,
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def table(lab: Lab, per_minute: int, seeds: Sequence[int], scenarios: Iterable[str] | None = None) -> list[list[str]]:
    """Regret against the oracle in percent: a row per policy, a column per scenario, and the mean."""
    names = list(scenarios) if scenarios is not None else [scenario.name for scenario in SCENARIOS]
    makers: Mapping[str, Maker] = {**BASELINES, OURS: Ours()}
    rows = [["", *names, "mean"]]
    for policy, maker in makers.items():
        regrets = [lab.regret(Setup(name, per_minute, seeds), policy, maker) for name in names]
        rows.append([policy, *(f"{regret:.1f}" for regret in regrets), f"{sum(regrets) / len(regrets):.1f}"])
    return rows


def service(lab: Lab, per_minute: int, seeds: Sequence[int]) -> list[list[str]]:
    """What clients see of the selector, by scenario."""
    rows = [
        [
            "",
            "success %",
            "p50 s",
            "p95 s",
            "p99 s",
            "$ / success",
            "bad picks",
            "leave s",
            "return s",
            "wasted %",
            "looks %",
        ]
    ]
    for scenario in SCENARIOS:
        got = lab.result(Setup(scenario.name, per_minute, seeds), OURS, Ours())
        rows.append(
            [
                scenario.name,
                f"{100 * got.success:.2f}",
                f"{got.p50_s:.1f}",
                f"{got.p95_s:.1f}",
                f"{got.p99_s:.1f}",
                f"{got.dollars_per_success:.4f}",
                _number(got.bad),
                _number(got.leave_s),
                _number(got.return_s),
                f"{100 * got.wasted:.1f}",
                f"{100 * got.looks:.1f}",
            ]
        )
    return rows


def _number(value: float) -> str:
    return "-" if math.isnan(value) or math.isinf(value) else f"{value:.0f}"


# --- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One figure: what was asked for, what was reached."""

    check: str
    asked: str
    reached: str
    ok: bool


def _below(check: str, pairs: Sequence[tuple[float, float, str]]) -> Line:
    """``pairs`` are (reached, limit, unit): all must be at most their limit."""
    asked = ", ".join(f"<= {limit:g}{unit}" for _, limit, unit in pairs)
    reached = ", ".join(f"{value:.3g}{unit}" for value, _, unit in pairs)
    return Line(check, asked, reached, all(value <= limit for value, limit, _ in pairs))


@dataclass(frozen=True, slots=True)
class Seeds:
    """The seeds that each volume gets."""

    at_20: range
    at_2: range
    at_200: range

    @classmethod
    def since(cls, first: int, at_20: int = 10, at_2: int = 30, at_200: int = 3) -> Self:
        """So many for each, from the first on."""
        return cls(*(range(first, first + count) for count in (at_20, at_2, at_200)))

    @property
    def few_at_20(self) -> range:
        """For what takes as many runs at several settings."""
        return self.at_20[: max(len(self.at_20) // 2, 1)]


def volume_lines(lab: Lab, seeds: Seeds) -> Iterable[Line]:
    ours = Ours()
    for per_minute, its, mean, worst in (
        (20, seeds.at_20, 2.3, 5.0),
        (2, seeds.at_2, 5.0, 17.0),
        (200, seeds.at_200, 2.0, 3.5),
    ):
        regrets = [lab.regret(Setup(s.name, per_minute, its), OURS, ours) for s in SCENARIOS]
        yield _below(
            f"{per_minute} requests/min, 17 scenarios, {len(its)} seeds: cost above the oracle, mean and worst",
            [(sum(regrets) / len(regrets), mean, " %"), (max(regrets), worst, " %")],
        )
    known = [lab.regret(Setup(s.name, 2, seeds.at_2), f"{OURS} known", Ours(known=True)) for s in SCENARIOS]
    yield _below(
        "2 requests/min, every target with a prior as from providers.yaml: mean and worst",
        [(sum(known) / len(known), 5.0, " %"), (max(known), 17.0, " %")],
    )
    equal = [s.name for s in SCENARIOS if s.name.startswith("eq ")]
    setups = [Setup(name, 20, seeds.at_20) for name in equal]
    regrets = [lab.regret(setup, OURS, ours) for setup in setups]
    peers = [
        min(lab.regret(setup, name, BASELINES[name]) for name in ("lowest mean of ten", "p2c peak EWMA"))
        for setup in setups
    ]
    better = all(mine < peer for mine, peer in zip(regrets, peers, strict=True))
    line = _below("equal prices: mean; each better than mean of ten and p2c", [(sum(regrets) / 6, 1.5, " %")])
    yield Line(line.check, line.asked, f"{line.reached}; {'each better' if better else 'NOT each'}", line.ok and better)
    for preset, value_of_time in (("fastest", FAST), ("cheapest", CHEAP)):
        regrets = [
            lab.regret(Setup(s.name, 20, seeds.few_at_20, value_of_time), f"{OURS} {preset}", Ours(preset=preset))
            for s in SCENARIOS[:11]
        ]
        yield _below(f"profile {preset}, 11 scenarios: mean", [(sum(regrets) / len(regrets), 4.0, " %")])


def moment_lines(lab: Lab, seeds: Seeds) -> Iterable[Line]:
    def at_20(name: str) -> Result:
        return lab.result(Setup(name, 20, seeds.at_20), OURS, Ours())

    outage, hang, slow = at_20("outage"), at_20("hang"), at_20("slow x4")
    yield _below(
        "hard outage at 20/min: time to leave, first picks on it", [(outage.leave_s, 31, " s"), (outage.bad, 19, "")]
    )
    yield _below("hang at 20/min: time to leave, first picks on it", [(hang.leave_s, 32, " s"), (hang.bad, 9, "")])
    yield _below(
        "return after outage, slowdown, hang: median",
        [(outage.return_s / 60, 1.5, " min"), (slow.return_s / 60, 6, " min"), (hang.return_s / 60, 6, " min")],
    )
    yield _below("silent 5x improvement found: median", [(at_20("silent gain").found_s / 60, 11, " min")])
    first = max(_requests_until_tried(seed) for seed in seeds.at_20)
    yield _below("new target tried within so many requests, worst seed", [(first, 5, "")])
    faults = ["slow x4", "30 % 5xx", "outage", "hang", "429 cap", "random"]
    worst = min(faults, key=lambda name: at_20(name).success)
    success = 100 * at_20(worst).success
    yield Line(
        "client success under every single-provider fault and random weather",
        ">= 99.95 %",
        f"{success:.3f} % ({worst})",
        success >= 99.95,
    )
    everything = [at_20(scenario.name) for scenario in SCENARIOS]
    yield _below(
        "exploration, probes and rescues, worst scenario: share of first picks, of spend",
        [(100 * max(r.looks for r in everything), 3, " %"), (100 * max(r.looked for r in everything), 3.5, " %")],
    )
    cap = lab.result(Setup("429 cap", 200, seeds.at_200), OURS, Ours())
    line = _below("429 cap of 5 at 200/min: share of requests that meet a 429", [(100 * cap.limited, 4, " %")])
    yield Line(
        line.check, line.asked, f"{line.reached}; success {100 * cap.success:.2f} %", line.ok and cap.success >= 0.999
    )


def _requests_until_tried(seed: int) -> int:
    """First picks from the moment a target is added until it gets one."""
    run = play(Setup("new better", 20, [seed]), seed, Ours())
    new = len(BY_NAME["new better"].providers) - 1
    since = [index for at, index in run.firsts if at >= FAULT_S[0]]
    return since.index(new) + 1 if new in since else len(since)


def replica_lines(lab: Lab, seeds: Seeds) -> Iterable[Line]:
    """Four replicas against one process, over the faults; the store dies at minute 30."""
    names = ["steady", "slow x4", "outage", "hang", "random", "eq hang"]

    def mean(name: str, maker: Maker) -> float:
        return sum(lab.regret(Setup(n, 20, seeds.few_at_20), name, maker) for n in names) / len(names)

    one = mean(OURS, Ours())
    shared = mean(f"{OURS} x 4, shared after 5 s", Replicas(4, 5.0))
    dead = mean(f"{OURS} x 4, store killed", Replicas(4, 5.0, dead_from_s=1800.0))
    yield _below("4 replicas, 5 s sharing delay: points above one process", [(shared - one, 0.7, "")])
    yield _below("4 replicas, store killed: points above one process, no error", [(dead - one, 1.5, "")])


def burst_line() -> Line:
    """Forty requests at once on targets of 40, 60 and 300 ms, after forty one by one."""
    share = min(_burst(seed) for seed in range(10))
    return Line(
        "burst of 40 on 40, 60, 300 ms: share on the first two, worst seed", ">= 90 %", f"{share:.0%}", share >= 0.9
    )


def _burst(seed: int) -> float:
    selector, request, now = _sequential(seed, 40)
    picks = []
    for i in range(40):
        target = selector.choose(request, now).target
        assert target is not None
        selector.on_start(target, request, now, f"burst {i}")
        picks.append(target)
    return sum(target != "C/m" for target in picks) / 40


def outlier_line() -> Line:
    """One answer of 1.5 s from the 40 ms target."""
    shares = []
    for seed in range(10):
        selector, request, now = _sequential(seed, 100)
        before = [_one(selector, request, now + i, f"before {i}", random.Random(seed + i)) for i in range(30)]
        now += 40.0
        selector.on_start("A/m", request, now, "outlier")
        selector.on_end("outlier", Outcome.success(), now + 1.5)
        after = [_one(selector, request, now + 2 + i, f"after {i}", random.Random(seed + i)) for i in range(30)]
        shares.append(after.count("A/m") / max(before.count("A/m"), 1))
    worst = min(shares)
    return Line(
        "one outlier of 1.5 s on a 40 ms target: share of its former share in the next 30",
        ">= 50 %",
        f"{worst:.0%}",
        worst >= 0.5,
    )


PACE_S = {"A/m": 0.04, "B/m": 0.06, "C/m": 0.3}


def _sequential(seed: int, count: int) -> tuple[Selector, RouteRequest, float]:
    """A selector that has served so many requests one by one."""
    selector = Selector(random=random.Random(seed))
    request = RouteRequest("m", "generate", tuple(Candidate(name, name[0], 8_000_000, 8_000_000) for name in PACE_S))
    rng = random.Random(seed)
    for i in range(count):
        _one(selector, request, float(i), f"warm {i}", rng)
    return selector, request, float(count)


def _one(selector: Selector, request: RouteRequest, now: float, attempt: str, rng: random.Random) -> str:
    target = selector.choose(request, now).target
    assert target is not None
    selector.on_start(target, request, now, attempt)
    selector.on_end(attempt, Outcome.success(), now + PACE_S[target] * rng.lognormvariate(0.0, 0.1))
    return target


def decision_line() -> Line:
    taken, unit = decision_bench.measure(10, 50), decision_bench.loop()
    p50, p99 = percentile(taken, 0.5), percentile(taken, 0.99)
    return _below(
        f"one decision, 10 targets, 50 in flight: p50 (here {p50 / unit:.1f} plain loops of 100), p99",
        [(1e6 * p50, 60, " us"), (1e6 * p99, 300, " us")],
    )


def replay_line(records: int = 10_000) -> Line:
    """Every record of a busy, faulty pool makes its choice again, is small, and says why each other target lost."""
    same = explained = 0
    largest = 0
    for decision in _decisions(records):
        record = decision.record()
        text = json.dumps(record, separators=(",", ":"))  # as it is sent and kept
        largest = max(largest, len(text.encode()))
        same += replay(json.loads(text)) == (decision.target, decision.mode)
        told = {e["target"] for e in record["candidates"] if "why" in e or "lost_by" in e}
        told |= {name for names in record.get("lost", {}).values() for name in names}
        explained += told >= {c.target for c in decision.candidates} - {decision.target}
    return Line(
        f"replay of {records} records: same choice, says why the others lost, largest",
        "all, all, <= 4096 bytes",
        f"{same}, {explained}, {largest} bytes",
        same == explained == records and largest <= 4096,
    )


def _decisions(count: int):  # type: ignore[no-untyped-def]
    """Decisions of ten targets with mixed outcomes, sizes, presets and sessions."""
    rng = random.Random(7)
    selector = Selector(random=random.Random(8))
    from router.types import Preferences

    candidates = tuple(
        Candidate(f"provider-{i}/flux.2-dev-turbo", f"provider-{i}", 4_000_000 + 1_000_000 * i, 10**8, weight=1 + i)
        for i in range(10)
    )
    sorts = (None, "fastest", "cheapest", "reliable", "weighted", "priority")
    now = 0.0
    running: list[str] = []
    for i in range(count):
        now += rng.expovariate(0.5)
        request = RouteRequest(
            "flux.2-dev-turbo",
            "generate",
            candidates if rng.random() < 0.8 else candidates[: rng.randint(1, 9)],
            rng.choice((1, 2, 4)),
            rng.choice((1.0, 2.0, 4.0)),
            preferences=Preferences(sort=rng.choice(sorts)),
            deadline_s=rng.choice((None, 30.0)),
            session=rng.choice((None, "s")),
        )
        decision = selector.choose(request, now)
        yield decision
        if decision.target is None:
            continue
        selector.on_start(decision.target, request, now, str(i))
        running.append(str(i))
        if len(running) > 8:
            ended = rng.choices(
                (Outcome.success(), Outcome.failure(), Outcome.rate_limited(5.0), Outcome.blocked()), (90, 6, 3, 1)
            )[0]
            selector.on_end(running.pop(rng.randrange(len(running))), ended, now)


# --- what each part is worth -----------------------------------------------------------------------------------------

PARTS: Mapping[str, RoutingSettings] = {
    "all": RoutingSettings(),
    "no troubles: a pace and a success that only drift": RoutingSettings(trouble_every_s=1e12),
    "troubles are over in 2 minutes": RoutingSettings(recover_every_s=120.0),
    "small changes only (0.3 in log-seconds)": RoutingSettings(change_size=0.3),
    "no looks at unused targets": RoutingSettings(explore_share=0.0, explore_every_s=math.inf),
    "no optimism about little-known targets": RoutingSettings(optimism=0.0),
    "no ejection of what seems stuck": RoutingSettings(stuck=math.inf),
    "rescue also where only one call is late": RoutingSettings(rescue=True, rescue_unknown_bills=True),
}


def ablation(lab: Lab, seeds: Sequence[int]) -> list[list[str]]:
    rows = [["", "mean %", "worst %", "success %", "worst scenario"]]
    for part, settings in PARTS.items():
        setups = [Setup(scenario.name, 20, seeds) for scenario in SCENARIOS]
        maker = Ours(settings)
        regrets = {setup.scenario: lab.regret(setup, part, maker) for setup in setups}
        success = min(lab.result(setup, part, maker).success for setup in setups)
        worst = max(regrets, key=lambda name: regrets[name])
        mean = sum(regrets.values()) / len(regrets)
        rows.append([part, f"{mean:.2f}", f"{regrets[worst]:.2f}", f"{100 * success:.2f}", worst])
    return rows
