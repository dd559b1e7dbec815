"""The demo: a router on the sandbox providers, the seed requests through the real OpenAI client, and the bill."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console

from router.cli.finance import report_table
from router.ledger import Reports

if TYPE_CHECKING:
    from openai import OpenAI

MOUNTAIN = "A serene mountain landscape at sunset"
TYPEWRITER = "A vintage typewriter with paper reading 'Chapter One'"
FAL_GUIDE = {"image_size": "landscape_4_3", "seed": 42}


@dataclass
class _Demo:
    client: OpenAI
    pictures: Path
    console: Console

    def show(self, title: str, name: str, send: Callable[[], Any]) -> list[Path]:
        """Send one request, save its pictures, and print who made them, why, how fast and for how much."""
        self.console.print(f"\n[bold]{title}[/bold]")
        with self.console.status("waiting for the pictures ..."):
            started = time.monotonic()
            answer = send()
            took = time.monotonic() - started
        metadata = answer.model_extra["metadata"]
        paths = []
        for index, item in enumerate(answer.data):
            data = base64.b64decode(item.b64_json) if item.b64_json else httpx.get(item.url).raise_for_status().content
            suffix = f"-{index + 1}" if len(answer.data) > 1 else ""
            path = self.pictures / f"{name}{suffix}.{answer.output_format or 'png'}"
            path.write_bytes(data)
            paths.append(path)
        print_ = self.console.print
        print_(f"  provider  {metadata['provider_name']} ({metadata['executed_model']})")
        print_(f"  why       {metadata['reason']}", soft_wrap=True)
        print_(f"  took      {took:.2f} s, {len(metadata['attempts'])} attempt(s)")
        print_(f"  cost      {metadata['cost']} {metadata['cost_currency']}")
        for item in metadata["line_items"]:
            print_(
                f"            {item['amount']:>9}  {item['billable_quantity']} x {item['label'] or item['metric']}"
                f" at {item['unit_price']}"
            )
        for path in paths:
            print_(f"  picture   {path}  {answer.size or ''}")
        return paths


def run(*, once: bool, port: int, pictures: Path, console: Console) -> int:
    """Returns the exit status: 0 when every request succeeded and the report agrees with the answers."""
    try:
        from openai import OpenAI
    except ImportError:
        console.print(
            "The demo sends its requests through the `openai` package: pip install 'pixelroute[demo]'.", markup=False
        )
        return 2
    port = port if not once and _free(port) else _any_port()
    pictures.mkdir(parents=True, exist_ok=True)
    ledger = pictures / "demo-ledger.db"
    for leftover in pictures.glob("demo-ledger.db*"):
        leftover.unlink()
    base = f"http://127.0.0.1:{port}"
    env = os.environ | {
        "PIXELROUTE_LEDGER": f"sqlite:///{ledger}",
        "PIXELROUTE_MEDIA": str(pictures / "media"),
        "PIXELROUTE_API_KEY": "demo",
    }
    command = [sys.executable, "-m", "router", "serve", "--sandbox", "--port", str(port), "--log-format", "json"]
    started = datetime.now(UTC)
    with (pictures / "demo-server.log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)  # noqa: S603 - this program itself
        try:
            with console.status("starting the router on the sandbox providers ..."):
                _wait_ready(base, server)
            demo = _Demo(OpenAI(base_url=f"{base}/v1", api_key="demo", max_retries=0), pictures, console)
            _requests(demo)
            rows = Reports(env["PIXELROUTE_LEDGER"]).costs(
                "provider", started - timedelta(minutes=1), datetime.now(UTC) + timedelta(minutes=1)
            )
            console.print("\n[bold]What it cost[/bold]")
            console.print(report_table("provider", rows))
            console.print(
                f"\nRouter   {base}/v1   (OpenAI base_url, key: demo)\nConsole  {base}/console\n"
                f"Metrics  {base}/metrics\nDocs     {base}/docs"
            )
            if once:
                return 0
            console.print("\nServing until Ctrl-C. It is play money: no key, no account, no bill.")
            server.wait()
        except KeyboardInterrupt:
            console.print("\nbye")
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGINT)
                try:
                    server.wait(10)
                except subprocess.TimeoutExpired:
                    server.kill()
    return 0


def _requests(demo: _Demo) -> None:
    images = demo.client.images
    [mountain] = demo.show(
        f'generate: "{MOUNTAIN}", 1024x1024',
        "mountain",
        lambda: images.generate(model="flux.2-dev-turbo", prompt=MOUNTAIN, size="1024x1024"),
    )
    demo.show(
        'edit: "Add a starry night sky to this image", 1024x1024',
        "mountain-starry",
        lambda: images.edit(
            model="flux.2-dev-turbo",
            image=mountain.open("rb"),
            prompt="Add a starry night sky to this image",
            size="1024x1024",
        ),
    )
    [first] = demo.show(
        f'fal guide: "{TYPEWRITER}", landscape_4_3, seed 42, pinned to fal',
        "typewriter",
        lambda: images.generate(model="fal/flux.2-dev-turbo", prompt=TYPEWRITER, extra_body=FAL_GUIDE),
    )
    [again] = demo.show(
        "the same again: the sandbox answers with the same bytes",
        "typewriter-again",
        lambda: images.generate(model="fal/flux.2-dev-turbo", prompt=TYPEWRITER, extra_body=FAL_GUIDE),
    )
    same = hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(again.read_bytes()).digest()
    demo.console.print(f"  identical {'yes' if same else 'NO'}")
    if not same:
        raise SystemExit("the sandbox did not repeat itself")
    four = demo.show(
        "fal guide: four pictures of it",
        "typewriter-four",
        lambda: images.generate(
            model="fal/flux.2-dev-turbo", prompt=TYPEWRITER, extra_body=FAL_GUIDE | {"num_images": 4}
        ),
    )
    demo.show(
        "fal guide: an edit with four source pictures",
        "typewriter-combined",
        lambda: images.edit(
            model="flux.2-dev-turbo",
            image=[path.open("rb") for path in four],
            prompt="Combine these into one scene",
            size="1024x1024",
        ),
    )
    demo.show(
        "a token-priced model: gpt-image-2 at OpenAI, medium quality",
        "poster",
        lambda: images.generate(
            model="gpt-image-2",
            prompt="A poster that says PIXELROUTE",
            size="1024x1024",
            quality="medium",
            extra_body={"provider": {"only": ["openai"]}},
        ),
    )


def _wait_ready(base: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if server.poll() is not None:
            raise SystemExit(f"the router ended with status {server.returncode}; see demo-server.log")
        try:
            if httpx.get(f"{base}/readyz", timeout=1.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise SystemExit("the router did not become ready within 15 s; see demo-server.log")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
