from decimal import Decimal
from uuid import UUID

import orjson
import pytest

from pricing import Reported
from router.errors import Billed, ErrorKind
from router.providers.runware import Runware
from router.types import Operation
from tests.helpers import PNG, documented, edit_request, image_request, play, reply, target

ADAPTER = Runware({})
DEV = target("runware", "m", endpoints=dict.fromkeys(Operation, "runware:101@1"))
ASYNC = target("runware", "m", endpoints=DEV.endpoints, options={"call": "async"})


def test_generation_is_one_task_whose_cost_is_asked_for():
    played = play(ADAPTER.run(image_request(n=2, seed=9), DEV), documented("runware/two"))
    assert str(played.calls[0].request.url) == "https://api.runware.ai/v1"
    (task,) = played.sent()
    assert UUID(task.pop("taskUUID")).version == 4
    assert task == {
        "taskType": "imageInference",
        "model": "runware:101@1",
        "positivePrompt": "A serene mountain landscape at sunset",
        "numberResults": 2,
        "outputType": "URL",
        "includeCost": True,
        "width": 1024,
        "height": 1024,
        "outputFormat": "PNG",
        "seed": 9,
    }
    result = played.result
    assert result.reported == Reported(Decimal("0.0089"), "USD"), "exact: 0.0038 + 0.0051"
    assert len(result.images) == 2
    assert result.seed == 8745


def test_edits():
    (task,) = play(ADAPTER.run(edit_request(images=(PNG, PNG)), DEV), documented("runware/two")).sent()
    assert len(task["referenceImages"]) == 2
    seed = target("runware", "m", options={"images_as": "seedImage"})
    (task,) = play(ADAPTER.run(edit_request(), seed), documented("runware/generated")).sent()
    assert task["seedImage"].startswith("data:image/png;base64,")


def test_async_delivery_is_a_job_that_can_be_resumed():
    played = play(
        ADAPTER.run(image_request(), ASYNC),
        documented("runware/accepted"),
        documented("runware/processing"),
        documented("runware/success"),
    )
    (task,) = played.sent()
    assert task["deliveryMethod"] == "async"
    assert played.jobs[0].id == task["taskUUID"]
    assert played.sent(1) == [{"taskType": "getResponse", "taskUUID": task["taskUUID"]}]
    assert [call.billable for call in played.calls] == [True, False, False]
    assert played.result.reported == Reported(Decimal("0.0038"), "USD")
    assert play(ADAPTER.resume(played.jobs[0], None, ASYNC), documented("runware/success")).result.images


def test_async_failures():
    failure = play(ADAPTER.run(image_request(), ASYNC), documented("runware/failed")).failure()
    assert failure.kind is ErrorKind.BAD_REQUEST
    failed = reply({"errors": [{"code": "timeoutProvider", "message": "x"}]})
    failure = play(ADAPTER.run(image_request(), ASYNC), documented("runware/accepted"), failed).failure()
    assert failure.kind is ErrorKind.SERVER_ERROR
    entry = {"taskType": "imageInference", "taskUUID": "u", "status": "error"}
    failed = reply({"data": [entry]})
    failure = play(ADAPTER.run(image_request(), ASYNC), documented("runware/accepted"), failed).failure()
    assert (failure.kind, failure.billed) == (ErrorKind.SERVER_ERROR, None)
    failure = play(ADAPTER.run(image_request(), ASYNC), documented("runware/accepted"), reply({"data": []})).failure()
    assert (failure.kind, failure.billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)


def test_a_flagged_picture_is_a_refusal_with_its_cost():
    body = orjson.loads(documented("runware/two").content)
    body["data"][1]["NSFWContent"] = True
    failure = play(ADAPTER.run(image_request(n=2), DEV), reply(body)).failure()
    assert (failure.kind, failure.billed) == (ErrorKind.REFUSED, Billed.YES)
    assert failure.evidence is not None
    assert failure.evidence.reported == Reported(Decimal("0.0089"), "USD")


def test_pictures_and_errors_together():
    body = orjson.loads(documented("runware/generated").content) | {"errors": [{"code": "x", "message": "y"}]}
    result = play(ADAPTER.run(image_request(n=2), DEV), reply(body)).result
    assert len(result.images) == 1
    assert [warning.code for warning in result.warnings] == ["fewer_images"]


def error(code, parameter=None):
    return {"errors": [{"code": code, "message": "x", "parameter": parameter, "taskType": "imageInference"}]}


ERRORS = [
    # runware.ai error documentation, 2026-11-20
    (400, error("invalidModel", "model"), ErrorKind.BAD_REQUEST, Billed.NO, "model"),
    (400, error("invalidWidth", "width"), ErrorKind.BAD_REQUEST, Billed.NO, "size"),
    (200, error("invalidWidth", "width"), ErrorKind.BAD_REQUEST, Billed.NO, "size"),
    (400, error("contentModerated"), ErrorKind.REFUSED, None, None),
    (200, error("providerContentModeration"), ErrorKind.REFUSED, None, None),
    (401, error("invalidApiKey"), ErrorKind.AUTH, Billed.NO, None),
    (200, error("invalidApiKey"), ErrorKind.AUTH, Billed.NO, None),
    (402, error("insufficientCredits"), ErrorKind.AUTH, Billed.NO, None),
    (409, error("duplicateTaskUUID"), ErrorKind.SERVER_ERROR, None, None),
    (429, error("rateLimit"), ErrorKind.RATE_LIMITED, Billed.NO, None),
    (500, error("internal"), ErrorKind.SERVER_ERROR, None, None),
    (200, error("somethingNew"), ErrorKind.SERVER_ERROR, None, None),
    (200, {"data": []}, ErrorKind.UNUSABLE, None, None),
]


@pytest.mark.parametrize(("status", "body", "kind", "billed", "param"), ERRORS)
def test_error_table(status, body, kind, billed, param):
    failure = play(ADAPTER.run(image_request(), DEV), reply(body, status)).failure()
    assert (failure.kind, failure.billed, failure.param) == (kind, billed, param)
