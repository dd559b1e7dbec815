"""providers.yaml and the environment -> Settings. Every problem is reported at once, with file and key.

Keys never stand in the file, only the names of the environment variables that hold them. A provider whose key or
base URL is not set is disabled, not an error: the same file serves a laptop with one key and a cluster with ten.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pricing import PricingError, Problem, Terms, load_price_books, load_terms
from router.budgets import Budget
from router.config.catalog import (
    UNDECODABLE,
    Sandbox,
    TargetBuilder,
    names_of,
    read_model,
    read_provider,
    settled,
    successors_of,
    tagged,
)
from router.config.installation import (
    Meeting,
    read_budget,
    read_keys,
    read_limits,
    read_media,
    read_routing,
    read_sharing,
    read_webhooks,
)
from router.config.settings import (
    POLICIES,
    ClientKey,
    Limits,
    MediaSettings,
    S3Settings,
    Settings,
    SharingSettings,
    WebhookSettings,
    webhook_key,
)
from router.document import Section, read_yaml
from router.routing import Prior, RoutingSettings
from router.types import ON_DISCONNECT, Model, Operation, Provider

__all__ = [
    "POLICIES", "ClientKey", "ConfigError", "Limits", "MediaSettings", "S3Settings", "Settings", "SharingSettings",
    "WebhookSettings", "default_config", "load", "webhook_key",
]  # fmt: skip


class ConfigError(Exception):
    """The configuration cannot be used; carries every problem found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def default_config() -> Path:
    """The configuration used when none is named: ./providers.yaml, else the copy inside the package."""
    local = Path("providers.yaml")
    if local.is_file():
        return local
    package = Path(__file__).parents[1]
    packaged = package / "providers.default.yaml"
    return packaged if packaged.is_file() else package.parent / "providers.yaml"


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
    sandbox = Sandbox(sandbox_urls, sandbox_keys or {}) if sandbox_urls is not None else None

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
    sharing = Meeting()
    origin: dict[str, Section] = {}

    for path in paths:
        file = str(path)
        root = Section(file, "", read_yaml(path, problems), problems)
        if root.integer("version", 1) != 1:
            root.problem("version", "this program reads version 1")
        for name, section in root.sections("providers"):
            built = read_provider(name, section, env, sandbox, keyless)
            providers.pop(name, None)
            disabled.pop(name, None)
            if isinstance(built, str):
                disabled[name] = built
            else:
                providers[name] = built

        build = TargetBuilder(providers, disabled, priors, weights)
        for slug, section in root.sections("models"):
            models[slug] = read_model(slug, section, build)
            origin[slug] = section
        default = root.section("defaults")
        for operation in Operation:
            if chosen := default.text(operation.value):
                defaults[operation] = chosen
        default.done()
        named = {key.name: key for key in read_keys(root, env, keyless, rates, budgets)}
        keys |= named
        files |= dict.fromkeys(named, file)
        root.read.add("keys")
        for scope in ("team", "project"):
            for name, section in root.sections(f"{scope}s"):
                budgets[scope, name] = read_budget(section.section("budget"))
                section.done()
                payers[scope, name] = section
        routing = read_routing(root.section("routing"), routing)
        refused = root.section("routing").choice("refused", ("stop", "failover"), refused)
        sharing = read_sharing(root.section("routing").section("shared"), sharing, env)
        limits = read_limits(root.section("limits"), limits)
        media = read_media(root.section("media"), media, env, keyless)
        if root.mapping("webhooks"):
            webhooks = read_webhooks(root.section("webhooks"), env, keyless)
        ledger_url = root.text("ledger") or ledger_url
        public_url = root.text("public_url") or public_url
        prices_directory = root.text("prices") or prices_directory
        terms_file = root.text("terms") or terms_file
        undecodable = root.choice("undecodable_inputs", UNDECODABLE, undecodable)
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
    names = names_of(models, defaults, origin, problems)
    successors = successors_of(models, origin, problems)
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
            slug: settled(tagged(model, providers), undecodable) for slug, model in models.items() if model.targets
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


def _default_ledger(sandbox: bool) -> str:
    """Play money and real money never share a ledger."""
    return f"sqlite:///pixelroute-data/{'sandbox' if sandbox else 'ledger'}.db"
