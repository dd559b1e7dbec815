from decimal import Decimal

import pytest

from pricing import ImageSize
from router.errors import Billed, ErrorKind
from router.providers.base import Job
from router.providers.replicate import Replicate
from router.types import Operation
from tests.helpers import PNG, documented, edit_request, image_request, play, reply, target

ADAPTER = Replicate({})
PREDICTION = "https://api.replicate.com/v1/predictions/gm3qorzdhgbfurvjtvhg6dckhu"


def model(name="black-forest-labs/flux-schnell", **changes):
    return target("replicate", "m", **({"endpoints": dict.fromkeys(Operation, name)} | changes))


SCHNELL = model(options={"count_as": "num_outputs"})


def test_a_fast_model_answers_the_held_call():
    played = play(ADAPTER.run(image_request(n=2, seed=1), SCHNELL), documented("replicate/succeeded", http=201))
    (call,) = played.calls
    assert str(call.request.url) == "https://api.replicate.com/v1/models/black-forest-labs/flux-schnell/predictions"
    assert call.billable
    assert call.request.headers["prefer"] == "wait=5"
    assert played.sent() == {
        "input": {
            "prompt": "A serene mountain landscape at sunset",
            "num_outputs": 2,
            "aspect_ratio": "1:1",
            "output_format": "png",
            "seed": 1,
        }
    }
    assert len(played.jobs) == 1
    result = played.result
    assert result.images[0].url == "https://replicate.delivery/xezq/ab/out-0.webp"
    assert (result.seconds, result.queue_s) == (Decimal("0.61"), 1.25)
    assert result.provider_request_id == "gm3qorzdhgbfurvjtvhg6dckhu"


@pytest.mark.parametrize(
    ("left_s", "written"),
    [(180.0, b"3m5s"), (175.0, b"3m"), (90.2, b"1m36s"), (54.9, b"1m"), (30.0, b"35s"), (0.0, b"5s")],
)
def test_a_prediction_that_outlives_the_attempt_is_stopped_by_replicate(left_s, written):
    (create,) = play(ADAPTER.run(image_request(), SCHNELL), reply(status=500)).calls
    assert "cancel-after" not in create.request.headers
    assert create.deadline is not None
    assert create.deadline(left_s) == (b"cancel-after", written)


def test_the_operator_may_say_how_long_a_prediction_runs():
    (create,) = play(ADAPTER.run(image_request(), model(options={"cancel_after": "10m"})), reply(status=500)).calls
    assert create.request.headers["cancel-after"] == "10m"
    assert create.deadline is None


def test_a_slow_model_is_polled():
    played = play(
        ADAPTER.run(image_request(), SCHNELL),
        documented("replicate/starting"),
        documented("replicate/processing"),
        documented("replicate/succeeded"),
    )
    assert [str(call.request.url) for call in played.calls[1:]] == [PREDICTION, PREDICTION]
    assert isinstance(played.steps[1], Job)
    assert played.result.images


@pytest.mark.parametrize("name", ["owner/name:4f2a", "4f2a" * 16])
def test_versions_go_to_predictions(name):
    played = play(ADAPTER.run(image_request(), model(name, options={"wait": 0})), documented("replicate/succeeded"))
    assert str(played.calls[0].request.url) == "https://api.replicate.com/v1/predictions"
    assert played.sent()["version"] == name
    assert "prefer" not in played.calls[0].request.headers


@pytest.mark.parametrize("output", ["https://replicate.delivery/a.webp", ["https://replicate.delivery/a.webp"]])
def test_output_is_a_string_or_a_list(output):
    answer = documented("replicate/succeeded", output=output)
    assert len(play(ADAPTER.run(image_request(), SCHNELL), answer).result.images) == 1


