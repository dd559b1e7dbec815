"""Who could serve a request and what each would charge for it: the input of a decision and the whole of a dry run.

All of it follows from the request's shape, the client key and the day, so that it is worked out once for many requests.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any

from pricing import (
    MEGAPIXEL,
    Charge,
    Cost,
    Expected,
    ImageSize,
    Price,
    PriceBooks,
    Quote,
    Settlement,
    Terms,
    UnpricedError,
    Usage,
    quote,
    settle,
)
from router.budgets import CURRENCY
from router.errors import Billed, ErrorKind, RequestError
from router.ledger import Opening, expected_as_dict
from router.providers.base import Adapter, Auth
from router.records import changed, record
from router.routing import Candidate, RouteRequest
from router.routing.catalog import Catalog, Fit, completed, infeasible
from router.types import (
    PRICED_STEPS,
    PRICED_WORDS,
    Caller,
    ImageRequest,
    ImageResult,
    Model,
    Preferences,
    Provider,
    Shape,
    Target,
    Warn,
)

_CACHED_ORDERS = 2048
_CACHED_CHARGES = 32  # of one offer


@record
class Offer:
    """One target beside the requests of one shape. ``lacks`` is why it cannot serve them, None when it can."""

    model: Model
    rank: int  # of the model among those the request may be served by
    asked: Shape  # as this model completes it
    target: Target
    provider: Provider
    adapter: Adapter
    auth: Auth
    lacks: str | None
    size: ImageSize | None  # what it would be asked to make; another than the client's where the size policy allows it
    weight: float
    priority: int
    price: Price | None  # None: no price in force
    quote: Quote | None
    expected: Expected
    expecting: Mapping[str, Any]  # the same for the ledger, but for the prompt's length
    settled: dict[tuple[Any, ...], tuple[Usage, Settlement]]  # what equal attempts came to

    def request(self, request: ImageRequest) -> ImageRequest:
        """A request of this shape, as this model completes it."""
        return completed(request, self.asked)

    def consumed(self, result: ImageResult, sizes: tuple[ImageSize, ...]) -> tuple[Usage, Settlement]:
        """What an attempt consumed, the pictures as measured, and what it costs by the best evidence.

        Where the provider names no figure, equal results at one price cost the same: computed once.
        """
        if result.reported is not None or result.seconds is not None:  # hardly ever twice the same
            return self._consumed(result, sizes)
        key = (sizes, result.quality, *result.tokens.items())
        found = self.settled.get(key)
        if found is None:
            if len(self.settled) >= _CACHED_CHARGES:
                self.settled.clear()
            found = self.settled[key] = self._consumed(result, sizes)
        return found

    def _consumed(self, result: ImageResult, sizes: tuple[ImageSize, ...]) -> tuple[Usage, Settlement]:
        attributes = self.expected.attributes
        if result.quality is not None:
            attributes = {**attributes, "quality": result.quality}
        usage = Usage(
            outputs=sizes,
            inputs=self.expected.inputs,
            tokens=result.tokens,
            requests=self.expected.requests,
            seconds=result.seconds,
            steps=self.expected.steps,
            attributes=attributes,
            reported=result.reported,
        )
        return usage, settle(self.price, usage, self.quote)

    def nothing_known(self) -> Settlement:
        """What an attempt costs of which nothing is known: the worst case."""
        return settle(self.price, Usage(requests=0), self.quote)


def auth_of(provider: Provider, adapter: Adapter) -> Auth:
    """How this provider takes its key: as its adapter says, unless the configuration says otherwise."""
    return Auth(*provider.auth) if provider.auth is not None else adapter.auth


@record
class Order:
    """What requests of one shape are offered: the model resolved, its defaults filled in, every target's offer.

    The offers of the models that may stand in for it follow its own, in the order of the models.
    """

    model: Model
    offers: tuple[Offer, ...]
    warnings: tuple[Warn, ...]
    route: RouteRequest  # but for what is each request's own
    longest: int  # characters of the longest prompt for which all of this is the same; -1: it differs with each

    def offer(self, target: str) -> Offer:
        return next(offer for offer in self.offers if offer.target.key == target)

    def routed(self, request: ImageRequest, timeout_s: float) -> RouteRequest:
        """A request of this shape as routing sees it."""
        return changed(self.route, deadline_s=timeout_s, session=request.user)


_ANYBODY = Caller()


class Offers:
    """Prepares orders, once for equal shapes. ``weights`` by target: weight and priority."""

    def __init__(
        self,
        catalog: Catalog,
        books: PriceBooks,
        providers: Mapping[str, Provider],
        adapters: Mapping[str, Adapter],
        weights: Mapping[str, tuple[float, int]] | None = None,
    ) -> None:
        self.catalog = catalog
        self.books = books
        self._providers = providers
        self._adapters = adapters
        self._weights = weights or {}
        self._orders: dict[tuple[Any, ...], Order] = {}
        self._changes = sorted({price.effective_at for price in books})
        self._since = self._until = _BEFORE  # the time that the orders hold for

    def order(self, request: ImageRequest, at: datetime, caller: Caller = _ANYBODY, *, budgeted: bool = False) -> Order:
        """Raises RequestError when the model is unknown or not the caller's, or no target can serve the request.

        ``budgeted``: a budget is to hold, so everything must have its price.
        """
        if not self._since <= at < self._until:
            self._turn(at)
        asked = request.shape
        key: tuple[Any, ...] = (asked[:-1], asked.prompt > 0, caller.models, caller.preferences, budgeted)
        found = self._orders.get(key)
        if found is None or asked.prompt > found.longest:
            key = (asked, caller.models, caller.preferences, budgeted)
            found = self._orders.get(key)
        if found is None:
            found = self._order(asked, at, caller, budgeted)
            if asked.prompt <= found.longest:
                key = (asked[:-1], asked.prompt > 0, caller.models, caller.preferences, budgeted)
            if len(self._orders) >= _CACHED_ORDERS:
                self._orders.clear()
            self._orders[key] = found
        return found

    def _turn(self, at: datetime) -> None:
        """Forget the orders: another day has begun, or another price is in force."""
        day = datetime.combine(at.date(), time(), at.tzinfo)
        following = bisect_right(self._changes, at)
        changes = (_BEFORE, *self._changes, _NEVER)
        self._since, self._until = max(day, changes[following]), min(day + _DAY, changes[following + 1])
        self._orders.clear()

    def _order(self, asked: Shape, at: datetime, caller: Caller, budgeted: bool) -> Order:
        model, pinned, redirected = self.catalog.resolve(asked.model, at.date())
        if caller.models and model.slug not in caller.models:
            raise _not_allowed(model, "model")
        filled, warnings = self.catalog.complete(asked, model)
        fits = self.catalog.fits(filled, model, pinned)
        offers = tuple(self._offer(filled, model, 0, fit, at) for fit in fits)
        named = asked.models if asked.models is not None else () if pinned else model.fallbacks
        if named:
            offers = self._with_fallbacks(offers, asked, named, caller, at)
        if all(offer.lacks is not None for offer in offers):
            if not any(offer.lacks == "unpriced" for offer in offers):
                raise infeasible(filled, model, fits)
            raise RequestError(
                503,
                f"No price is in force for {model.slug}, so it is refused. The operator must enter a price, or allow "
                "unpriced use of this model, which no max_cost can limit.",
                code="model_unpriced",
                param="model",
                type="server_error",
            )
        longest = min(offer.target.max_prompt for offer in offers)
        if any(offer.price is not None and offer.price.counts_prompt for offer in offers):
            longest = -1
        route = _route(filled, model, offers, caller.preferences, budgeted=budgeted)
        return Order(model, offers, redirected + warnings, route, longest)

    def _with_fallbacks(
        self,
        offers: tuple[Offer, ...],
        asked: Shape,
        named: Sequence[str],
        caller: Caller,
        at: datetime,
    ) -> tuple[Offer, ...]:
        """The offers, and behind them those of other models, each target once."""
        found = {offer.target.key: offer for offer in offers}
        for rank, name in enumerate(named, 1):
            try:
                model, pinned, _ = self.catalog.resolve(name, at.date())
            except RequestError as error:
                if asked.models is None:
                    continue  # the operator's list, and none of its providers is in use
                error.param = "models"
                raise
            if caller.models and model.slug not in caller.models:
                if asked.models is None:
                    continue  # the operator's list, not this caller's
                raise _not_allowed(model, "models")
            filled, _ = self.catalog.complete(asked, model)
            for fit in self.catalog.fits(filled, model, pinned):
                if fit.target.key not in found:
                    found[fit.target.key] = self._offer(filled, model, rank, fit, at)
        return tuple(found.values())

    def reach(self, key: str) -> tuple[Target, Provider, Adapter] | None:
        """A target by its key, with how it is reached; None if this installation no longer has it."""
        model = self.catalog.models.get(key.partition("/")[2])
        target = next((target for target in model.targets if target.key == key), None) if model else None
        if target is None:
            return None
        return target, self._providers[target.provider], self._adapters[target.provider]

    def _offer(self, asked: Shape, model: Model, rank: int, fit: Fit, at: datetime) -> Offer:
        target, size, lacks = fit.target, fit.size, fit.lacks
        provider = self._providers[target.provider]
        adapter = self._adapters[target.provider]
        price: Price | None = None
        if lacks is None:
            try:
                price = self.books.price(provider.prices, target.price_key(asked.operation), at)
            except UnpricedError:
                if model.unpriced == "reject" or asked.preferences.max_cost is not None:
                    lacks = "unpriced"
        expected = _expected(asked, target, size) if fit.lacks is None else _NOTHING_EXPECTED
        weight, priority = self._weights.get(target.key, (1.0, 0))
        return Offer(
            model=model,
            rank=rank,
            asked=asked,
            target=target,
            provider=provider,
            adapter=adapter,
            auth=auth_of(provider, adapter),
            lacks=lacks,
            size=size,
            weight=weight,
            priority=priority,
            price=price,
            quote=quote(price, expected) if price is not None else None,
            expected=expected,
            expecting=expected_as_dict(expected),
            settled={},
        )


_BEFORE, _NEVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_DAY = timedelta(days=1)
_NOTHING_EXPECTED = Expected()


def _not_allowed(model: Model, param: str) -> RequestError:
    return RequestError(403, f"This key may not use {model.slug}.", code="model_not_allowed", param=param)


def _attributes(asked: Shape, target: Target) -> dict[str, str]:
    """The words a price may depend on, in the provider's vocabulary."""
    attributes = dict(target.attributes)
    if asked.quality is not None and asked.quality != "auto":
        attributes["quality"] = str(target.qualities.get(asked.quality, asked.quality))
    extra = _sent(asked, target)
    for name in PRICED_WORDS:
        value = extra.get(name, target.options.get(name))
        if value is not None:
            attributes[name] = str(value)
    return attributes


