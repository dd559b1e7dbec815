"""Who could serve a request, and what each would charge for it: the input of a decision and the whole of a dry run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
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
from router.ledger import Opening
from router.providers.base import Adapter, Auth
from router.records import record
from router.routing import Candidate, RouteRequest
from router.routing.catalog import Catalog, Fit, infeasible
from router.types import NO_PREFERENCES, ImageRequest, ImageResult, Model, Preferences, Provider, Target, Warn

_CACHED_QUOTES = 4096
_CACHED_CHARGES = 32  # of one quote


@record
class Offer:
    """One target beside one request. ``lacks`` is why it cannot serve it, None when it can."""

    model: Model
    rank: int  # of the model among those the request may be served by
    request: ImageRequest  # as this model completes it
    target: Target
    provider: Provider
    adapter: Adapter
    lacks: str | None
    size: ImageSize | None  # what it would be asked to make; another than the client's where the size policy allows it
    price: Price | None  # None: no price in force
    quote: Quote | None
    expected: Expected
    settled: dict[tuple[Any, ...], Settlement]  # what equal attempts came to, by what they used

    def settle(self, usage: Usage) -> Settlement:
        """What the attempt costs by the best evidence. Equal usage at one price costs the same: computed once."""
        if usage.reported is not None or usage.seconds is not None:  # hardly ever twice the same
            return settle(self.price, usage, self.quote)
        key = (
            usage.outputs,
            usage.inputs,
            usage.requests,
            usage.steps,
            *usage.tokens.items(),
            *usage.attributes.items(),
        )
        found = self.settled.get(key)
        if found is None:
            if len(self.settled) >= _CACHED_CHARGES:
                self.settled.clear()
            found = self.settled[key] = settle(self.price, usage, self.quote)
        return found

    @property
    def auth(self) -> Auth:
        return auth_of(self.provider, self.adapter)


def auth_of(provider: Provider, adapter: Adapter) -> Auth:
    """How this provider takes its key: as its adapter says, unless the configuration says otherwise."""
    return Auth(*provider.auth) if provider.auth is not None else adapter.auth


@record
class Order:
    """A request with its model resolved, its defaults filled in, and every target's offer for it.

    The offers of the models that may stand in for it follow its own, in the order of the models.
    """

    request: ImageRequest
    model: Model
    offers: tuple[Offer, ...]
    warnings: tuple[Warn, ...] = ()

    def offer(self, target: str) -> Offer:
        return next(offer for offer in self.offers if offer.target.key == target)


class Offers:
    """Prepares orders. Quotes of equal requests are computed once."""

    def __init__(
        self,
        catalog: Catalog,
        books: PriceBooks,
        providers: Mapping[str, Provider],
        adapters: Mapping[str, Adapter],
    ) -> None:
        self.catalog = catalog
        self.books = books
        self._providers = providers
        self._adapters = adapters
        self._quotes: dict[tuple[Any, ...], tuple[Quote, dict[tuple[Any, ...], Settlement]]] = {}

    def order(self, request: ImageRequest, at: datetime, allowed: Collection[str] = ()) -> Order:
        """Raises RequestError when the model is unknown or not among ``allowed``, or no target can serve the request.

        ``allowed``: slugs that the caller may use; empty: all.
        """
        model, pinned, redirected = self.catalog.resolve(request.model, at.date())
        if allowed and model.slug not in allowed:
            raise _not_allowed(model, "model")
        completed, warnings = self.catalog.complete(request, model)
        fits = self.catalog.fits(completed, model, pinned)
        offers = tuple(self._offer(completed, model, 0, fit, at) for fit in fits)
        named = request.models if request.models is not None else () if pinned else model.fallbacks
        if named:
            offers = self._with_fallbacks(offers, request, named, allowed, at)
        if all(offer.lacks is not None for offer in offers):
            if not any(offer.lacks == "unpriced" for offer in offers):
                raise infeasible(completed, model, fits)
            raise RequestError(
                503,
                f"No price is in force for {model.slug}, so it is refused. The operator must enter a price, or allow "
                "unpriced use of this model, which no max_cost can limit.",
                code="model_unpriced",
                param="model",
                type="server_error",
            )
        return Order(completed, model, offers, redirected + warnings)

    def _with_fallbacks(
        self,
        offers: tuple[Offer, ...],
        request: ImageRequest,
        named: Sequence[str],
        allowed: Collection[str],
        at: datetime,
    ) -> tuple[Offer, ...]:
        """The offers, and behind them those of other models, each target once."""
        found = {offer.target.key: offer for offer in offers}
        for rank, name in enumerate(named, 1):
            try:
                model, pinned, _ = self.catalog.resolve(name, at.date())
            except RequestError as error:
                if request.models is None:
                    continue  # the operator's list, and none of its providers is in use
                error.param = "models"
                raise
            if allowed and model.slug not in allowed:
                if request.models is None:
                    continue  # the operator's list, not this caller's
                raise _not_allowed(model, "models")
            completed, _ = self.catalog.complete(request, model)
            for fit in self.catalog.fits(completed, model, pinned):
                if fit.target.key not in found:
                    found[fit.target.key] = self._offer(completed, model, rank, fit, at)
        return tuple(found.values())

    def reach(self, key: str) -> tuple[Target, Provider, Adapter] | None:
        """A target by its key, with how it is reached; None if this installation no longer has it."""
        model = self.catalog.models.get(key.partition("/")[2])
        target = next((target for target in model.targets if target.key == key), None) if model else None
        if target is None:
            return None
        return target, self._providers[target.provider], self._adapters[target.provider]

    def _offer(self, request: ImageRequest, model: Model, rank: int, fit: Fit, at: datetime) -> Offer:
        target, size = fit.target, fit.size
        provider = self._providers[target.provider]
        adapter = self._adapters[target.provider]
        if fit.lacks is not None:
            return Offer(
                model, rank, request, target, provider, adapter, fit.lacks, size, None, None, _NOTHING_EXPECTED, {}
            )
        expected = _expected(request, target, size)
        try:
            price = self.books.price(provider.prices, target.price_key(request.operation), at)
        except UnpricedError:
            refused = "unpriced" if model.unpriced == "reject" or request.preferences.max_cost is not None else None
            return Offer(model, rank, request, target, provider, adapter, refused, size, None, None, expected, {})
        quoted, settled = self._quote(price, expected)
        return Offer(model, rank, request, target, provider, adapter, None, size, price, quoted, expected, settled)

    def _quote(self, price: Price, expected: Expected) -> tuple[Quote, dict[tuple[Any, ...], Settlement]]:
        key = (
            price.id,
            expected.images,
            expected.size,
            expected.inputs,
            expected.prompt_characters,
            expected.requests,
            expected.steps,
            expected.partial_images,
            *expected.attributes.items(),
        )
        found = self._quotes.get(key)
        if found is None:
            if len(self._quotes) >= _CACHED_QUOTES:
                self._quotes.clear()
            found = self._quotes[key] = quote(price, expected), {}
        return found


_NOTHING_EXPECTED = Expected()


def _not_allowed(model: Model, param: str) -> RequestError:
    return RequestError(403, f"This key may not use {model.slug}.", code="model_not_allowed", param=param)


def _attributes(request: ImageRequest, target: Target) -> dict[str, str]:
    """The words a price may depend on, in the provider's vocabulary."""
    attributes = dict(target.attributes)
    if request.quality is not None and request.quality != "auto":
        attributes["quality"] = str(target.qualities.get(request.quality, request.quality))
    extra = _sent(request, target)
    for name in ("resolution", "rendering_speed", "acceleration", "guidance_scale"):
        value = extra.get(name, target.options.get(name))
        if value is not None:
            attributes[name] = str(value)
    return attributes


