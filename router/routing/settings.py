"""What an operator may say about routing: what waiting is worth, how far to trust evidence, how much to risk.

Every default is the value that did best in the simulator (tests/simulation), which also shows what each part is worth.
Money is US dollars; times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Preset:
    """A named attitude towards money, time and failure."""

    value_of_time: float  # dollars that one second of waiting is worth
    fail_value: float = 0.05  # dollars that a request lost altogether costs the caller
    failure_aversion: float = 0.0  # dollars added per failed attempt, on top of its money and time


PRESETS: Mapping[str, Preset] = {
    "balanced": Preset(0.0015),  # about $5.40 per hour of waiting
    "fastest": Preset(0.01),
    "cheapest": Preset(0.0003),
    "reliable": Preset(0.0015, fail_value=0.5, failure_aversion=0.1),
}


DEFAULT_P50_S = 5.0
"""An assumption, of a target nobody knows anything about: one picture of one megapixel."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of a target before it has been used: one generation of one picture of one megapixel."""

    p50_s: float | None = None
    p95_s: float | None = None
    success: float | None = None  # share of attempts that succeed, 0..1
    samples: float = 5.0  # what p50_s counts as; 0: only until one of the model's other targets is known


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """The selector's constants. The first four are the operator's; the others are meant to be left alone."""

    preset: str = "balanced"  # of requests that do not name one; also ``weighted`` and ``priority``
    presets: Mapping[str, Preset] = field(default_factory=lambda: PRESETS)
    concurrency: Mapping[str, int] = field(default_factory=dict)  # calls at once, by target or by provider
    attempts: int = 3  # of one request, over all targets

    # Evidence
    half_life_s: float = 120.0  # of recent samples
    memory: float = 300.0  # long-run samples
    trouble_every_s: float = 14400.0  # how often a target's pace leaves its own
    change_size: float = 0.8  # standard deviation of such a change, in log-seconds

    # Exploration of targets that are not being used
    explore_share: float = 0.025  # of first attempts at most
    explore_every_s: float = 1800.0  # at low traffic: one in this time, if that is not over a tenth of the requests
    change_every_s: float = 14400.0  # how often a target changes for good
    recover_every_s: float = 900.0  # how long a trouble lasts
    optimism: float = 1.2  # standard deviations by which a little-known pace may be better than it seems

    # Ejection and capacity
    open_s: float = 5.0  # first pause; doubles, half-to-full jitter
    open_cap_s: float = 150.0
    probe_every_s: float = 1800.0  # an ejected target that could matter is probed at least this often
    stuck: float = 7.0  # ejected when the running calls would last so long only once in e^7 times
    blocked_s: float = 300.0  # pause after a refused credential or an empty account
    retry_after_cap_s: float = 120.0
    cap_backoff: float = 0.7  # of the calls in flight when one more was refused

    # Money that may be spent without delivering a picture
    waste_share: float = 0.03  # of the last hour's spend, per model: maybe-billed failovers and rescues
    waste_floor_calls: float = 4.0
    rescue: bool = False  # a second copy elsewhere of any call that is far too late, not only where the target hangs
    rescue_share: float = 0.03  # of the requests at most
    rescue_every_s: float = 900.0  # at low traffic: one in this time, as many saved up as the floor above
    rescue_unknown_bills: bool = False  # also where nobody knows what a failed call costs
    retry_every_s: float = 20.0  # one retry of the same target in this time, three saved up

    sticky: float = 0.05  # a session stays with its target while that costs at most this share more
