"""How faults are asked for, and for whom and how long an order stands."""

from __future__ import annotations

import random
from typing import Any

import pytest

from router.sandbox.faults import KINDS, SPELLINGS, FaultPlan, UnknownFault, in_prompt, make, parse, split_model


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def struck(plan: FaultPlan, provider: str = "fal", model: str = "m", step: str = "create") -> list[str]:
    return [fault.kind for fault in plan.ordered(provider, model, step)]


def test_header_spelling() -> None:
    one, two = parse("rate_limited; retry_after=2, delay; seconds=0.5")
    assert (one.kind, one.number("retry_after", 1)) == ("rate_limited", 2)
    assert (two.kind, two.number("seconds", 1)) == ("delay", 0.5)
    assert parse("") == ()


def test_model_spelling() -> None:
    assert split_model("flux.2-dev-turbo") == ("flux.2-dev-turbo", ())
    name, faults = split_model("fal-ai/flux-2/turbo--server_error:status=503:billed=1--wrong_size")
    assert name == "fal-ai/flux-2/turbo"
    assert [fault.kind for fault in faults] == ["server_error", "wrong_size"]
    assert faults[0].number("status", 500) == 503
    assert faults[0].flag("billed")


def test_prompt_spelling_and_words_every_provider_refuses() -> None:
    assert [fault.kind for fault in in_prompt("a cat [fault: delay; seconds=0, empty]")] == ["delay", "empty"]
    assert [fault.kind for fault in in_prompt("an NSFW picture")] == ["refused"]
    assert list(in_prompt("a gorey night by the sea")) == []


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_a_known_kind(spelling: str) -> None:
    assert make(spelling, {}).kind in KINDS


@pytest.mark.parametrize("asked", ["explode", "rate_limited2", ""])
def test_unknown_faults_name_the_known(asked: str) -> None:
    with pytest.raises(UnknownFault, match="rate_limited"):
        make(asked, {})


def test_an_order_counts_down() -> None:
    plan = FaultPlan(Clock(), random.Random(0))
    plan.order({"fault": "empty", "provider": "fal", "count": 2})
    assert struck(plan, "openai") == []
    assert [struck(plan), struck(plan), struck(plan)] == [["empty"], ["empty"], []]
    assert plan.rules == []


def test_an_order_ends_in_time() -> None:
    clock = Clock()
    plan = FaultPlan(clock, random.Random(0))
    plan.order({"fault": "empty", "until": 10})
    assert struck(plan) == ["empty"]
    clock.now += 10
    assert struck(plan) == []


def test_an_order_may_be_for_a_model_a_step_or_a_share() -> None:
    plan = FaultPlan(Clock(), random.Random(0))
    plan.order({"fault": "empty", "model": "m"})
    plan.order({"fault": "server_error", "on": "poll"})
    plan.order({"fault": "expired_link"})  # strikes where files are delivered, unless told otherwise
    assert struck(plan, model="other") == []
    assert struck(plan, step="poll") == ["server_error"]
    assert struck(plan, model="", step="file") == ["expired_link"]
    plan.clear()
    plan.order({"fault": "rate_limited", "share": 0.3})
    assert 220 < sum(struck(plan) == ["rate_limited"] for _ in range(1000)) < 380


@pytest.mark.parametrize(
    "bad",
    [{}, {"fault": "empty", "on": "nowhere"}, {"fault": "empty", "cuont": 1}, {"fault": "empty", "count": "many"}],
)
def test_bad_orders(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        FaultPlan(Clock(), random.Random(0)).order(bad)
