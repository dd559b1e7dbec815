"""Reading providers.yaml: what is kept, what is refused, and that every problem is named at once."""

from __future__ import annotations

import base64
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from pricing import ImageSize
from router.app import limiters_for
from router.budgets import Budget, Budgets
from router.cli.offline import check_settings
from router.config import ConfigError, Settings, default_config, load
from router.limits import RateLimits
from router.routing import Prior
from router.types import Operation, Successor

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
SHIPPED = Path(__file__).parents[2] / "providers.yaml"

SMALL = """
version: 1
defaults: {generate: tiny}
providers:
  gpu-fast: {adapter: openai, urls: {api: "http://127.0.0.1:9/v1"}, prices: gpu-fast}
models:
  tiny:
    aliases: [small]
    default_size: 512x512
    targets:
      gpu-fast: {generate: flux.2-dev-turbo, sizes: {max_side: 2048}, prior: {p50_s: 1, p95_s: 2, success: 0.9}}
"""


def read(tmp_path: Path, text: str, env: dict[str, str] | None = None, **kwargs) -> Settings:
    path = tmp_path / "providers.yaml"
    path.write_text(text)
    return load([path], env or {}, **kwargs)


def problems(tmp_path: Path, text: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert all(problem.file.endswith("providers.yaml") for problem in caught.value.problems)
    return [(problem.key, problem.message) for problem in caught.value.problems]


def test_small_file_is_read_completely(tmp_path):
    settings = read(tmp_path, SMALL)
    target = settings.models["tiny"].targets[0]
    assert target.key == "gpu-fast/tiny"
    assert target.endpoints == {Operation.GENERATE: "flux.2-dev-turbo"}
    assert settings.names == {"tiny": "tiny", "small": "tiny", "gpu-fast/tiny": "tiny"}
    assert settings.models["tiny"].default_size == ImageSize(512, 512)
    assert settings.priors["gpu-fast/tiny"].p95_s == 2
    assert settings.defaults == {Operation.GENERATE: "tiny"}
    assert settings.ledger_url == "sqlite:///pixelroute-data/ledger.db"


def test_environment_wins_over_the_file_for_the_ledger(tmp_path):
    settings = read(tmp_path, SMALL + "ledger: sqlite:///file.db\n", {"PIXELROUTE_LEDGER": "sqlite:///env.db"})
    assert settings.ledger_url == "sqlite:///env.db"


def test_play_money_has_a_ledger_of_its_own(tmp_path):
    settings = read(tmp_path, SMALL, sandbox_urls={"gpu-fast": {"api": "http://127.0.0.1:9/x"}})
    assert settings.ledger_url == "sqlite:///pixelroute-data/sandbox.db"
    assert settings.providers["gpu-fast"].urls == {"api": "http://127.0.0.1:9/x"}


def test_the_sandbox_reaches_no_provider_without_an_emulator(tmp_path):
    settings = read(tmp_path, SMALL, sandbox_urls={})
    assert settings.providers == {}
    assert settings.disabled == {"gpu-fast": "the sandbox has no emulator for it"}


def test_client_keys_come_from_the_environment_and_never_show(tmp_path):
    text = SMALL + "keys:\n  shop: {secret_env: SHOP_KEY, team: web, tags: {tier: gold}, models: [tiny]}\n"
    settings = read(tmp_path, text, {"SHOP_KEY": "s3cret", "PIXELROUTE_API_KEY": "other"})
    assert [(key.name, key.secret, key.team) for key in settings.keys] == [
        ("shop", "s3cret", "web"),
        ("default", "other", None),
    ]
    assert "s3cret" not in repr(settings)
    assert "other" not in repr(settings.keys)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", 1800), ("media: {lifetime_s: 600}", 300), ("limits: {job_timeout_s: 500}\nmedia: {lifetime_s: 600}", 500)],
)
def test_a_job_ends_before_it_is_forgotten(tmp_path, text, seconds):
    assert read(tmp_path, SMALL + text + "\n").job_timeout_s == seconds


