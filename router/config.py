"""providers.yaml and the environment -> Settings. Every problem is reported at once, with file and key.

Keys never stand in the file, only the names of the environment variables that hold them. A provider whose key or
base URL is not set is disabled, not an error: the same file serves a laptop with one key and a cluster with ten.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import yaml

from pricing import ImageSize, PriceBooks, PricingError, load_price_books
from router.errors import Billed, ErrorKind
from router.types import Model, Operation, Provider, SizeRule, Target

T = TypeVar("T")

MIB = 1024 * 1024
SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
POLICIES = ("balanced", "fastest", "cheapest", "reliable", "weighted", "priority")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file: where, and what to do about it."""

    file: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.message}" if self.key else f"{self.file}: {self.message}"


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
    max_attempts: int = 3
    drain_s: float = 120.0  # how long a stopping router lets running generations finish


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """Where pictures that need a URL are kept."""

    directory: str = "pixelroute-data/media"
    lifetime_s: int = 24 * 3600
    max_bytes: int = 10 * 1024 * MIB
    s3: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A key that applications present, and whom its spending is charged to."""

    name: str
    secret: str = field(repr=False)
    team: str | None = None
    project: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()  # slugs this key may use; empty: all


@dataclass(frozen=True, slots=True)
class Prior:
    """What to expect of a target before it has been seen: from public statistics or the operator's experience."""

    p50_s: float
    p95_s: float
    success: float


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """How this installation weighs money against waiting; see router/routing/README.md."""

    policy: str = "balanced"
    value_of_time: float | None = None  # currency units per second of waiting; None: the policy's own
    explore: bool = True
    refused: str = "stop"  # stop, failover: what a content refusal does


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the router needs, checked. Immutable: a reload builds another one."""

    providers: Mapping[str, Provider]
    disabled: Mapping[str, str]  # provider -> why it is not used
    models: Mapping[str, Model]
    names: Mapping[str, str]  # every name a client may use (slug, alias, provider/slug) -> slug
    priors: Mapping[str, Prior]  # by target key
    weights: Mapping[str, tuple[float, int]]  # by target key: weight, priority
    defaults: Mapping[Operation, str]
    keys: tuple[ClientKey, ...]
    books: PriceBooks
    ledger_url: str
    routing: RoutingSettings = RoutingSettings()
    limits: Limits = Limits()
    media: MediaSettings = MediaSettings()
    public_url: str | None = None
    undecodable_inputs: str = "reject"  # reject, forward

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(target for model in self.models.values() for target in model.targets)


# --- reading a YAML file strictly -------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, which YAML would settle silently by the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read(path: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text("utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        problems.append(Problem(str(path), "", f"cannot be read: {error.strerror}"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(Problem(str(path), "", f"is not valid YAML: {' '.join(str(error).split())}"))
    else:
        if isinstance(data, dict):
            return data
        problems.append(Problem(str(path), "", "must be a mapping with providers and models"))
    return {}


class _Section:
    """One mapping of the file: typed reads that note a problem and go on, and a check for keys nobody read."""

    def __init__(self, file: str, key: str, data: Any, problems: list[Problem]) -> None:
        self.file, self.key, self.problems = file, key, problems
        if not isinstance(data, dict):
            self.problem("", f"must be a mapping, not {_kind(data)}")
            data = {}
        self.data: dict[Any, Any] = data
        self.read: set[Any] = set()

    def path(self, key: str) -> str:
        return f"{self.key}.{key}" if self.key and key else self.key or key

    def problem(self, key: str, message: str) -> None:
        self.problems.append(Problem(self.file, self.path(key), message))

    def _take(self, key: str, kind: type | tuple[type, ...], word: str, default: T, required: bool = False) -> Any | T:
        self.read.add(key)
        value = self.data.get(key)
        if value is None:
            if required:
                self.problem(key, "is missing")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.problem(key, f"must be {word}, not {_kind(value)}")
            return default
        return value

    def text(self, key: str, default: T = cast(Any, None), *, required: bool = False) -> str | T:
        return cast("str | T", self._take(key, str, "a text", default, required))

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self._take(key, bool, "true or false", default))

    def integer(self, key: str, default: int, *, least: int = 0) -> int:
        value = int(self._take(key, int, "a whole number", default))
        if value < least:
            self.problem(key, f"must be at least {least}")
            return default
        return value

    def number(self, key: str, default: T = cast(Any, None), *, least: float = 0.0) -> float | T:
        value = self._take(key, (int, float), "a number", default)
        if isinstance(value, int | float) and not value >= least:
            self.problem(key, f"must be at least {least:g}")
            return default
        return cast("float | T", value)

    def choice(self, key: str, options: Iterable[str], default: T = cast(Any, None)) -> str | T:
        value = self.text(key, default)
        options = tuple(options)
        if isinstance(value, str) and value not in options:
            self.problem(key, f"{value!r} is not one of {', '.join(options)}")
            return default
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._take(key, list, "a list", [])
        if not all(isinstance(item, str) for item in value):
            self.problem(key, "must be a list of texts")
            return ()
        return tuple(value)

    def size(self, key: str) -> ImageSize | None:
        text = self.text(key)
        if text is None:
            return None
        try:
            return ImageSize.parse(text)
        except ValueError as error:
            self.problem(key, str(error))
            return None

    def day(self, key: str) -> date | None:
        return cast("date | None", self._take(key, date, "a date like 2026-11-20", None))

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._take(key, dict, "a mapping", {})
        return {str(name): item for name, item in value.items()}

    def section(self, key: str) -> _Section:
        return _Section(self.file, self.path(key), self.mapping(key), self.problems)

    def sections(self, key: str) -> Iterable[tuple[str, _Section]]:
        for name, data in self.mapping(key).items():
            yield name, _Section(self.file, f"{self.path(key)}.{name}", data, self.problems)

    def done(self) -> None:
        for key in self.data:
            if key not in self.read:
                known = ", ".join(sorted(str(name) for name in self.read))
                self.problem(str(key), f"is not a known key here (known: {known})")


def _kind(value: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "a text", bool: "true/false", type(None): "nothing"}.get(
        type(value), f"a {type(value).__name__}"
    )


# --- the parts of the file --------------------------------------------------------------------------------------


def _provider(
    name: str, section: _Section, env: Mapping[str, str], sandbox: _Sandbox | None, keyless: bool
) -> Provider | str:
    """A provider, or the reason why it is not used here."""
    adapter = section.text("adapter", name)
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
        title=section.text("name", name),
        adapter=adapter,
        urls=urls,
        key=key,
        prices=section.text("prices", name),
        result_hosts=section.texts("result_hosts"),
        concurrency=section.integer("concurrency", 0) or None,
        timeout_s=float(section.number("timeout_s", 120.0, least=1.0)),
        billing=billing,
    )
    disabled = section.flag("disabled")
    section.done()
    for url_name, url in urls.items():
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.netloc):
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


def _size_rule(section: _Section) -> SizeRule:
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
        max_ratio=section.number("max_ratio", None, least=1.0),
    )
    section.done()
    return rule


def _target(model: str, provider: str, section: _Section) -> tuple[Target, Prior | None, tuple[float, int]]:
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
        sizes=_size_rule(section.section("sizes")),
        default_size=section.size("default_size"),
        formats=section.texts("formats") or ("png",),
        mask=section.flag("mask"),
        transparent=section.flag("transparent"),
        streams=section.flag("streams"),
        qualities=section.mapping("qualities"),
        options=section.mapping("options"),
        attributes={name: str(value) for name, value in section.mapping("attributes").items()},
    )
    prior = None
    if section.data.get("prior") is not None:
        numbers = section.section("prior")
        p50, p95 = numbers.number("p50_s", 0.0), numbers.number("p95_s", 0.0)
        success = numbers.number("success", 0.99)
        numbers.done()
        if not 0 < p50 <= p95:
            numbers.problem("", "needs 0 < p50_s <= p95_s")
        elif not 0 < success <= 1:
            numbers.problem("success", "must be above 0 and at most 1")
        else:
            prior = Prior(p50, p95, success)
    weights = (float(section.number("weight", 1.0)), section.integer("priority", 0))
    section.done()
    return target, prior, weights


def _model(slug: str, section: _Section, build: Callable[[str, _Section], Target | None]) -> Model:
    if not SLUG.fullmatch(slug):
        section.problem("", "a slug is lower-case letters, digits, '.', '_' and '-'")
    declared = list(section.sections("targets"))
    targets = [target for name, part in declared if (target := build(name, part)) is not None]
    model = Model(
        slug=slug,
        name=section.text("name", slug),
        creator=section.text("creator", "unknown"),
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
        unpriced=section.choice("unpriced", ("reject", "allow"), "reject"),
        description=section.text("description"),
    )
    section.done()
    return model


def _client_keys(section: _Section, env: Mapping[str, str], keyless: bool) -> tuple[ClientKey, ...]:
    keys = []
    for name, part in section.sections("keys"):
        variable = part.text("secret_env", required=True)
        tags = {tag: str(value) for tag, value in part.mapping("tags").items()}
        team, project, models = part.text("team"), part.text("project"), part.texts("models")
        part.done()
        if variable is None:
            continue
        if secret := env.get(variable, "unset" if keyless else None):
            keys.append(ClientKey(name, secret, team, project, tags, models))
        else:
            part.problem("secret_env", f"the environment variable {variable} is not set")
    if secret := env.get("PIXELROUTE_API_KEY"):
        keys.append(ClientKey("default", secret))
    return tuple(keys)


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
    today: date,
) -> Settings:
    """Read, check and build. Later files add to earlier ones and replace whole providers and models by name.

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
    keys: tuple[ClientKey, ...] = ()
    routing, limits, media = RoutingSettings(), Limits(), MediaSettings()
    ledger_url = public_url = prices_directory = None
    undecodable = "reject"
    origin: dict[str, _Section] = {}

    for path in paths:
        file = str(path)
        root = _Section(file, "", _read(path, problems), problems)
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

        def build(slug: str) -> Callable[[str, _Section], Target | None]:
            def target(provider: str, section: _Section) -> Target | None:
                built, prior, weight = _target(slug, provider, section)
                if provider not in providers and provider not in disabled:
                    section.problem("", "this provider is not described under providers")
                if provider not in providers:
                    return None
                weights[built.key] = weight
                if prior is not None:
                    priors[built.key] = prior
                return built

            return target

        for slug, section in root.sections("models"):
            models[slug] = _model(slug, section, build(slug))
            origin[slug] = section
        default = root.section("defaults")
        for operation in Operation:
            if name := default.text(operation.value):
                defaults[operation] = name
        default.done()
        keys = keys or _client_keys(root, env, keyless)
        root.read.add("keys")
        routing = _routing(root.section("routing"), routing)
        limits = _limits(root.section("limits"), limits)
        media = _media(root.section("media"), media, env)
        ledger_url = root.text("ledger", ledger_url)
        public_url = root.text("public_url", public_url)
        prices_directory = root.text("prices", prices_directory)
        undecodable = root.choice("undecodable_inputs", ("reject", "forward"), undecodable)
        root.done()

    names = _names(models, defaults, origin, problems, today)
    try:
        books = load_price_books(Path(prices_directory) if prices_directory else None)
    except PricingError as error:
        problems.extend(Problem(item.file, item.key, item.message) for item in error.problems)
    if problems:
        raise ConfigError(problems)
    return Settings(
        providers=providers,
        disabled=disabled,
        models={slug: model for slug, model in models.items() if model.targets},
        names=names,
        priors=priors,
        weights=weights,
        defaults=defaults,
        keys=keys,
        books=books,
        ledger_url=env.get("PIXELROUTE_LEDGER") or ledger_url or _default_ledger(sandbox is not None),
        routing=routing,
        limits=limits,
        media=media,
        public_url=env.get("PIXELROUTE_PUBLIC_URL") or public_url,
        undecodable_inputs=undecodable,
    )


