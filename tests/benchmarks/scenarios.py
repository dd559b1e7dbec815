"""What is measured, and how well the router should do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.pictures import large

BOUNDARY = "7d1b36a5f0e94c8a"
PICTURE_BYTES = 4 * 1000 * 1000


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of traffic. ``goal_ms``: CPU per request of the router on a 2-core machine of 2026."""

    name: str
    title: str
    reply: str  # which canned answer the upstream gives
    goal_ms: float | None
    connections: int = 0
    rate: float = 0.0  # Poisson arrivals per second, instead of connections that send again once answered
    delay_ms: tuple[int, int] = (0, 0)
    edit: bool = False
    seconds: float = 3.0
    always: bool = True  # part of the short run

    @property
    def path(self) -> str:
        return "/v1/images/edits" if self.edit else "/v1/images/generations"

    @property
    def model(self) -> str:
        return f"bench-{self.reply}"


SCENARIOS = (
    Scenario("S1", "small reply, 1 connection", "small", 0.9, connections=1),
    Scenario("S2", "small reply, 64 connections", "small", 0.4, connections=64),
    Scenario("S3", "1.5 MB base64 reply, 16 connections", "large", 3.0, connections=16),
    Scenario("S4", "edit with a 4 MB picture, 16 connections", "small", 6.5, connections=16, edit=True),
    Scenario("S5", "50 ms upstream, 256 connections", "small", 0.5, connections=256, delay_ms=(50, 50)),
    Scenario("S6", "60/s, 50-150 ms upstream", "small", 1.5, rate=60, delay_ms=(50, 150), seconds=10, always=False),
    Scenario("S7", "40/s, 4-8 s upstream", "small", 2.4, rate=40, delay_ms=(4000, 8000), seconds=30, always=False),
    Scenario("U1", "link in the reply, 64 connections", "link", None, connections=64, always=False),
)


def body(scenario: Scenario, folder: Path) -> tuple[Path, str]:
    """The request's body as a file, and its content type. The prompt ends with the mark that carries the delay."""
    fields = {
        "model": scenario.model,
        "prompt": "A serene mountain landscape at sunset, seen from the other side of the lake @00000",
        "n": 1,
        "size": "1024x1024",
    }
    path = folder / f"{scenario.name}.body"
    if scenario.reply != "link":
        fields["response_format"] = "b64_json"
    if not scenario.edit:
        path.write_text(json.dumps(fields))
        return path, "application/json"
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()
    ]
    disposition = 'Content-Disposition: form-data; name="image"; filename="source.png"\r\nContent-Type: image/png'
    parts.append(f"--{BOUNDARY}\r\n{disposition}\r\n\r\n".encode() + large(PICTURE_BYTES) + b"\r\n")
    path.write_bytes(b"".join(parts) + f"--{BOUNDARY}--\r\n".encode())
    return path, f"multipart/form-data; boundary={BOUNDARY}"


def configuration(upstream: str, folder: Path) -> Path:
    """A router configuration with two equal hosts per model, so that there is a choice to make, and their prices."""
    providers: dict[str, object] = {}
    models: dict[str, object] = {}
    for reply in sorted({scenario.reply for scenario in SCENARIOS} | {"huge"}):
        names = [f"{reply}-a", f"{reply}-b"]
        for name in names:
            providers[name] = {
                "name": name,
                "adapter": "openai",
                "urls": {"api": f"{upstream}/{reply}/v1"},
                "key_env": "BENCH_PROVIDER_KEY",
                "prices": "bench",
            }
        target = {"generate": f"bench-{reply}", "edit": f"bench-{reply}", "max_inputs": 4, "formats": ["png"]}
        target["sizes"] = {"min_side": 256, "max_side": 2048}
        models[f"bench-{reply}"] = {"name": reply, "creator": "bench", "targets": dict.fromkeys(names, target)}
    books = folder / "books"
    books.mkdir(exist_ok=True)
    component = {"type": "output", "metric": "megapixel", "unit_price": "0.012", "megapixel": 1048576}
    price = {
        "effective_at": "2026-01-01",
        "source": "operator",
        "source_url": "benchmark",
        "checked_at": "2026-01-01",
        "currency": "USD",
        "components": [component | {"rounding": "up_per_image"}],
    }
    # Written as JSON, which is YAML; a price is a number there.
    book = {"book": "bench", "title": "Benchmark", "models": [{"skus": sorted(models), "prices": [price]}]}
    (books / "bench.yaml").write_text(
        json.dumps(book).replace('"0.012"', "0.012").replace('"2026-01-01"', "2026-01-01")
    )
    path = folder / "providers.yaml"
    path.write_text(json.dumps({"version": 1, "prices": str(books), "providers": providers, "models": models}))
    return path