def test_keys_may_stand_in_several_files(tmp_path):
    """Also beside the one of the environment, which is no reason to leave a later file's out."""
    (tmp_path / "more.yaml").write_text("keys: {shop: {secret_env: NEW}, blog: {secret_env: BLOG}}\n")
    (tmp_path / "first.yaml").write_text(SMALL + "keys: {shop: {secret_env: OLD}}\n")
    env = {"OLD": "1", "NEW": "2", "BLOG": "3", "PIXELROUTE_API_KEY": "4"}
    settings = load([tmp_path / "first.yaml", tmp_path / "more.yaml"], env)
    assert {key.name: key.secret for key in settings.keys} == {"shop": "2", "blog": "3", "default": "4"}


def test_every_key_has_the_limits_of_all_but_where_it_says_otherwise(tmp_path):
    (tmp_path / "keys.yaml").write_text(
        """
        keys:
          shop: {secret_env: SHOP, limits: {requests_per_minute: 600, images_per_minute: null}}
          blog: {secret_env: BLOG}
        """
    )
    (tmp_path / "first.yaml").write_text(SMALL)
    (tmp_path / "limits.yaml").write_text("limits: {per_key: {requests_per_minute: 60, images_per_minute: 90}}\n")
    (tmp_path / "more.yaml").write_text("limits: {per_key: {images_per_minute: 120, in_flight: 8}}\n")
    paths = [tmp_path / f"{name}.yaml" for name in ("first", "keys", "limits", "more")]
    settings = load(paths, {"SHOP": "1", "BLOG": "2", "PIXELROUTE_API_KEY": "3"})
    plain = RateLimits(60, 120, 8)
    assert {key.name: key.limits for key in settings.keys} == {
        "shop": RateLimits(600, None, 8),
        "blog": plain,
        "default": plain,
    }
    assert [limiter.key for limiter in limiters_for(settings)] == ["shop", "blog", "default"]
    only_shop = load(paths[:2], {"SHOP": "1", "BLOG": "2"})
    assert [limiter.key for limiter in limiters_for(only_shop)] == ["shop"]
    nobody = load([paths[0], paths[3]], {})
    assert [limiter.key for limiter in limiters_for(nobody)] == ["anonymous"]
    assert limiters_for(load(paths[:1], {})) == []


def test_a_secret_belongs_to_one_key(tmp_path):
    text = SMALL + "keys: {shop: {secret_env: SHOP, budget: {day: 1}}, blog: {secret_env: BLOG}}\n"
    settings = read(tmp_path, text, {"SHOP": "1", "BLOG": "2", "PIXELROUTE_API_KEY": "1"})
    assert [key.name for key in settings.keys] == ["shop", "blog"]  # and no unlimited one beside it
    with pytest.raises(ConfigError, match=r"keys\.blog\.secret_env: is the secret of shop as well"):
        read(tmp_path, text, {"SHOP": "1", "BLOG": "1"})


def test_budgets_are_exact_and_a_later_files_key_replaces_its_own(tmp_path):
    (tmp_path / "first.yaml").write_text(
        SMALL
        + """
keys:
  shop: {secret_env: SHOP, team: web, project: launch, budget: {day: "5.10", month: 100, warn_at: 0.5}}
  blog: {secret_env: BLOG, budget: {total: 0.1}}
teams: {web: {budget: {month: "400.000000001"}}}
projects: {launch: {budget: {total: 1000}}}
"""
    )
    (tmp_path / "more.yaml").write_text("keys: {blog: {secret_env: BLOG}}\non_disconnect: cancel\n")
    settings = load([tmp_path / "first.yaml", tmp_path / "more.yaml"], {"SHOP": "1", "BLOG": "2"})
    assert settings.budgets == {
        ("key", "shop"): Budget(Decimal("5.10"), Decimal(100), None, 0.5),
        ("team", "web"): Budget(month=Decimal("400.000000001")),
        ("project", "launch"): Budget(total=Decimal(1000)),
    }
    assert [account.limit for account in Budgets(settings.budgets).accounts] == [
        5_100_000_000,
        100_000_000_000,
        400_000_000_001,
        1_000_000_000_000,
    ]
    assert settings.on_disconnect == "cancel"


