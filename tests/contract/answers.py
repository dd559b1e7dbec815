"""What a success says, whole and as a stream."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import httpx
from PIL import Image

from router.ledger import State
from tests.contract.walk import MODEL, SMALL, Walk, events, made, opened, picture, refused, row
from tests.integration.process import KEY

OPENAI: dict[str, Any] = {"model": "gpt-image-2", "size": "1024x1024", "provider": {"only": ["openai"]}}

# --- whole ------------------------------------------------------------------------------------------------------


@row("R1", "created, in whole seconds")
def _(walk: Walk) -> None:
    created = made(walk.generate())["created"]
    assert type(created) is int
    assert abs(created - time.time()) < 60


@row("R2", "as many items as pictures were asked for, never none")
def _(walk: Walk) -> None:
    for count in (1, 3):
        made(walk.generate(n=count), count)
    refused(walk.generate(model="sandbox-text-only"), 502, type="server_error")


@row("R3", "plain, padded base64 in one line")
def _(walk: Walk) -> None:
    for model, size in ((MODEL, SMALL), ("gpt-image-2", "1024x1024"), ("flux.2-dev-flash", "512x512")):
        text = made(walk.generate(model=model, size=size))["data"][0]["b64_json"]
        assert base64.b64encode(base64.b64decode(text, validate=True)).decode() == text


@row("R4", "a link that anybody can follow for an hour or more to a picture called one")
def _(walk: Walk) -> None:
    url = made(walk.generate(response_format="url"))["data"][0]["url"]
    assert url.startswith("http")
    answer = httpx.get(url)
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (256, 256)
    assert int(answer.headers["cache-control"].partition("max-age=")[2].partition(",")[0]) > 3600


@row("R5", "url and b64_json by what was asked, else by model and operation")
def _(walk: Walk) -> None:
    def keys(answer: httpx.Response) -> set[str]:
        [item] = made(answer)["data"]
        return set(item) & {"url", "b64_json"}

    for form in ("url", "b64_json"):
        assert keys(walk.generate(response_format=form)) == {form}
        assert keys(walk.generate(**OPENAI, response_format=form)) == {form}
        assert keys(walk.edit(response_format=form)) == {form}
    assert keys(walk.generate("response_format")) == {"url"}
    assert keys(walk.generate("response_format", **OPENAI)) == {"b64_json"}
    assert keys(walk.edit(without=("response_format",))) == {"url", "b64_json"}


@row(
    "R6",
    "a revised prompt only where the provider revised it",
    "tests/router/api/test_replies.py::test_r6_revised_prompt",
)
def _(walk: Walk) -> None:
    assert "revised_prompt" not in made(walk.generate())["data"][0]


@row("R7", "a background is transparent, opaque or not named")
def _(walk: Walk) -> None:
    for word in ("transparent", "opaque", "auto", None):
        assert made(walk.generate(**OPENAI, background=word)).get("background", "opaque") in ("transparent", "opaque")
    assert made(walk.generate(**OPENAI, background="transparent"))["background"] == "transparent"


@row("R8", "a quality is a word of today or not named")
def _(walk: Walk) -> None:
    for word in ("auto", "standard", "hd", "low", "high", None):
        for model in ({"model": MODEL}, OPENAI):
            quality = made(walk.generate(**model, quality=word)).get("quality")
            assert quality in (None, "low", "medium", "high")
    assert made(walk.generate(**OPENAI, quality="low"))["quality"] == "low"


@row("R9", "the true format")
def _(walk: Walk) -> None:
    for form in ("png", "webp"):
        body = made(walk.generate(output_format=form))
        assert body["output_format"].upper() == opened(body["data"][0]).format


@row("R10", "the true size")
def _(walk: Walk) -> None:
    for size in ("256x320", "auto"):
        body = made(walk.generate(size=size))
        assert body["size"] == "{}x{}".format(*opened(body["data"][0]).size)


@row("R11", "tokens all or not at all", "tests/router/api/test_replies.py::test_r11_usage_is_complete_or_absent")
def _(walk: Walk) -> None:
    usage = made(walk.generate(**OPENAI))["usage"]
    assert all(type(usage[name]) is int for name in ("input_tokens", "output_tokens", "total_tokens"))
    assert set(usage["input_tokens_details"]) == {"text_tokens", "image_tokens"}
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert "usage" not in made(walk.generate())


@row("R12", "a safety identifier is taken, and stands in the ledger for the user")
def _(walk: Walk) -> None:
    answer = walk.generate(safety_identifier="who-it-is", user="another")
    assert made(answer).get("safety_identifier", "who-it-is") == "who-it-is"
    assert walk.kept(answer).attempts[0].opening.user == "who-it-is"
    plain = walk.generate(user="another", safety_identifier="")
    assert walk.kept(plain).attempts[0].opening.user == "another"


@row("R13", "what OpenAI has no word for stands in metadata")
def _(walk: Walk) -> None:
    metadata = made(walk.generate())["metadata"]
    assert metadata["model"] == MODEL
    assert metadata["executed_model"] == f"{metadata['provider']}/{MODEL}"
    assert {"provider_name", "cost", "cost_currency", "warnings", "attempts"} <= set(metadata)


@row("R14", "what is absent is left out, never null")
def _(walk: Walk) -> None:
    for answer in (walk.generate(), walk.generate(**OPENAI), walk.edit()):
        body = made(answer)
        assert None not in [value for name, value in body.items() if name != "metadata"]
        assert None not in body["data"][0].values()


@row("R15", "hosted pictures are on the API's own origin, behind names that nobody guesses")
def _(walk: Walk) -> None:
    host = {"host": "pictures.example:8443"}
    url = made(walk.generate(response_format="url", headers=host))["data"][0]["url"]
    assert url.startswith("http://pictures.example:8443/")
    path = url.partition("8443")[2]
    for headers in ({}, {"authorization": f"Bearer {KEY}"}):
        answer = httpx.get(walk.router.base + path, headers=headers)
        assert int(answer.headers["content-length"]) == len(answer.content)
        assert answer.headers["cache-control"]
    refused(walk.http.get(path[:-1] + ("0" if path[-1] != "0" else "1")), 404)
    refused(walk.http.get(path.partition("?")[0]), 404)


@row("R16", "a provider's link is followed for base64; what is paid and lost is a failure, and is booked")
def _(walk: Walk) -> None:
    made(walk.generate(model="flux.2-dev-flash", size="512x512"))
    lost = walk.generate("size", model="walk-loses-its-link")
    refused(lost, 502, type="server_error")
    [attempt] = walk.kept(lost).attempts
    assert attempt.state is State.SETTLED
    assert attempt.cost_nanos > 0
    assert lost.headers["x-should-retry"] == "false"


# --- streamed ---------------------------------------------------------------------------------------------------


@row("S1", "events of a name, one line of JSON and an empty one; nothing else but comments")
def _(walk: Walk) -> None:
    assert walk.stream(partial_images=2)


@row("S2", "every model streams; without partial pictures there is just the last")
def _(walk: Walk) -> None:
    for model, size in ((MODEL, SMALL), ("sandbox-jpeg-only", SMALL), ("flux.2-dev-flash", "512x512")):
        [event] = walk.stream(model=model, size=size, partial_images=3)
        assert event["type"] == "image_generation.completed"
        assert opened(event)


@row("S3", "partial pictures in order, then one completed event for each picture")
def _(walk: Walk) -> None:
    found = walk.stream(partial_images=2)
    assert [event.get("partial_image_index") for event in found] == [*range(len(found) - 1), None]
    assert 1 <= len(found) - 1 <= 2
    kinds = [event["type"] for event in walk.stream(model=MODEL, size=SMALL, n=3)]
    assert kinds == ["image_generation.completed"] * 3


@row("S4", "the events are named after the operation")
def _(walk: Walk) -> None:
    made_ = {event["type"] for event in walk.stream(partial_images=1)}
    assert made_ == {"image_generation.partial_image", "image_generation.completed"}
    fields = {"model": "gpt-image-2", "size": "1024x1024", "stream": "true", "partial_images": "1"}
    edited = {event["type"] for event in events(walk.edit(("image", picture(1024, 1024)), **fields))}
    assert edited == {"image_edit.partial_image", "image_edit.completed"}


@row("S5", "every field that clients' types demand, and bytes that match them")
def _(walk: Walk) -> None:
    for fields in ({}, {"model": MODEL, "size": SMALL, "output_format": "webp", "response_format": "url"}):
        for event in walk.stream(partial_images=1, **fields):
            assert type(event["created_at"]) is int
            assert event["quality"] in ("auto", "low", "medium", "high", "xhigh", "max")
            assert event["background"] in ("transparent", "opaque", "auto")
            image = opened(event)
            assert image.format == event["output_format"].upper()
            if event["type"].endswith("completed"):
                assert event["size"] == "{}x{}".format(*image.size)
                usage = event["usage"]
                assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
                assert set(usage["input_tokens_details"]) == {"text_tokens", "image_tokens"}
            else:
                assert event["partial_image_index"] == 0


@row("S6", "what fails before anything was sent has its status")
def _(walk: Walk) -> None:
    refused(walk.generate(stream=True, size="huge"), 400, "invalid_value", "size")
    refused(walk.generate(stream=True, model="no-such-model"), 404, "model_not_found", "model")
    refused(walk.generate(stream=True, model="sandbox-down"), 502, "all_providers_failed", type="server_error")
    refused(
        walk.generate(stream=True, model="sandbox-refused"),
        400,
        "moderation_blocked",
        (),
        "image_generation_user_error",
    )


@row("S7", "what fails afterwards is told in an event of its own, the last")
def _(walk: Walk) -> None:
    *partial, last = walk.stream(model="sandbox-broken-stream", partial_images=3)
    assert [event["type"] for event in partial] == ["image_generation.partial_image"]
    assert last["type"] == "error"
    assert {"type", "code", "message", "param"} <= set(last["error"])
    assert last["error"]["message"]


@row("S8", "a stream ends with its body")
def _(walk: Walk) -> None:
    answer = walk.generate(**OPENAI, stream=True)
    assert events(answer)[-1]["type"] == "image_generation.completed"
    assert walk.generate(**OPENAI).status_code == 200  # on the same connection


@row(
    "S9",
    "silence is bridged with comments, and what has come is passed on at once",
    "tests/router/api/test_streams.py::test_s9_silence_is_bridged",
)
def _(walk: Walk) -> None:
    body = {"prompt": "a lake", "stream": True, "partial_images": 1} | OPENAI
    with walk.http.stream("POST", "/v1/images/generations", json=body) as answer:
        chunks = list(answer.iter_raw())
    assert len(chunks) > 1


@row("S10", "another provider may step in until there is something to see")
def _(walk: Walk) -> None:
    order = {"order": ["gpu-spot", "gpu-fast"]}
    [event] = walk.stream(model="sandbox-failover", size=SMALL, provider=order)
    assert [one["provider"] for one in event["metadata"]["attempts"]] == ["gpu-spot", "gpu-fast"]
