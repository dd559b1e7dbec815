from decimal import Decimal

import orjson
import pybase64
import pytest

from pricing import ImageSize, Reported
from router.errors import Billed, ErrorKind, ProviderError
from router.providers.base import Job
from router.providers.fal import Fal
from router.types import Operation, Target
from tests.helpers import PNG, PNG_BYTES, documented, edit_request, image_request, play, reply, target

FAL = Fal({})
TURBO = target(endpoints={Operation.GENERATE: "fal-ai/flux-2/turbo", Operation.EDIT: "fal-ai/flux-2/turbo/edit"})
JOB_URL = "https://queue.fal.run/fal-ai/flux-2/requests/024ca5b1-45d3-4afd-883e-ad3abe2a1c4d"


def sync(**changes) -> Target:
    options = {"call": "sync", **changes.pop("options", {})}
    return target(endpoints=TURBO.endpoints, options=options, **changes)


def submitted():
    return documented("fal/submit")


def completed():
    return documented("fal/completed")


def test_queue_submits_notes_the_job_polls_and_fetches():
    played = play(
        FAL.run(image_request(seed=42), TURBO),
        submitted(),
        documented("fal/in_queue"),
        documented("fal/in_progress"),
        completed(),
        documented("fal/result"),
    )
    assert [(call.request.method, str(call.request.url)) for call in played.calls] == [
        ("POST", "https://queue.fal.run/fal-ai/flux-2/turbo"),
        ("GET", f"{JOB_URL}/status"),
        ("GET", f"{JOB_URL}/status"),
        ("GET", f"{JOB_URL}/status"),
        ("GET", JOB_URL),
    ]
    assert [call.billable for call in played.calls] == [True, False, False, False, False]
    assert played.calls[0].request.headers["x-fal-no-retry"] == "1"
    assert isinstance(played.steps[1], Job), "the job is durable before the first question"
    pauses = [call.after_s for call in played.calls[1:4]]
    assert pauses[0] == 0.25
    assert pauses == sorted(pauses)
    assert pauses[2] > pauses[0]
    assert played.calls[4].after_s == 0

    result = played.result
    (image,) = result.images
    assert image.url == "https://v3b.fal.media/files/b/lion/x.png"
    assert (image.size, image.format) == (ImageSize(1024, 768), "png")
    assert result.reported == Reported(Decimal(1), "unit")
    assert result.seconds == Decimal("1.37")
    assert result.seed == 12345
    assert result.provider_request_id == "024ca5b1-45d3-4afd-883e-ad3abe2a1c4d"
    assert result.warnings == ()


@pytest.mark.parametrize(("left_s", "written"), [(120.0, b"120.0"), (42.26, b"42.3"), (0.4, b"1.1")])
@pytest.mark.parametrize("target", [TURBO, sync()])
def test_what_is_not_started_in_the_attempts_time_never_is(target, left_s, written):
    (submit,) = play(FAL.run(image_request(), target), reply(status=500)).calls
    assert submit.deadline is not None
    assert submit.deadline(left_s) == (b"x-fal-request-timeout", written)


def test_a_start_that_came_too_late_is_a_timeout_and_free():
    late = reply({"detail": "Request timed out", "error_type": "request_timeout"}, 504)
    assert play(FAL.run(image_request(), sync()), late).failure().kind is ErrorKind.SERVER_ERROR
    late.headers["X-Fal-Request-Timeout-Type"] = "user"
    error = play(FAL.run(image_request(), sync()), late).failure()
    assert (error.kind, error.billed) == (ErrorKind.NO_ANSWER, Billed.NO)


def test_generation_body_says_everything_fal_would_otherwise_default():
    played = play(FAL.run(image_request(n=3, seed=42), sync()), documented("fal/result"))
    assert played.sent() == {
        "prompt": "A serene mountain landscape at sunset",
        "num_images": 3,
        "image_size": {"width": 1024, "height": 1024},
        "output_format": "png",
        "seed": 42,
    }


def test_sync_is_one_call_and_reads_the_bill_from_it():
    played = play(FAL.run(image_request(), sync()), documented("fal/result"))
    (call,) = played.calls
    assert str(call.request.url) == "https://fal.run/fal-ai/flux-2/turbo"
    assert call.billable
    assert not played.jobs
    assert played.result.reported == Reported(Decimal(1), "unit")
    assert played.result.seconds == Decimal("1.2")


