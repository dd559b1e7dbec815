"""Providers, models and their targets, as the files name them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from pricing import ImageSize, Problem
from router.config.settings import POLICIES
from router.document import Section
from router.errors import Billed, ErrorKind
from router.routing import Prior
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

SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
UNDECODABLE = ("reject", "forward")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Where the emulators are, by provider: base URLs by name, and the key that each takes."""

    urls: Mapping[str, Mapping[str, str]]
    keys: Mapping[str, str]


def read_provider(
    name: str, section: Section, env: Mapping[str, str], sandbox: Sandbox | None, keyless: bool
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
        if url and not is_http(url):
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


def read_preferences(section: Section) -> Preferences:
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
class TargetBuilder:
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


def read_model(slug: str, section: Section, build: TargetBuilder) -> Model:
    """A model with its targets at the providers that are used here; what is known of them goes to ``build``."""
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
        preferences=read_preferences(section.section("preferences")),
        fallbacks=section.texts("fallbacks"),
        size_policy=section.choice("size_policy", SIZE_POLICIES, "exact"),
        undecodable_inputs=section.choice("undecodable_inputs", ("installation", *UNDECODABLE), "installation"),
        unpriced=section.choice("unpriced", ("reject", "allow"), "reject"),
        job_timeout_s=section.number("job_timeout_s", least=0.1),
        description=section.text("description"),
    )
    section.done()
    return model


def tagged(model: Model, providers: Mapping[str, Provider]) -> Model:
    """The model with each target under all its tags: its own, its provider's and the model's.

    A target's own region stands in place of its provider's.
    """

    def tags(target: Target) -> tuple[str, ...]:
        moved = any(tag.startswith("region:") for tag in target.tags)
        its = [tag for tag in providers[target.provider].tags if not (moved and tag.startswith("region:"))]
        return tuple(dict.fromkeys((*target.tags, *its, *model.tags)))

    return replace(model, targets=tuple(replace(target, tags=tags(target)) for target in model.targets))


def settled(model: Model, undecodable: str) -> Model:
    """The model with the installation's word where it has none of its own."""
    return replace(model, undecodable_inputs=undecodable) if model.undecodable_inputs == "installation" else model


def names_of(
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


def successors_of(
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


def is_http(url: str) -> bool:
    """Whether it is a whole http or https URL."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.netloc)
