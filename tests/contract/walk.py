"""The table of the contract: every id, what it asks for in a sentence, and the requests that show whether it holds.

The rows stand in the modules beside this one, by what they are about; ``row`` enters each into ``ROWS``. They run
against one router in a process of its own, which is asked over HTTP like by any client.
"""

from __future__ import annotations

import base64
import io
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from router.ledger import Reports
from router.ledger.reports import RequestRecord
from tests.integration.process import KEY, RouterProcess

COUNTS = {"A": 6, "B": 7, "C": 4, "D": 4, "E": 4, "G": 17, "H": 7, "J": 4, "L": 5, "M": 10, "R": 16, "S": 10, "T": 4,
          "V": 3, "X": 30}  # fmt: skip
"""A: paths; B: keys; C: what clients are used to; D: reading bodies; E, M, J: edits, as forms and as JSON; G:
generations; V: variations; H: headers; L: models; R: answers; S: streams; T: time; X: errors."""

IDS = [f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1)]

GENERATE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
MODEL = "flux.2-dev-turbo"
SMALL = "256x256"
BODY_BYTES = 4_000_000
NARROW = "a-key-for-one-model"
HURRIED = "a-key-with-limits"
POOR = "a-key-with-a-budget"

CONFIG = f"""
limits: {{request_timeout_s: 5, body_bytes: {BODY_BYTES}}}
keys:
  narrow: {{secret_env: NARROW_KEY, models: [flux.2-klein-9b]}}
  poor: {{secret_env: POOR_KEY, budget: {{day: "0.030"}}}}
  hurried: {{secret_env: HURRIED_KEY, limits: {{requests_per_minute: 40, images_per_minute: 1200, in_flight: 30}}}}
models:
  walk-known-by-another-name:
    aliases: [a-name-that-old-clients-use]
    targets: {{gpu-fast: {{generate: flux.2-dev-turbo, sku: flux.2-dev-turbo}}}}
  walk-draws-only:
    targets: {{gpu-fast: {{generate: flux.2-dev-turbo, sku: flux.2-dev-turbo}}}}
  walk-blames-the-request:
    targets: {{gpu-fast: {{generate: flux.2-dev-turbo, edit: text-to-image-only, sku: flux.2-dev-turbo}}}}
  walk-makes-too-few:
    default_size: 256x256
    targets: {{gpu-fast: {{generate: flux.2-dev-turbo--fewer, sku: flux.2-dev-turbo, max_images: 4}}}}
  walk-one-at-a-time:
    targets: {{gpu-fast: {{generate: one-at-a-time, sku: flux.2-dev-turbo, options: {{response_format: b64_json}}}}}}
  walk-loses-its-link:
    default_size: 256x256
    targets:
      gpu-fast: {{generate: flux.2-dev-turbo--expired_link, sku: flux.2-dev-turbo, options: {{response_format: url}}}}
  walk-takes-a-mask:
    default_size: 256x256
    targets: {{gpu-fast: {{generate: accepts-anything, edit: accepts-anything, sku: flux.2-dev-turbo, mask: true}}}}
  walk-refuses-our-key:
    targets: {{gpu-fast: {{generate: flux.2-dev-turbo--unauthenticated, sku: flux.2-dev-turbo}}}}
  walk-wants-our-money:
    targets: {{gpu-fast: {{generate: flux.2-dev-turbo--no_credit, sku: flux.2-dev-turbo}}}}
"""


FAULTS_OF_OURS = {"unauthenticated": "auth_error", "no_credit": "auth_error", "rate_limited": "rate_limited",
                  "down": "server_error"}  # fmt: skip
"""What is wrong at a provider and not with the request, and what the router calls it."""

CONFIG += "".join(
    f"  walk-{fault}: {{targets: {{gpu-spot: {{generate: flux.2-dev-turbo--{fault}, sku: flux.2-dev-turbo}}, "
    "gpu-fast: {generate: flux.2-dev-turbo}}}\n"
    for fault in FAULTS_OF_OURS
)


@dataclass(frozen=True)
class Row:
    """One id. ``check`` asks the router; ``elsewhere`` names a test that holds what a running router cannot show."""

    told: str
    check: Callable[[Walk], None]
    elsewhere: str | None = None


ROWS: dict[str, Row] = {}


def row(name: str, told: str, elsewhere: str | None = None) -> Callable[[Callable[[Walk], None]], None]:
    """Enter a check under its id."""

    def enter(check: Callable[[Walk], None]) -> None:
        assert name not in ROWS, name
        ROWS[name] = Row(told, check, elsewhere)

    return enter


def shown_by(name: str, told: str, test: str) -> None:
    """An id that takes more than requests to show: ``tests/path.py::test_name`` does."""
    row(name, told, test)(lambda walk: None)


# --- pictures ---------------------------------------------------------------------------------------------------


