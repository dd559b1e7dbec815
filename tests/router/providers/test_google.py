import pytest

from pricing import ImageSize
from router.errors import Billed, ErrorKind
from router.providers.google import Google
from router.types import Operation
from tests.helpers import PNG, documented, edit_request, image_request, play, reply, target

ADAPTER = Google({})


def model(name="gemini-2.5-flash-image", **changes):
    return target("google", "m", **({"endpoints": dict.fromkeys(Operation, name), "max_images": 1} | changes))


FLASH = model()
PRO = model("gemini-3-pro-image", options={"tiers": ["1K", "2K", "4K"], "safetySettings": [{"category": "X"}]})


def test_generation():
    played = play(ADAPTER.run(image_request(seed=5), FLASH), documented("google/generated"))
    assert str(played.calls[0].request.url) == (
        "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash-image:generateContent"
    )
    assert played.sent() == {
        "contents": [{"role": "user", "parts": [{"text": "A serene mountain landscape at sunset"}]}],
        "generationConfig": {"responseModalities": ["IMAGE"], "imageConfig": {"aspectRatio": "1:1"}, "seed": 5},
    }
    result = played.result
    assert result.tokens == {"text_input": 8, "image_output": 1290}
    assert result.usage is None
    assert (result.images[0].format, result.provider_request_id) == ("png", "aBcD-123")


def test_edit_sends_pictures_as_parts():
    sent = play(ADAPTER.run(edit_request(images=(PNG, PNG)), FLASH), documented("google/generated")).sent()
    parts = sent["contents"][0]["parts"]
    assert [list(part) for part in parts] == [["text"], ["inlineData"], ["inlineData"]]
    assert parts[1]["inlineData"]["mimeType"] == "image/png"


@pytest.mark.parametrize(
    ("size", "where", "config", "exact"),
    [
        ((1024, 1024), FLASH, {"aspectRatio": "1:1"}, True),
        ((1344, 768), FLASH, {"aspectRatio": "16:9"}, True),
        ((1920, 1080), FLASH, {"aspectRatio": "16:9"}, False),
        ((2048, 2048), PRO, {"aspectRatio": "1:1", "imageSize": "2K"}, True),
        ((1024, 1024), PRO, {"aspectRatio": "1:1", "imageSize": "1K"}, True),
        ((3000, 4000), PRO, {"aspectRatio": "3:4", "imageSize": "4K"}, False),
        (None, FLASH, None, True),
    ],
)
def test_sizes_become_ratio_and_tier(size, where, config, exact):
    request = image_request(size=ImageSize(*size) if size else None)
    played = play(ADAPTER.run(request, where), documented("google/generated"))
    assert played.sent()["generationConfig"].get("imageConfig") == config
    assert ([warning.code for warning in played.result.warnings] == []) is exact


def test_the_clients_own_words_win_and_others_are_dropped():
    extra = {"aspect_ratio": "21:9", "resolution": "2k", "temperature": 0.4, "steps": 3, "safetySettings": []}
    played = play(ADAPTER.run(image_request(extra=extra), PRO), documented("google/generated"))
    config = played.sent()["generationConfig"]
    assert config["imageConfig"] == {"aspectRatio": "21:9", "imageSize": "2K"}
    assert config["temperature"] == 0.4
    assert {warning.param for warning in played.result.warnings} == {"steps", "safetySettings"}


def test_thoughts_are_text_that_came_out():
    usage = {"promptTokenCount": 8, "candidatesTokenCount": 1120, "thoughtsTokenCount": 90}
    answer = documented("google/generated", usageMetadata=usage)
    tokens = play(ADAPTER.run(image_request(), PRO), answer).result.tokens
    assert tokens == {"text_input": 8, "image_output": 1120, "text_output": 90}


def test_sketches_are_not_pictures():
    sketch = {"thought": True, "inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    answer = documented("google/generated", candidates=[{"content": {"parts": [sketch]}, "finishReason": "STOP"}])
    assert play(ADAPTER.run(image_request(), PRO), answer).failure().kind is ErrorKind.UNUSABLE


@pytest.mark.parametrize(
    ("fixture", "kind", "code", "tokens"),
    [
        ("google/blocked", ErrorKind.REFUSED, "PROHIBITED_CONTENT", {"text_input": 8}),
        ("google/withheld", ErrorKind.REFUSED, "IMAGE_SAFETY", {"text_input": 8}),
        ("google/text_only", ErrorKind.UNUSABLE, None, {"text_input": 8, "text_output": 6}),
    ],
)
def test_a_200_without_a_picture(fixture, kind, code, tokens):
    failure = play(ADAPTER.run(image_request(), FLASH), documented(fixture)).failure()
    assert (failure.kind, failure.billed, failure.code) == (kind, None, code)
    assert failure.evidence is not None
    assert failure.evidence.tokens == tokens


def status(word, **more):
    return {"error": {"code": 400, "message": "x", "status": word, **more}}


BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
ERRORS = [
    # ai.google.dev troubleshooting, google-genai 3.4.0, 2026-11-20
    (400, status("INVALID_ARGUMENT"), ErrorKind.BAD_REQUEST, Billed.NO, "INVALID_ARGUMENT"),
    (400, status("INVALID_ARGUMENT", details=[BAD_KEY]), ErrorKind.AUTH, Billed.NO, "API_KEY_INVALID"),
    (400, status("FAILED_PRECONDITION"), ErrorKind.AUTH, Billed.NO, "FAILED_PRECONDITION"),
    (401, status("UNAUTHENTICATED"), ErrorKind.AUTH, Billed.NO, "UNAUTHENTICATED"),
    (403, status("PERMISSION_DENIED"), ErrorKind.AUTH, Billed.NO, "PERMISSION_DENIED"),
    (404, status("NOT_FOUND"), ErrorKind.AUTH, Billed.NO, "NOT_FOUND"),
    (500, status("INTERNAL"), ErrorKind.SERVER_ERROR, None, "INTERNAL"),
    (503, status("UNAVAILABLE"), ErrorKind.SERVER_ERROR, None, "UNAVAILABLE"),
    (504, status("DEADLINE_EXCEEDED"), ErrorKind.SERVER_ERROR, None, "DEADLINE_EXCEEDED"),
]


@pytest.mark.parametrize(("http_status", "body", "kind", "billed", "code"), ERRORS)
def test_error_table(http_status, body, kind, billed, code):
    failure = play(ADAPTER.run(image_request(), FLASH), reply(body, http_status)).failure()
    assert (failure.kind, failure.billed, failure.code) == (kind, billed, code)


def test_the_pause_after_a_429_is_in_its_body():
    failure = play(ADAPTER.run(image_request(), FLASH), documented("google/rate_limited")).failure()
    assert (failure.kind, failure.retry_after_s) == (ErrorKind.RATE_LIMITED, 27.0)