def test_the_shipped_file_is_clean_and_disables_what_has_no_key():
    settings = load([SHIPPED], {"FAL_KEY": "canary-key:canary-secret"})
    assert "fal" in settings.providers
    assert settings.disabled["openai"] == "OPENAI_API_KEY is not set"
    assert settings.disabled["gpu-fast"] == "GPU_FAST_URL is not set"
    assert "canary" not in repr(settings)
    everything = load([SHIPPED], {}, keyless=True)
    assert {"fal", "openai", "gpu-fast", "gpu-spot"} <= set(everything.providers)
    assert {target.provider for target in everything.models["flux.2-dev-turbo"].targets} >= {"fal", "gpu-fast"}


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("[]", "", "must be a mapping"),
        ("a: [", "", "not valid YAML"),
        ("version: 2", "version", "version 1"),
        ("providers: []", "providers", "must be a mapping"),
        ("models: {x: {tragets: {}}}", "models.x.tragets", "not a known key"),
        ("models: {X!: {}}", "models.X!", "slug"),
        ("providers: {p: {urls: {api: 'ftp://x'}}}", "providers.p.urls.api", "http or https"),
        ("providers: {p: {timeout_s: soon}}", "providers.p.timeout_s", "must be a number, not a text"),
        ("providers: {p: {timeout_s: 0}}", "providers.p.timeout_s", "at least 1"),
        ("providers: {p: {concurrency: true}}", "providers.p.concurrency", "not true/false"),
        ("providers: {p: {billing: {server_eror: 'no'}}}", "providers.p.billing.server_eror", "is not one of"),
        ("providers: {p: {billing: {refused: perhaps}}}", "providers.p.billing.refused", "'perhaps' is not one of"),
        ("models: {x: {targets: {nobody: {generate: a}}}}", "models.x.targets.nobody", "not described"),
        ("defaults: {generate: nothing}", "defaults.generate", "not a model"),
        ("routing: {policy: wild}", "routing.policy", "'wild' is not one of"),
        ("limits: {body_bytes: 1}", "limits.body_bytes", "at least 1024"),
        ("keys: {a: {}}", "keys.a.secret_env", "is missing"),
        ("limits: {job_timeout_s: 86400}", "limits.job_timeout_s", "86400 s must be less than media.lifetime_s"),
        ("models: {x: {job_timeout_s: 100000}}", "models.x.job_timeout_s", "must be less than media.lifetime_s"),
        ("keys: {a: {secret_env: NOT_SET}}", "keys.a.secret_env", "NOT_SET is not set"),
        (
            "keys: {a: {secret_env: K, limits: {requests_per_minute: 0}}}",
            "keys.a.limits.requests_per_minute",
            "at least 1",
        ),
        ("keys: {a: {secret_env: K, limits: {in_flight: many}}}", "keys.a.limits.in_flight", "not a text"),
        ("keys: {a: {secret_env: K, limits: {rpm: 5}}}", "keys.a.limits.rpm", "not a known key"),
        ("keys: {a: {secret_env: K, budget: {}}}", "keys.a.budget", "names no amount"),
        ("keys: {a: {secret_env: K, budget: {day: much}}}", "keys.a.budget.day", "an amount of money"),
        ("keys: {a: {secret_env: K, budget: {day: -1}}}", "keys.a.budget.day", "an amount of money"),
        ("keys: {a: {secret_env: K, budget: {week: 1}}}", "keys.a.budget.week", "not a known key"),
        ("keys: {a: {secret_env: K, budget: {day: 1, warn_at: 2}}}", "keys.a.budget.warn_at", "at most 1"),
        ("teams: {art: {budget: {day: 1}}}", "teams.art", "no key is of this team"),
        ("projects: {x: {}}", "projects.x.budget", "names no amount"),
        ("on_disconnect: stop", "on_disconnect", "'stop' is not one of finish, cancel"),
        ("models: {x: {preferences: {on_disconnect: no}}}", "models.x.preferences.on_disconnect", "not true/false"),
        ("limits: {per_key: {images_per_minute: 1.5}}", "limits.per_key.images_per_minute", "a whole number"),
        ("models: {x: {default_size: 10x}}", "models.x.default_size", "not WIDTHxHEIGHT"),
        ("models: {x: {successor: y}}", "models.x.successor", "'y' is not a model"),
        ("models: {x: {successor: y}, y: {}}", "models.x.successor", "needs retires"),
        (
            "models: {x: {successor: y, retires: 2026-11-20}, y: {successor: x, retires: 2026-11-20}}",
            "models.y.successor",
            "leads back to itself",
        ),
        ("models: {x: {aliases: [y]}, y: {}}", "models.x.aliases", "already names"),
        ("models: {x: {}, x: {}}", "", "stands twice"),
        ("prices: nowhere", "", "nowhere"),
    ],
)
def test_each_mistake_is_named_with_its_key(tmp_path, text, key, says):
    found = [(at, message) for at, message in problems_anywhere(tmp_path, text) if says in f"{at} {message}"]
    assert any(at == key or (key == "" and says in message + at) for at, message in found), found


