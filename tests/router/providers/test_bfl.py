from decimal import Decimal

import pytest

from pricing import ImageSize, Reported
from router.errors import Billed, ErrorKind
from router.providers.base import Job
from router.providers.bfl import BFL
from tests.helpers import PNG, documented, edit_request, image_request, play, reply, target

ADAPTER = BFL({})
PRO = target("bfl", "flux-2-pro", endpoints=dict.fromkeys(("generate", "edit"), "flux-2-pro"), max_inputs=8)
POLL = "https://api.eu2.bfl.ai/v1/get_result?id=d1b2f7a0-1c2d"


def submitted():
    return documented("bfl/submit")


def run(request, *after, where=PRO):
    return play(ADAPTER.run(request, where), submitted(), *after)


def test_submit_poll_at_the_region_and_the_cost_that_submit_named():
    played = run(image_request(size=ImageSize(1920, 1080), seed=42), documented("bfl/pending"), documented("bfl/ready"))
    assert [str(call.request.url) for call in played.calls] == ["https://api.bfl.ai/v1/flux-2-pro", POLL, POLL]
    assert [call.billable for call in played.calls] == [True, False, False]
    assert played.sent() == {
        "prompt": "A serene mountain landscape at sunset",
        "width": 1920,
        "height": 1080,
        "output_format": "png",
        "seed": 42,
    }
    result = played.result
    assert result.reported == Reported(Decimal("4.5"), "credit")
    assert result.images[0].url == "https://delivery-eu1.bfl.ai/results/ab/sample.jpeg?se=2026-11-20&sig=abc"
    assert (result.seconds, result.seed, result.provider_request_id) == (Decimal("3.3"), 42, "d1b2f7a0-1c2d")


def test_the_key_may_go_to_the_regions():
    assert ADAPTER.auth.header == "x-key"
    assert ADAPTER.urls["regions"] == "https://*.bfl.ai"


def test_edit_names_each_input():
    sent = run(edit_request(images=(PNG, PNG, PNG)), documented("bfl/ready")).sent()
    assert {name for name in sent if name.startswith("input_image")} == {
        "input_image", "input_image_2", "input_image_3"
    }  # fmt: skip
    assert not sent["input_image"].startswith("data:")


def test_kontext_takes_a_ratio():
    kontext = target("bfl", "kontext", options={"size_as": "aspect_ratio"})
    sent = run(image_request(size=ImageSize(1344, 576)), documented("bfl/ready"), where=kontext).sent()
    assert sent["aspect_ratio"] == "21:9"
    assert "width" not in sent


def test_resume_knows_the_cost():
    job = run(image_request(), documented("bfl/ready")).jobs[0]
    result = play(ADAPTER.resume(Job(job.id, dict(job.state)), None, PRO), documented("bfl/ready")).result
    assert result.reported == Reported(Decimal("4.5"), "credit")


def test_older_models_name_no_cost():
    played = play(ADAPTER.run(image_request(), PRO), reply({"id": "a", "polling_url": POLL}), documented("bfl/ready"))
    assert played.result.reported is None


@pytest.mark.parametrize("status", ["Content Moderated", "Request Moderated"])
def test_a_refusal_leaves_its_bill_to_the_facts(status):
    failure = run(image_request(), documented("bfl/moderated", status=status)).failure()
    assert (failure.kind, failure.billed, failure.code) == (ErrorKind.REFUSED, None, status)
    assert "Protected Content" in failure.message
    assert failure.evidence is not None
    assert failure.evidence.reported == Reported(Decimal("4.5"), "credit")


@pytest.mark.parametrize("status", ["Error", "Failed"])
def test_a_failed_job(status):
    failure = run(image_request(), documented("bfl/pending", status=status)).failure()
    assert (failure.kind, failure.billed) == (ErrorKind.SERVER_ERROR, None)


def test_a_job_not_found_at_first():
    missing = reply({"id": "a", "status": "Task not found"})
    assert run(image_request(), missing, missing, documented("bfl/ready")).result.images
    failure = run(image_request(), missing, missing, missing).failure()
    assert (failure.kind, failure.billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)


def test_ready_without_a_picture():
    assert run(image_request(), documented("bfl/ready", result={})).failure().kind is ErrorKind.UNUSABLE


ERRORS = [
    # docs.bfl.ai errors, 2026-11-20
    (400, {"detail": "bad"}, ErrorKind.BAD_REQUEST, Billed.NO, None),
    (402, {"detail": "Insufficient credits."}, ErrorKind.AUTH, Billed.NO, None),
    (403, {"detail": "Not authenticated"}, ErrorKind.AUTH, Billed.NO, None),
    (422, {"detail": [{"loc": ["body", "width"], "msg": "x", "type": "multiple_of"}]}, ErrorKind.BAD_REQUEST,
     Billed.NO, "size"),
    (429, {"detail": "Too many active tasks"}, ErrorKind.RATE_LIMITED, Billed.NO, None),
    (500, b"oops", ErrorKind.SERVER_ERROR, None, None),
    (503, {}, ErrorKind.SERVER_ERROR, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind", "billed", "param"), ERRORS)
def test_error_table(status, body, kind, billed, param):
    failure = play(ADAPTER.run(image_request(), PRO), reply(body, status)).failure()
    assert (failure.kind, failure.billed, failure.param) == (kind, billed, param)
