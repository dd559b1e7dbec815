"""What a generation may say, field by field."""

from __future__ import annotations

import json

from tests.contract.walk import GENERATE, MODEL, SMALL, Walk, made, opened, refused, row

JSON = {"content-type": "application/json"}


@row("G1", "JSON and nothing else")
def _(walk: Walk) -> None:
    body = json.dumps({"model": MODEL, "prompt": "a lake"}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = walk.http.post(GENERATE, content=body, headers={"content-type": kind} if kind else {})
        refused(answer, 400, "unsupported_content_type")


@row("G2", "what is no JSON object is a 400 without a code")
def _(walk: Walk) -> None:
    broken = [b"", b"{", b"[]", b'"x"', b"null", b"1", b'{"n": NaN}', b'{"n": Infinity}', b'{"prompt": "\xff"}']
    broken += [b'{"x":' + b"[" * 200_000, b"{}{}"]
    for content in broken:
        refused(walk.http.post(GENERATE, content=content, headers=JSON), 400, None)


@row("G3", "null is absent")
def _(walk: Walk) -> None:
    names = ("n", "quality", "background", "moderation", "style", "output_format", "output_compression", "stream",
             "partial_images", "user", "safety_identifier", "complexity", "frame_count", "svg")  # fmt: skip
    made(walk.generate(**dict.fromkeys(names)))
    assert "url" in made(walk.generate(response_format=None, size=None))["data"][0]


@row("G4", "unknown fields go to the provider")
def _(walk: Walk) -> None:
    made(walk.generate(model=f"fal/{MODEL}", size="512x512", guidance_scale=3.5, a_new_word={"deep": [1, None]}))
    sent = walk.router.calls()["fal"]["last"]
    assert any(call.get("json", call.get("body", {})).get("guidance_scale") == 3.5 for call in sent), sent[0]


@row("G5", "types are strict")
def _(walk: Walk) -> None:
    wrong = {"n": ["2", True, 1.5, [1]], "prompt": [5, ["x"], {"text": "x", "images": []}], "size": [1024, {}],
             "stream": ["true", 1], "output_compression": ["80", False], "user": [7], "quality": [1]}  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            refused(walk.generate(**{name: value}), 400, "invalid_type", name)


@row("G6", "a prompt of 1 to 32,000 characters of any script")
def _(walk: Walk) -> None:
    refused(walk.generate("prompt"), 400, "missing_required_parameter", "prompt")
    refused(walk.generate(prompt=None), 400, "missing_required_parameter", "prompt")
    refused(walk.generate(prompt=""), 400, (), "prompt")
    refused(walk.generate(prompt="é" * 32_001), 400, "string_above_max_length", "prompt")
    made(walk.generate(prompt="é" * 32_000))
    shorter = walk.generate(model="runware/flux.1-schnell", size="1024x1024", prompt="é" * 3001)
    refused(shorter, 400, "string_above_max_length", "prompt")
    elsewhere = made(walk.generate(model="flux.1-schnell", size="1024x1024", prompt="é" * 3001))
    assert elsewhere["metadata"]["provider"] != "runware"
    made(walk.generate(prompt="a\x00b \U0001f30a ‮ \ufeff"))
    lone = b'{"model": "%s", "prompt": "\\ud83e", "size": "256x256"}' % MODEL.encode()
    assert walk.http.post(GENERATE, content=lone, headers=JSON).status_code < 500


@row("G7", "a model by its name, an alias or pinned to a provider; without one the default")
def _(walk: Walk) -> None:
    for name in (MODEL, "flux-2-turbo", f"gpu-fast/{MODEL}"):
        assert made(walk.generate(model=name))["metadata"]["executed_model"].endswith(MODEL)
    made(walk.generate("model"))
    refused(walk.generate(model="no-such-model"), 404, "model_not_found", "model")
    refused(walk.generate(model=f"bfl/{MODEL}"), 404, "model_not_found", "model")
    assert walk.generate(model="").status_code in (400, 404)


@row("G8", "one to ten pictures, exactly as many as asked, or none")
def _(walk: Walk) -> None:
    refused(walk.generate(n=0), 400, "integer_below_min_value", "n")
    refused(walk.generate(n=11), 400, "integer_above_max_value", "n")
    made(walk.generate(model="walk-one-at-a-time", n=3), 3)
    made(walk.generate(n=10), 10)
    few = walk.generate(model="walk-makes-too-few", n=3)
    refused(few, 502, "all_providers_failed", type="server_error")
    assert walk.kept(few).attempts[0].cost_nanos > 0


@row("G9", "a size is WIDTHxHEIGHT or auto, and within what the model makes")
def _(walk: Walk) -> None:
    for size in ("huge", "1024", "0x0", "-1x5", "1024x", "1024 x 1024", "99999999x99999999", "", "0512x512", "1024X768",
                 "1024x1024\n", "１０２４x１０２４"):  # fmt: skip
        refused(walk.generate(size=size), 400, "invalid_value", "size")
    assert "2048" in refused(walk.generate(size="4096x4096"), 400, "invalid_value", "size")["message"]
    made(walk.generate(size="auto"))


@row("G10", "every word for quality is understood by every model")
def _(walk: Walk) -> None:
    for quality in ("auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"):
        for model, size in ((MODEL, SMALL), ("gpt-image-2", "1024x1024")):
            made(walk.generate(model=model, size=size, quality=quality))
    refused(walk.generate(quality="ultra"), 400, "invalid_value", "quality")


@row("G11", "url and b64_json for every model")
def _(walk: Walk) -> None:
    for model, size in ((MODEL, SMALL), ("gpt-image-2", "1024x1024"), ("flux.2-dev-flash", "512x512")):
        for form in ("url", "b64_json"):
            [item] = made(walk.generate(model=model, size=size, response_format=form))["data"]
            assert set(item) & {"url", "b64_json"} == {form}
    refused(walk.generate(response_format="bytes"), 400, "invalid_value", "response_format")


@row("G12", "the bytes are in the format that was asked for, and that the answer names")
def _(walk: Walk) -> None:
    for model in (MODEL, "sandbox-jpeg-only"):
        for form in ("png", "jpeg", "webp", "gif", "avif"):
            body = made(walk.generate(model=model, output_format=form))
            assert body["output_format"] == form
            assert opened(body["data"][0]).format == form.upper()
    assert made(walk.generate(model="sandbox-jpeg-only"))["output_format"] == "jpeg"
    refused(walk.generate(output_format="svg"), 400, "invalid_value", "output_format")


@row("G13", "compression from 0 to 100, which does something to JPEG and WebP only")
def _(walk: Walk) -> None:
    for form in ("jpeg", "webp"):
        lengths = [
            len(made(walk.generate(output_format=form, output_compression=level, seed=1))["data"][0]["b64_json"])
            for level in (10, 100)
        ]
        assert lengths[0] < lengths[1]
    made(walk.generate(output_format="png", output_compression=10))
    refused(walk.generate(output_compression=101), 400, "integer_above_max_value", "output_compression")
    refused(walk.generate(output_compression=-1), 400, "integer_below_min_value", "output_compression")


@row("G14", "a transparent background where the model can, else a 400; the other words never hurt")
def _(walk: Walk) -> None:
    body = made(walk.generate(model="gpt-image-2", size="1024x1024", background="transparent"))
    assert opened(body["data"][0]).getextrema()[-1][0] == 0
    refused(walk.generate(background="transparent"), 400, "unsupported_parameter", "background")
    for word in ("opaque", "auto"):
        made(walk.generate(background=word))
    refused(walk.generate(background="green"), 400, "invalid_value", "background")
    both = {"background": "transparent", "output_format": "jpeg"}
    refused(walk.generate(model="gpt-image-2", **both), 400, (), ("background", "output_format"))


@row("G15", "up to three partial pictures, which mean nothing without a stream")
def _(walk: Walk) -> None:
    refused(walk.generate(partial_images=4, stream=True), 400, "integer_above_max_value", "partial_images")
    refused(walk.generate(partial_images=-1), 400, "integer_below_min_value", "partial_images")
    made(walk.generate(partial_images=3))


@row("G16", "a size that a model is said to make is made to the pixel")
def _(walk: Walk) -> None:
    for model, size in ((MODEL, "256x384"), (MODEL, "1000x600"), ("sandbox-fixed-sizes", "768x1344"),
                        ("gpt-image-2", "1536x1024"), ("gemini-2.5-flash-image", "832x1248")):  # fmt: skip
        body = made(walk.generate(model=model, size=size))
        assert body["size"] == "{}x{}".format(*opened(body["data"][0]).size) == size


@row("G17", "where the nearest size is taken, the answer and the bill are of the true one")
def _(walk: Walk) -> None:
    body = made(walk.generate(model="sandbox-fixed-sizes", size="1300x700", size_policy="nearest"))
    assert body["size"] == "{}x{}".format(*opened(body["data"][0]).size) == "1344x768"
    assert body["metadata"]["line_items"][0]["quantity"] == "0.984375"  # of 2^20 pixels