def problems_anywhere(tmp_path: Path, text: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    return [(problem.key, f"{problem.file} {problem.message}") for problem in caught.value.problems]


def test_all_mistakes_are_reported_together(tmp_path):
    found = problems(tmp_path, "version: 2\nrouting: {policy: wild}\nprovidres: {}\n")
    assert [key for key, _ in found] == ["version", "routing.policy", "providres"]


def test_a_prior_must_make_sense(tmp_path):
    text = SMALL.replace("p50_s: 1", "p50_s: 9")
    assert ("models.tiny.targets.gpu-fast.prior", "needs 0 < p50_s <= p95_s") in problems(tmp_path, text)


EXPECTS = SMALL.replace("prior: {p50_s: 1, p95_s: 2, success: 0.9}", "max_images: 1").replace(
    "default_size", "expect: {p95_s: 8, source: an assumption of this test}\n    default_size"
)


def test_what_is_expected_of_a_model_stands_in_for_the_priors_its_targets_lack(tmp_path):
    assert read(tmp_path, EXPECTS).priors == {"gpu-fast/tiny": Prior(None, 8.0, samples=0.0)}
    [note] = [note for note in check_settings(read(tmp_path, EXPECTS), NOON)[1] if "no prior" in note]
    assert note.startswith("1 of 1 targets have no prior of their own")
    assert "1 begin with what is expected of the model, 0 with an assumed 5 s" in note
    told = SMALL.replace("default_size", "expect: {p95_s: 8, source: somewhere}\n    default_size")
    assert read(tmp_path, told).priors == {"gpu-fast/tiny": Prior(1.0, 2.0, 0.9)}


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (", source: an assumption of this test", "", "models.tiny.expect.source"),
        ("p95_s: 8", "p95_s: 0", "models.tiny.expect"),
        ("p95_s: 8", "p95_s: 8, p50_s: 9", "models.tiny.expect"),
        ("p95_s: 8", "p95_s: 8, p99_s: 9", "models.tiny.expect.p99_s"),
    ],
)
def test_an_expectation_must_make_sense_and_say_where_it_is_from(tmp_path, old, new, key):
    assert key in [found for found, _ in problems(tmp_path, EXPECTS.replace(old, new))]


def test_a_retired_model_is_served_by_its_successor_from_its_day_on(tmp_path):
    settings = read(tmp_path, SMALL + "  old: {retires: 2026-11-20, successor: tiny}\n")
    assert settings.successors == {"old": Successor("tiny", date(2026, 11, 20))}


