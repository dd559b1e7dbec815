"""A real Prometheus scrapes a real router on the sandbox while requests flow, and every panel must show something."""

import math
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from PIL import Image

from tests.grafana.queries import DASHBOARDS, GRAFANA, RULES, load, panels, recorded, substituted
from tests.integration.process import KEY, RouterProcess, free_port

pytestmark = pytest.mark.xdist_group("live")

PATIENCE_S = 90.0  # a quiet machine needs some fifteen


class Prometheus:
    """Debian's Prometheus with the configuration and the rules that are shipped, only in more of a hurry."""

    def __init__(self, directory: Path, target: str) -> None:
        config = yaml.safe_load((GRAFANA / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(path) for path in RULES]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = directory / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={directory}/prometheus.yaml",
                    f"--storage.tsdb.path={directory}/tsdb",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10.0)
        return answer.raise_for_status().json()["data"]

    def shows(self, expression: str) -> bool:
        """Whether a query over the last 15 seconds has a value anywhere."""
        now = time.time()
        data = self.get("query_range", query=expression, start=now - 15, end=now, step=1)
        return any(not math.isnan(float(value)) for series in data["result"] for _, value in series["values"])


def picture() -> bytes:
    data = BytesIO()
    Image.new("RGB", (512, 512), "teal").save(data, "PNG")
    return data.getvalue()


class Traffic:
    """What a day brings, in seconds: successes of several kinds, failovers, refusals, errors, unknown models."""

    def __init__(self, base: str) -> None:
        self._client = openai.OpenAI(base_url=f"{base}/v1", api_key=KEY, max_retries=0, timeout=30.0)
        self._picture = picture()
        self._stop = threading.Event()
        self.outcomes: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _generate(self, model: str, size: str = "1024x1024", prompt: str = "a lighthouse", **more: Any) -> None:
        self._client.images.generate(model=model, prompt=prompt, size=size, **more)

    def _edit(self, model: str) -> None:
        self._client.images.edit(model=model, prompt="add stars", image=("s.png", self._picture), size="1024x1024")

    def _jobs(self) -> list[Any]:
        # 256x256 is below what fal makes, so that one candidate is left out.
        return [
            lambda: self._generate("flux.2-dev-turbo"),
            lambda: self._generate("flux.2-dev-turbo", "1920x1080", n=2),
            lambda: self._generate("flux.2-dev-turbo", "256x256"),
            lambda: self._generate("fal/flux.2-dev-turbo"),
            lambda: self._edit("flux.2-dev-turbo"),
            lambda: self._generate("gpt-image-2", quality="low"),
            lambda: self._generate("sandbox-failover"),
            lambda: self._generate("sandbox-down"),
            lambda: self._generate("sandbox-refused"),
            lambda: self._generate("sandbox-billed-error"),
            lambda: self._generate("sandbox-rescue", extra_headers={"x-pixelroute-deadline-s": "5"}),
            lambda: self._generate("there-is-no-such-model"),
        ]

    def _run(self) -> None:
        with ThreadPoolExecutor(6) as pool:
            while not self._stop.is_set():
                for outcome in pool.map(self._attempt, self._jobs()):
                    self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    @staticmethod
    def _attempt(job: Any) -> str:
        try:
            job()
        except openai.APIStatusError as error:
            return str(error.status_code)
        return "200"

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    directory = tmp_path_factory.mktemp("router")
    keys = {"shop": {"secret_env": "PIXELROUTE_API_KEY", "team": "web", "budget": {"day": "1000"}}}
    (directory / "keys.yaml").write_text(yaml.safe_dump({"keys": keys}))
    process = RouterProcess(directory, speed=0.05, more=directory / "keys.yaml")
    yield process
    process.stop()


@pytest.fixture(scope="module")
def prometheus(router: RouterProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{router.port}")
    traffic = Traffic(router.base)
    yield server
    traffic.stop()
    server.process.terminate()
    server.process.wait()
    assert {"200", "400", "404"} <= traffic.outcomes.keys(), traffic.outcomes
    assert any(code.startswith("5") for code in traffic.outcomes), traffic.outcomes


def until(check: Any, patience_s: float = PATIENCE_S) -> Any:
    """Ask again each second, as Prometheus scrapes, until there is nothing left to wait for."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            left = check()
        except httpx.HTTPError as error:  # not listening, or not ready yet
            left = repr(error)
        if not left:
            return
        assert time.monotonic() < deadline, left
        threading.Event().wait(1.0)


def test_money_in_metrics_is_the_ledgers(tmp_path: Path) -> None:
    """Both cuts of the money, and the number of requests, against what the answers said."""
    process = RouterProcess(tmp_path, key=None, speed=0.02)
    try:
        client = openai.OpenAI(base_url=f"{process.base}/v1", api_key="any", max_retries=0)
        spent = 0.0
        for size, count in (("512x512", 1), ("1920x1080", 2), ("2048x2048", 1)):
            answer = client.images.generate(model="flux.2-dev-turbo", prompt="a lighthouse", size=size, n=count)
            spent += float(answer.metadata["cost"])  # type: ignore[attr-defined]

        def total(name: str) -> float:
            page = httpx.get(f"{process.base}/metrics").text
            samples = [line.rsplit(" ", 1) for line in page.splitlines()]
            return sum(float(value) for series, value in samples if series.startswith(f"pixelroute_{name}{{"))

        until(lambda: total("requests_in_flight"), 10.0)  # an answer is there before its request has ended
        assert spent > 0
        assert total("cost_usd_total") == pytest.approx(spent, abs=1e-9)
        assert total("team_cost_usd_total") == pytest.approx(spent, abs=1e-9)
        assert total("requests_total") == 3
        assert total("images_total") == 4
        assert total("provider_in_flight") == 0
    finally:
        process.stop()


def test_prometheus_scrapes_the_router(prometheus: Prometheus) -> None:
    def unhealthy() -> Any:
        targets = prometheus.get("targets")["activeTargets"]
        return [(target["health"], target["lastError"]) for target in targets if target["health"] != "up"]

    until(unhealthy)


def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    waiting = {
        f"{path.stem}: {panel['title']} {target['refId']}": substituted(target["expr"], "5s", "15s")
        for path in DASHBOARDS
        for panel in panels(load(path))
        for target in panel["targets"]
    }
    assert len(waiting) > 40

    def empty() -> dict[str, str]:
        for name in [name for name, expression in waiting.items() if prometheus.shows(expression)]:
            del waiting[name]
        return waiting

    until(empty)


def test_rules_are_evaluated_and_recorded(prometheus: Prometheus) -> None:
    def missing() -> Any:
        return [name for name in recorded() if not prometheus.shows(name)]

    until(missing)
    groups = prometheus.get("rules")["groups"]
    assert [
        (rule["name"], rule["lastError"]) for group in groups for rule in group["rules"] if rule["health"] != "ok"
    ] == []


def test_promtool_accepts_what_the_router_says(router: RouterProcess, prometheus: Prometheus) -> None:
    page = httpx.get(f"{router.base}/metrics").text
    run = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
