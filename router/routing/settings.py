"""What an operator may say about routing: what waiting is worth, how far to trust evidence, how much to risk.

Every default is the value that did best in the simulator (tests/simulation), which also shows what each part is worth.
Money is US dollars per request or per second; times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Preset:
    """A named attitude towards money, time and failure."""

    value_of_time: float  # dollars that one second of waiting is worth
    fail_value: float = 0.05  # dollars that a request lost altogether costs the caller
    failure_aversion: float = 0.0  # dollars added per failed first attempt, on top of its money and time


PRESETS: Mapping[str, Preset] = {
    "balanced": Preset(0.0015),  # about $5.40 per hour of waiting
    "fastest": Preset(0.01),
    "cheapest": Preset(0.0003),
    "reliable": Preset(0.0015, fail_value=0.5, failure_aversion=0.1),
}
BALANCED = PRESETS["balanced"]


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of a target before it has been used: one generation of one picture of one megapixel."""

    p50_s: float | None = None
    p95_s: float | None = None
    success: float | None = None  # share of attempts that succeed, 0..1


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """The selector's constants. The defaults are meant to be left alone; the first four are the operator's."""

    preset: str = "balanced"
    presets: Mapping[str, Preset] = field(default_factory=lambda: PRESETS)
    concurrency: Mapping[str, int] = field(default_factory=dict)  # calls at once, by target or by provider
    attempts: int = 3  # of one request, over all targets

    # Evidence
    half_life_s: float = 120.0  # of recent samples; old ones leave the field to the long run
    same_strength: float = 30.0  # the long run counts as this many recent latencies while it fits them
    latency_strength: float = 1.0  # ... and as this many when the pace has changed
    change_odds: float = 0.01
    change_var: float = 1.0
    alarm: float = 8.0
    success_strength: float = 4.0  # ... and as this many recent outcomes
    memory: float = 300.0  # long-run samples
    memory_step_s: float = 15.0  # at most one full-weight long-run sample in this time: memory is time, not traffic

    # Exploration of targets that are not being used
    explore_share: float = 0.02  # of first attempts at most
    explore_every_s: float = 1800.0  # at low traffic: one in this time, if that is not over a tenth of the requests
    change_every_s: float = 14400.0  # how often a target changes its pace for good
    change_size: float = 1.0  # standard deviation of such a change, in log-seconds

    own_class: float = 1e9
    optimism: float = 0.5
    surprise: float = -2.0
    recover_every_s: float = 900.0  # how long a trouble lasts
    probe_every_s: float = 600.0  # an ejected target is probed at least this often

    # Ejection
    open_s: float = 5.0  # first pause; doubles, half-to-full jitter
    open_cap_s: float = 120.0
    stuck: float = 6.0  # ejected when the calls that run would last so long only once in e^6 times
    blocked_s: float = 300.0  # pause after a refused credential or an empty account
    retry_after_cap_s: float = 120.0

    # Money that may be spent without delivering a picture
    waste_share: float = 0.03  # of the last hour's spend, per model: maybe-billed failovers and rescues
    waste_floor_calls: float = 4.0
    retry_share: float = 0.2  # retries of the same target, as a share of its requests; floor of three a minute

    sticky: float = 0.05  # a session stays with its target while that costs at most this share more