def test_a_later_file_replaces_a_whole_model_and_adds_others(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(SMALL)
    second.write_text("models: {extra: {targets: {gpu-fast: {generate: flux.2-dev-turbo}}}}")
    settings = load([first, second], {})
    assert set(settings.models) == {"tiny", "extra"}


def test_default_config_is_found_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_config().is_absolute()
    (tmp_path / "providers.yaml").write_text(SMALL)
    assert default_config() == Path("providers.yaml")


S3 = """
media:
  s3:
    bucket: pictures
    endpoint: https://s3.example
    region: eu-central-1
    prefix: pixelroute
    access_key_env: S3_ID
    secret_key_env: S3_SECRET
"""


def test_object_storage_takes_its_keys_from_the_environment(tmp_path):
    s3 = read(tmp_path, SMALL + S3, {"S3_ID": "id", "S3_SECRET": "s3cret"}).media.s3
    assert s3 is not None
    assert (s3.bucket, s3.endpoint, s3.region, s3.prefix) == (
        "pictures",
        "https://s3.example",
        "eu-central-1",
        "pixelroute",
    )
    assert (s3.access_key, s3.secret_key) == ("id", "s3cret")
    assert "s3cret" not in repr(s3)
    assert read(tmp_path, SMALL + "media: {s3: {bucket: x}}\n").media.s3.access_key is None


@pytest.mark.parametrize(
    ("s3", "key", "message"),
    [
        ("{}", "media.s3.bucket", "is missing"),
        ("{bucket: 5}", "media.s3.bucket", "must be a text"),
        ("{bucket: x, secret: y}", "media.s3.secret", "not a known key"),
        ("{bucket: x, endpoint: s3.example}", "media.s3.endpoint", "URL"),
        ("{bucket: x, access_key_env: UNSET}", "media.s3.access_key_env", "UNSET is not set"),
        ("{bucket: x, access_key_env: UNSET}", "media.s3", "both"),
        ("[x]", "media.s3", "must be a mapping"),
    ],
)
def test_problems_of_object_storage(tmp_path, s3, key, message):
    found = problems(tmp_path, SMALL + f"media: {{s3: {s3}}}\n")
    assert any(where == key and message in text for where, text in found), found


WHSEC = "whsec_" + "c2VjcmV0" * 4


def test_webhooks(tmp_path):
    assert read(tmp_path, SMALL).webhooks is None
    text = SMALL + "webhooks: {secret_env: HOOK, retry_s: [1, 2.5], private_receivers: true}\n"
    webhooks = read(tmp_path, text, {"HOOK": WHSEC}).webhooks
    assert webhooks is not None
    assert (webhooks.retry_s, webhooks.private_receivers, webhooks.keys) == ((1.0, 2.5), True, (b"secret" * 4,))
    assert WHSEC not in repr(webhooks)
    newer = "whsec_" + base64.b64encode(b"n" * 20).decode()
    text = SMALL + "webhooks: {secret_env: [NEWER, HOOK]}\n"
    rotating = read(tmp_path, text, {"HOOK": WHSEC, "NEWER": newer}).webhooks
    assert rotating is not None
    assert rotating.keys == (b"n" * 20, b"secret" * 4)
    plain = read(tmp_path, SMALL + "webhooks: {secret_env: HOOK}\n", {"HOOK": WHSEC}).webhooks
    assert plain is not None
    assert not plain.private_receivers


@pytest.mark.parametrize(
    ("webhooks", "key", "message"),
    [
        ("{retry_s: [1]}", "webhooks.secret_env", "is missing"),
        ("{secret_env: UNSET}", "webhooks.secret_env", "UNSET is not set"),
        ("{secret_env: []}", "webhooks.secret_env", "must name a variable"),
        ("{secret_env: [HOOK, SHORT]}", "webhooks.secret_env", "SHORT: a webhook secret is whsec_"),
        ("{secret_env: SHORT}", "webhooks.secret_env", "SHORT: a webhook secret is whsec_"),
        ("{secret_env: HOOK, retry_s: [-1]}", "webhooks.retry_s", "at least 0"),
        ("{secret_env: HOOK, secret: x}", "webhooks.secret", "not a known key"),
    ],
)
def test_problems_of_webhooks(tmp_path, webhooks, key, message):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, SMALL + f"webhooks: {webhooks}\n", {"HOOK": WHSEC, "SHORT": "whsec_eA=="})
    assert any(problem.key == key and message in problem.message for problem in caught.value.problems)
    assert "whsec_eA" not in str(caught.value)


