"""What a model's requests may spend on other things than being served: looks at unused targets, copies, and waste."""

from __future__ import annotations

import math

from router.routing.settings import RoutingSettings

RATE_S = 600.0  # the rate of requests is taken over this
SPEND_S = 3600.0  # spend and waste fade over this
CREDIT = 2.0  # looks that can be saved up
DEBT = -2.0  # looks that may be taken ahead
DEAREST = 4.0  # looks that one may count for
TOLL = 0.05  # of what a request costs, for the first look; doubles with every look that is used up


class Budget:
    """One model's account."""

    __slots__ = (
        "_at",
        "_count",
        "_last",
        "_settings",
        "credit",
        "price",
        "rate",
        "rescues",
        "reserved",
        "spend",
        "typical",
        "waste",
    )

    def __init__(self, settings: RoutingSettings) -> None:
        self._settings = settings
        self._last: float | None = None
        self._count = 0
        self._at = 0.0
        self.rate = 0.0  # first attempts per second
        self.credit = 1.0  # looks that may be taken
        self.rescues = settings.waste_floor_calls  # that may be started
        self.typical = 0.0  # nanos: running mean of what a request is expected to cost, waiting included
        self.price = 0.0  # nanos: running mean of what it charges
        self.spend = 0.0  # nanos
        self.waste = 0.0  # nanos spent without a picture to show for it
        self.reserved = 0  # nanos that calls under way may yet waste

    def arrival(self, now: float) -> None:
        """A request comes in: it earns a share of a look and of a rescue, more of one where requests are rare."""
        s = self._settings
        gap = now - self._last if self._last is not None and now > self._last else 0.0
        self._last = now
        self._count += 1
        self.rate = self.rate * math.exp(-gap / RATE_S) + 1.0 / RATE_S
        looks, rescues = gap / s.explore_every_s, gap / s.rescue_every_s
        if looks < s.explore_share:
            looks = s.explore_share
        credit = self.credit + (looks if looks < 0.1 else 0.1)
        self.credit = credit if credit < CREDIT else CREDIT
        self.rescues += rescues if rescues > s.rescue_share else s.rescue_share

    def chosen(self, cost: float, price: int) -> None:
        share = 1.0 / self._count if self._count < 100 else 0.01  # there is one: it has arrived
        self.typical += (cost - self.typical) * share
        self.price += (price - self.price) * share

    @property
    def toll(self) -> float:
        """Nanos that a look must bring beyond its cost: more and more as the credit is used up, so that the few looks
        there are go where they tell most. Infinite when there are none."""
        if self.credit < DEBT:
            return math.inf
        return TOLL * self.typical * (math.exp2(CREDIT - self.credit) - 1.0)

    def look(self, price: int) -> None:
        """A look is taken. It uses up as much as its price is that of usual requests, so that money is bounded, too."""
        self.credit -= min(max(price / self.price, 1.0), DEAREST) if self.price > 0.0 else 1.0
        self.credit = max(self.credit, DEBT - DEAREST)

    def book(self, spent: float, wasted: float, now: float) -> None:
        self._fade(now)
        self.spend += spent
        self.waste += wasted

    def affords(self, price: float, now: float) -> bool:
        """Whether this much more may be wasted: a share of the last hour's spend, or a few calls where that is less."""
        self._fade(now)
        s = self._settings
        return self.waste + self.reserved + price <= max(s.waste_share * self.spend, s.waste_floor_calls * price)

    def affords_rescue(self, price: float, now: float) -> bool:
        """Whether one more may be started: they are a share of the last hour's requests, and their money is waste."""
        s = self._settings
        self.rescues = min(self.rescues, max(s.waste_floor_calls, s.rescue_share * self.rate * SPEND_S))
        return self.rescues >= 1.0 and self.affords(price, now)

    def rescue(self, price: int) -> None:
        """One is about to be started. Its price is held until it is released and what became of it is booked."""
        self.rescues -= 1.0
        self.reserved += price

    def release(self, price: int, *, started: bool) -> None:
        self.reserved -= price
        if not started:
            self.rescues += 1.0

    def _fade(self, now: float) -> None:
        if now > self._at:
            keep = math.exp((self._at - now) / SPEND_S)
            self._at = now
            self.spend *= keep
            self.waste *= keep
