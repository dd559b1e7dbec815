"""providers.yaml and the environment -> Settings. Every problem is reported at once, with file and key.

Keys never stand in the file, only the names of the environment variables that hold them. A provider whose key or
base URL is not set is disabled, not an error: the same file serves a laptop with one key and a cluster with ten.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from urllib.parse import urlsplit

from pricing import ImageSize, PriceBooks, PricingError, Problem, Terms, load_price_books, load_terms
from router.budgets import PERIODS, Budget
from router.document import Section, read_yaml
from router.errors import Billed, ErrorKind
from router.limits import NO_LIMITS, RateLimits
from router.routing import PRESETS, Prior, RoutingSettings
from router.types import (
    MAX_PROMPT,
    NO_PREFERENCES,
    ON_DISCONNECT,
    SIZE_POLICIES,
    Model,
    Operation,
    Preferences,
    Provider,
    SizeRule,
    Successor,
    Target,
)

MIB = 1024 * 1024
SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_UNDECODABLE = ("reject", "forward")
POLICIES = ("balanced", "fastest", "cheapest", "reliable", "weighted", "priority")


class ConfigError(Exception):
    """The configuration cannot be used; carries every problem found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


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


# --- the parts of the file --------------------------------------------------------------------------------------


def _provider(
    name: str, section: Section, env: Mapping[str, str], sandbox: _Sandbox | None, keyless: bool
) -> Provider | str:
    """A provider, or the reason why it is not used here."""
    adapter = section.text_or("adapter", name)
    urls = {str(key): str(url).rstrip("/") for key, url in section.mapping("urls").items()}
    for url_name, variable in section.mapping("urls_env").items():
        if value := env.get(str(variable)):
            urls[url_name] = value.rstrip("/")
        else:
            urls.setdefault(url_name, "")
    key_env = section.text("key_env")
    billing = section.mapping("billing")
    for kind, billed in billing.items():
        if kind not in ErrorKind.__members__.values():
            section.problem(f"billing.{kind}", f"is not one of {', '.join(ErrorKind)}")
        elif billed not in Billed.__members__.values():
            section.problem(f"billing.{kind}", f"{billed!r} is not one of {', '.join(Billed)}")
    key = env.get(key_env) if key_env else None
    if sandbox is not None:
        urls, key = dict(sandbox.urls.get(name, {})), sandbox.keys.get(name)
    provider = Provider(
        name=name,
        title=section.text_or("name", name),
        adapter=adapter,
        urls=urls,
        key=key,
        prices=section.text_or("prices", name),
        result_hosts=section.texts("result_hosts"),
        concurrency=section.integer("concurrency", 0) or None,
        timeout_s=section.number_or("timeout_s", 120.0, least=1.0),
        max_prompt=section.integer("max_prompt", MAX_PROMPT, least=1),
        billing=billing,
        tags=_tags(section),
        auth=(header, section.text_or("auth_prefix", "")) if (header := section.text("auth_header")) else None,
    )
    disabled = section.flag("disabled")
    section.done()
    for url_name, url in urls.items():
        if url and not _is_http(url):
            section.problem(f"urls.{url_name}", "must be an http or https URL")
    if disabled:
        return "disabled in the configuration"
    if keyless:
        return provider
    if sandbox is not None:
        return provider if urls else "the sandbox has no emulator for it"
    if missing := [str(section.data["urls_env"][name]) for name, url in urls.items() if not url]:
        return f"{', '.join(missing)} is not set"
    if key_env and not key:
        return f"{key_env} is not set"
    return provider


@dataclass(frozen=True, slots=True)
class _Sandbox:
    urls: Mapping[str, Mapping[str, str]]
    keys: Mapping[str, str]


