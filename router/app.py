"""Composition root: settings in, a running router out. The only module that knows how the parts fit together."""

from __future__ import annotations

import asyncio
import hmac
import importlib.util
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from starlette.applications import Starlette

from pricing import MEGAPIXEL, PriceBooks, Problem
from router import __version__, booking
from router.api.app import build_app, routes
from router.api.http import Exchange
from router.api.requests import CutOff, Requests
from router.api.routing import routing_routes
from router.api.webhooks import Webhooks
from router.budgets import CURRENCY, Budgets
from router.clock import Clock
from router.config import ConfigError, MediaSettings, Settings, WebhookSettings
from router.console import Recent, console_routes
from router.delivery import Delivery
from router.drains import Drains
from router.errors import RequestError
from router.events import RequestFinished
from router.gateway import Gateway
from router.ids import new_id
from router.ledger import Ledger, Reports, Unresolved
from router.ledger.reports import CostRow
from router.limits import Limiter
from router.mediastore import Blobs, Directory, MediaStore
from router.offers import Agreements, Offers
from router.pool import PoolTransport, is_public
from router.providers import load_adapter
from router.providers.base import Adapter
from router.routing import Result, Sample, Selector
from router.routing.catalog import Catalog
from router.telemetry import Sources, Telemetry
from router.transport import Transport
from router.types import Caller, Completed, Provider
from router.whatif import Comparison, History, compare

if TYPE_CHECKING:
    from router.sharing import Sharing

log = structlog.get_logger("pixelroute")

WEBHOOK_S = 30.0  # how long a receiver may take to answer
WARM = timedelta(days=1)
"""How much of the ledger a new selector learns from."""


class StartError(Exception):
    """The router cannot start as asked; the message says what to do about it."""


# --- what needs no event loop -----------------------------------------------------------------------------------


def adapters_for(settings: Settings) -> tuple[dict[str, Provider], dict[str, Adapter], list[str]]:
    """Every provider with its adapter and final base URLs, and what is wrong with those that have none."""
    providers, adapters, problems = {}, {}, []
    for name, provider in settings.providers.items():
        try:
            adapter_class = load_adapter(provider.adapter)
            urls = dict(adapter_class.urls) | {key: url for key, url in provider.urls.items() if url}
            adapters[name] = adapter_class(urls)
        except ValueError as error:
            problems.append(f"providers.{name}.adapter: {error}")
        else:
            providers[name] = replace(provider, urls=urls)
    return providers, adapters, problems


def offers_for(settings: Settings) -> Offers:
    """The offers of these settings; ConfigError if a provider's adapter or URLs cannot be used."""
    providers, adapters, problems = adapters_for(settings)
    if problems:
        raise ConfigError(Problem("configuration", *text.split(": ", 1)) for text in problems)
    catalog = Catalog(settings.models, settings.names, settings.defaults, settings.successors)
    return Offers(catalog, settings.books, providers, adapters, settings.weights)


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a replay changes; what is None or empty stays as it was."""

    policy: str | None = None
    value_of_time: float | None = None  # dollars that a second of waiting is worth
    settings: Settings | None = None  # another configuration
    books: PriceBooks | None = None
    only: tuple[str, ...] = ()  # providers or targets
    ignore: tuple[str, ...] = ()


def what_if(
    settings: Settings,
    reports: Reports,
    since: datetime,
    until: datetime,
    change: WhatIf,
    *,
    runs: int,
    seed: int,
    reading: Callable[[Iterator[Any]], Iterable[Any]] = iter,
    played: Callable[[], object] = lambda: None,
) -> Comparison:
    """The ledger's requests of [since, until), played again with a change; ``reading`` and ``played`` see progress."""
    now = change.settings or settings
    offers = None
    if change.settings is not None or change.books is not None:
        offers = offers_for(replace(now, books=change.books or now.books))
    routing = replace(now.routing, preset=change.policy or now.routing.preset)
    if change.value_of_time is not None:
        presets = {name: replace(known, value_of_time=change.value_of_time) for name, known in routing.presets.items()}
        routing = replace(routing, presets=presets)
    history = History(
        timeout_s=now.limits.request_timeout_s,
        offers=offers,
        policy=change.policy,
        only=change.only,
        ignore=change.ignore,
    )
    past = history.read(reading(reports.answered(since, until)))
    history.left_out["without an answer on record"] = reports.count(since, until) - history.requests
    before = [sample for sample in evidence(reports, since - WARM) if sample.at < since.timestamp()]

    def selector(seed: int) -> Selector:
        fresh = Selector(routing, now.priors, random.Random(seed))  # noqa: S311 - no secret
        fresh.warm(before, since.timestamp())
        return fresh

    return compare(history, past, selector, runs, seed, played)