def test_edits_and_exact_sizes():
    two = model("black-forest-labs/flux-2-pro", options={"size_as": "width_height"})
    request = edit_request(images=(PNG, PNG), size=ImageSize(1920, 1088), output_format="jpeg", output_compression=70)
    sent = play(ADAPTER.run(request, two), documented("replicate/succeeded")).sent()["input"]
    assert (sent["aspect_ratio"], sent["width"], sent["height"]) == ("custom", 1920, 1088)
    assert (sent["output_format"], sent["output_quality"]) == ("jpg", 70)
    assert len(sent["input_images"]) == 2
    one = model(options={"images_as": "image"})
    assert (
        play(ADAPTER.run(edit_request(), one), documented("replicate/succeeded"))
        .sent()["input"]["image"]
        .startswith("data:image/png;base64,")
    )


def test_resume_and_cancel():
    job = play(ADAPTER.run(image_request(), SCHNELL), documented("replicate/succeeded")).jobs[0]
    assert play(ADAPTER.resume(job, None, SCHNELL), documented("replicate/succeeded")).result.images
    call = ADAPTER.cancel(job)
    assert call is not None
    assert (call.request.method, str(call.request.url)) == ("POST", f"{PREDICTION}/cancel")


ENDS = [
    ({"status": "failed", "error": "CUDA out of memory"}, ErrorKind.SERVER_ERROR, None),
    ({"status": "failed", "error": "NSFW content detected. Try again."}, ErrorKind.REFUSED, None),
    ({"status": "failed", "error": "The input or output was flagged as sensitive. (E005)"}, ErrorKind.REFUSED, None),
    ({"status": "failed", "error": None}, ErrorKind.SERVER_ERROR, None),
    ({"status": "canceled"}, ErrorKind.CANCELLED, Billed.YES),
    ({"status": "aborted"}, ErrorKind.CANCELLED, Billed.NO),
    ({"output": None, "data_removed": True}, ErrorKind.DOWNLOAD, Billed.YES),
    ({"output": None}, ErrorKind.UNUSABLE, None),
]


@pytest.mark.parametrize(("changes", "kind", "billed"), ENDS)
def test_how_predictions_end(changes, kind, billed):
    for before in ((), (documented("replicate/starting"),)):
        answer = documented("replicate/succeeded", **changes)
        failure = play(ADAPTER.run(image_request(), SCHNELL), *before, answer).failure()
        assert (failure.kind, failure.billed) == (kind, billed)


def test_compute_time_of_a_failure_is_evidence():
    failure = play(ADAPTER.run(image_request(), SCHNELL), documented("replicate/failed")).failure()
    assert failure.evidence is not None
    assert failure.evidence.seconds == Decimal("0.61")


def problem(title, detail="x", **more):
    return {"type": "about:blank", "title": title, "detail": detail, **more}


INVALID = problem("Input validation failed", "- input.num_outputs: Must be less than or equal to 4\n",
                  invalid_fields=[{"type": "x", "field": "input.num_outputs", "description": "y"}])  # fmt: skip
ERRORS = [
    # Replicate HTTP API documentation, 2026-11-20
    (401, problem("Unauthenticated"), ErrorKind.AUTH, Billed.NO, None),
    (402, problem("Insufficient credit"), ErrorKind.AUTH, Billed.NO, None),
    (404, problem("Not found"), ErrorKind.AUTH, Billed.NO, None),
    (422, INVALID, ErrorKind.BAD_REQUEST, Billed.NO, "num_outputs"),
    (429, {"detail": "Request was throttled.", "status": 429}, ErrorKind.RATE_LIMITED, Billed.NO, None),
    (500, b"", ErrorKind.SERVER_ERROR, None, None),
]


@pytest.mark.parametrize(("status", "body", "kind", "billed", "param"), ERRORS)
def test_error_table(status, body, kind, billed, param):
    failure = play(ADAPTER.run(image_request(), SCHNELL), reply(body, status)).failure()
    assert (failure.kind, failure.billed, failure.param) == (kind, billed, param)
