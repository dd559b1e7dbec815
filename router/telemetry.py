"""The observer of a router: facts in; metrics, and the one log line that every request leaves, out.

``Telemetry`` is told the facts of ``router.events`` and never gives anything back: a metric or a line that fails is
counted and forgotten. What it exports is defined in ``router.metrics``.
"""

from __future__ import annotations

import asyncio
import functools
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any, TypeVar, cast

from prometheus_client.exposition import choose_encoder

from pricing import MEGAPIXEL, PriceBooks, money_text
from router.budgets import BUDGET, Account
from router.events import AttemptFinished, RequestFinished
from router.logs import RequestLog, request_log
from router.metrics import COMPONENTS, NONE, OTHER, PRICE_STATUSES, SHARING_STATES, Family, Metrics, Number
from router.types import Target

STALE_DAYS = 45
"""A price that nobody has looked at for so long is due for a look."""

_BASIS = {  # pricing.Basis -> the metric's
    "reported": "reported",
    "reported_quantity": "reported",
    "measured": "computed",
    "unpriced": "computed",
    "worst_case": "worst_case",
}
_EXCLUSION = {  # the selector's word before a colon -> the metric's; what is not here is a lack of the target
    **dict.fromkeys(("ejected", "probe", "blocked"), "circuit"),
    "rate_limited": "rate_limit",
    **dict.fromkeys(("limit", "full"), "capacity"),
    "drained": "disabled",
    BUDGET: "budget",
    **dict.fromkeys(("unpriced", "max_cost", "bill_unknown"), "price"),
    **dict.fromkeys(("only", "ignore", "max_latency_s", "min_success", "no_fallbacks"), "preference"),
    **dict.fromkeys(("require_tags", "exclude_tags", "fallback"), "preference"),
    "tried": "tried",
}
_CIRCUIT = {"half_open": "half_open", "closed": "closed", "limit": "closed", "full": "closed"}
_AUTH_FAILURE = {"missing_api_key": "missing", "invalid_api_key": "unknown"}
_VERIFIED = frozenset({"official", "operator", "contract"})

Method = TypeVar("Method", bound=Callable[..., None])