def _size_rule(section: Section) -> SizeRule:
    fixed = []
    for text in section.texts("fixed"):
        try:
            fixed.append(ImageSize.parse(text))
        except ValueError as error:
            section.problem("fixed", str(error))
    plain = SizeRule()
    rule = SizeRule(
        fixed=tuple(fixed),
        min_side=section.integer("min_side", plain.min_side, least=1),
        max_side=section.integer("max_side", plain.max_side, least=1),
        multiple_of=section.integer("multiple_of", 1, least=1),
        min_pixels=section.integer("min_pixels", 1, least=1),
        max_pixels=section.integer("max_pixels", plain.max_pixels, least=1),
        max_ratio=section.number("max_ratio", least=1.0),
    )
    section.done()
    return rule


def _tags(section: Section) -> tuple[str, ...]:
    """Free words, and ``data_region: eu`` as the tag ``region:eu``."""
    region = section.text("data_region")
    return (*section.texts("tags"), *([f"region:{region}"] if region else []))


def _preferences(section: Section) -> Preferences:
    """What a request may say in ``provider``, said for all requests of a key or a model."""
    least = section.number("min_success")
    if least is not None and least > 1:
        section.problem("min_success", "must be at most 1")
    built = Preferences(
        sort=section.choice("sort", POLICIES, "balanced") if "sort" in section.data else None,
        order=section.texts("order"),
        only=section.texts("only"),
        ignore=section.texts("ignore"),
        max_cost=section.amount("max_cost"),
        max_latency_s=section.number("max_latency_s"),
        min_success=least,
        require_tags=section.texts("require_tags"),
        exclude_tags=section.texts("exclude_tags"),
        allow_fallbacks=section.flag("allow_fallbacks", True),
        on_disconnect=section.choice("on_disconnect", ON_DISCONNECT, "finish")
        if "on_disconnect" in section.data
        else None,
    )
    section.read.update(("sort", "on_disconnect"))
    section.done()
    return built if built != NO_PREFERENCES else NO_PREFERENCES


def _target(
    model: str, provider: str, section: Section, max_prompt: int
) -> tuple[Target, Prior | None, tuple[float, int]]:
    endpoints = {operation: id for operation in Operation if (id := section.text(operation.value)) is not None}
    if not endpoints:
        section.problem("", "names no operation: give the provider's model id under generate, edit or variation")
    target = Target(
        key=f"{provider}/{model}",
        provider=provider,
        model=model,
        endpoints=endpoints,
        max_images=section.integer("max_images", 1, least=1),
        max_inputs=section.integer("max_inputs", 16 if Operation.EDIT in endpoints else 0),
        max_prompt=section.integer("max_prompt", max_prompt, least=1),
        sizes=_size_rule(section.section("sizes")),
        default_size=section.size("default_size"),
        formats=section.texts("formats") or ("png",),
        mask=section.flag("mask"),
        mask_rule=section.choice("mask_rule", ("alpha", "white", "black"), "alpha"),
        markup=section.flag("markup"),
        transparent=section.flag("transparent"),
        streams=section.flag("streams"),
        qualities=section.mapping("qualities"),
        options=section.mapping("options"),
        attributes={name: str(value) for name, value in section.mapping("attributes").items()},
        sku=section.text("sku"),
        tags=_tags(section),
    )
    prior = None
    if section.data.get("prior") is not None:
        numbers = section.section("prior")
        p50, p95 = numbers.number_or("p50_s", 0.0), numbers.number_or("p95_s", 0.0)
        success = numbers.number_or("success", 0.99)
        numbers.done()
        if not 0 < p50 <= p95:
            numbers.problem("", "needs 0 < p50_s <= p95_s")
        elif not 0 < success <= 1:
            numbers.problem("success", "must be above 0 and at most 1")
        else:
            prior = Prior(p50, p95, success)
    weights = (section.number_or("weight", 1.0), section.integer("priority", 0))
    section.done()
    return target, prior, weights