def test_fractional_units_and_unknown_sizes():
    result = play(FAL.run(image_request(), sync()), documented("fal/result_nano_banana")).result
    assert result.reported == Reported(Decimal("0.5"), "unit")
    assert result.images[0].size is None


@pytest.mark.parametrize("units", ["", "-1", "nan", "1e400", "one", "Infinity"])
def test_a_bill_that_is_no_number_is_no_bill(units):
    answer = documented("fal/result")
    answer.headers["x-fal-billable-units"] = units
    assert play(FAL.run(image_request(), sync()), answer).result.reported is None


def test_seed_keeps_every_digit():
    big = documented("fal/result", seed=2**63 - 1)
    assert play(FAL.run(image_request(), sync()), big).result.seed == 2**63 - 1


def test_data_uri_is_kept_as_base64_text():
    text = pybase64.b64encode(PNG_BYTES).decode()
    answer = documented("fal/result", images=[{"url": f"data:image/webp;base64,{text}", "width": 1, "height": 1}])
    (image,) = play(FAL.run(image_request(), sync()), answer).result.images
    assert (image.b64, image.url, image.format) == (text.encode(), None, "webp")


def test_edit_sends_pictures_as_data_uris():
    played = play(FAL.run(edit_request(images=(PNG, PNG)), sync()), documented("fal/result"))
    assert str(played.calls[0].request.url) == "https://fal.run/fal-ai/flux-2/turbo/edit"
    uris = played.sent()["image_urls"]
    assert len(uris) == 2
    for uri in uris:
        head, _, text = uri.partition(",")
        assert head == "data:image/png;base64"
        assert pybase64.b64decode(text) == PNG_BYTES


def test_field_names_follow_the_target():
    one = sync(
        max_inputs=1,
        mask=True,
        qualities={"high": "QUALITY"},
        options={
            "size_as": "image_size_text",
            "images_as": "image_url",
            "mask_as": "mask_image_url",
            "quality_as": "rendering_speed",
            "count_as": None,
        },
    )
    sent = play(FAL.run(edit_request(mask=PNG, quality="high"), one), documented("fal/result")).sent()
    assert sent["image_size"] == "1024x1024"
    assert sent["image_url"].startswith("data:image/png;base64,")
    assert sent["mask_image_url"].startswith("data:image/png;base64,")
    assert sent["rendering_speed"] == "QUALITY"
    assert not {"num_images", "image_urls", "call", "size_as"} & sent.keys()


def test_aspect_ratio_models_get_the_nearest_ratio_and_a_warning():
    played = play(
        FAL.run(image_request(size=ImageSize(1000, 700)), sync(options={"size_as": "aspect_ratio"})),
        documented("fal/result"),
    )
    assert played.sent()["aspect_ratio"] == "3:2"
    assert [warning.code for warning in played.result.warnings] == ["size_approximated"]


@pytest.mark.parametrize(
    ("operation", "changes"),
    [(Operation.EDIT, {"mask": PNG}), (Operation.EDIT, {"images": (PNG,) * 5}), (Operation.VARIATION, {})],
)
def test_what_fal_would_ignore_in_silence_is_refused_before_any_call(operation, changes):
    request = edit_request(operation=operation, **changes)
    played = play(FAL.run(request, TURBO))
    assert not played.steps
    assert (played.failure().kind, played.failure().billed) == (ErrorKind.BAD_REQUEST, Billed.NO)


def test_the_tickets_own_addresses_are_used_and_missing_ones_built():
    moved = documented("fal/submit", status_url="https://queue.fal.run/elsewhere/status")
    played = play(FAL.run(image_request(), TURBO), moved, completed(), documented("fal/result"))
    assert str(played.calls[1].request.url) == "https://queue.fal.run/elsewhere/status"

    bare = reply({"request_id": "abc"})
    played = play(FAL.run(edit_request(), TURBO), bare, completed(), documented("fal/result"))
    assert str(played.calls[1].request.url) == "https://queue.fal.run/fal-ai/flux-2/requests/abc/status"
    assert str(played.calls[2].request.url) == "https://queue.fal.run/fal-ai/flux-2/requests/abc"