def _steps(request: ImageRequest, target: Target) -> int | None:
    extra = _sent(request, target)
    value = extra.get("num_inference_steps", extra.get("steps", target.options.get("steps")))
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _sent(request: ImageRequest, target: Target) -> Mapping[str, Any]:
    """The client's extra fields that this target is sent: what is dropped is not charged for."""
    known = target.options.get("parameters")
    if known is None or not request.extra:
        return request.extra
    return {name: value for name, value in request.extra.items() if name in known}


def _calls(request: ImageRequest, target: Target) -> int:
    """How many calls make the pictures, where one call makes fewer than were asked."""
    return -(-request.n // target.max_images)


def _inputs(request: ImageRequest, calls: int) -> tuple[ImageSize | None, ...]:
    """Every call carries all source pictures, and is billed for them."""
    return tuple(image.size for image in request.images) * calls


def _expected(request: ImageRequest, target: Target, size: ImageSize | None) -> Expected:
    calls = _calls(request, target)
    return Expected(
        images=request.n,
        size=size or target.default_size,
        inputs=_inputs(request, calls),
        prompt_characters=len(request.prompt) * calls,
        requests=calls,
        steps=_steps(request, target),
        partial_images=request.partial_images if request.stream and target.streams else 0,
        attributes=_attributes(request, target),
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


def route(
    order: Order,
    weights: Mapping[str, tuple[float, int]],
    timeout_s: float,
    of_key: Preferences = NO_PREFERENCES,
    *,
    budgeted: bool = False,
) -> RouteRequest:
    """The order as routing sees it: candidates with their money, and how much work it is.

    What the request prefers goes over what the client key does (``of_key``), and that over its model's entry; the
    constraints of all three hold together. ``budgeted``: a budget is to hold, so everything must have its price.
    """
    request = order.request
    limits = (of_key,) if of_key.constrains else ()
    # What has no price is not free: it is reckoned with as if it cost what the dearest of the others does.
    dearest = max((offer.quote.high.total_nanos for offer in order.offers if offer.quote is not None), default=0)
    return RouteRequest(
        model=order.model.slug,
        operation=request.operation.value,
        candidates=tuple(_candidate(offer, weights, limits, dearest, budgeted) for offer in order.offers),
        images=request.n,
        megapixels=_megapixels(request),
        quality=request.quality,
        preferences=request.preferences.within(of_key).within(order.model.preferences),
        deadline_s=timeout_s,
        session=request.user,
        lesser=_lesser(order),
    )


def _lesser(order: Order) -> frozenset[str]:
    """Targets that would deliver less than was asked for, where another can deliver it."""
    found = frozenset[str]()
    if order.request.size_policy is not None:
        found = frozenset(offer.target.key for offer in order.offers if offer.size != offer.request.size)
    if order.request.partial_images:
        found |= frozenset(offer.target.key for offer in order.offers if not offer.target.streams)
    return found


def _megapixels(request: ImageRequest) -> float:
    return request.size.pixels / MEGAPIXEL if request.size is not None else 1.0


def _candidate(
    offer: Offer,
    weights: Mapping[str, tuple[float, int]],
    limits: tuple[Preferences, ...],
    unknown_nanos: int,
    budgeted: bool,
) -> Candidate:
    weight, priority = weights.get(offer.target.key, (1.0, 0))
    quoted = offer.quote
    if offer.model.preferences.constrains:
        limits = (*limits, offer.model.preferences)
    excluded = offer.lacks
    if quoted is None and excluded is None and any(each.max_cost for each in (offer.request.preferences, *limits)):
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
        weight=weight,
        priority=priority,
        rank=offer.rank,
        megapixels=_megapixels(offer.request) if offer.rank else None,
        tags=offer.target.tags,
        limits=limits,
        failure_bills=_CHANCE[Billed(fact)],
    )


def used(request: ImageRequest, offer: Offer, result: ImageResult, sizes: tuple[ImageSize, ...]) -> Usage:
    """What an attempt consumed: the pictures as measured, and what the provider reported."""
    attributes = offer.expected.attributes
    if result.quality is not None:
        attributes = {**attributes, "quality": result.quality}
    return Usage(
        outputs=sizes,
        inputs=_inputs(request, offer.expected.requests),
        tokens=result.tokens,
        requests=offer.expected.requests,
        seconds=result.seconds,
        steps=offer.expected.steps,
        attributes=attributes,
        reported=result.reported,
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