def _expected(section: Section) -> Prior | None:
    """What the targets of a model are taken for that have no prior, until one of them has been measured."""
    if section.data.get("expect") is None:
        return None
    numbers = section.section("expect")
    p50, p95 = numbers.number_or("p50_s", 0.0), numbers.number_or("p95_s", 0.0)
    source = numbers.text("source")
    numbers.done()
    if not source:
        numbers.problem("source", "say where the figures are from and of when, or that they are an assumption")
    if p95 <= 0 or p50 < 0 or p50 > p95:
        numbers.problem("", "needs p95_s above 0, and p50_s (where known) at most that")
        return None
    return Prior(p50 or None, p95, samples=0.0)


@dataclass(frozen=True, slots=True)
class _TargetBuilder:
    """Builds a model's targets at the providers in use, and notes what the file says of each beside itself."""

    providers: Mapping[str, Provider]
    disabled: Mapping[str, str]
    priors: dict[str, Prior]
    weights: dict[str, tuple[float, int]]

    def __call__(self, model: str, provider: str, section: Section) -> Target | None:
        known = self.providers.get(provider)
        longest = known.max_prompt if known is not None else MAX_PROMPT
        target, prior, weight = _target(model, provider, section, longest)
        if provider not in self.providers:
            if provider not in self.disabled:
                section.problem("", "this provider is not described under providers")
            return None
        self.weights[target.key] = weight
        if prior is not None:
            self.priors[target.key] = prior
        return target


def _model(slug: str, section: Section, build: _TargetBuilder) -> Model:
    if not SLUG.fullmatch(slug):
        section.problem("", "a slug is lower-case letters, digits, '.', '_' and '-'")
    declared = list(section.sections("targets"))
    targets = [target for name, part in declared if (target := build(slug, name, part)) is not None]
    expected = _expected(section)
    if expected is not None:
        for target in targets:
            build.priors.setdefault(target.key, expected)
    model = Model(
        slug=slug,
        name=section.text_or("name", slug),
        creator=section.text_or("creator", "unknown"),
        targets=tuple(targets),
        aliases=section.texts("aliases"),
        family=section.text("family"),
        status=section.choice("status", ("active", "preview", "deprecated"), "active"),
        released=section.day("released"),
        retires=section.day("retires"),
        successor=section.text("successor"),
        licence=section.text("licence"),
        tags=section.texts("tags"),
        default_size=section.size("default_size"),
        preferences=_preferences(section.section("preferences")),
        fallbacks=section.texts("fallbacks"),
        size_policy=section.choice("size_policy", SIZE_POLICIES, "exact"),
        undecodable_inputs=section.choice("undecodable_inputs", ("installation", *_UNDECODABLE), "installation"),
        unpriced=section.choice("unpriced", ("reject", "allow"), "reject"),
        job_timeout_s=section.number("job_timeout_s", least=0.1),
        description=section.text("description"),
    )
    section.done()
    return model


def _tagged(model: Model, providers: Mapping[str, Provider]) -> Model:
    """The model with each target under all its tags: its own, its provider's and the model's.

    A target's own region stands in place of its provider's.
    """

    def tags(target: Target) -> tuple[str, ...]:
        moved = any(tag.startswith("region:") for tag in target.tags)
        its = [tag for tag in providers[target.provider].tags if not (moved and tag.startswith("region:"))]
        return tuple(dict.fromkeys((*target.tags, *its, *model.tags)))

    return replace(model, targets=tuple(replace(target, tags=tags(target)) for target in model.targets))


def _client_keys(
    section: Section,
    env: Mapping[str, str],
    keyless: bool,
    rates: dict[str, dict[str, int | None]],
    budgets: dict[tuple[str, str], Budget],
) -> Iterator[ClientKey]:
    """The client keys of a file; what each says of its limits is noted beside them."""
    for name, part in section.sections("keys"):
        part.text("secret_env", required=True)
        secret = _secret(part, "secret_env", env, keyless)
        tags = {tag: str(value) for tag, value in part.mapping("tags").items()}
        team, project, models = part.text("team"), part.text("project"), part.texts("models")
        preferences = _preferences(part.section("preferences"))
        rates[name] = _rates(part.section("limits"))
        budgets.pop(("key", name), None)
        if "budget" in part.data:
            budgets["key", name] = _budget(part.section("budget"))
        part.done()
        if secret is not None:
            yield ClientKey(name, secret, team, project, tags, models, preferences)


