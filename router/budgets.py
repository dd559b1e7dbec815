"""Money that a client key, a team or a project may spend: per UTC day, per UTC month, in all. The time is an argument.

What an attempt may cost at most is held before it leaves and given back, or spent, when its outcome is known, so that
however many run at once no more than the budget is ever spent by what was foreseen. The ledger remembers; this counts.
An attempt belongs to the day and month in which it was opened, as in the ledger's reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol

from pricing import money_text
from router.errors import RequestError

CURRENCY = "USD"
"""Of all budgets. What is priced in another currency cannot be held to one."""

SCOPES = ("key", "team", "project")
PERIODS: Mapping[str, Callable[[datetime], int]] = {  # and how one is told from the next
    "day": datetime.toordinal,
    "month": lambda moment: moment.year * 12 + moment.month,
    "total": lambda moment: 0,
}

BUDGET = "budget"  # why a target is out: it may cost more than is left
QUOTA = "insufficient_quota"


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent; None: no limit. Beyond the share ``warn_at`` of a limit an alert tells."""

    day: Decimal | None = None
    month: Decimal | None = None
    total: Decimal | None = None
    warn_at: float = 0.8


class Payer(Protocol):
    """Whom an attempt is charged to: a caller, or a row of the ledger."""

    @property
    def key(self) -> str: ...
    @property
    def team(self) -> str | None: ...
    @property
    def project(self) -> str | None: ...


@dataclass(slots=True, eq=False)
class Account:
    """One limit of one budget, in its present period. Amounts in nanos."""

    scope: str
    id: str
    period: str
    limit: int
    warn_at: float
    began: int = -1  # the present day or month
    spent: int = 0
    held: int = 0  # by attempts whose outcome is not known yet
    refused: int = 0  # requests

    @property
    def used(self) -> int:
        return self.spent + self.held

    def at(self, moment: datetime) -> Account:
        """The account as of then: a new period begins with nothing spent. A clock that goes back changes nothing."""
        now = PERIODS[self.period](moment)
        if now > self.began:
            self.began, self.spent, self.held = now, 0, 0
        return self

    def since(self, moment: datetime) -> datetime | None:
        """When the period of this moment began; None: always."""
        day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        return {"day": day, "month": day.replace(day=1), "total": None}[self.period]

    def renews(self, moment: datetime) -> datetime | None:
        """When its next period begins; None: never."""
        begun = self.since(moment)
        if begun is None:
            return None
        return begun + timedelta(days=1) if self.period == "day" else (begun + timedelta(days=31)).replace(day=1)


@dataclass(frozen=True, slots=True)
class _Hold:
    """What one attempt holds, and of which periods."""

    nanos: int
    accounts: tuple[tuple[Account, int], ...]

    def present(self) -> Iterator[Account]:
        """The accounts whose period it belongs to still runs."""
        return (account for account, began in self.accounts if account.began == began)


class Budgets:
    """All budgets of a router. Used from one thread; nothing here waits, so a decision and its hold are one step."""

    def __init__(self, budgets: Mapping[tuple[str, str], Budget] | None = None) -> None:
        """``budgets`` by scope (one of SCOPES) and the name of the key, team or project."""
        self.accounts = tuple(
            Account(scope, name, period, int(limit.scaleb(9)), budget.warn_at)
            for (scope, name), budget in (budgets or {}).items()
            for period in PERIODS
            if (limit := getattr(budget, period)) is not None
        )
        self._payers: dict[tuple[str, str | None, str | None], tuple[Account, ...]] = {}
        self._holds: dict[str, _Hold] = {}  # by attempt id

    def limit(self, payer: Payer) -> bool:
        """Whether any budget is this payer's."""
        return bool(self.accounts and self._of(payer))

    def room(self, payer: Payer, at: datetime) -> int | None:
        """Nanos that may yet be spent, at least 0; None if no budget limits this payer."""
        if not self.limit(payer):
            return None
        return max(0, min(account.limit - account.at(at).used for account in self._of(payer)))

    def hold(self, attempt_id: str, payer: Payer, nanos: int, at: datetime) -> None:
        """Reserve what an attempt may cost at most. RequestError, and nothing held, if a budget has not that much."""
        room = self.room(payer, at)
        if room is None:
            return
        if nanos > room:
            raise self.refusal(payer, at, first=False)
        self.remember(attempt_id, payer, nanos, at)

    def settle(self, attempt_id: str, nanos: int, currency: str, *, known: bool) -> None:
        """What became of an attempt: it cost so much, or (not ``known``) may have. Safe to say twice."""
        if not self._holds:
            return
        hold = self._holds.pop(attempt_id, None)
        if hold is None:
            return
        if currency != CURRENCY:
            nanos = hold.nanos  # no rate is known here, so the estimate stands
        for account in hold.present():
            account.held -= hold.nanos
            if known:
                account.spent += nanos
            else:
                account.held += nanos
        if not known:
            self._holds[attempt_id] = _Hold(nanos, hold.accounts)

    def refusal(self, payer: Payer, at: datetime, *, first: bool) -> RequestError:
        """What a payer is told whose money does not suffice: its tightest budget, and nobody else's figures.

        ``first``: nothing has been sent for its request, which is counted as refused.
        """
        account = min(self._of(payer), key=lambda each: each.limit - each.at(at).used)
        account.refused += first
        renews = account.renews(at)
        when = f"It renews at {renews:%Y-%m-%dT%H:%M:%SZ}." if renews is not None else "It does not renew."
        limit, used = money_text(account.limit), money_text(account.used)
        per = f" per {account.period}" if renews is not None else ""
        return RequestError(
            429,
            f"The budget of the {account.scope} '{account.id}' does not suffice: ${limit}{per}, of which ${used} is "
            f"spent or held by running requests. {when}",
            code=QUOTA,
            type=QUOTA,
            details={
                "budget": {
                    "scope": account.scope,
                    "period": account.period,
                    "limit": limit,
                    "used": used,
                    "renews_at": f"{renews:%Y-%m-%dT%H:%M:%SZ}" if renews is not None else None,
                }
            },
        )

    # --- at the start, from the ledger ---------------------------------------------------------------------------

    def periods(self, at: datetime) -> Iterator[tuple[str, str, datetime | None]]:
        """What has to be asked for: spending by scope (and period) since when."""
        return iter(dict.fromkeys((each.scope, each.period, each.at(at).since(at)) for each in self.accounts))

    def spent(self, scope: str, period: str, name: str, nanos: int) -> None:
        """So much was spent in the present period, and is settled."""
        for account in self.accounts:
            if (account.scope, account.period, account.id) == (scope, period, name):
                account.spent += nanos

    def remember(self, attempt_id: str, payer: Payer, nanos: int, at: datetime) -> None:
        """An attempt opened at this time holds so much, whatever the budgets say."""
        accounts = self._of(payer)
        if accounts:
            periods = tuple((account, PERIODS[account.period](at)) for account in accounts)
            hold = self._holds[attempt_id] = _Hold(nanos, periods)
            for account in hold.present():
                account.held += nanos

    def _of(self, payer: Payer) -> tuple[Account, ...]:
        who = (payer.key, payer.team, payer.project)
        accounts = self._payers.get(who)
        if accounts is None:
            names = dict(zip(SCOPES, who, strict=True))
            accounts = tuple(account for account in self.accounts if names[account.scope] == account.id)
            self._payers[who] = accounts
        return accounts