def evidence(reports: Reports, since: datetime, clock_s: float = 0.0) -> Iterator[Sample]:
    """What the ledger knows since then, for a selector whose clock reads ``clock_s`` less than the epoch's seconds."""
    for sample in reports.samples(since):
        result = _RESULTS.get(sample.outcome)
        if sample.latency_ms and sample.megapixels and result is not None:
            yield Sample(
                target=sample.target,
                operation=sample.operation,
                images=sample.images,
                megapixels=sample.megapixels / max(sample.images, 1),
                result=result,
                latency_s=sample.latency_ms / 1000,
                at=sample.at.timestamp() - clock_s,
            )


def drawn(settings: Settings) -> dict[str, int]:
    """Prepaid credit that the ledger says is used up, by commitment, in nanos at face value."""
    used: dict[str, int] = {}
    commitments = settings.terms.commitments
    if commitments:
        with Reports(settings.ledger_url) as reports:
            for row in reports.usages(min(commitment.scope.effective_at for commitment in commitments)):
                for item in row.settlement.items:
                    if item["type"] == "credit":
                        nanos = int(Decimal(item["quantity"]).scaleb(9))
                        used[item["label"]] = used.get(item["label"], 0) + nanos
    return used


def limiters_for(settings: Settings) -> list[Limiter]:
    """What holds client keys to their rate limits: those of them that have any."""
    limits = {key.name: key.limits for key in settings.keys} or {Caller().key: settings.limits.per_key}
    return [Limiter(key, limited) for key, limited in limits.items() if limited.any]


def remember(budgets: Budgets, ledger_url: str, now: datetime) -> None:
    """Tell the budgets what the ledger knows: what is spent, and what attempts without an outcome may have cost."""
    if not budgets.accounts:
        return
    with Reports(ledger_url) as reports:
        for scope, period, since in budgets.periods(now):
            for row in reports.costs(scope, since):
                if row.group is not None and row.currency == CURRENCY:
                    budgets.spent(scope, period, row.group, row.cost_nanos)
        for left in (one for one in reports.unsettled() if one.currency == CURRENCY):
            budgets.remember(left.opening.attempt_id, left.opening, left.unsettled_nanos, left.opening.opened_at)


# --- a running router -------------------------------------------------------------------------------------------


