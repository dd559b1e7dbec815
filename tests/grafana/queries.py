"""The queries of dashboards and rules, taken apart; and the metrics that they may use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

from pricing import load_price_books
from router.telemetry import Telemetry
from router.types import Operation, Target

GRAFANA = Path(__file__).parents[2] / "grafana"
DASHBOARDS = sorted(GRAFANA.glob("dashboards/*.json"))
RULES = sorted(GRAFANA.glob("rules/*.yaml"))
RATES = ("rate", "irate", "increase")
SCRAPED = frozenset({"job", "instance"})  # labels that Prometheus adds


def exported() -> dict[str, frozenset[str]]:
    """Every series the router exports, as Prometheus names it, with its labels."""
    telemetry = Telemetry(targets=[Target("p/m", "p", "m", {Operation.GENERATE: "x"})], version="1")
    telemetry.price_books(load_price_books(), datetime(2026, 11, 21, tzinfo=UTC))
    series: dict[str, frozenset[str]] = {}
    for family in telemetry.metrics.registry.collect():
        families = telemetry.metrics.families
        described = families.get(family.name, families.get(f"{family.name}_total"))  # one without series is falsy
        labels = frozenset(described.labels if described is not None else ())
        if family.type == "histogram":
            series |= {
                f"{family.name}_bucket": labels | {"le"},
                f"{family.name}_sum": labels,
                f"{family.name}_count": labels,
            }
        elif family.type == "counter":
            series[f"{family.name}_total"] = labels
        else:
            series[family.name] = labels
    return series


@dataclass(frozen=True)
class Selector:
    """One use of a series in a query."""

    name: str
    labels: frozenset[str]  # in its matchers
    rated: bool  # directly inside rate, irate or increase


@dataclass(frozen=True)
class Query:
    selectors: tuple[Selector, ...]
    grouped: frozenset[str]  # labels in by, without, on, ignoring, group_left


def analysed(expression: str) -> Query:
    """The expression taken apart; ValueError if it does not parse."""
    selectors: list[Selector] = []
    grouped: set[str] = set()
    path: list[Any] = []

    def enter(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            matchers = node.matchers.matchers
            name = node.name or next(m.value for m in matchers if m.name == "__name__")
            rated = (
                len(path) >= 2
                and isinstance(path[-1], promql.MatrixSelector)
                and isinstance(path[-2], promql.Call)
                and path[-2].func.name in RATES
            )
            selectors.append(Selector(name, frozenset(m.name for m in matchers) - {"__name__"}, rated))
        elif isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)
        elif isinstance(node, promql.BinaryExpr) and node.modifier is not None:
            grouped.update(node.modifier.matching.labels if node.modifier.matching else [])
            grouped.update(node.modifier.group_labels or [])
        path.append(node)

    promql.walk(promql.parse(expression), enter, lambda _: path.pop() and None)
    return Query(tuple(selectors), frozenset(grouped))


@dataclass(frozen=True)
class Rule:
    name: str
    expression: str
    alert: bool
    source: Mapping[str, Any]


def rules() -> Iterator[Rule]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                yield Rule(rule.get("alert") or rule["record"], rule["expr"], "alert" in rule, rule)


def recorded() -> dict[str, frozenset[str]]:
    """The series that recording rules make, with their labels."""
    return {rule.name: analysed(rule.expression).grouped - {"le"} for rule in rules() if not rule.alert}


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every panel that shows something, those inside collapsed rows included."""
    found = []
    for panel in dashboard["panels"]:
        found += list(panel.get("panels", ())) if panel["type"] == "row" else [panel]
    return found


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def substituted(expression: str, rate_interval: str = "5m", range_: str = "1h") -> str:
    """A panel's expression with Grafana's variables filled in."""
    expression = expression.replace("$__rate_interval", rate_interval).replace("$__range", range_)
    for variable in ("job", "instance", "model", "provider", "team"):
        expression = expression.replace(f'"${variable}"', '".+"')
    assert "$" not in expression, expression
    return expression
