"""Every metric of the router: its name, meaning, labels, and the closed set of values each label may take.

This is a public interface: dashboards and alerts rely on it (a test compares them), so a renamed metric or a changed
bucket is a breaking change. A value outside its set becomes ``_unknown`` or ``_other`` and counts in
``pixelroute_label_overflow_total``, so that no client can make series; no value at all is ``_none``.

Amounts are dollars as floats and start at zero with the process: for graphs and alerts. Invoices come from the ledger.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from router.budgets import PERIODS, SCOPES
from router.errors import CONSEQUENCES, ErrorKind
from router.types import Operation, Target

NAMESPACE = "pixelroute"
NONE, OTHER, UNKNOWN = "_none", "_other", "_unknown"

# Image latencies run from 0.3 s to two minutes; steps of at most 1.5 from 1 s on keep quantiles honest.
LATENCY = (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12.5, 15, 20, 25, 30, 45, 60, 90, 120)
OWN_TIME = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WRITE_TIME = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
BODY = (1e3, 1e4, 1e5, 2.5e5, 5e5, 1e6, 2.5e6, 5e6, 1e7, 2.5e7, 5e7)
ATTEMPTS = (1, 2, 3, 4, 5, 8)

# The labels' vocabularies.
OPERATIONS = tuple(operation.value for operation in Operation)
REQUEST_OUTCOMES = ("success", "client_error", "moderation", "rejected", "error", "cancelled")
ATTEMPT_OUTCOMES = ("success", *dict.fromkeys(consequence.outcome for consequence in CONSEQUENCES.values()))
FAILURES = tuple(kind.value for kind in ErrorKind)
CODES = tuple(str(code) for code in range(100, 600))
POLICIES = ("balanced", "fastest", "cheapest", "reliable", "weighted", "priority")
CHOICES = ("best", "only", "explore", "probe", "panic", "order", "sticky", "weighted", "priority")
EXCLUSIONS = ("capability", "circuit", "rate_limit", "capacity", "disabled", "price", "budget", "preference", "tried")
COMPONENTS = ("input_megapixel", "output_megapixel", "image", "token", "request", OTHER)
BASES = ("computed", "reported", "worst_case")
UNPRICED = ("no_price", "currency")
AUTH_FAILURES = ("missing", "unknown", "disabled", "expired")
CIRCUIT_STATES = ("closed", "open", "half_open")
MESSAGE_RESULTS = ("ok", "known", "ignored", "error")
WEBHOOK_OUTCOMES = ("delivered", "failed", "given_up")
SHARING_STATES = ("off", "up", "down")
PRICE_STATUSES = ("active", "stale", "unverified")


class Number:
    """One series of a counter or gauge. Counted on the event loop only, so it needs no lock."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value = 0.0

    def inc(self, by: float = 1.0) -> None:
        self._value += by

    def dec(self) -> None:
        self._value -= 1.0

    def set(self, value: float) -> None:
        self._value = value

    def show(self, labels: tuple[str, ...], family: Any) -> None:
        family.add_metric(labels, self._value)


class Distribution:
    """One series of a histogram: how many observations fell up to each bound and beyond the last, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def show(self, labels: tuple[str, ...], family: Any) -> None:
        names = (*map(floatToGoString, self._bounds), "+Inf")
        family.add_metric(labels, list(zip(names, accumulate(self._counts), strict=True)), self._sum)


S = TypeVar("S", bound=Number | Distribution)


Key = str | tuple[str, ...]
"""The value of a metric's only label; of several or of none, their values in the order of the definition."""


class Family(dict[Key, S]):
    """A metric's series by their label values, only ever from the closed sets.

    The counters and histograms of prometheus-client take a lock, check the metric's kind and offer exemplars at every
    increment, of which a request makes twenty.
    """

    __slots__ = ("_allowed", "_described", "_make", "_overflow")

    def __init__(
        self,
        described: Callable[[], Any],
        allowed: Mapping[str, frozenset[str]],
        make: Callable[[], S],
        overflow: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._described = described
        self._allowed = allowed
        self._make = make
        self._overflow = overflow
        if not allowed:
            self.admitted(())

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._allowed)

    def __missing__(self, key: Key) -> S:
        values = (key,) if isinstance(key, str) else key
        bounded = [self._bounded(label, value) for label, value in zip(self._allowed, values, strict=True)]
        return self.admitted(bounded[0] if len(bounded) == 1 else tuple(bounded))

    def admitted(self, key: Key) -> S:
        """The series of label values that are known to be of their sets."""
        series = self.get(key)
        if series is None:
            series = self[key] = self._make()
        return series

    def _bounded(self, label: str, value: str) -> str:
        if value in self._allowed[label] or value == NONE:
            return value
        self._overflow(label)
        return UNKNOWN if label in ("model", "provider", "from_provider", "to_provider") else OTHER

    def collected(self) -> Any:
        """For a scrape, in whichever thread answers it while the event loop goes on counting."""
        family = self._described()
        for key, series in list(self.items()):
            series.show((key,) if isinstance(key, str) else key, family)
        return family


