"""Our ledger against the providers' invoices: thousands of requests, and not one nano-dollar that nobody can explain.

The emulators write their invoices by the providers' published rules, without our adapters, price books or engine. Where
the two sums differ, a line of code is wrong, or one of the few documented reasons below holds.
"""

from __future__ import annotations

import io
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from PIL import Image

from pricing import ImageSize
from router.config import default_config, load
from router.ledger import Reports, State
from router.ledger.reports import AttemptRecord
from router.types import Operation, Target
from tests.integration.process import KEY, RouterProcess

REQUESTS = 2000
AT_ONCE = 32

SMALL = ("512x512", "640x512", "1024x640", "960x960")
LARGE = ("1024x1024", "1040x1024", "1200x1000", "1280x1024", "1449x1448", "1536x1024", "1024x1536", "1920x1072")
"""Small ones are drawn quickly. The large ones lie around one and two megapixels, where roundings differ."""

INPUTS = (
    ("512x512",),
    ("512x512", "512x512"),
    ("1024x1024",),  # a megapixel
    ("1024x1025", "64x64"),  # a bit more than one
    ("1200x1000", "512x512", "64x64"),
    ("2100x2000",),  # more than the four to which providers scale down
)

PROMPTS = ("a lake", "Ein Fjord im Nebel", "mountains at dawn, in the style of an old postcard, with a small red boat")
TOKENS = ("openai", "azure", "google")
"""Providers that charge for the prompt. Elsewhere it is always the same, so that the sandbox need not draw all anew."""


# --- what is asked --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One request to one target: its fields, and the sizes of its source pictures."""

    target: Target
    operation: Operation
    fields: Mapping[str, Any]
    inputs: tuple[str, ...] = ()


def targets() -> dict[str, list[Target]]:
    """Every target of the shipped catalogue, by provider."""
    found: dict[str, list[Target]] = defaultdict(list)
    for target in load([default_config()], {}, keyless=True).targets:
        found[target.provider].append(target)
    return dict(found)


def asks(rng: random.Random, count: int, **fixed: Any) -> Iterator[Ask]:
    """Random valid requests, as many for each provider; ``fixed`` fields stand in all of them."""
    by_provider = targets()
    for provider in itertools.islice(itertools.cycle(by_provider), count):
        yield ask(rng, rng.choice(by_provider[provider]), fixed)


def ask(rng: random.Random, target: Target, fixed: Mapping[str, Any]) -> Ask:
    operation = rng.choice([op for op in target.endpoints if op is not Operation.VARIATION])
    fields: dict[str, Any] = {
        "model": target.key,
        "prompt": rng.choices(PROMPTS, (8, 1, 1))[0] if target.provider in TOKENS else PROMPTS[0],
        "n": rng.choice((1, 1, 1, 1, 1, 2, 3, min(5, target.max_images + 1))),  # the last takes several calls
        "response_format": "url",
        "seed": 1,
    }
    if (size := a_size(rng, target)) is not None:
        fields["size"] = str(size)
    if target.qualities and rng.random() < 0.8:
        fields["quality"] = rng.choice(sorted(target.qualities))
    if rng.random() < 0.2:
        fields["output_format"] = rng.choice(("png", "jpeg", "webp"))
    if rng.random() < 0.4:
        fields |= an_option(rng, target)
    inputs: tuple[str, ...] = ()
    if operation is Operation.EDIT:
        inputs = rng.choice([pictures for pictures in INPUTS if len(pictures) <= target.max_inputs])
    elif target.streams and fields["n"] == 1 and rng.random() < 0.3:
        fields |= {"stream": True, "partial_images": rng.randint(0, 3)}
    return Ask(target, operation, fields | fixed, inputs)


def a_size(rng: random.Random, target: Target) -> ImageSize | None:
    """A size this target makes; None leaves it to the model or the provider."""
    if rng.random() < 0.08:
        return None
    small = rng.random() < 0.9
    fitting = [size for size in map(ImageSize.parse, SMALL if small else LARGE) if target.sizes.accepts(size)]
    if fitting:
        return fitting[0] if small else rng.choice(fitting)
    fixed = sorted(target.sizes.fixed, key=lambda size: size.pixels)
    return fixed[0] if small else rng.choice(fixed[:20])


def an_option(rng: random.Random, target: Target) -> dict[str, Any]:
    """A field that a price may depend on: one the target knows, or one it must drop without charging for it."""
    if target.model == "ideogram-3":
        return {"rendering_speed": rng.choice(("TURBO", "BALANCED", "QUALITY"))}
    if target.provider in ("together", "runware", "deepinfra"):
        return {rng.choice(("steps", "num_inference_steps")): rng.randint(2, 12)}
    return {}