class Runtime:
    """The parts of one running router, built from settings, started and closed with the application's lifespan."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        offers = offers_for(settings)
        self.telemetry = Telemetry(
            targets=settings.targets,
            teams=[key.team for key in settings.keys if key.team],
            budgets=[name for _, name in settings.budgets],
            version=__version__,
        )
        self.telemetry.price_books(settings.books, datetime.now(UTC))
        self.ledger = Ledger.from_url(settings.ledger_url)
        self.ledger.on_commit = self.telemetry.ledger_commit
        replica = new_id("rep")
        self.selector = Selector(settings.routing, settings.priors, random.Random(), replica)  # noqa: S311 - no secret
        self.drains = Drains(
            self.ledger.path.with_suffix(".drained.json"), [target.key for target in settings.targets], self._steer
        )
        self.sharing = _sharing(settings, self.selector, replica, self.drains, self.telemetry)
        pool = PoolTransport()
        self.transport = Transport(pool, guarded=PoolTransport(accepts=is_public))
        self.store = MediaStore(
            blobs_for(settings.media),
            lifetime_s=settings.media.lifetime_s,
            max_bytes=settings.media.max_bytes,
        )
        self._agreements = Agreements(settings.terms)
        self.budgets = Budgets(settings.budgets)
        self.gateway = Gateway(
            offers=offers,
            selector=self.selector,
            transport=self.transport,
            ledger=self.ledger,
            delivery=Delivery(self.transport, self.store, max_bytes=settings.limits.body_bytes),
            observer=self.telemetry,
            clock=Clock(lambda: datetime.now(UTC), time.monotonic, lambda: new_id("att")),
            timeout_s=settings.limits.request_timeout_s,
            job_timeout_s=settings.job_timeout_s,
            agreements=self._agreements,
            budgets=self.budgets,
            refused_elsewhere=settings.refused == "failover",
            on_disconnect=settings.on_disconnect,
        )
        webhooks = self._webhooks(settings.webhooks)
        self.requests = Requests(self.gateway, self.store, webhooks)
        self.telemetry.read_from(
            Sources(
                routing=lambda: self.selector.snapshot(time.monotonic()),
                ledger_pending=lambda: self.ledger.pending,
                ledger_oldest_s=lambda: self.ledger.oldest_pending_age_s(time.monotonic()),
                ledger_open=lambda: self.ledger.open_attempts,
                spend=self._spend,
                sharing=self.shared if settings.sharing is not None else None,
                budgets=lambda: [account.at(datetime.now(UTC)) for account in self.budgets.accounts],
                webhooks=(lambda: (webhooks.pending, webhooks.oldest_s(time.time()))) if webhooks is not None else None,
            )
        )
        self._ready = False

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        await self.store.start()
        left = await self.ledger.start()
        self._warm()
        self._agreements.draw(drawn(self.settings))
        remember(self.budgets, self.settings.ledger_url, datetime.now(UTC))
        await self.requests.resume(self.ledger.identity, _cut_off(left, self.settings.public_url or ""))
        if left:
            log.warning("unsettled attempts found", count=len(left), estimate_nanos=sum(_estimate(one) for one in left))
        beside = [asyncio.create_task(work) for work in (self.telemetry.watch_event_loop(), self.store.run())]
        await self.drains.load()
        if self.sharing is not None:
            self.sharing.start(self.ledger.identity)
            await self.sharing.asked()  # no request goes to a target that was drained elsewhere
        self._ready = True
        try:
            yield
        finally:
            self._ready = False
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self.gateway.close(self.settings.limits.drain_s)
            await self.requests.close()
            if self.sharing is not None:  # until here the others were told what is still running
                await self.sharing.close()
            await self.transport.aclose()
            await self.ledger.close()

    def shared(self) -> tuple[bool, int]:
        """Whether statistics are shared just now, and with how many others."""
        return (self.sharing.up, self.sharing.others) if self.sharing is not None else (False, 0)

    def _steer(self, target: str, out: bool) -> None:
        (self.selector.drain if out else self.selector.undrain)(target)

    def _spend(self) -> Iterator[tuple[str, str | None, int]]:
        """Exact spend in dollars of this UTC day and month by team, from the ledger; read at a scrape, in a thread."""
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        with Reports(self.settings.ledger_url) as reports:
            for window, since in (("day", today), ("month", today.replace(day=1))):
                for row in reports.costs("team", since):
                    if row.currency == "USD":
                        yield window, row.group, row.cost_nanos

    def _warm(self) -> None:
        """What the ledger remembers of the last day becomes the selector's evidence."""
        wall, now = datetime.now(UTC), time.monotonic()
        with Reports(self.settings.ledger_url) as reports:
            self.selector.warm(evidence(reports, wall - WARM, wall.timestamp() - now), now)

    def _webhooks(self, settings: WebhookSettings | None) -> Webhooks | None:
        if settings is None:
            return None
        private = settings.private_receivers

        async def post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
            return await self.transport.post(url, body, headers, timeout_s=WEBHOOK_S, private=private)

        accepts = None if private else is_public
        return Webhooks(
            post, settings.keys, accepts=accepts, delays_s=settings.retry_s, on_outcome=self.telemetry.webhook
        )

    async def fetch(self, url: str, *, max_bytes: int) -> bytes:
        """A client's input picture by URL, from public addresses only."""
        try:
            return await self.transport.fetch(url, max_bytes=max_bytes, timeout_s=30.0)
        except ValueError as error:
            raise RequestError(
                400, f"The image URL cannot be used: {error}.", code="invalid_value", param="images"
            ) from error

    def drain(self) -> None:
        """No longer ready: load balancers send new requests elsewhere while running ones finish."""
        self._ready = False

    def ready(self) -> dict[str, str]:
        """What keeps this router from serving; empty when nothing does. A provider's outage is not among it."""
        problems = {}
        if not self._ready:
            problems["router"] = "starting or stopping"
        if (problem := self.ledger.problem) is not None:
            problems["ledger"] = problem
        if not self.settings.providers:
            problems["providers"] = "none is enabled"
        return problems

    def finished(self, exchange: Exchange) -> None:
        """One request is over: the canonical log line and the client-side metrics."""
        if exchange.operation:
            self.telemetry.request_finished(request_finished(exchange))