def _default_ledger(sandbox: bool) -> str:
    """Play money and real money never share a ledger."""
    return f"sqlite:///pixelroute-data/{'sandbox' if sandbox else 'ledger'}.db"


def _routing(section: _Section, before: RoutingSettings) -> RoutingSettings:
    built = RoutingSettings(
        policy=section.choice("policy", POLICIES, before.policy),
        value_of_time=section.number("value_of_time", before.value_of_time),
        explore=section.flag("explore", before.explore),
        refused=section.choice("refused", ("stop", "failover"), before.refused),
    )
    section.done()
    return built


def _limits(section: _Section, before: Limits) -> Limits:
    built = Limits(
        body_bytes=section.integer("body_bytes", before.body_bytes, least=1024),
        in_flight_bytes=section.integer("in_flight_bytes", before.in_flight_bytes, least=MIB),
        request_timeout_s=float(section.number("request_timeout_s", before.request_timeout_s, least=0.1)),
        max_attempts=section.integer("max_attempts", before.max_attempts, least=1),
        drain_s=float(section.number("drain_s", before.drain_s)),
    )
    section.done()
    return built


def _media(section: _Section, before: MediaSettings, env: Mapping[str, str]) -> MediaSettings:
    built = MediaSettings(
        directory=env.get("PIXELROUTE_MEDIA") or section.text("directory", before.directory),
        lifetime_s=section.integer("lifetime_s", before.lifetime_s, least=60),
        max_bytes=section.integer("max_bytes", before.max_bytes, least=MIB),
        s3=section.mapping("s3") or before.s3,
    )
    section.read.update({"directory"})
    section.done()
    return built


def _names(
    models: Mapping[str, Model],
    defaults: Mapping[Operation, str],
    origin: Mapping[str, _Section],
    problems: list[Problem],
    today: date,
) -> dict[str, str]:
    """Every name a client may send, to the slug that serves it today."""
    names: dict[str, str] = {}
    for slug, model in models.items():
        serves = slug
        if model.successor is not None:
            if model.successor not in models:
                origin[slug].problem("successor", f"{model.successor!r} is not a model of this file")
            elif model.retires is not None and model.retires <= today:
                serves = model.successor
        for name in (slug, *model.aliases):
            if name in names or (name != slug and name in models):
                origin[slug].problem("aliases", f"{name!r} already names another model")
            names[name] = serves
        for target in model.targets:
            names.setdefault(target.key, slug)
    for operation, name in defaults.items():
        if name not in names:
            file = next(iter(origin.values())).file if origin else "configuration"
            problems.append(Problem(file, f"defaults.{operation}", f"{name!r} is not a model of this file"))
    return names
