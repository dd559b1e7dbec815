import pytest

from pricing import ImageSize
from router.errors import Billed, ErrorKind
from router.providers.stability import Stability
from router.types import Operation
from tests.helpers import PNG, documented, edit_request, image_request, play, reply, target

ADAPTER = Stability({})


def model(path="generate/core", **changes):
    values = {"endpoints": dict.fromkeys(Operation, path), "max_images": 1, "max_inputs": 1}
    return target("stability", "m", **(values | changes))


def test_generation_is_multipart_without_a_file():
    request = image_request(size=ImageSize(1344, 768), seed=2**32, extra={"style_preset": "anime"})
    played = play(ADAPTER.run(request, model()), documented("stability/generated"))
    (call,) = played.calls
    assert str(call.request.url) == "https://api.stability.ai/v2beta/stable-image/generate/core"
    assert call.request.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert call.request.headers["accept"] == "application/json"
    body = call.request.read().decode()
    for name, value in {"style_preset": "anime", "output_format": "png", "aspect_ratio": "16:9", "seed": "1"}.items():
        assert f'name="{name}"\r\n\r\n{value}\r\n' in body
    result = played.result
    assert (result.seed, result.provider_request_id, result.images[0].format) == (343940597, "8d3c1f", "png")
    assert [warning.code for warning in result.warnings] == ["size_approximated"]


def test_image_to_image():
    sd3 = model("generate/sd3", options={"model": "sd3.5-large", "strength": 0.7})
    body = play(ADAPTER.run(edit_request(), sd3), documented("stability/generated")).calls[0].request.read()
    assert b'name="mode"\r\n\r\nimage-to-image\r\n' in body
    assert b'name="model"\r\n\r\nsd3.5-large\r\n' in body
    assert b'name="image"; filename="image.png"' in body
    assert b"aspect_ratio" not in body


def test_one_source_picture():
    failure = play(ADAPTER.run(edit_request(images=(PNG, PNG)), model(max_inputs=4))).failure()
    assert (failure.kind, failure.billed) == (ErrorKind.BAD_REQUEST, Billed.NO)


def test_a_blurred_picture_is_a_refusal():
    failure = play(ADAPTER.run(image_request(), model()), documented("stability/filtered")).failure()
    assert (failure.kind, failure.billed) == (ErrorKind.REFUSED, None)


ERRORS = [
    # platform.stability.ai API reference, 2026-11-20; failed calls are not charged
    (400, "bad_request", ErrorKind.BAD_REQUEST, Billed.NO),
    (401, "unauthorized", ErrorKind.AUTH, Billed.NO),
    (402, "payment_required", ErrorKind.AUTH, Billed.NO),
    (403, "content_moderation", ErrorKind.REFUSED, Billed.NO),
    (403, "permission_denied", ErrorKind.AUTH, Billed.NO),
    (413, "payload_too_large", ErrorKind.BAD_REQUEST, Billed.NO),
    (422, "invalid_language", ErrorKind.BAD_REQUEST, Billed.NO),
    (429, "rate_limit_exceeded", ErrorKind.RATE_LIMITED, Billed.NO),
    (500, "internal_error", ErrorKind.SERVER_ERROR, Billed.NO),
]


@pytest.mark.parametrize(("status", "name", "kind", "billed"), ERRORS)
def test_error_table(status, name, kind, billed):
    body = {"id": "8d3c1f", "name": name, "errors": ["prompt: cannot be empty"]}
    failure = play(ADAPTER.run(image_request(), model()), reply(body, status)).failure()
    assert (failure.kind, failure.billed, failure.code) == (kind, billed, name)
    if kind is ErrorKind.BAD_REQUEST:
        assert failure.message == "prompt: cannot be empty"
