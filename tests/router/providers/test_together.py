import pytest

from router.errors import Billed, ErrorKind
from router.providers.together import Together
from router.types import Operation
from tests.helpers import PNG, documented, edit_request, image_request, play, reply, target

ADAPTER = Together({})
DEV = target("together", "m", endpoints=dict.fromkeys(Operation, "black-forest-labs/FLUX.2-dev"))


def test_generation():
    request = image_request(n=2, seed=3, output_format="webp", extra={"steps": 8})
    played = play(ADAPTER.run(request, target("together", "m", formats=("jpeg", "png"))), documented("together/base64"))
    assert str(played.calls[0].request.url) == "https://api.together.xyz/v1/images/generations"
    assert played.sent() == {
        "steps": 8,
        "model": "m",
        "prompt": "A serene mountain landscape at sunset",
        "n": 2,
        "width": 1024,
        "height": 1024,
        "response_format": "base64",
        "output_format": "png",
        "seed": 3,
    }
    assert played.result.images[0].b64
    assert played.result.provider_request_id == "oF9nXyz-2kFHot"


def test_urls_when_asked_for_and_source_pictures():
    where = target("together", "m", endpoints=DEV.endpoints, options={"response_format": "url"})
    played = play(ADAPTER.run(edit_request(images=(PNG, PNG)), where), documented("together/url"))
    assert len(played.sent()["reference_images"]) == 2
    assert played.sent()["response_format"] == "url"
    assert played.result.images[0].url == "https://api.together.ai/imgproxy/abc/x.png"
    kontext = target("together", "m", options={"images_as": "image_url", "size_as": "aspect_ratio"})
    sent = play(ADAPTER.run(edit_request(), kontext), documented("together/url")).sent()
    assert sent["image_url"].startswith("data:image/png;base64,")
    assert sent["aspect_ratio"] == "1:1"


def error(message="x", code=None):
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


ERRORS = [
    # docs.together.ai error codes, 2026-11-20
    (400, error(), ErrorKind.BAD_REQUEST, Billed.NO),
    (401, error(), ErrorKind.AUTH, Billed.NO),
    (402, error(), ErrorKind.AUTH, Billed.NO),
    (403, error(), ErrorKind.BAD_REQUEST, Billed.NO),
    (404, error(), ErrorKind.AUTH, Billed.NO),
    (422, error("NSFW content detected in prompt"), ErrorKind.REFUSED, None),
    (422, error("steps must be at most 12"), ErrorKind.BAD_REQUEST, Billed.NO),
    (429, error(), ErrorKind.RATE_LIMITED, Billed.NO),
    (500, error(), ErrorKind.SERVER_ERROR, None),
    (524, b"", ErrorKind.NO_ANSWER, None),
    (529, error(), ErrorKind.RATE_LIMITED, Billed.NO),
]


@pytest.mark.parametrize(("status", "body", "kind", "billed"), ERRORS)
def test_error_table(status, body, kind, billed):
    failure = play(ADAPTER.run(image_request(), DEV), reply(body, status)).failure()
    assert (failure.kind, failure.billed) == (kind, billed)