def _sharing(
    settings: Settings, selector: Selector, replica: str, drains: Drains, telemetry: Telemetry
) -> Sharing | None:
    """This replica's part in sharing; None where nothing is to be shared. StartError if it cannot be as configured."""
    meeting = settings.sharing
    if meeting is None:
        return None
    try:
        from router.sharing import Sharing, mark
    except ImportError as error:
        raise StartError("sharing needs the Redis client: install pixelroute[redis].") from error
    try:
        return Sharing(
            selector,
            meeting.url,
            meeting.stream,
            meeting.every_s,
            replica=replica,
            accounts={
                target.key: mark(settings.providers[target.provider].key, meeting.stream) for target in settings.targets
            },
            drains=drains,
            clock=time.monotonic,
            random=random.Random(),  # noqa: S311 - no secret
            on_message=telemetry.shared,
        )
    except ValueError as error:  # its words may show the password
        raise StartError("the URL of the server to share statistics through is none that Redis knows.") from error


_RESULTS = {
    "success": Result.SUCCESS,
    "timeout": Result.FAILURE,
    "connect_error": Result.FAILURE,
    "server_error": Result.FAILURE,
    "bad_response": Result.FAILURE,
}


def _cut_off(left: Iterable[Unresolved], base_url: str) -> list[CutOff]:
    """The requests of these attempts, as far as their rows tell."""
    found: dict[str, CutOff] = {}
    for opening in (one.opening for one in left):
        request = replace(booking.requested(opening), response_format="url")
        caller, created = Caller(key=opening.key), int(opening.opened_at.timestamp())
        found[opening.request_id] = CutOff(opening.request_id, created, caller, request, base_url)
    return list(found.values())


def _estimate(left: Unresolved) -> int:
    return left.opening.estimate_nanos


def blobs_for(media: MediaSettings) -> Blobs:
    """Where pictures are kept. ConfigError if the client for object storage is wanted and not installed."""
    if media.s3 is None:
        return Directory(Path(media.directory))
    if not has_object_storage():
        raise ConfigError([Problem("configuration", "media.s3", NO_OBJECT_STORAGE)])
    from router.objectstore import Bucket  # an optional extra

    s3 = media.s3
    return Bucket(
        s3.bucket,
        endpoint=s3.endpoint,
        region=s3.region,
        prefix=s3.prefix,
        access_key_id=s3.access_key,
        secret_access_key=s3.secret_key,
    )


NO_OBJECT_STORAGE = "needs the extra s3: pip install 'pixelroute[s3]'"


def has_object_storage() -> bool:
    return importlib.util.find_spec("obstore") is not None


_OUTCOMES = {401: "rejected", 403: "rejected", 429: "rejected"}


def request_finished(exchange: Exchange) -> RequestFinished:
    """The facts of one exchange, for log and metrics."""
    completed: Completed | None = exchange.completed
    error = exchange.error
    if completed is not None and error is None:
        outcome = "success"
    elif exchange.gone:
        outcome = "cancelled"
    elif error is None:
        outcome = "success" if exchange.status < 400 else "client_error"
    elif error.code == "moderation_blocked":
        outcome = "moderation"
    elif error.status >= 500:
        outcome = "error"
    else:
        outcome = _OUTCOMES.get(error.status, "client_error")
    caller, elapsed_s = exchange.caller, exchange.elapsed_s
    tried = completed.attempts if completed is not None else ()
    return RequestFinished(
        request_id=exchange.request_id,
        operation=exchange.operation,
        model=exchange.model,
        outcome=outcome,
        mp_in=completed.input_pixels / MEGAPIXEL if completed is not None else 0.0,
        mp_out=completed.output_pixels / MEGAPIXEL if completed is not None else 0.0,
        code=exchange.status,
        duration_s=elapsed_s,
        overhead_s=max(0.0, elapsed_s - completed.provider_s) if completed is not None else elapsed_s,
        attempts=len(tried) if completed is not None else len(error.details.get("attempts", ())) if error else 0,
        provider=completed.provider if completed is not None else None,
        target=completed.executed_model if completed is not None else None,
        images=len(completed.images) if completed is not None else 0,
        cost_nanos=completed.cost_nanos if completed is not None else 0,
        currency=completed.currency if completed is not None else "USD",
        basis=completed.basis if completed is not None else None,
        key=caller.key if caller is not None else None,
        team=caller.team if caller is not None else None,
        retry_count=caller.retry_count if caller is not None else 0,
        body_in=exchange.body_in,
        body_out=exchange.body_out,
        error_code=error.code or error.type if error is not None else None,
        reason=completed.reason if completed is not None else None,
    )


