"""Rules and alerts: against the metrics that are exported, by Prometheus' own tool, and each with a page to read."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from router.telemetry import Telemetry
from tests.grafana.queries import GRAFANA, RULES, SCRAPED, Rule, analysed, exported, recorded, rules
from tests.router.test_telemetry import ATTEMPT, REQUEST, TARGETS

KNOWN = exported() | recorded()
ALERTS = [rule for rule in rules() if rule.alert]

every_rule = pytest.mark.parametrize("rule", list(rules()), ids=lambda rule: rule.name)
every_alert = pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule.name)


def promtool(*arguments: str, stdin: str | None = None) -> None:
    run = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, cwd=GRAFANA)
    assert run.returncode == 0, run.stdout + run.stderr


@every_rule
def test_rules_use_what_is_exported_or_recorded(rule: Rule) -> None:
    query = analysed(rule.expression)
    for selector in query.selectors:
        assert selector.name in KNOWN, selector.name
        assert selector.labels <= KNOWN[selector.name] | SCRAPED
    has = frozenset().union(*(KNOWN[selector.name] for selector in query.selectors))
    assert query.grouped <= has | SCRAPED


@every_rule
def test_counters_are_only_seen_as_rates(rule: Rule) -> None:
    for selector in analysed(rule.expression).selectors:
        assert selector.rated == selector.name.endswith(("_total", "_bucket", "_sum", "_count")), selector.name


def test_recorded_series_are_named_level_metric_operation() -> None:
    assert all(re.fullmatch(r"[a-z_]+:pixelroute_[a-z_]+:[a-z0-9_]+", name) for name in recorded())


@every_alert
def test_every_alert_tells_how_bad_it_is_and_where_to_read_on(rule: Rule) -> None:
    assert rule.source["labels"]["severity"] in ("critical", "warning", "info")
    annotations = rule.source["annotations"]
    assert set(annotations) == {"summary", "description", "runbook"}
    assert annotations["runbook"] == f"grafana/runbook.md#{rule.name.lower()}"


def test_the_runbook_has_a_section_for_every_alert_and_no_other() -> None:
    headings = re.findall(r"^## (.+)$", (GRAFANA / "runbook.md").read_text(), re.MULTILINE)
    assert headings == [rule.name for rule in ALERTS]


def test_every_alert_is_shown_to_fire() -> None:
    fired = {
        test["alertname"]
        for path in (GRAFANA / "tests").glob("*.yaml")
        for case in yaml.safe_load(path.read_text())["tests"]
        for test in case.get("alert_rule_test", ())
        if test["exp_alerts"]
    }
    assert {rule.name for rule in ALERTS} - fired == set()


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yaml")
    promtool("check", "rules", *(str(path) for path in RULES))


@pytest.mark.parametrize("path", sorted(GRAFANA.glob("tests/*.yaml")), ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(path: Path) -> None:
    promtool("test", "rules", str(path))


def test_promtool_accepts_every_metric() -> None:
    telemetry = Telemetry(targets=TARGETS, teams=("art",), version="1")
    telemetry.request_finished(REQUEST)
    telemetry.attempt_finished(ATTEMPT)
    promtool("check", "metrics", stdin=telemetry.exposition()[0].decode())
