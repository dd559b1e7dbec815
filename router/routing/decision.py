"""A decision, its explanation in words, its record, and the replay of a record."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from router.routing.policy import BY_SHARE, Ask, Row, pick
from router.routing.stats import Z95

RECORD_BYTES = 4096
"""What a record may take as JSON: it is stored with every attempt."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate as the decision saw it, for people and for ``metadata.routing``."""

    target: str
    price_nanos: int
    p50_s: float
    p95_s: float
    success: float
    samples: float  # outcomes that the estimates rest on
    in_flight: int
    score_nanos: float  # expected money and waiting until a success
    excluded_by: str | None
    until_s: float | None  # seconds until it may be used again, where known


class Decision:
    """One choice. ``target`` is None when no candidate can take the request now; ``reason`` then says why."""

    __slots__ = ("_chosen", "_rows", "ask", "at", "mode", "retry_after_s", "target")

    def __init__(
        self, ask: Ask, rows: Sequence[Row], chosen: Row | None, mode: str, at: float, retry_after_s: float | None
    ) -> None:
        self.ask = ask
        self.target = chosen.target if chosen is not None else None
        self.mode = mode
        self.at = at
        self.retry_after_s = retry_after_s
        self._rows = rows
        self._chosen = chosen

    @property
    def candidates(self) -> tuple[Scored, ...]:
        """All candidates: the chosen one, then the others by score, then the excluded ones."""
        return tuple(
            Scored(
                row.target,
                row.price,
                math.exp(row.ln_median),
                math.exp(row.ln_median + Z95 * row.sigma),
                row.p,
                row.n,
                row.in_flight,
                row.index,
                None if row is self._chosen else row.why,
                max(0.0, row.until - self.at) if row.until is not None else None,
            )
            for row in self._ranked()
        )

    @property
    def excluded(self) -> list[tuple[str, str]]:
        """The targets that were out, each with the reason."""
        return [(row.target, row.why) for row in self._rows if row.why is not None and row is not self._chosen]

    @property
    def cheapest(self) -> str | None:
        """The target with the lowest price among those that can take the request now."""
        return min(self._able(), key=lambda row: row.price).target if self._able() else None

    @property
    def fastest(self) -> str | None:
        """The target with the lowest expected time among those that can take the request now."""
        return min(self._able(), key=lambda row: row.mean_s).target if self._able() else None

    @property
    def rows(self) -> Sequence[Row]:
        """All candidates with every number that the choice hung on, in the operator's order."""
        return self._rows

    @property
    def chosen(self) -> Row | None:
        return self._chosen

    def second(self, without: Collection[str] = ()) -> Row | None:
        """The best of the others that can take the request now, leaving some out."""
        best: Row | None = None
        for row in self._rows:
            able = row.why is None and row is not self._chosen and row.target not in without
            if able and (best is None or row.index < best.index):
                best = row
        return best

    @property
    def reason(self) -> str:
        """The choice in one sentence."""
        return _sentence(self)

    def record(self) -> dict[str, Any]:
        """JSON-ready, at most 4 kB, says why every other target lost; ``replay`` makes the same choice from it."""
        return _record(self, self._ranked())

    def _able(self) -> list[Row]:
        return [row for row in self._rows if row.why is None]

    def _ranked(self) -> list[Row]:
        return sorted(self._rows, key=lambda row: (row is not self._chosen, row.why is not None, row.index))


@lru_cache(maxsize=1024)
def _dollars(nanos: float) -> str:
    dollars, rest = divmod(round(nanos / 1e5), 10_000)  # hundredths of a cent
    return f"${dollars}.{rest:04}"


def _words(row: Row) -> str:
    price = _dollars(row.price) if row.price else "no price"  # none is known, or it is one's own
    return f"{price}, about {math.exp(row.ln_median):.2g} s, {100 * row.p:.3g} %"


def _sentence(decision: Decision) -> str:
    chosen = decision._chosen
    if chosen is None:
        losers = _out(decision._ranked()[:8])
        wait = f"; again in {decision.retry_after_s:.3g} s" if decision.retry_after_s is not None else ""
        return f"no target can take the request now: {losers or 'there is none'}{wait}"
    says = f"{chosen.target}: {_words(chosen)}"
    if decision.mode == "panic":
        return f"{says}; every target is ejected (this one: {chosen.why}), it is the least bad"
    if decision.mode == "probe":
        return f"{says}; one request to see whether it has recovered"
    second = decision.second()
    if second is None:
        out = _out(decision._ranked()[1:5])
        return f"{says}; the only one available" + (f", without {out}" if out else "")
    versus = f"{second.target} ({_words(second)})"
    if decision.mode == "best":
        share = 100.0 * (second.index - chosen.index) / second.index if second.index > 0 else 0.0
        if share < 0:  # little is known of it, and the doubt counts in its favour
            return f"{says}; less is known of it, and it may be better than {versus}"
        return f"{says} beat {versus} by {share:.2g} %"
    why = {
        "explore": f"{_unseen(chosen.unseen_s)}, so this request has a look",
        "order": "first in the caller's order",
        "sticky": "where this session has been",
        "weighted": "drawn by weight",
        "priority": "first by priority",
    }[decision.mode]
    return f"{says}; {why}, in place of {versus}"


def _out(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row.target} ({row.why})" for row in rows)


def _unseen(seconds: float) -> str:
    if seconds >= 86400.0:  # what a restart remembers
        return "not tried in the last day"
    return f"not heard of for {seconds / 60:.0f} min" if seconds >= 120.0 else f"not heard of for {seconds:.0f} s"


