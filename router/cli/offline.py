"""What commands work out from settings and ledger alone, without a running router."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from statistics import median
from typing import Any

from pricing import Expected, ImageSize, Metered, Price, UnpricedError, money_text, quote
from router import booking
from router.app import NO_OBJECT_STORAGE, adapters_for, has_object_storage, offers_for
from router.blob import Blob
from router.config import Settings
from router.ledger.reports import SettledUsage
from router.routing import DEFAULT_P50_S, Selector
from router.types import ImageRequest, InputImage, Model, Operation


def check_settings(settings: Settings, at: datetime) -> tuple[list[str], list[str]]:
    """What only shows when configuration, adapters and price books meet: problems, and notes worth reading."""
    _, _, problems = adapters_for(settings)
    notes: list[str] = []
    if settings.media.s3 is not None and not has_object_storage():
        problems.append(f"media.s3: {NO_OBJECT_STORAGE}")
    for model in settings.models.values():
        for target in model.targets:
            for operation in target.endpoints:
                book = settings.providers[target.provider].prices
                try:
                    settings.books.price(book, target.price_key(operation), at)
                except UnpricedError as error:
                    where = f"models.{model.slug}.targets.{target.provider}.{operation}: {error}"
                    (notes if model.unpriced == "allow" else problems).append(where)
        notes += _out_of_line(model, settings, at)
    notes += _cold_start(settings)
    return problems, notes


def _cold_start(settings: Settings) -> Iterator[str]:
    """With what the targets begin whose own speed nobody has told: the router learns it from the first requests on."""
    cold = [t.key for t in settings.targets if (p := settings.priors.get(t.key)) is None or p.samples == 0]
    if cold:
        known = sum(target in settings.priors for target in cold)
        yield (
            f"{len(cold)} of {len(settings.targets)} targets have no prior of their own: until one of the model's "
            f"targets is measured, {known} begin with what is expected of the model, "
            f"{len(cold) - known} with an assumed {DEFAULT_P50_S:g} s"
        )


_TYPICAL = Expected(size=ImageSize(1024, 1024), prompt_characters=200)
_OUT_OF_LINE = 7  # times the middle of what others take for the same model: prices differ, slips of the unit more so


def _out_of_line(model: Model, settings: Settings, at: datetime) -> Iterator[str]:
    """A note for each target whose price of a picture is far from what the model's other targets take for it."""
    costs: dict[str, int] = {}
    for target in model.targets:
        operation = next(iter(target.endpoints))
        with suppress(UnpricedError):
            price = settings.books.price(settings.providers[target.provider].prices, target.price_key(operation), at)
            costs[target.provider] = quote(price, _TYPICAL).expected.total_nanos
    for provider, cost in costs.items():
        others = [other for name, other in costs.items() if name != provider]
        middle = median(others) if others else cost
        if not middle <= cost * _OUT_OF_LINE <= middle * _OUT_OF_LINE**2:
            yield (
                f"models.{model.slug}.targets.{provider}: a picture of 1024x1024 costs {money_text(cost)}, and "
                f"{money_text(int(middle))} elsewhere: is the unit right?"
            )


def quote_offline(
    settings: Settings,
    *,
    model: str,
    size: ImageSize | None,
    n: int,
    inputs: Sequence[ImageSize],
    quality: str | None,
    prompt: str,
    at: datetime,
) -> dict[str, Any]:
    """The dry-run body without a running router; latency and success are the configured expectations."""
    offers = offers_for(settings)
    request = ImageRequest(
        operation=Operation.EDIT if inputs else Operation.GENERATE,
        model=model,
        prompt=prompt,
        n=n,
        size=size,
        quality=quality,
        images=tuple(InputImage(Blob(), "png", each) for each in inputs),
    )
    order = offers.order(request, at)
    selector = Selector(settings.routing, settings.priors)
    decision = selector.choose(order.routed(request, settings.limits.request_timeout_s), 0.0)
    chosen = order.offer(decision.target) if decision.target else order.offers[0]
    return booking.dry_run(order, chosen, decision)


def metered(usages: Iterable[SettledUsage], settings: Settings) -> Iterator[Metered]:
    """Ledger rows as ``pricing.diff`` wants them; rows of providers no longer configured keep their book's name."""
    for row in usages:
        opening = row.opening
        provider = settings.providers.get(opening.provider)
        price = Price.from_snapshot(opening.price) if opening.price else None
        yield Metered(
            book=provider.prices if provider else opening.provider,
            sku=price.sku if price else opening.provider_model,
            at=opening.opened_at,
            usage=row.usage,
            price=price,
        )