@pytest.mark.parametrize(
    ("model", "app"),
    [("fal-ai/flux-2/turbo/edit", "fal-ai/flux-2"), ("workflows/me/mine/x", "workflows/me/mine"), ("a/b", "a/b")],
)
def test_built_addresses_keep_owner_and_app(model, app):
    played = play(
        FAL.run(image_request(), target(endpoints={Operation.GENERATE: model})),
        reply({"request_id": "abc"}),
        completed(),
        documented("fal/result"),
    )
    assert str(played.calls[1].request.url) == f"https://queue.fal.run/{app}/requests/abc/status"


def test_resume_goes_on_with_the_job():
    job = play(FAL.run(image_request(), TURBO), submitted(), completed(), documented("fal/result")).jobs[0]
    stored = Job(job.id, orjson.loads(orjson.dumps(job.state)))
    played = play(FAL.resume(stored, None, TURBO), completed(), documented("fal/result"))
    assert str(played.calls[0].request.url) == f"{JOB_URL}/status"
    assert not any(call.billable for call in played.calls)
    assert played.result.reported == Reported(Decimal(1), "unit")


def test_resume_without_addresses_is_an_unknown_outcome():
    failure = play(FAL.resume(Job("abc", {}), None, TURBO)).failure()
    assert (failure.kind, failure.billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)


def test_cancel_puts_to_the_jobs_address():
    job = play(FAL.run(image_request(), TURBO), submitted(), completed(), documented("fal/result")).jobs[0]
    call = FAL.cancel(job)
    assert call is not None
    assert (call.request.method, str(call.request.url)) == ("PUT", f"{JOB_URL}/cancel")
    assert not call.billable


def test_a_flagged_picture_is_a_refusal_that_is_paid_with_the_bill_as_evidence():
    flagged = documented("fal/result", has_nsfw_concepts=[True])
    failure = play(FAL.run(image_request(), sync()), flagged).failure()
    assert (failure.kind, failure.billed) == (ErrorKind.REFUSED, Billed.YES)
    assert failure.evidence is not None
    assert failure.evidence.reported == Reported(Decimal(1), "unit")
    assert failure.evidence.images == ()


def test_one_flagged_picture_of_two_refuses_and_keeps_the_other_as_evidence():
    image = {"url": "https://v3b.fal.media/files/b/lion/x.png", "width": 1024, "height": 768}
    answer = documented("fal/result", images=[image, image], has_nsfw_concepts=[True, False])
    failure = play(FAL.run(image_request(n=2), sync()), answer).failure()
    assert failure.kind is ErrorKind.REFUSED
    assert failure.evidence is not None
    assert len(failure.evidence.images) == 1


def test_fewer_pictures_are_delivered_with_a_warning():
    result = play(FAL.run(image_request(n=2), sync()), documented("fal/result")).result
    assert [warning.code for warning in result.warnings] == ["fewer_images"]


def test_success_without_a_picture():
    failure = play(FAL.run(image_request(), sync()), documented("fal/result", images=[])).failure()
    assert failure.kind is ErrorKind.UNUSABLE
    assert failure.evidence is not None
    assert failure.evidence.reported == Reported(Decimal(1), "unit")


def test_completed_failure_of_fals_own_is_told_by_the_status():
    failure = play(FAL.run(image_request(), TURBO), submitted(), documented("fal/completed_failed")).failure()
    assert (failure.kind, failure.billed, failure.code) == (ErrorKind.SERVER_ERROR, Billed.NO, "request_timeout")


def detail(type_: str, *loc: str):
    return {"detail": [{"loc": ["body", *loc], "msg": "Not possible.", "type": type_, "ctx": {}, "input": {}}]}