# --- the whole --------------------------------------------------------------------------------------------------


def default_config() -> Path:
    """The configuration used when none is named: ./providers.yaml, else the copy inside the package."""
    local = Path("providers.yaml")
    if local.is_file():
        return local
    packaged = Path(__file__).with_name("providers.default.yaml")
    return packaged if packaged.is_file() else Path(__file__).parent.parent / "providers.yaml"


def load(
    paths: Iterable[Path],
    env: Mapping[str, str] | None = None,
    *,
    sandbox_urls: Mapping[str, Mapping[str, str]] | None = None,
    sandbox_keys: Mapping[str, str] | None = None,
    keyless: bool = False,
) -> Settings:
    """Read, check and build. Later files add to earlier ones and replace whole providers, models and keys by name.

    ``sandbox_urls``: provider -> base URLs of its emulator; given, every provider is reached there and nowhere else.
    ``keyless`` keeps providers whose key is not set: enough to check and to quote, never to serve.
    Raises ConfigError with every problem found in the files, the price books included.
    """
    env = os.environ if env is None else env
    problems: list[Problem] = []
    sandbox = _Sandbox(sandbox_urls, sandbox_keys or {}) if sandbox_urls is not None else None

    providers: dict[str, Provider] = {}
    disabled: dict[str, str] = {}
    models: dict[str, Model] = {}
    priors: dict[str, Prior] = {}
    weights: dict[str, tuple[float, int]] = {}
    defaults: dict[Operation, str] = {}
    keys: dict[str, ClientKey] = {}
    files: dict[str, str] = {}  # that the keys stand in
    rates: dict[str, dict[str, int | None]] = {}  # of the keys
    budgets: dict[tuple[str, str], Budget] = {}  # by scope and name
    payers: dict[tuple[str, str], Section] = {}  # teams and projects
    routing, limits, media = RoutingSettings(), Limits(), MediaSettings()
    webhooks: WebhookSettings | None = None
    ledger_url: str | None = None
    public_url: str | None = None
    prices_directory: str | None = None
    terms_file: str | None = None
    undecodable, refused, on_disconnect = "reject", "stop", "finish"
    sharing = _Meeting()
    origin: dict[str, Section] = {}

    for path in paths:
        file = str(path)
        root = Section(file, "", read_yaml(path, problems), problems)
        if root.integer("version", 1) != 1:
            root.problem("version", "this program reads version 1")
        for name, section in root.sections("providers"):
            built = _provider(name, section, env, sandbox, keyless)
            providers.pop(name, None)
            disabled.pop(name, None)
            if isinstance(built, str):
                disabled[name] = built
            else:
                providers[name] = built

        build = _TargetBuilder(providers, disabled, priors, weights)
        for slug, section in root.sections("models"):
            models[slug] = _model(slug, section, build)
            origin[slug] = section
        default = root.section("defaults")
        for operation in Operation:
            if chosen := default.text(operation.value):
                defaults[operation] = chosen
        default.done()
        named = {key.name: key for key in _client_keys(root, env, keyless, rates, budgets)}
        keys |= named
        files |= dict.fromkeys(named, file)
        root.read.add("keys")
        for scope in ("team", "project"):
            for name, section in root.sections(f"{scope}s"):
                budgets[scope, name] = _budget(section.section("budget"))
                section.done()
                payers[scope, name] = section
        routing = _routing(root.section("routing"), routing)
        refused = root.section("routing").choice("refused", ("stop", "failover"), refused)
        sharing = _sharing(root.section("routing").section("shared"), sharing, env)
        limits = _limits(root.section("limits"), limits)
        media = _media(root.section("media"), media, env, keyless)
        if root.mapping("webhooks"):
            webhooks = _webhooks(root.section("webhooks"), env, keyless)
        ledger_url = root.text("ledger") or ledger_url
        public_url = root.text("public_url") or public_url
        prices_directory = root.text("prices") or prices_directory
        terms_file = root.text("terms") or terms_file
        undecodable = root.choice("undecodable_inputs", _UNDECODABLE, undecodable)
        on_disconnect = root.choice("on_disconnect", ON_DISCONNECT, on_disconnect)
        root.done()

    secret = env.get("PIXELROUTE_API_KEY")
    if secret and secret not in [key.secret for key in keys.values()]:  # it may be the secret of a key with a name
        keys.setdefault("default", ClientKey("default", secret))
    owners: dict[str, str] = {}
    for key in () if keyless else keys.values():  # else one's limits and budget would be another's
        if (owner := owners.setdefault(key.secret, key.name)) != key.name:
            problems.append(
                Problem(files[key.name], f"keys.{key.name}.secret_env", f"is the secret of {owner} as well")
            )
    for (scope, name), section in payers.items():
        if name not in [getattr(key, scope) for key in keys.values()]:
            section.problem("", f"no key is of this {scope}")
    times = [("configuration", "limits.job_timeout_s", limits.job_timeout_s or 0.0)]
    times += [(origin[slug].file, f"models.{slug}.job_timeout_s", m.job_timeout_s or 0.0) for slug, m in models.items()]
    for file, where, seconds in times:  # else what is known of a job could be swept away before it has ended
        if seconds >= media.lifetime_s:
            text = f"{seconds:g} s must be less than media.lifetime_s, {media.lifetime_s} s"
            problems.append(Problem(file, where, text))
    names = _names(models, defaults, origin, problems)
    successors = _successors(models, origin, problems)
    try:
        books = load_price_books(Path(prices_directory) if prices_directory else None)
        terms = load_terms(Path(terms_file)) if terms_file else Terms()
    except PricingError as error:
        problems.extend(Problem(item.file, item.key, item.message) for item in error.problems)
    if problems:
        raise ConfigError(problems)
    return Settings(
        providers=providers,
        disabled=disabled,
        models={
            slug: _settled(_tagged(model, providers), undecodable) for slug, model in models.items() if model.targets
        },
        names=names,
        successors=successors,
        priors=priors,
        weights=weights,
        defaults=defaults,
        keys=tuple(replace(key, limits=replace(limits.per_key, **rates.get(key.name, {}))) for key in keys.values()),
        books=books,
        terms=terms,
        ledger_url=env.get("PIXELROUTE_LEDGER") or ledger_url or _default_ledger(sandbox is not None),
        routing=replace(
            routing,
            attempts=limits.max_attempts,
            concurrency={name: p.concurrency for name, p in providers.items() if p.concurrency is not None},
        ),
        limits=limits,
        media=media,
        webhooks=webhooks,
        public_url=env.get("PIXELROUTE_PUBLIC_URL") or public_url,
        admin_key=env.get("PIXELROUTE_ADMIN_KEY") or None,
        refused=refused,
        on_disconnect=on_disconnect,
        sharing=sharing.settings(sandbox is not None),
        budgets=budgets,
    )