def _harmless(method: Method) -> Method:
    """An observer that fails must not fail the request it observed."""

    @functools.wraps(method)
    def guarded(self: Telemetry, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception:
            self.metrics.errors[()].inc()

    return cast(Method, guarded)


@dataclass(frozen=True, slots=True)
class Sources:
    """What is read at every scrape instead of being told. All are called on the event loop, except ``spend``."""

    routing: Callable[[], Mapping[str, Mapping[str, Mapping[str, Any]]]]  # Selector.snapshot
    ledger_pending: Callable[[], int]  # records that are not yet durable
    ledger_oldest_s: Callable[[], float]  # how long the oldest of them has waited
    ledger_open: Callable[[], int]  # attempts neither settled nor released
    spend: Callable[[], Iterable[tuple[str, str | None, int]]] | None = None  # (day or month, team, nano-dollars)
    sharing: Callable[[], tuple[bool, int]] | None = None  # whether it works, and other replicas heard of
    webhooks: Callable[[], tuple[int, float]] | None = None  # events not yet delivered, and the age of the oldest
    budgets: Callable[[], Iterable[Account]] = tuple  # as of now


class Telemetry:
    """Metrics and request lines of one router; implements ``router.events.Observer``.

    ``targets`` are all that can be routed to, ``teams`` those that client keys are configured for, ``budgets`` whom
    there are budgets for: they bound the labels, and ``max_label_values`` bounds the teams. ``log`` takes the request
    lines; None: the one that is configured.
    """

    def __init__(
        self,
        *,
        targets: Iterable[Target],
        version: str,
        teams: Iterable[str] = (),
        budgets: Iterable[str] = (),
        revision: str = "",
        max_label_values: int = 200,
        log: RequestLog | None = None,
    ) -> None:
        build = {"version": version, "revision": revision, "python": platform.python_version()}
        names = tuple(dict.fromkeys(teams))[:max_label_values]
        self.metrics = Metrics(tuple(targets), names, build, tuple(dict.fromkeys(budgets)))
        self._log = log if log is not None else request_log()
        self._sources: Sources | None = None

    # --- requests ------------------------------------------------------------------------------------------------

    @_harmless
    def request_started(self, operation: str) -> None:
        self.metrics.in_flight[operation].inc()

    @_harmless
    def request_finished(self, finished: RequestFinished) -> None:
        """Count the request and write its line."""
        metrics, operation, outcome = self.metrics, finished.operation, finished.outcome
        metrics.in_flight[operation].dec()
        metrics.requests[operation, finished.model or NONE, outcome, str(finished.code)].inc()
        metrics.duration[operation, outcome].observe(finished.duration_s)
        metrics.overhead[operation].observe(finished.overhead_s)
        metrics.body_in[operation].observe(finished.body_in)
        metrics.body_out[operation].observe(finished.body_out)
        if finished.attempts:
            metrics.per_request[operation].observe(finished.attempts)
        if finished.code == 401:
            metrics.auth_failures[_AUTH_FAILURE.get(finished.error_code or "", "missing")].inc()
        self._write(finished)

    def _write(self, finished: RequestFinished) -> None:
        word = self._log.word
        self._log.line(
            "error" if finished.outcome == "error" else "info",
            f'"request_id":"{finished.request_id}","key":{word(finished.key)},"team":{word(finished.team)}'
            f',"operation":"{finished.operation}","model":{word(finished.model)}'
            f',"provider":{word(finished.provider)},"target":{word(finished.target)}'
            f',"reason":{word(finished.reason)},"attempts":{finished.attempts}'
            f',"outcome":"{finished.outcome}","code":{finished.code},"error_code":{word(finished.error_code)}'
            f',"ms":{finished.duration_s * 1000:.1f},"overhead_ms":{finished.overhead_s * 1000:.2f}'
            f',"images":{finished.images},"mp_in":{finished.mp_in:.6f},"mp_out":{finished.mp_out:.6f}'
            f',"cost":"{money_text(finished.cost_nanos)}","currency":{word(finished.currency)}'
            f',"cost_basis":{word(finished.basis)},"retry_count":{finished.retry_count}'
            f',"body_in":{finished.body_in},"body_out":{finished.body_out}',
        )

    # --- attempts ------------------------------------------------------------------------------------------------

    @_harmless
    def attempt_started(self, provider: str) -> None:
        self.metrics.provider_in_flight[provider].inc()

    @_harmless
    def attempt_finished(self, finished: AttemptFinished) -> None:
        """Count the attempt, its time, its quantities and its money."""
        metrics, provider, model = self.metrics, finished.provider, finished.model
        metrics.provider_in_flight[provider].dec()
        metrics.attempts[provider, model, finished.operation, finished.outcome].inc()
        if finished.outcome == "success":
            metrics.provider_duration[provider, model].observe(finished.duration_s)
        else:
            metrics.failure_duration[provider].observe(finished.duration_s)
        if finished.ttfb_s is not None:
            metrics.ttfb[provider].observe(finished.ttfb_s)
        if finished.queue_s is not None:
            metrics.queue[provider].observe(finished.queue_s)
        if finished.delivered:
            metrics.images[provider, model, finished.operation].inc(finished.images)
        self._count_quantities(finished)
        self._count_money(finished)

    def _count_quantities(self, finished: AttemptFinished) -> None:
        metrics, provider, model = self.metrics, finished.provider, finished.model
        if finished.input_pixels:
            metrics.megapixels[provider, model, "input", "exact"].inc(finished.input_pixels / MEGAPIXEL)
        if finished.output_pixels:
            metrics.megapixels[provider, model, "output", "exact"].inc(finished.output_pixels / MEGAPIXEL)
        for item in finished.items:
            if item["metric"] == "megapixel" and item["type"] in ("input", "output"):
                metrics.megapixels[provider, model, item["type"], "billed"].inc(float(item["billable_quantity"]))
        for kind, count in finished.tokens.items():  # text_input, cached_image_input, ...
            plain = kind.removeprefix("cached_")
            modality, _, direction = plain.partition("_")
            metrics.tokens[provider, model, direction if plain == kind else f"cached_{direction}", modality].inc(count)

    def _count_money(self, finished: AttemptFinished) -> None:
        metrics, provider, model = self.metrics, finished.provider, finished.model
        nanos = finished.amount_nanos
        if finished.unpriced:
            metrics.unpriced[provider, model, "no_price"].inc()
        if finished.currency != "USD":
            if nanos:
                metrics.unpriced[provider, model, "currency"].inc()
            return
        if nanos:
            total = rest = nanos / 1e9
            # Prepaid credit is a negative line, and counters only grow: it lowers the others in proportion.
            amounts = [(item, float(item["amount"])) for item in finished.items]
            full = sum([amount for _, amount in amounts if amount > 0])
            share = total / full if full > total + 5e-10 else 1.0
            basis = _BASIS.get(finished.basis, finished.basis)
            for item, amount in amounts:
                if amount > 0:
                    rest -= amount * share
                    metrics.cost[provider, model, _component(item), basis].inc(amount * share)
            if rest > 5e-10:  # booked without line items
                metrics.cost[provider, model, OTHER, basis].inc(rest)
            metrics.team_cost[finished.team or NONE, model].inc(total)
            if not finished.delivered:
                metrics.undelivered[provider, model, finished.outcome].inc(total)
        if finished.reported_nanos is not None and finished.computed_nanos is not None:
            _differ(metrics.drift, finished, finished.reported_nanos - finished.computed_nanos)
        if finished.quoted_nanos is not None and finished.outcome == "success":
            _differ(metrics.quote_error, finished, nanos - finished.quoted_nanos)

    # --- routing -------------------------------------------------------------------------------------------------

    @_harmless
    def decision(
        self, model: str, provider: str, policy: str, reason: str, exclusions: Sequence[tuple[str, str]]
    ) -> None:
        """``exclusions`` are (target, why) of the candidates that were left out."""
        self.metrics.decisions[model, provider, policy, reason].inc()
        for target, why in exclusions:
            excluded = _EXCLUSION.get(why.partition(":")[0], "capability")
            self.metrics.exclusions[target.partition("/")[0], model, excluded].inc()

    @_harmless
    def failover(self, model: str, from_provider: str, to_provider: str, reason: str) -> None:
        self.metrics.failovers[model, from_provider, to_provider, reason].inc()

    @_harmless
    def rescue(self, model: str, from_provider: str, to_provider: str, won: bool) -> None:
        self.metrics.rescues[model, from_provider, to_provider, str(won).lower()].inc()

    @_harmless
    def retry(self, provider: str, reason: str) -> None:
        self.metrics.retries[provider, reason].inc()

    @_harmless
    def shared(self, direction: str, result: str) -> None:
        """One message to or from other replicas: for ``Sharing``."""
        self.metrics.messages[direction, result].inc()

    @_harmless
    def webhook(self, outcome: str) -> None:
        """One call to a receiver: for ``Webhooks``."""
        self.metrics.webhooks[outcome].inc()

    # --- ledger, prices, process ---------------------------------------------------------------------------------

    @_harmless
    def ledger_commit(self, rows: int, seconds: float, ok: bool) -> None:
        """One transaction of the ledger's writer: for ``Ledger.on_commit``."""
        self.metrics.writes["ok" if ok else "error"].inc()
        self.metrics.write_seconds[()].observe(seconds)
        if ok:
            self.metrics.rows[()].inc(rows)

    def price_books(self, books: PriceBooks, now: datetime) -> None:
        """Describe the price books in use: version, how many prices hold, when each book was last looked at. Once."""
        metrics = self.metrics
        metrics.gauge("pricebook_info", "The price books in use.", version=(books.version,))[books.version].set(1)
        entries = metrics.gauge(
            "pricebook_entries",
            "Prices in force, by how well they are known.",
            provider=books.names,
            status=PRICE_STATUSES,
        )
        oldest = metrics.gauge(
            "pricebook_oldest_verified_timestamp_seconds", "The check that is longest ago.", provider=books.names
        )
        for book in books.names:
            # In order of date, so that the last one of a sku is the one in force.
            holds = {price.sku: price for price in books if price.book == book and price.effective_at <= now}
            counts = dict.fromkeys(PRICE_STATUSES, 0)
            for price in holds.values():
                fresh = (now.date() - price.checked_at).days <= STALE_DAYS
                counts["unverified" if price.source not in _VERIFIED else "active" if fresh else "stale"] += 1
            for status, count in counts.items():
                entries[book, status].set(count)
            if holds:
                checked = min(price.checked_at for price in holds.values())
                oldest[book].set(datetime.combine(checked, time(), UTC).timestamp())

    async def watch_event_loop(self, every_s: float = 0.5) -> None:
        """Measure how late the loop wakes a sleeper, until cancelled."""
        loop, lag = asyncio.get_running_loop(), self.metrics.loop_lag[()]
        while True:
            due = loop.time() + every_s
            await asyncio.sleep(every_s)
            lag.observe(max(0.0, loop.time() - due))

    # --- scraping ------------------------------------------------------------------------------------------------

    def read_from(self, sources: Sources) -> None:
        """Where every scrape reads the gauges of routing and ledger."""
        self._sources = sources

    async def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """The answer to a scrape and its content type, by the Accept header. Written off the event loop."""
        self._read_gauges()
        return await asyncio.to_thread(self.exposition, accept)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as text: some 10 us per line, so not on the event loop. Routing gauges are as last read."""
        self._read_spend()
        encode, content_type = choose_encoder(accept)
        return encode(self.metrics.registry), content_type

    @_harmless
    def _read_gauges(self) -> None:
        if self._sources is None:
            return
        metrics, sources = self.metrics, self._sources
        metrics.pending[()].set(sources.ledger_pending())
        metrics.oldest[()].set(sources.ledger_oldest_s())
        metrics.reserved[()].set(sources.ledger_open())
        if sources.webhooks is not None:
            pending, oldest_s = sources.webhooks()
            metrics.webhooks_pending[()].set(pending)
            metrics.webhooks_oldest[()].set(oldest_s)
        if sources.sharing is not None:
            up, others = sources.sharing()
            metrics.replicas[()].set(others)
            for state in SHARING_STATES:
                metrics.sharing[state].set(state == ("up" if up else "down"))
        for account in sources.budgets():
            whose = account.scope, account.id, account.period
            metrics.budget_limit[whose].set(account.limit / 1e9)
            metrics.budget_warning[whose].set(account.limit / 1e9 * account.warn_at)
            metrics.budget_spent[whose].set(account.used / 1e9)
            metrics.budget_rejections[whose].set(account.refused)
        for target, operations in sources.routing().items():
            provider, _, model = target.partition("/")
            for operation, facts in operations.items():
                metrics.route_latency[provider, model, operation, "p50"].set(facts["p50_s"])
                metrics.route_latency[provider, model, operation, "p95"].set(facts["p95_s"])
                metrics.route_success[provider, model, operation].set(facts["success"])
                metrics.route_samples[provider, model, operation].set(facts["samples"])
                present = _CIRCUIT.get(facts["state"], "open")
                for state in ("closed", "open", "half_open"):
                    metrics.circuit[provider, model, state].set(state == present)

    @_harmless
    def _read_spend(self) -> None:
        if self._sources is not None and self._sources.spend is not None:
            for window, team, nanos in self._sources.spend():
                self.metrics.spend[window, team or NONE].set(nanos / 1e9)


def _differ(family: Family[Number], finished: AttemptFinished, nanos: int) -> None:
    if nanos:
        family[finished.provider, finished.model, "over" if nanos > 0 else "under"].inc(abs(nanos) / 1e9)


def _component(item: Mapping[str, Any]) -> str:
    """A line item's place among the components; what a provider reported in its own coin has none of its own."""
    metric = item["metric"]
    name = f"{item['type']}_megapixel" if metric == "megapixel" else metric
    return name if name in COMPONENTS else OTHER
