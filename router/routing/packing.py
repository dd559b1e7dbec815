"""A decision as the ledger keeps it: every number it hung on, packed in microseconds, unpacked when somebody asks.

The readable record is made from the unpacked decision; making it for every request would cost more than deciding does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from router.routing.decision import Decision
from router.routing.policy import Ask, Row

# Names are stored beside the values, so that a ledger outlives changes of the fields.
_ROW = list(Row.__slots__)
_ASK = list(Ask.__slots__)
_row = attrgetter(*_ROW)
_ask = attrgetter(*_ASK)


def pack(decision: Decision) -> dict[str, Any]:
    """JSON-ready; an infinite number becomes null there."""
    return {
        "chosen": decision.target,
        "mode": decision.mode,
        "at": decision.at,
        "retry_after_s": decision.retry_after_s,
        "ask": [_ASK, _ask(decision.ask)],
        "rows": [_ROW, [_row(row) for row in decision._rows]],
    }


def unpack(packed: Mapping[str, Any]) -> Decision:
    """The decision again, as it was made. KeyError or TypeError if the packed fields are too old to make one."""
    names, values = packed["ask"]
    ask = {name: _restored(name, value) for name, value in zip(names, values, strict=True)}
    ask["order"] = tuple(ask["order"])
    names, packed_rows = packed["rows"]
    rows = []
    for values in packed_rows:
        row = Row.__new__(Row)
        for name, value in zip(names, values, strict=True):
            setattr(row, name, _restored(name, value))
        rows.append(row)
    chosen = next((row for row in rows if row.target == packed["chosen"]), None)
    return Decision(Ask(**ask), rows, chosen, packed["mode"], packed["at"], packed["retry_after_s"])


_MAY_BE_INFINITE = frozenset({"unseen_s", "toll"})


def _restored(name: str, value: Any) -> Any:
    return math.inf if value is None and name in _MAY_BE_INFINITE else value