def _settled(model: Model, undecodable: str) -> Model:
    """The model with the installation's word where it has none of its own."""
    return replace(model, undecodable_inputs=undecodable) if model.undecodable_inputs == "installation" else model


def _default_ledger(sandbox: bool) -> str:
    """Play money and real money never share a ledger."""
    return f"sqlite:///pixelroute-data/{'sandbox' if sandbox else 'ledger'}.db"


def _routing(section: Section, before: RoutingSettings) -> RoutingSettings:
    """``value_of_time`` ($ per second of waiting) is the one knob behind the presets; naming it sets it for all."""
    preset = section.choice("policy", POLICIES, before.preset)
    value = section.number("value_of_time")
    presets = before.presets
    if value is not None:
        presets = {name: replace(known, value_of_time=value) for name, known in PRESETS.items()}
    explore = section.number_or("explore_share", before.explore_share)
    rescue = section.flag("rescue", before.rescue)
    rescue_share = section.number_or("rescue_share", before.rescue_share)
    unknown_bills = section.flag("rescue_unknown_bills", before.rescue_unknown_bills)
    section.read.update({"refused", "shared"})
    section.done()
    return replace(
        before,
        preset=preset,
        presets=presets,
        explore_share=explore,
        rescue=rescue,
        rescue_share=rescue_share,
        rescue_unknown_bills=unknown_bills,
    )


