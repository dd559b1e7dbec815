"""Dashboards without a Grafana: their structure, and every query against the metrics that are really exported."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.grafana.queries import DASHBOARDS, GRAFANA, SCRAPED, analysed, exported, load, panels, substituted

EXPORTED = exported()
SHOWN = {"stat", "timeseries", "table", "heatmap", "state-timeline", "gauge", "bargauge"}
FUNCTIONS_AFTER_2_42 = re.compile(r"\b(sort_by_label|double_exponential_smoothing|info|limitk|mad_over_time)\b")

every_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def queries() -> list[Any]:
    return [
        pytest.param(target["expr"], id=f"{path.stem}: {panel['title']} {target['refId']}")
        for path in DASHBOARDS
        for panel in panels(load(path))
        for target in panel["targets"]
    ]


def test_there_is_a_dashboard() -> None:
    assert [path.stem for path in DASHBOARDS] == ["pixelroute-overview"]


@every_dashboard
def test_it_can_be_provisioned(path: Path) -> None:
    dashboard = load(path)
    assert dashboard["id"] is None
    assert dashboard["uid"] == path.stem
    assert len(dashboard["uid"]) <= 40
    assert 39 <= dashboard["schemaVersion"] <= 42
    assert dashboard["editable"] is False
    assert dashboard["timezone"] == "utc"  # the ledger's days are
    assert dashboard["tags"] == ["pixelroute"]
    assert dashboard["refresh"]
    assert [link["tags"] for link in dashboard["links"] if link["asDropdown"]] == [["pixelroute"]]


@every_dashboard
def test_its_variables_let_one_choose_source_job_and_instance(path: Path) -> None:
    variables = {variable["name"]: variable for variable in load(path)["templating"]["list"]}
    assert list(variables)[:3] == ["datasource", "job", "instance"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in list(variables)[1:]:
        variable = variables[name]
        assert variable["multi"]
        assert variable["includeAll"]
        assert (variable["allValue"], variable["refresh"]) == (".+", 2)
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert match is not None
        (selector,) = analysed(substituted(match[1])).selectors
        assert match[2] in EXPORTED[selector.name] | SCRAPED


@every_dashboard
def test_no_data_source_is_hard_coded(path: Path) -> None:
    text = path.read_text()
    assert "__inputs" not in text
    assert "DS_PROMETHEUS" not in text
    for panel in panels(load(path)):
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@every_dashboard
def test_ids_titles_and_places_are_unique(path: Path) -> None:
    dashboard = load(path)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    rows = {y for _, y in taken}
    assert rows == set(range(len(rows))), "a gap between panels"


@every_dashboard
def test_every_panel_says_what_it_shows_and_in_which_unit(path: Path) -> None:
    for panel in panels(load(path)):
        assert panel["type"] in SHOWN, panel["title"]
        assert len(panel["description"]) > 40, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        formats = {target.get("format") for target in panel["targets"]}
        assert formats == {{"table": "table", "heatmap": "heatmap"}.get(panel["type"])}, panel["title"]


@pytest.mark.parametrize("expression", queries())
class TestQueries:
    def test_they_use_what_is_exported(self, expression: str) -> None:
        query = analysed(substituted(expression))
        assert query.selectors
        for selector in query.selectors:
            assert selector.name in EXPORTED, f"{selector.name} is not exported"
            unknown = selector.labels - EXPORTED[selector.name] - SCRAPED
            assert not unknown, f"{selector.name} has no label {unknown}"
        has = frozenset().union(*(EXPORTED[selector.name] for selector in query.selectors))
        assert query.grouped <= has | SCRAPED

    def test_they_can_be_narrowed_to_a_job_and_an_instance(self, expression: str) -> None:
        for selector in analysed(substituted(expression)).selectors:
            assert selector.labels >= SCRAPED
        assert 'job=~"$job",instance=~"$instance"' in expression

    def test_counters_are_only_seen_as_rates_and_gauges_never(self, expression: str) -> None:
        for selector in analysed(substituted(expression)).selectors:
            counter = selector.name.endswith(("_total", "_bucket", "_sum", "_count"))
            assert selector.rated == counter, selector.name

    def test_windows_follow_the_scrape_interval_and_the_dashboard(self, expression: str) -> None:
        for window in re.findall(r"\[(.+?)\]", expression):
            assert window in ("$__rate_interval", "$__range")

    def test_prometheus_2_42_knows_their_functions(self, expression: str) -> None:
        assert not FUNCTIONS_AFTER_2_42.search(expression)


def test_provisioning_names_folders_that_exist() -> None:
    import yaml

    providers = yaml.safe_load((GRAFANA / "provisioning/dashboards/pixelroute.yaml").read_text())
    assert providers["apiVersion"] == 1
    (provider,) = providers["providers"]
    assert provider["type"] == "file"
    assert provider["allowUiUpdates"] is False
    assert provider["options"]["path"] in (GRAFANA / "README.md").read_text()
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())
    assert sources["apiVersion"] == 1
    (source,) = sources["datasources"]
    assert source["type"] == "prometheus"
    scrape = yaml.safe_load((GRAFANA / "prometheus.yaml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