# The record: short keys, because ten candidates with all their numbers have to fit.
_NUMBERS = (
    ("p", "p"),
    ("mean_s", "mean_s"),
    ("fail_s", "fail_s"),
    ("fail_bills", "bill"),
    ("ln_p50", "ln_median"),
    ("sigma", "sigma"),
    ("n", "n"),
    ("sd", "sd"),
    ("unseen_s", "unseen_s"),
    ("assumed", "assumed"),
    ("ill", "ill"),
    ("off", "off"),
    ("off_sd", "off_sd"),
    ("well_p", "well_p"),
    ("well_s", "well_s"),
)
_DOUBTS = ("sd", "assumed", "ill", "off", "off_sd")
_DIGITS = 5  # significant digits kept, unless the choice hangs on more


def _round(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}") if digits < 17 else value


def _row_record(row: Row, chosen: Row | None, digits: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"target": row.target, "price_nanos": row.price}
    for key, name in _NUMBERS:
        value = getattr(row, name)
        if (key == "well_p" and value == row.p) or (key == "well_s" and value == row.mean_s):
            continue
        entry[key] = _round(min(value, 1e9), digits)
    # What the two above say, for people; replay has no need of them.
    entry["p50_s"] = _round(math.exp(row.ln_median), 3)
    entry["p95_s"] = _round(math.exp(row.ln_median + Z95 * row.sigma), 3)
    entry["in_flight"] = row.in_flight
    entry["score_nanos"] = round(row.index)
    if row.weight != 1.0:
        entry["weight"] = row.weight
    if row.priority:
        entry["priority"] = row.priority
    if row.limit_s != 120.0:
        entry["limit_s"] = row.limit_s
    if row.why is not None:
        entry["why"] = row.why
    elif chosen is not None and row is not chosen and chosen.index > 0:
        entry["lost_by"] = f"{100.0 * (row.index / chosen.index - 1.0):.3g} %"
    return entry


def _row_from(entry: Mapping[str, Any]) -> Row:
    numbers = {name: float(entry[key]) for key, name in _NUMBERS if key in entry}
    return Row(
        entry["target"],
        entry["target"].partition("/")[0] if "provider" not in entry else entry["provider"],
        entry["price_nanos"],
        numbers["p"],
        numbers["mean_s"],
        numbers["fail_s"],
        numbers["bill"],
        numbers["ln_median"],
        numbers["sigma"],
        numbers.get("sd", 0.0),
        numbers["n"],
        numbers["unseen_s"],
        numbers.get("off", 0.0),
        numbers.get("off_sd", 0.0),
        entry["in_flight"],
        entry.get("why"),
        entry.get("weight", 1.0),
        entry.get("priority", 0),
        entry.get("limit_s", 120.0),
        numbers.get("assumed", 0.0),
        numbers.get("ill", 0.0),
        numbers.get("well_p", numbers["p"]),
        numbers.get("well_s", numbers["mean_s"]),
    )


def _record(decision: Decision, ranked: Sequence[Row]) -> dict[str, Any]:
    chosen = decision._chosen
    head: dict[str, Any] = {
        "chosen": decision.target,
        "mode": decision.mode,
        "at": decision.at,
        "ask": {key: value for key, value in asdict(decision.ask).items() if value not in (None, (), math.inf)},
    }
    if decision.retry_after_s is not None:
        head["retry_after_s"] = round(decision.retry_after_s, 3)
    able = [row for row in ranked if row.why is None]
    if able:
        head["cheapest"] = min(able, key=lambda row: row.price).target
        head["fastest"] = min(able, key=lambda row: row.mean_s).target
    # The order of the rows is the operator's and breaks ties, so it is kept; the record says it in full precision
    # where rounding would change the choice.
    record: dict[str, Any] = {}
    for digits in (_DIGITS, 17):
        record = head | {"candidates": [_row_record(row, chosen, digits) for row in decision._rows]}
        if replay(record) == (decision.target, decision.mode):
            break
    if _size(record) > RECORD_BYTES:  # many candidates: what people can work out from the other numbers goes first
        for entry in record["candidates"]:
            del entry["p50_s"], entry["p95_s"]
    if _size(record) > RECORD_BYTES and decision.mode in BY_SHARE:  # a draw hangs on weights, not on doubts
        for entry in record["candidates"]:
            for key in _DOUBTS:
                del entry[key]
    # Losers that do not fit are named with the reason alone, the worst first: they cannot change the choice.
    lost: dict[str, list[str]] = {}
    for row in reversed(ranked[1:]):
        if _size(record) <= RECORD_BYTES or decision.mode in BY_SHARE:
            break
        record["candidates"] = [entry for entry in record["candidates"] if entry["target"] != row.target]
        lost.setdefault(row.why or "score", []).append(row.target)
        record["lost"] = lost
    return record


def _size(record: Mapping[str, Any]) -> int:
    return len(json.dumps(record, separators=(",", ":")))


def replay(record: Mapping[str, Any]) -> tuple[str | None, str]:
    """The (target, mode) that follows from a record: the same code over the same numbers."""
    ask = dict(record["ask"])
    ask["order"] = tuple(ask.get("order", ()))
    ask = dict[str, Any](session=None, draw=None, toll=math.inf) | ask
    row, mode = pick([_row_from(entry) for entry in record["candidates"]], Ask(**ask))
    return (row.target if row is not None else None), mode
