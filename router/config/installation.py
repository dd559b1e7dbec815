"""What else the files say of an installation: client keys, budgets, routing, sharing, limits, media, webhooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from urllib.parse import urlsplit

from router.budgets import PERIODS, Budget
from router.config.catalog import is_http, read_preferences
from router.config.settings import (
    MIB,
    POLICIES,
    ClientKey,
    Limits,
    MediaSettings,
    S3Settings,
    SharingSettings,
    WebhookSettings,
    webhook_key,
)
from router.document import Section
from router.limits import RateLimits
from router.routing import PRESETS, RoutingSettings


def read_keys(
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
        preferences = read_preferences(part.section("preferences"))
        rates[name] = _rates(part.section("limits"))
        budgets.pop(("key", name), None)
        if "budget" in part.data:
            budgets["key", name] = read_budget(part.section("budget"))
        part.done()
        if secret is not None:
            yield ClientKey(name, secret, team, project, tags, models, preferences)


def read_budget(section: Section) -> Budget:
    """What a key, team or project may spend; it must name at least one amount."""
    share = section.number_or("warn_at", Budget().warn_at)
    if share > 1:
        section.problem("warn_at", "must be at most 1")
    limits = {period: section.amount(period) for period in PERIODS}
    section.done()
    if not [period for period in PERIODS if section.data.get(period) is not None]:
        section.problem("", f"names no amount: give {', '.join(PERIODS)} or several of them")
    return Budget(**limits, warn_at=share)


def _rates(section: Section) -> dict[str, int | None]:
    """The limits that are named; None where one is lifted, which is written as null."""
    known = [each.name for each in fields(RateLimits)]
    named = [name for name in known if name in section.data]
    found = {name: section.integer(name, 1, least=1) if section.data[name] is not None else None for name in named}
    section.read.update(known)
    section.done()
    return found


def read_limits(section: Section, before: Limits) -> Limits:
    """``before``, here and below: what the earlier files said, which holds where this one is silent."""
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


def read_routing(section: Section, before: RoutingSettings) -> RoutingSettings:
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
class Meeting:
    """What the files say of sharing: nothing is shared where the variable is not set."""

    url: str | None = None
    stream: str = "pixelroute:routing"
    every_s: float = 5.0

    def settings(self, sandbox: bool) -> SharingSettings | None:
        if not self.url:
            return None
        # What is learnt of emulators says nothing about real providers.
        return SharingSettings(self.url, f"{self.stream}:sandbox" if sandbox else self.stream, self.every_s)


def read_sharing(section: Section, before: Meeting, env: Mapping[str, str]) -> Meeting:
    """Through which server routers share, and how often."""
    variable = section.text_or("url_env", "PIXELROUTE_REDIS")
    built = Meeting(
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


def read_media(section: Section, before: MediaSettings, env: Mapping[str, str], keyless: bool) -> MediaSettings:
    """Where pictures are kept, for how long, and how many bytes."""
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
    if endpoint is not None and not is_http(endpoint):
        section.problem("endpoint", "must be an http or https URL")
    region, prefix = section.text_or("region", "us-east-1"), section.text_or("prefix", "")
    keys = [_secret(section, name, env, keyless) for name in ("access_key_env", "secret_key_env")]
    if ("access_key_env" in section.data) != ("secret_key_env" in section.data):
        section.problem("", "needs both access_key_env and secret_key_env, or neither")
    section.done()
    return S3Settings(bucket, endpoint, region, prefix, *keys) if bucket is not None else None


def read_webhooks(section: Section, env: Mapping[str, str], keyless: bool) -> WebhookSettings | None:
    """How results are sent to receivers; None where no secret is set."""
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