@cache
def picture(size: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", tuple(int(side) for side in size.split("x")), "teal").save(out, "PNG")
    return out.getvalue()


@dataclass
class Answers:
    """How the requests ended: by status, and in full where something went wrong."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[tuple[Ask, str]] = field(default_factory=list)


async def send(base: str, requests: Iterator[Ask]) -> Answers:
    """All requests through the router, ``AT_ONCE`` at a time."""
    answers = Answers()
    headers = {"authorization": f"Bearer {KEY}"}

    async def worker(client: httpx.AsyncClient) -> None:
        for request in requests:
            if request.operation is Operation.EDIT:
                files = [("image[]", (f"{size}.png", picture(size), "image/png")) for size in request.inputs]
                data = {name: str(value) for name, value in request.fields.items()}
                answer = await client.post("/v1/images/edits", data=data, files=files)
            else:
                answer = await client.post("/v1/images/generations", json=request.fields)
            failed = answer.status_code != 200 or b"event: error" in answer.content[-4096:]
            answers.statuses[answer.status_code] += 1
            if failed:
                answers.failures.append((request, f"{answer.status_code} {answer.text[-600:]}"))

    limits = httpx.Limits(max_connections=AT_ONCE)
    async with (
        httpx.AsyncClient(base_url=base, headers=headers, timeout=120, limits=limits) as client,
        anyio.create_task_group() as workers,
    ):
        for _ in range(AT_ONCE):
            workers.start_soon(worker, client)
    return answers


# --- what was booked, and what was billed ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Bill:
    """Calls that were billed, or are expected to be, and nano-dollars."""

    calls: int = 0
    nanos: int = 0

    def __add__(self, other: Bill) -> Bill:
        return Bill(self.calls + other.calls, self.nanos + other.nanos)


Key = tuple[str, str, str]
"""Provider, the provider's name for what was bought, operation."""


def our_bills(attempts: Iterable[AttemptRecord]) -> dict[Key, Bill]:
    bills: dict[Key, Bill] = defaultdict(Bill)
    for attempt in attempts:
        opening = attempt.opening
        assert opening.price_id is not None
        sku = opening.price_id.removeprefix(f"{opening.provider}:").rpartition("@")[0]
        calls = int(opening.expected["requests"])
        bills[opening.provider, sku, opening.operation] += Bill(calls, attempt.cost_nanos)
    return dict(bills)


def their_bills(lines: Iterable[Mapping[str, Any]]) -> dict[Key, Bill]:
    bills: dict[Key, Bill] = defaultdict(Bill)
    for line in lines:
        bills[line["provider"], line["model"], line["operation"]] += Bill(1, line["amount_nanos"])
    return dict(bills)


class Books:
    """Both sides' records, and what is new in them since one last looked."""

    def __init__(self, router: RouterProcess) -> None:
        self._router = router
        self._attempts: set[str] = set()
        self._lines = 0

    def new(self) -> tuple[list[AttemptRecord], list[dict[str, Any]]]:
        with Reports(self._router.ledger_url) as reports:
            every = [attempt for request in reports.recent(100_000) for attempt in request.attempts]
        attempts = [attempt for attempt in every if attempt.opening.attempt_id not in self._attempts]
        lines = [line for line in self._router.invoice()["lines"] if line["number"] > self._lines]
        self._attempts |= {attempt.opening.attempt_id for attempt in attempts}
        self._lines = max((line["number"] for line in lines), default=self._lines)
        return attempts, lines


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[RouterProcess]:
    process = RouterProcess(tmp_path, speed=0.0005)
    yield process
    assert process.stop() == 0


# --- two thousand requests ------------------------------------------------------------------------------------------

ROUNDING = {
    "deepinfra": "it rounds each call to a nano-dollar; one of our lines spans all calls of a request",
}
"""Why a sum may differ, and where: by at most one nano-dollar a call."""

ESTIMATES = {
    "runware": "prices follow compute time; the book has an upper estimate, the reply the cost",
    "xai": "what an input picture costs is published as a range, and the reply names the cost",
}
"""Where the provider's own figure, which settles, may differ from the book's."""


def test_two_thousand_requests_cost_what_the_providers_bill(lone):
    answers = anyio.run(send, lone.base, asks(random.Random(20261121), REQUESTS))
    assert answers.failures == []
    assert answers.statuses == {200: REQUESTS}

    attempts, lines = Books(lone).new()
    assert len(attempts) == REQUESTS
    assert {attempt.state for attempt in attempts} == {State.SETTLED}
    ours, theirs = our_bills(attempts), their_bills(lines)
    assert {provider for provider, _, _ in ours} == set(targets())
    unexplained = {}
    for key in ours.keys() | theirs.keys():
        mine, bill = ours.get(key, Bill()), theirs.get(key, Bill())
        difference = abs(mine.nanos - bill.nanos)
        if mine.calls != bill.calls or difference > (bill.calls if key[0] in ROUNDING else 0):
            unexplained[key] = (mine, bill)
    assert unexplained == {}

    drifted, above_quote = [], []
    for attempt in attempts:
        opening, settlement = attempt.opening, attempt.settlement
        assert settlement is not None
        story = (opening.target, opening.operation, opening.expected, settlement.usage, attempt.cost_nanos)
        if settlement.reported_nanos not in (None, settlement.computed_nanos) and opening.provider not in ESTIMATES:
            drifted.append((*story, settlement.computed_nanos))
        if attempt.cost_nanos > opening.estimate_nanos:
            above_quote.append((*story, opening.estimate_nanos))
    assert drifted == []
    assert above_quote == []


# --- when things go wrong -------------------------------------------------------------------------------------------

EVERYBODY = frozenset(targets())

FREE_5XX = frozenset({"fal", "bfl", "stability", "gpu-fast", "gpu-spot"})
"""Providers that say they never bill a 5xx. The others leave it open, so there it is held at the worst case."""

LINKS = frozenset({"fal", "bfl", "replicate", "runware"})
"""Providers whose pictures are fetched from a link."""


@dataclass(frozen=True)
class Trouble:
    """A fault, who is struck by it, and what is certain about its money."""

    fault: str
    providers: frozenset[str] = EVERYBODY
    billed: bool | None = None  # whether the providers bill it; None: some do
    settled: int | None = None  # what we settle, where that is certain: nothing
    held: int | None = None  # what we hold at an estimate, where that is certain: nothing
    exact: bool = False  # what we settle is what they bill, to the nano-dollar
    n: int = 1


TROUBLES = (
    Trouble("rate_limited; retry_after=0", billed=False, settled=0, held=0),
    Trouble("server_error; status=503", FREE_5XX, billed=False, settled=0, held=0),
    Trouble("server_error; status=500", EVERYBODY - FREE_5XX, billed=False, settled=0),
    Trouble("server_error; billed=1", EVERYBODY - FREE_5XX, billed=True, settled=0),
    Trouble("refused"),
    Trouble("refused; stage=output", frozenset({"bfl", "google", "xai", "stability"})),
    Trouble("failed", frozenset({"fal", "bfl"}), billed=False, settled=0, held=0),
    Trouble("failed", frozenset({"replicate"}), billed=False, settled=0),
    Trouble("empty"),
    Trouble("fewer; n=1", billed=True, held=0, exact=True, n=3),
    Trouble("wrong_size", billed=True, held=0, exact=True),
    Trouble("corrupt", billed=True, held=0),
    Trouble("reset; billed=1", billed=True, settled=0),
    Trouble("truncated", billed=True, settled=0),
    Trouble("wrong_type", billed=True, settled=0),
    Trouble("expired_link", LINKS, billed=True, held=0),
)
EACH = 3
"""Requests to every provider in every trouble."""


def in_trouble(rng: random.Random, trouble: Trouble) -> Iterator[Ask]:
    by_provider = targets()
    for provider in sorted(trouble.providers) * EACH:
        plain = ask(rng, rng.choice(by_provider[provider]), {"n": trouble.n, "stream": False, "partial_images": 0})
        prompt = f"{plain.fields['prompt']} [fault: {trouble.fault}]"
        yield replace(plain, fields={**plain.fields, "prompt": prompt})


def test_what_goes_wrong_is_never_booked_below_what_is_billed(lone):
    rng, books = random.Random(20261121), Books(lone)
    for trouble in TROUBLES:
        anyio.run(send, lone.base, in_trouble(rng, trouble))
        attempts, lines = books.new()
        for provider in trouble.providers:
            struck = [attempt for attempt in attempts if attempt.opening.provider == provider]
            settled = sum(attempt.cost_nanos for attempt in struck)
            held = sum(attempt.unsettled_nanos for attempt in struck)
            billed = sum(line["amount_nanos"] for line in lines if line["provider"] == provider)
            story = (trouble.fault, provider, settled, held, billed)
            assert struck, story
            assert State.OPEN not in {attempt.state for attempt in struck}, story
            assert settled + held >= billed, story
            assert trouble.billed in (None, billed > 0), story
            assert trouble.settled in (None, settled), story
            assert trouble.held in (None, held), story
            assert not trouble.exact or settled == billed, story