def test_a_request_ends_before_clients_give_up(tmp_path):
    """Node's fetch gives up after 300 seconds."""
    assert read(tmp_path, SMALL).limits.request_timeout_s < 300
    assert load([SHIPPED], {}, keyless=True).limits.request_timeout_s < 300


def test_replicas_share_where_the_variable_is_set(tmp_path):
    url = "redis://user:s3cret@cache:6379/2"
    assert read(tmp_path, SMALL).sharing is None
    sharing = read(tmp_path, SMALL, {"PIXELROUTE_REDIS": url}).sharing
    assert sharing is not None
    assert (sharing.url, sharing.stream, sharing.every_s) == (url, "pixelroute:routing", 5.0)
    assert "s3cret" not in repr(sharing)
    text = SMALL + "routing: {shared: {url_env: CACHE, stream: mine, every_s: 1}}\n"
    assert read(tmp_path, text, {"PIXELROUTE_REDIS": url}).sharing is None
    sharing = read(tmp_path, text, {"CACHE": "unix:///run/valkey.sock"}).sharing
    assert sharing is not None
    assert (sharing.stream, sharing.every_s) == ("mine", 1.0)
    # What is learnt of emulators says nothing about real providers.
    sandbox = read(tmp_path, text, {"CACHE": url}, sandbox_urls={"gpu-fast": {"api": "http://127.0.0.1:9"}}).sharing
    assert sandbox is not None
    assert sandbox.stream == "mine:sandbox"


@pytest.mark.parametrize(
    ("shared", "key", "message"),
    [
        ("{every_s: 0}", "routing.shared.every_s", "at least 0.5"),
        ("{every_s: 60}", "routing.shared.every_s", "at most 15"),
        ("{url: redis://x}", "routing.shared.url", "not a known key"),
        ("[x]", "routing.shared", "must be a mapping"),
    ],
)
def test_problems_of_sharing(tmp_path, shared, key, message):
    found = problems(tmp_path, SMALL + f"routing: {{shared: {shared}}}\n")
    assert any(where == key and message in text for where, text in found), found


def test_a_url_that_is_none_of_redis_is_named_and_not_shown(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, SMALL, {"PIXELROUTE_REDIS": "http://user:s3cret@cache"})
    assert "PIXELROUTE_REDIS must hold a redis, rediss or unix URL" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_what_a_model_does_with_sizes_and_inputs_that_it_cannot_have_as_they_are(tmp_path):
    one = SMALL.replace("    aliases", "    size_policy: nearest\n    undecodable_inputs: forward\n    aliases")
    model = read(tmp_path, one).models["tiny"]
    assert (model.size_policy, model.undecodable_inputs) == ("nearest", "forward")
    model = read(tmp_path, SMALL + "undecodable_inputs: forward\n").models["tiny"]
    assert (model.size_policy, model.undecodable_inputs) == ("exact", "forward")
    both = SMALL.replace("    aliases", "    undecodable_inputs: reject\n    aliases") + "undecodable_inputs: forward\n"
    assert read(tmp_path, both).models["tiny"].undecodable_inputs == "reject"
    assert [key for key, _ in problems(tmp_path, one.replace("nearest", "any"))] == ["models.tiny.size_policy"]