ERRORS = [
    # status, body, headers -> kind, billed, code, param    (fal errors page and FAQ, 2026-11-20)
    (401, {"detail": "Invalid key"}, {}, ErrorKind.AUTH, Billed.NO, None, None),
    (403, {"detail": "User is locked. Reason: Exhausted balance."}, {}, ErrorKind.AUTH, Billed.NO, None, None),
    (404, {"detail": "Application not found"}, {}, ErrorKind.AUTH, Billed.NO, None, None),
    (429, {"detail": "Too many requests"}, {}, ErrorKind.RATE_LIMITED, Billed.NO, None, None),
    (422, detail("content_policy_violation", "prompt"), {}, ErrorKind.REFUSED, Billed.MAYBE,
     "content_policy_violation", "prompt"),
    (422, detail("no_media_generated"), {}, ErrorKind.REFUSED, Billed.MAYBE, "no_media_generated", None),
    (422, detail("greater_than_equal", "image_size", "width"), {}, ErrorKind.BAD_REQUEST, Billed.NO,
     "greater_than_equal", "size"),
    (422, detail("less_than_equal", "num_images"), {}, ErrorKind.BAD_REQUEST, Billed.NO, "less_than_equal", "n"),
    (422, detail("image_too_small", "image_urls"), {}, ErrorKind.BAD_REQUEST, Billed.MAYBE, "image_too_small", "image"),
    (422, detail("file_download_error", "image_urls"), {}, ErrorKind.BAD_REQUEST, Billed.MAYBE,
     "file_download_error", "image"),
    (422, {"detail": "older apps answer in prose"}, {}, ErrorKind.BAD_REQUEST, Billed.MAYBE, None, None),
    (400, {"detail": "Bad request", "error_type": "bad_request"}, {}, ErrorKind.BAD_REQUEST, Billed.NO,
     "bad_request", None),
    (400, detail("downstream_service_error"), {}, ErrorKind.SERVER_ERROR, Billed.MAYBE,
     "downstream_service_error", None),
    (502, detail("downstream_service_unavailable"), {}, ErrorKind.SERVER_ERROR, Billed.NO,
     "downstream_service_unavailable", None),
    (500, detail("internal_server_error"), {}, ErrorKind.SERVER_ERROR, Billed.NO, "internal_server_error", None),
    (504, detail("generation_timeout"), {}, ErrorKind.SERVER_ERROR, Billed.NO, "generation_timeout", None),
    (504, {"detail": "Request timed out", "error_type": "startup_timeout"}, {}, ErrorKind.SERVER_ERROR, Billed.NO,
     "startup_timeout", None),
    (503, {"detail": "x"}, {"x-fal-error-type": "runner_disconnected"}, ErrorKind.SERVER_ERROR, Billed.NO,
     "runner_disconnected", None),
    (499, {"detail": "x", "error_type": "client_cancelled"}, {}, ErrorKind.CANCELLED, None, "client_cancelled", None),
    (502, b"<html><h1>502 Bad Gateway</h1>nginx</html>", {}, ErrorKind.SERVER_ERROR, Billed.NO, None, None),
    (503, b"", {"retry-after": "7"}, ErrorKind.RATE_LIMITED, Billed.NO, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "headers", "kind", "billed", "code", "param"), ERRORS)
def test_error_table(status, body, headers, kind, billed, code, param):
    answer = reply(body, status, headers)
    for flow, answers in (
        (FAL.run(image_request(), sync()), (answer,)),
        (FAL.run(image_request(), TURBO), (submitted(), completed(), answer)),
    ):
        failure = play(flow, *answers).failure()
        assert (failure.kind, failure.billed, failure.code, failure.param) == (kind, billed, code, param)
        assert failure.status == status


def test_a_paused_provider_says_how_long():
    failure = play(FAL.run(image_request(), sync()), reply({}, 429, {"retry-after": "7"})).failure()
    assert failure.retry_after_s == 7.0


@pytest.mark.parametrize("status", [404, 429, 500])
def test_questions_that_fail_in_passing_are_asked_again(status):
    played = play(
        FAL.run(image_request(), TURBO), submitted(), reply({}, status), completed(), documented("fal/result")
    )
    assert played.result.images


@pytest.mark.parametrize("answers", [[401], [500, 500, 500]])
def test_a_job_that_cannot_be_asked_about_may_still_be_billed(answers):
    played = play(FAL.run(image_request(), TURBO), submitted(), *(reply({}, status) for status in answers))
    with pytest.raises(ProviderError):
        _ = played.result
    assert (played.failure().kind, played.failure().billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)


def test_a_ticket_without_an_id_may_still_be_billed():
    failure = play(FAL.run(image_request(), TURBO), reply({"status": "IN_QUEUE"})).failure()
    assert (failure.kind, failure.billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)