class Metrics:
    """All families of one router, in a registry of their own, with what can happen already at zero."""

    def __init__(
        self, targets: Sequence[Target], teams: Sequence[str], build: Mapping[str, str], budgets: Sequence[str] = ()
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.families: dict[str, Family[Any]] = {}
        self._overflow = self.counter(
            "label_overflow_total", "Label values outside their set, shown as _unknown or _other.", label=()
        )

        models = tuple(dict.fromkeys(target.model for target in targets))
        providers = tuple(dict.fromkeys(target.provider for target in targets))
        self._requests()
        self._traffic(models, providers)
        self._routing(models, providers)
        self._money(models, providers, teams)
        self._budgets(budgets)
        self._internals(build)
        self._start_at_zero(targets, models, providers, teams)
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def collect(self) -> Iterator[Any]:
        """All families: what a collector of prometheus-client has to give."""
        for family in list(self.families.values()):
            yield family.collected()

    def counter(self, name: str, help: str, **labels: Iterable[str]) -> Family[Number]:
        return self._family(name, CounterMetricFamily, help, labels, Number)

    def gauge(self, name: str, help: str, **labels: Iterable[str]) -> Family[Number]:
        return self._family(name, GaugeMetricFamily, help, labels, Number)

    def histogram(self, name: str, help: str, bounds: Sequence[float], **labels: Iterable[str]) -> Family[Distribution]:
        return self._family(name, HistogramMetricFamily, help, labels, partial(Distribution, [*map(float, bounds)]))

    def _family(
        self, name: str, kind: Callable[..., Any], help: str, labels: Mapping[str, Iterable[str]], make: Callable[[], S]
    ) -> Family[S]:
        name = f"{NAMESPACE}_{name}"
        allowed = {label: frozenset(values) for label, values in labels.items()}
        family = Family(partial(kind, name, help, labels=tuple(labels)), allowed, make, self._overflowed)
        self.families[name] = family
        return family

    def _overflowed(self, label: str) -> None:
        self._overflow.admitted(label).inc()

    # --- definitions ---------------------------------------------------------------------------------------------

    def _requests(self) -> None:
        """What clients see; requests_total stands with the models, below."""
        per_operation = {"operation": OPERATIONS}
        self.duration = self.histogram(
            "request_duration_seconds",
            "From the first byte in to the last byte out.",
            LATENCY,
            **per_operation,
            outcome=REQUEST_OUTCOMES,
        )
        self.in_flight = self.gauge("requests_in_flight", "Requests accepted and not yet answered.", **per_operation)
        self.overhead = self.histogram(
            "overhead_seconds", "Duration without waiting for providers: our own time.", OWN_TIME, **per_operation
        )
        self.body_in = self.histogram("request_body_bytes", "Sizes of request bodies.", BODY, **per_operation)
        self.body_out = self.histogram("response_body_bytes", "Sizes of answers.", BODY, **per_operation)
        self.per_request = self.histogram(
            "attempts_per_request", "Attempts at providers that a request took.", ATTEMPTS, **per_operation
        )
        self.auth_failures = self.counter(
            "auth_failures_total", "Requests without a valid client key.", reason=AUTH_FAILURES
        )

    def _traffic(self, models: Sequence[str], providers: Sequence[str]) -> None:
        target = {"provider": providers, "model": models}
        provider = {"provider": providers}
        self.requests = self.counter(
            "requests_total",
            "Client requests, counted when they end.",
            operation=OPERATIONS,
            model=models,
            outcome=REQUEST_OUTCOMES,
            code=CODES,
        )
        self.attempts = self.counter(
            "provider_attempts_total",
            "Attempts at a provider, counted when they end.",
            **target,
            operation=OPERATIONS,
            outcome=ATTEMPT_OUTCOMES,
        )
        self.provider_duration = self.histogram(
            "provider_duration_seconds", "Successful attempts, from sending to a usable result.", LATENCY, **target
        )
        self.failure_duration = self.histogram(
            "provider_failure_duration_seconds",
            "Failed attempts, apart so that timeouts do not spoil the quantiles of successes.",
            LATENCY,
            **provider,
        )
        self.ttfb = self.histogram("provider_ttfb_seconds", "Until a provider's first byte.", LATENCY, **provider)
        self.queue = self.histogram(
            "provider_queue_seconds", "Time in a provider's queue, where it is reported.", LATENCY, **provider
        )
        self.provider_in_flight = self.gauge("provider_in_flight", "Attempts running at a provider.", **provider)
        self.retries = self.counter(
            "retries_total", "Attempts repeated at the same provider.", **provider, reason=FAILURES
        )
        self.failovers = self.counter(
            "failovers_total",
            "Requests moved on to another provider.",
            model=models,
            from_provider=providers,
            to_provider=providers,
            reason=FAILURES,
        )
        self.rescues = self.counter(
            "rescues_total",
            "Second attempts started beside one that was silent for too long.",
            model=models,
            from_provider=providers,
            to_provider=providers,
            won=("true", "false"),
        )

    def _routing(self, models: Sequence[str], providers: Sequence[str]) -> None:
        target = {"provider": providers, "model": models}
        belief = {**target, "operation": OPERATIONS}
        self.decisions = self.counter(
            "routing_decisions_total",
            "Providers chosen, and why.",
            model=models,
            provider=providers,
            policy=POLICIES,
            reason=CHOICES,
        )
        self.exclusions = self.counter(
            "routing_exclusions_total", "Candidates left out of a choice, and why.", **target, reason=EXCLUSIONS
        )
        self.route_latency = self.gauge(
            "route_latency_seconds",
            "Latency that the router reckons with now, for one picture of one megapixel.",
            **belief,
            stat=("p50", "p95"),
        )
        self.route_success = self.gauge(
            "route_success_ratio", "Success ratio that the router reckons with now.", **belief
        )
        self.route_samples = self.gauge(
            "route_samples", "Recent outcomes behind it, the older counting less.", **belief
        )
        self.circuit = self.gauge(
            "circuit_state", "Whether a target is in use: 1 for its present state.", **target, state=CIRCUIT_STATES
        )

        self.sharing = self.gauge(
            "sharing_state",
            "Whether statistics are shared with other replicas: 1 for the present state.",
            state=SHARING_STATES,
        )
        self.replicas = self.gauge("sharing_replicas", "Other replicas that were heard of lately.")
        self.messages = self.counter(
            "sharing_messages_total",
            "Messages to and from other replicas: ignored are none of ours, error is a failed exchange.",
            direction=("in", "out"),
            result=MESSAGE_RESULTS,
        )

    def _money(self, models: Sequence[str], providers: Sequence[str], teams: Sequence[str]) -> None:
        target = {"provider": providers, "model": models}
        sides = {**target, "direction": ("over", "under")}
        self.images = self.counter("images_total", "Pictures delivered.", **target, operation=OPERATIONS)
        self.megapixels = self.counter(
            "megapixels_total",
            "Megapixels: exact as measured, billed after the provider's rounding.",
            **target,
            direction=("input", "output"),
            basis=("exact", "billed"),
        )
        self.tokens = self.counter(
            "tokens_total",
            "Tokens that the provider counted.",
            **target,
            direction=("input", "cached_input", "output"),
            modality=("text", "image"),
        )
        self.cost = self.counter(
            "cost_usd_total",
            "Money booked, by price component; worst_case is booked until there is evidence.",
            **target,
            component=COMPONENTS,
            basis=BASES,
        )
        self.team_cost = self.counter("team_cost_usd_total", "The same money by its owner.", team=teams, model=models)
        self.undelivered = self.counter(
            "undelivered_cost_usd_total",
            "Money booked for attempts that delivered nothing.",
            **target,
            reason=ATTEMPT_OUTCOMES,
        )
        self.unpriced = self.counter(
            "unpriced_requests_total", "Attempts whose cost is not in the dollar metrics.", **target, reason=UNPRICED
        )
        self.drift = self.counter(
            "price_drift_usd_total", "What providers reported over or under the price book's figure.", **sides
        )
        self.quote_error = self.counter(
            "quote_error_usd_total", "What successful attempts cost over or under their quote.", **sides
        )
        self.spend = self.gauge(
            "ledger_spend_usd",
            "Exact spend of this UTC day and month, read from the ledger.",
            window=("day", "month"),
            team=teams,
        )

    def _budgets(self, names: Sequence[str]) -> None:
        """Of those that are configured, by the name of the key, team or project."""
        whose = {"scope": SCOPES, "id": names, "period": tuple(PERIODS)}
        self.budget_limit = self.gauge("budget_limit_usd", "What may be spent.", **whose)
        self.budget_warning = self.gauge("budget_warning_usd", "Spending from which on an alert tells.", **whose)
        self.budget_spent = self.gauge(
            "budget_spent_usd", "Spent in the present period, attempts without an outcome at their estimate.", **whose
        )
        self.budget_rejections = self.counter(
            "budget_rejections_total", "Requests refused because the money did not suffice.", **whose
        )

    def _internals(self, build: Mapping[str, str]) -> None:
        self.writes = self.counter("ledger_writes_total", "Commits of the ledger.", result=("ok", "error"))
        self.write_seconds = self.histogram("ledger_write_seconds", "Time of a commit.", WRITE_TIME)
        self.rows = self.counter("ledger_rows_total", "Rows committed to the ledger.")
        self.pending = self.gauge("ledger_pending", "Ledger records that are not yet durable.")
        self.oldest = self.gauge("ledger_oldest_pending_age_seconds", "How long the oldest of them has waited.")
        self.reserved = self.gauge("ledger_open_reservations", "Attempts booked, neither settled nor released.")
        self.webhooks = self.counter(
            "webhook_calls_total",
            "Calls to clients' receivers: failed ones are repeated, given_up is an event's last one that failed.",
            outcome=WEBHOOK_OUTCOMES,
        )
        self.webhooks_pending = self.gauge("webhook_pending", "Events that have not reached their receivers yet.")
        self.webhooks_oldest = self.gauge(
            "webhook_oldest_pending_age_seconds", "How long the oldest of them has waited since its request ended."
        )
        self.loop_lag = self.histogram("event_loop_lag_seconds", "How late the event loop wakes a sleeper.", OWN_TIME)
        self.errors = self.counter("telemetry_errors_total", "Metrics and log lines that failed (no request did).")
        info = self.gauge("build_info", "The running program.", **{name: (value,) for name, value in build.items()})
        info[tuple(build.values())].set(1)

    def _start_at_zero(
        self, targets: Sequence[Target], models: Sequence[str], providers: Sequence[str], teams: Sequence[str]
    ) -> None:
        """The first event of a rare kind must be an increase and not a new series, or rate() never sees it."""
        failed = [name for name in ATTEMPT_OUTCOMES if name not in ("invalid_request", "moderation", "cancelled")]
        for target in targets:
            provider, model = target.provider, target.model
            for operation in target.endpoints:
                for code in ("500", "502", "503", "504"):
                    self.requests.admitted((operation.value, model, "error", code))
                self.requests.admitted((operation.value, model, "success", "200"))
                for outcome in failed:
                    self.attempts.admitted((provider, model, operation.value, outcome))
                self.images.admitted((provider, model, operation.value))
            self.provider_duration.admitted((provider, model))
            for reason in UNPRICED:
                self.unpriced.admitted((provider, model, reason))
            for state in CIRCUIT_STATES:
                self.circuit[provider, model, state].set(state == "closed")
        for provider in providers:
            self.provider_in_flight.admitted(provider)
            self.failure_duration.admitted(provider)
        for model in models:
            for team in (NONE, *teams):
                self.team_cost.admitted((team, model))
        for operation in Operation:
            self.in_flight.admitted(operation.value)
            self.overhead.admitted(operation.value)
            for outcome in ("success", "error"):
                self.duration.admitted((operation.value, outcome))
        for reason in AUTH_FAILURES:
            self.auth_failures.admitted(reason)
        for direction in ("in", "out"):
            for result in ("ok", "error"):
                self.messages.admitted((direction, result))
        for state in SHARING_STATES:
            self.sharing[state].set(state == "off")
        for result in ("ok", "error"):
            self.writes.admitted(result)
        for outcome in WEBHOOK_OUTCOMES:
            self.webhooks.admitted(outcome)
        for label in ("model", "provider", "team"):
            self._overflow.admitted(label)