@dataclass(frozen=True, slots=True)
class _Meeting:
    """What the files say of sharing: nothing is shared where the variable is not set."""

    url: str | None = None
    stream: str = "pixelroute:routing"
    every_s: float = 5.0

    def settings(self, sandbox: bool) -> SharingSettings | None:
        if not self.url:
            return None
        # What is learnt of emulators says nothing about real providers.
        return SharingSettings(self.url, f"{self.stream}:sandbox" if sandbox else self.stream, self.every_s)


def _sharing(section: Section, before: _Meeting, env: Mapping[str, str]) -> _Meeting:
    variable = section.text_or("url_env", "PIXELROUTE_REDIS")
    built = _Meeting(
        url=env.get(variable) or before.url,
        stream=section.text_or("stream", before.stream),
        every_s=section.number_or("every_s", before.every_s, least=0.5),
    )
    section.done()
    if built.every_s > 15.0:
        section.problem("every_s", "must be at most 15: a replica not heard of for 30 s is taken for dead")
    if built.url and urlsplit(built.url).scheme not in ("redis", "rediss", "unix"):
        section.problem("url_env", f"{variable} must hold a redis, rediss or unix URL")
    return built


def _limits(section: Section, before: Limits) -> Limits:
    built = Limits(
        body_bytes=section.integer("body_bytes", before.body_bytes, least=1024),
        in_flight_bytes=section.integer("in_flight_bytes", before.in_flight_bytes, least=MIB),
        request_timeout_s=section.number_or("request_timeout_s", before.request_timeout_s, least=0.1),
        job_timeout_s=section.number("job_timeout_s", least=0.1) or before.job_timeout_s,
        max_attempts=section.integer("max_attempts", before.max_attempts, least=1),
        per_key=replace(before.per_key, **_rates(section.section("per_key"))),
        drain_s=section.number_or("drain_s", before.drain_s),
    )
    section.done()
    return built


def _rates(section: Section) -> dict[str, int | None]:
    """The limits that are named; None where one is lifted, which is written as null."""
    known = [each.name for each in fields(RateLimits)]
    named = [name for name in known if name in section.data]
    found = {name: section.integer(name, 1, least=1) if section.data[name] is not None else None for name in named}
    section.read.update(known)
    section.done()
    return found


def _budget(section: Section) -> Budget:
    share = section.number_or("warn_at", Budget().warn_at)
    if share > 1:
        section.problem("warn_at", "must be at most 1")
    limits = {period: section.amount(period) for period in PERIODS}
    section.done()
    if not [period for period in PERIODS if section.data.get(period) is not None]:
        section.problem("", f"names no amount: give {', '.join(PERIODS)} or several of them")
    return Budget(**limits, warn_at=share)


def _media(section: Section, before: MediaSettings, env: Mapping[str, str], keyless: bool) -> MediaSettings:
    built = MediaSettings(
        directory=env.get("PIXELROUTE_MEDIA") or section.text_or("directory", before.directory),
        lifetime_s=section.integer("lifetime_s", before.lifetime_s, least=600),  # longer than any request takes
        max_bytes=section.integer("max_bytes", before.max_bytes, least=MIB),
        s3=_s3(section.section("s3"), env, keyless) if section.data.get("s3") is not None else before.s3,
    )
    section.read.update({"directory", "s3"})
    section.done()
    return built