def picture(width: int = 64, height: int = 48, form: str = "PNG", mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert(mode).save(out, form)
    return out.getvalue()


def mask(width: int = 64, height: int = 48) -> bytes:
    """A hole in the middle of something opaque."""
    image = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (width // 4, height // 4, width // 2, height // 2))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


PICTURE = picture()


# --- asking -----------------------------------------------------------------------------------------------------


class Walk:
    """The router and what the rows ask of it."""

    def __init__(self, directory: Path) -> None:
        config = directory / "walk.yaml"
        config.write_text(CONFIG)
        keys = {"NARROW_KEY": NARROW, "HURRIED_KEY": HURRIED, "POOR_KEY": POOR}
        self.router = RouterProcess(directory, speed=0, more=config, env=keys)
        self.http = httpx.Client(base_url=self.router.base, headers={"authorization": f"Bearer {KEY}"}, timeout=60.0)

    def close(self) -> int:
        self.http.close()
        return self.router.stop()

    def generate(self, *without: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        """A generation; ``without``: fields that are left out of the usual ones."""
        body = {"model": MODEL, "prompt": "a lake", "size": SMALL, "response_format": "b64_json"} | fields
        return self.http.post(GENERATE, json={k: v for k, v in body.items() if k not in without}, headers=headers)

    def form(self, path: str, fields: dict[str, str], *files: tuple[str, Any], **more: Any) -> httpx.Response:
        """A multipart body: pictures as given, text fields without a file name."""
        sent: list[Any] = [*files, *((name, (None, value.encode())) for name, value in fields.items())]
        return self.http.post(path, files=sent, **more)

    def edit(self, *files: tuple[str, Any], without: tuple[str, ...] = (), **fields: str) -> httpx.Response:
        asked = {"model": MODEL, "prompt": "at night", "size": SMALL, "response_format": "b64_json"} | fields
        return self.form(EDIT, {k: v for k, v in asked.items() if k not in without}, *(files or (("image", PICTURE),)))

    def edit_json(self, *without: str, **fields: Any) -> httpx.Response:
        images = [{"image_url": data_url(PICTURE)}]
        body = {"model": MODEL, "prompt": "at night", "size": SMALL, "images": images} | fields
        return self.http.post(EDIT, json={k: v for k, v in body.items() if k not in without})

    def stream(self, **fields: Any) -> list[dict[str, Any]]:
        """The events of a streamed generation."""
        return events(self.generate(**{"model": "gpt-image-2", "size": "1024x1024", "stream": True} | fields))

    def kept(self, answer: httpx.Response) -> RequestRecord:
        """The ledger's rows of an answered request."""
        with Reports(self.router.ledger_url) as reports:
            found = reports.request(answer.headers["x-request-id"])
        assert found is not None
        return found

    def costs(self) -> int:
        """Attempts in the ledger."""
        with Reports(self.router.ledger_url) as reports:
            return sum(one.attempts for one in reports.costs("provider"))

    @cached_property
    def late(self) -> httpx.Response:
        """What a provider that never answers comes to: made once, for it takes the whole budget."""
        return self.generate(model="sandbox-hang")

    @cached_property
    def limited(self) -> httpx.Response:
        """The last word where every provider limits requests: made once, for the router waits before it says so."""
        return self.generate(model="sandbox-rate-limited")

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.router.port), timeout=20) as connection:
            yield connection


def head(path: str, *lines: str, method: str = "POST", key: str | None = KEY) -> bytes:
    """The head of a request as it stands on the wire."""
    found = [f"{method} {path} HTTP/1.1", "host: x", *([f"authorization: Bearer {key}"] if key else []), *lines]
    return ("\r\n".join(found) + "\r\n\r\n").encode()


def answered(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The next answer on a connection: status, headers, body by its length."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        assert more, data
        data += more
    top, _, body = data.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(first.split(" ")[1]), headers, body


# --- what answers must look like --------------------------------------------------------------------------------


def made(answer: httpx.Response, count: int = 1) -> dict[str, Any]:
    """The body of a success with this many pictures."""
    assert answer.status_code == 200, answer.text[:2000]
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    assert len(body["data"]) == count
    return body


def opened(item: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item["b64_json"], validate=True)))


def refused(
    answer: httpx.Response,
    status: int,
    code: str | tuple[str | None, ...] | None = (),
    param: str | tuple[str | None, ...] | None = (),
    type: str = "invalid_request_error",
) -> dict[str, Any]:
    """The error object, after a look at what is the same for all; an empty tuple lets a value be any."""
    assert answer.status_code == status, answer.text[:2000]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert isinstance(error["message"], str)
    assert error["message"]
    assert not re.search(r"Traceback|https?://|127\.0\.0\.1", error["message"])
    assert all(error[name] is None or isinstance(error[name], str) for name in ("code", "param"))
    assert error["type"] == type
    for name, wanted in (("code", code), ("param", param)):
        if wanted != ():
            assert error[name] in (wanted if isinstance(wanted, tuple) else (wanted,)), error
    return error


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """A stream's events, after a look at its lines: an event, its data in one line, an empty one, or a comment."""
    assert answer.status_code == 200, answer.text[:2000]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\n")
    found = []
    for block in answer.text[:-2].split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found
