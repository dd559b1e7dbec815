"""Commands that run something: serve, demo, sandbox; and those that steer a running router: drain, undrain."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import click
import orjson

from router.cli.common import complain, config_option, ledger_option, out, print_problems
from router.config import ConfigError, default_config

url_option = click.option(
    "--url", envvar="PIXELROUTE_URL", default="http://127.0.0.1:8000", show_default=True, help="The running router."
)


@click.command()
@config_option
@ledger_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one."
)
@click.option(
    "--sandbox", is_flag=True, help="Use the built-in provider emulators instead of real hosts: no key, no bill."
)
@click.option("--sandbox-speed", default=0.1, show_default=True, help="Sandbox latencies as a share of the real ones.")
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json", "console"]),
    default="auto",
    show_default=True,
    help="JSON lines, or plain text; auto writes text to a terminal and JSON elsewhere.",
)
def serve(
    configs: tuple[Path, ...],
    ledger: str | None,
    host: str,
    port: int,
    sandbox: bool,
    sandbox_speed: float,
    log_format: str,
) -> None:
    """Serve applications until interrupted.

    The client key comes from PIXELROUTE_API_KEY (required when listening beyond loopback); the console, metrics and
    API share the port.
    """
    from router.app import StartError
    from router.server import serve_forever

    if ledger:
        os.environ["PIXELROUTE_LEDGER"] = ledger
    paths = tuple(configs) or (default_config(),)
    try:
        serve_forever(paths, host=host, port=port, sandbox=sandbox, sandbox_speed=sandbox_speed, log_format=log_format)
    except ConfigError as error:
        print_problems(error)
        sys.exit(2)
    except StartError as error:
        complain("cannot start", error)
        sys.exit(2)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9100, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option("--speed", default=0.1, show_default=True, help="Latencies as a share of the real ones.")
def sandbox(host: str, port: int, speed: float) -> None:
    """Run the provider emulators alone, for tests of other programs; prints their base URLs and keys."""
    from router.server import sandbox_forever

    sandbox_forever(host, port, speed, out.print)


@click.command()
@click.option("--once", is_flag=True, help="End after the requests; the exit status tells success.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="A free one if taken.")
@click.option(
    "--pictures",
    default="demo-pictures",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to save the pictures, the log and the demo's ledger.",
)
def demo(once: bool, port: int, pictures: Path) -> None:
    """Send requests through a router on the sandbox, show choices, pictures, costs and the report; keep serving."""
    from router.demo import run

    sys.exit(run(once=once, port=port, pictures=pictures, console=out))


@click.command()
@url_option
@click.argument("target")
def drain(url: str, target: str) -> None:
    """Send TARGET (provider/model) no new requests; running ones finish. Needs PIXELROUTE_ADMIN_KEY."""
    _steer(url, target, "drain")


@click.command()
@url_option
@click.argument("target")
def undrain(url: str, target: str) -> None:
    """Let TARGET (provider/model) serve again. Needs PIXELROUTE_ADMIN_KEY."""
    _steer(url, target, "undrain")


def _steer(url: str, target: str, verb: str) -> None:
    headers = {"Authorization": f"Bearer {os.environ.get('PIXELROUTE_ADMIN_KEY', '')}".strip()}
    address = f"{url}/v1/routing/{target}/{verb}"
    request = urllib.request.Request(address, method="POST", headers=headers)  # noqa: S310 - the operator's own router
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - the operator's own router
            state = orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        complain("refused", orjson.loads(error.read())["error"]["message"])
        sys.exit(1)
    except OSError as error:
        complain("no answer", f"{url}: {error}")
        sys.exit(1)
    reach = state["reach"]
    told = {None: "", True: ", and all routers that share with it"}.get(
        reach["told"], "; the others are told as soon as the shared server answers"
    )
    out.print(f"{state['target']}: {verb}ed at this router{told}", soft_wrap=True)
    if not reach["kept"]:
        complain("not kept", "the disk takes nothing: a restart of this router forgets it")