def _s3(section: Section, env: Mapping[str, str], keyless: bool) -> S3Settings | None:
    bucket, endpoint = section.text("bucket", required=True), section.text("endpoint")
    if endpoint is not None and not _is_http(endpoint):
        section.problem("endpoint", "must be an http or https URL")
    region, prefix = section.text_or("region", "us-east-1"), section.text_or("prefix", "")
    keys = [_secret(section, name, env, keyless) for name in ("access_key_env", "secret_key_env")]
    if ("access_key_env" in section.data) != ("secret_key_env" in section.data):
        section.problem("", "needs both access_key_env and secret_key_env, or neither")
    section.done()
    return S3Settings(bucket, endpoint, region, prefix, *keys) if bucket is not None else None


def _webhooks(section: Section, env: Mapping[str, str], keyless: bool) -> WebhookSettings | None:
    named = section.data.get("secret_env")  # a variable, or several while receivers change over
    listed = isinstance(named, list)
    if named == []:
        section.problem("secret_env", "must name a variable")
    secrets = []
    for variable in section.texts("secret_env") if listed else (section.text("secret_env", required=True),):
        secret = _variable(section, "secret_env", variable, env, keyless)
        if secret is None:
            continue
        secrets.append(secret)
        try:
            if env.get(variable or ""):
                webhook_key(secret)
        except ValueError as error:
            section.problem("secret_env", f"{variable}: {error}")
    private, plain = section.flag("private_receivers"), WebhookSettings(())
    pauses = section.numbers("retry_s") if "retry_s" in section.data else plain.retry_s
    section.done()
    return WebhookSettings(tuple(secrets), private, pauses) if secrets else None


def _secret(section: Section, key: str, env: Mapping[str, str], keyless: bool) -> str | None:
    """The secret in the environment variable that the file names under ``key``; a problem if it is not set."""
    return _variable(section, key, section.text(key), env, keyless)


def _variable(section: Section, key: str, variable: str | None, env: Mapping[str, str], keyless: bool) -> str | None:
    if variable is None:
        return None
    secret = env.get(variable) or ("unset" if keyless else None)
    if secret is None:
        section.problem(key, f"the environment variable {variable} is not set")
    return secret


def _is_http(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def _names(
    models: Mapping[str, Model],
    defaults: Mapping[Operation, str],
    origin: Mapping[str, Section],
    problems: list[Problem],
) -> dict[str, str]:
    """Every name a client may send, to the slug of the model it names."""
    names: dict[str, str] = {}
    for slug, model in models.items():
        for name in (slug, *model.aliases):
            if name in names or (name != slug and name in models):
                origin[slug].problem("aliases", f"{name!r} already names another model")
            names[name] = slug
        for target in model.targets:
            names.setdefault(target.key, slug)
    for slug, model in models.items():
        for name in model.fallbacks:
            if name not in names and name.partition("/")[2] not in names:
                origin[slug].problem("fallbacks", f"{name!r} is not a model of this file")
    for operation, name in defaults.items():
        if name not in names:
            file = next(iter(origin.values())).file if origin else "configuration"
            problems.append(Problem(file, f"defaults.{operation}", f"{name!r} is not a model of this file"))
    return names


def _successors(
    models: Mapping[str, Model], origin: Mapping[str, Section], problems: list[Problem]
) -> dict[str, Successor]:
    """Who serves the names of each model that has a day of retirement and a successor."""
    found: dict[str, Successor] = {}
    for slug, model in models.items():
        if model.successor is None:
            continue
        if model.successor not in models:
            origin[slug].problem("successor", f"{model.successor!r} is not a model of this file")
        elif model.retires is None:
            origin[slug].problem("successor", "needs retires: the day from which it serves the name")
        else:
            found[slug] = Successor(model.successor, model.retires)
    for slug in found:
        later, seen = slug, {slug}
        while later in found:
            later = found[later].slug
            if later in seen:
                origin[slug].problem("successor", "leads back to itself")
                break
            seen.add(later)
    return found
