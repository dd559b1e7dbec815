"""What an installation is set to: plain values, whose defaults are those of a laptop."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from pricing import PriceBooks, Terms
from router.budgets import Budget
from router.limits import NO_LIMITS, RateLimits
from router.routing import Prior, RoutingSettings
from router.types import (
    NO_PREFERENCES,
    Model,
    Operation,
    Preferences,
    Provider,
    Successor,
    Target,
)

MIB = 1024 * 1024
POLICIES = ("balanced", "fastest", "cheapest", "reliable", "weighted", "priority")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one request may take, and on what is held at once."""

    body_bytes: int = 64 * MIB
    in_flight_bytes: int = 1024 * MIB
    request_timeout_s: float = 280.0  # below the 300 s at which Node's fetch gives up
    job_timeout_s: float | None = None  # the same for a job, which no client waits for; None: Settings.job_timeout_s
    max_attempts: int = 3
    per_key: RateLimits = NO_LIMITS  # of each client key that says nothing else
    drain_s: float = 120.0  # how long a stopping router lets running generations finish


@dataclass(frozen=True, slots=True)
class S3Settings:
    """A bucket of S3-compatible object storage. Without keys: those of the environment or the machine's role."""

    bucket: str
    endpoint: str | None = None  # None: AWS
    region: str = "us-east-1"
    prefix: str = ""  # of the objects' names, so that a bucket may be shared
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """Where pictures that need a URL are kept."""

    directory: str = "pixelroute-data/media"
    lifetime_s: int = 24 * 3600
    max_bytes: int = 10 * 1024 * MIB
    s3: S3Settings | None = None  # instead of the directory


@dataclass(frozen=True, slots=True)
class SharingSettings:
    """Where the replicas of one installation meet, and how often they talk (router/sharing.py)."""

    url: str = field(repr=False)  # redis://, rediss:// or unix://; may hold a password
    stream: str = "pixelroute:routing"  # the server's key
    every_s: float = 5.0


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """How clients are called back. A secret is a text, ``whsec_`` and base64, as receivers are given it."""

    secrets: tuple[str, ...] = field(repr=False)  # calls are signed with each of them
    private_receivers: bool = False  # also http, and addresses that are not on the public internet
    retry_s: tuple[float, ...] = (5.0, 15.0, 45.0, 300.0, 1800.0, 7200.0)  # pauses before repetitions

    @property
    def keys(self) -> tuple[bytes, ...]:
        return tuple(map(webhook_key, self.secrets))


def webhook_key(secret: str) -> bytes:
    """The signing key of a ``whsec_`` secret; ValueError if it is none."""
    prefix, _, text = secret.partition("_")
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if prefix != "whsec" or len(key) < 16:
        raise ValueError("a webhook secret is whsec_ and the base64 of at least 16 bytes")
    return key


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A key that applications present, and whom its spending is charged to."""

    name: str
    secret: str = field(repr=False)
    team: str | None = None
    project: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()  # slugs this key may use; empty: all
    preferences: Preferences = NO_PREFERENCES
    limits: RateLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the router needs, checked. Immutable: a reload builds another one."""

    providers: Mapping[str, Provider]
    disabled: Mapping[str, str]  # provider -> why it is not used
    models: Mapping[str, Model]
    names: Mapping[str, str]  # every name a client may use (slug, alias, provider/slug) -> slug
    successors: Mapping[str, Successor]  # slug -> who serves its names, and from which day
    priors: Mapping[str, Prior]  # by target key
    weights: Mapping[str, tuple[float, int]]  # by target key: weight, priority
    defaults: Mapping[Operation, str]
    keys: tuple[ClientKey, ...]
    books: PriceBooks
    terms: Terms  # agreements over list prices
    ledger_url: str
    routing: RoutingSettings
    limits: Limits = Limits()
    media: MediaSettings = MediaSettings()
    webhooks: WebhookSettings | None = None
    public_url: str | None = None
    admin_key: str | None = field(default=None, repr=False)  # opens what steers the router
    refused: str = "stop"  # stop, failover: what a content refusal does
    on_disconnect: str = "finish"  # one of ON_DISCONNECT: what becomes of the work of a client that leaves
    sharing: SharingSettings | None = None  # None: this router learns alone
    budgets: Mapping[tuple[str, str], Budget] = field(default_factory=dict)  # by scope and name

    @property
    def job_timeout_s(self) -> float:
        """Seconds for a job: as configured, else half an hour, or half of what results are kept if that is less."""
        return self.limits.job_timeout_s or min(1800.0, self.media.lifetime_s / 2)

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(target for model in self.models.values() for target in model.targets)