def _steps(asked: Shape, target: Target) -> int | None:
    said = _sent(asked, target)
    value = next((said[name] for name in PRICED_STEPS if name in said), target.options.get("steps"))
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _sent(asked: Shape, target: Target) -> Mapping[str, Any]:
    """The client's extra fields that this target is sent: what is dropped is not charged for."""
    known = target.options.get("parameters")
    return {name: value for name, value in asked.extra if known is None or name in known}


def _expected(asked: Shape, target: Target, size: ImageSize | None) -> Expected:
    calls = -(-asked.n // target.max_images)  # where one makes fewer pictures than were asked
    return Expected(
        images=asked.n,
        size=size or target.default_size,
        inputs=asked.inputs * calls,  # every call carries all source pictures, and is billed for them
        prompt_characters=asked.prompt * calls,
        requests=calls,
        steps=_steps(asked, target),
        partial_images=asked.partial_images if asked.stream and target.streams else 0,
        attributes=_attributes(asked, target),
    )


class Agreements:
    """What the operator has agreed with providers, and how much of its prepaid credit is used."""

    def __init__(self, terms: Terms | None = None) -> None:
        self._terms = terms or Terms()
        self._drawn: dict[str, int] = {}

    def cost(self, book: str, price: Price | None, charge: Charge, opening: Opening) -> Cost:
        """The charge under the agreements; a price's own id tells its entry in the book."""
        sku = price.sku if price is not None else opening.provider_model
        return self._terms.apply(charge, book, sku, opening.opened_at, drawn=self._drawn)

    def draw(self, drawn: Mapping[str, int]) -> None:
        """Note what has been used of prepaid credit, by commitment, in nanos at face value."""
        for commitment, nanos in drawn.items():
            self._drawn[commitment] = self._drawn.get(commitment, 0) + nanos

    def book(self, cost: Cost) -> None:
        """Note what a cost that is going into the ledger takes of it."""
        self.draw({draw.commitment: draw.nanos for draw in cost.draws})


# What a server error costs at a provider: probability that it is billed.
_CHANCE = {Billed.NO: 0.0, Billed.MAYBE: 0.5, Billed.YES: 1.0}


def _route(asked: Shape, model: Model, offers: Sequence[Offer], of_key: Preferences, *, budgeted: bool) -> RouteRequest:
    """The order as routing sees it: candidates with their money, and how much work it is.

    What the request prefers goes over what the client key does (``of_key``), and that over its model's entry; the
    constraints of all three hold together. ``budgeted``: a budget is to hold, so everything must have its price.
    """
    limits = (of_key,) if of_key.constrains else ()
    # What has no price is not free: it is reckoned with as if it cost what the dearest of the others does.
    dearest = max((offer.quote.high.total_nanos for offer in offers if offer.quote is not None), default=0)
    return RouteRequest(
        model=model.slug,
        operation=asked.operation.value,
        candidates=tuple(_candidate(offer, limits, dearest, budgeted) for offer in offers),
        images=asked.n,
        megapixels=_megapixels(asked),
        quality=asked.quality,
        preferences=asked.preferences.within(of_key).within(model.preferences),
        lesser=_lesser(asked, offers),
    )


def _lesser(asked: Shape, offers: Sequence[Offer]) -> frozenset[str]:
    """Targets that would deliver less than was asked for, where another can deliver it."""
    found = frozenset[str]()
    if asked.size_policy is not None:
        found = frozenset(offer.target.key for offer in offers if offer.size != offer.asked.size)
    if asked.partial_images:
        found |= frozenset(offer.target.key for offer in offers if not offer.target.streams)
    return found


def _megapixels(asked: Shape) -> float:
    return asked.size.pixels / MEGAPIXEL if asked.size is not None else 1.0


def _candidate(offer: Offer, limits: tuple[Preferences, ...], unknown_nanos: int, budgeted: bool) -> Candidate:
    quoted = offer.quote
    if offer.model.preferences.constrains:
        limits = (*limits, offer.model.preferences)
    excluded = offer.lacks
    if quoted is None and excluded is None and any(each.max_cost for each in (offer.asked.preferences, *limits)):
        excluded = "unpriced"  # what nobody can price cannot be held to a limit on cost
    if budgeted and excluded is None and (quoted is None or quoted.high.currency != CURRENCY):
        excluded = "unpriced"
    fact = offer.provider.billing.get(ErrorKind.SERVER_ERROR.value, Billed.MAYBE)
    return Candidate(
        target=offer.target.key,
        provider=offer.target.provider,
        price_nanos=quoted.expected.total_nanos if quoted else unknown_nanos,
        price_high_nanos=quoted.high.total_nanos if quoted else unknown_nanos,
        excluded=excluded,
        weight=offer.weight,
        priority=offer.priority,
        rank=offer.rank,
        megapixels=_megapixels(offer.asked) if offer.rank else None,
        tags=offer.target.tags,
        limits=limits,
        failure_bills=_CHANCE[Billed(fact)],
    )


def stood_in(wanted: str, served: str) -> tuple[Warn, ...]:
    """What the client is told where another model than the one asked for has served it."""
    if wanted == served:
        return ()
    return (Warn("model_fallback", f"{wanted} could not serve the request, so {served} made the picture.", "model"),)


def emulated(images: int, calls: int) -> tuple[Warn, ...]:
    """What the client is told where it took several calls to make its pictures."""
    if calls == 1:
        return ()
    return (Warn("n_emulated", f"{images} pictures were made by {calls} calls of the provider.", "n"),)
