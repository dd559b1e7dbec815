"""Pure decisions: which target serves a request, when to try another, when to leave one alone.

``Selector`` is the machine; README.md here says how to drive it. No I/O, no clock, no global randomness.
"""

from router.routing.decision import Decision, Scored, replay
from router.routing.failover import Next, rescue_delay
from router.routing.packing import pack, unpack
from router.routing.request import Candidate, Infeasible, Outcome, Result, RouteRequest, Sample
from router.routing.selector import Selector
from router.routing.settings import DEFAULT_P50_S, PRESETS, Preset, Prior, RoutingSettings

__all__ = [
    "DEFAULT_P50_S",
    "PRESETS",
    "Candidate",
    "Decision",
    "Infeasible",
    "Next",
    "Outcome",
    "Preset",
    "Prior",
    "Result",
    "RouteRequest",
    "RoutingSettings",
    "Sample",
    "Scored",
    "Selector",
    "pack",
    "replay",
    "rescue_delay",
    "unpack",
]