def admits(settings: Settings) -> Callable[[str], bool]:
    """Whether a client key may look at the console; anybody may where no key is configured, which is loopback only."""
    secrets_ = [key.secret.encode() for key in settings.keys]

    def admitted(secret: str) -> bool:
        given = secret.encode()
        return not secrets_ or any(hmac.compare_digest(given, known) for known in secrets_)

    return admitted


class Figures:
    """What the console shows, read from the selector and the ledger."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def routing(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        return self._runtime.selector.snapshot(time.monotonic())

    def costs(self) -> Sequence[CostRow]:
        with Reports(self._runtime.settings.ledger_url) as reports:
            return reports.costs("provider", datetime.now(UTC) - timedelta(days=30))

    def recent(self) -> Sequence[Recent]:
        with Reports(self._runtime.settings.ledger_url) as reports:
            found = reports.recent(50)
        return [
            Recent(
                opened_at=f"{attempt.opening.opened_at:%Y-%m-%d %H:%M:%S}",
                request_id=request.request_id,
                target=attempt.opening.target,
                state=attempt.state.value,
                outcome=attempt.settlement.outcome if attempt.settlement else None,
                latency_ms=attempt.settlement.latency_ms if attempt.settlement else None,
                cost_nanos=attempt.cost_nanos,
                currency=attempt.currency,
                basis=attempt.settlement.basis if attempt.settlement else None,
            )
            for request in found
            for attempt in request.attempts
        ]


class Steering:
    """The selector as operators see and steer it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._targets = frozenset(target.key for target in runtime.settings.targets)

    async def snapshot(self, target: str | None = None) -> Mapping[str, Any]:
        """The live table, or one target of it, and what the last hour measured of each. Requests are served in between:
        where many classes of work are asked for, that takes milliseconds per target."""
        table = self._runtime.selector.snapshot(time.monotonic())
        if target is not None:
            table = {target: table[target]} if target in table else {}
        for name, operations in table.items():
            for operation, facts in operations.items():
                facts["hour"] = await self._hour(operation, name)
        return table

    async def _hour(self, operation: str, target: str) -> Mapping[str, Any]:
        steps = self._runtime.selector.hour(operation, target, time.monotonic())
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: Mapping[str, Any] = end.value
                return found
            await asyncio.sleep(0)

    def scope(self) -> Mapping[str, Any]:
        up, others = self._runtime.shared()
        sharing = self._runtime.sharing
        hour = sharing.hour() if sharing is not None else None
        return {
            "sharing": "off" if sharing is None else "up" if up else "down",
            "other_routers": others,
            "reckoned": "all routers" if others else "this router",
            "hour": "all routers" if hour else "this router",
            "hour_from_s": round(hour[0], 1) if hour else None,
            "hour_until_s": round(hour[1], 1) if hour else None,
        }

    def knows(self, target: str) -> bool:
        return target in self._targets

    async def steer(self, target: str, out: bool) -> Mapping[str, Any]:
        """Take a target out, or let it in again, here and at all other replicas; how far that reaches."""
        kept = await self._runtime.drains.say(target, out)
        sharing = self._runtime.sharing
        return {"kept": kept, "told": None if sharing is None else await sharing.tell_drains()}


def build(settings: Settings) -> tuple[Starlette, Runtime]:
    """The whole ASGI application for these settings."""
    runtime = Runtime(settings)
    limits = settings.limits
    found = routes(
        runtime.gateway,
        keys=settings.keys,
        body_bytes=limits.body_bytes,
        in_flight_bytes=limits.in_flight_bytes,
        fetch=runtime.fetch,
        public_url=settings.public_url,
        ready=runtime.ready,
        metrics=runtime.telemetry.scrape,
        started=runtime.telemetry.request_started,
        media=runtime.store,
        requests=runtime.requests,
        limiters=limiters_for(settings),
        routers=lambda: 1 + runtime.shared()[1],
    )
    found += routing_routes(Steering(runtime), settings.keys, settings.admin_key)
    found += console_routes(Figures(runtime), settings.models.values(), admits(settings))
    return build_app(found, lifespan=runtime.lifespan, finished=runtime.finished), runtime
