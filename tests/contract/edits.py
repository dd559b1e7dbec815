"""Edits as forms and as JSON, and variations."""

from __future__ import annotations

import base64

import httpx

from tests.contract.walk import (
    EDIT,
    MODEL,
    PICTURE,
    SMALL,
    VARY,
    Walk,
    data_url,
    made,
    mask,
    opened,
    picture,
    refused,
    row,
)


@row("E1", "a form or JSON, nothing else")
def _(walk: Walk) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = walk.http.post(EDIT, content=b"prompt=x", headers={"content-type": kind})
        refused(answer, 400, "unsupported_content_type")
    made(walk.edit())
    made(walk.edit_json())


@row("E2", "an edit needs a prompt")
def _(walk: Walk) -> None:
    refused(walk.edit(without=("prompt",)), 400, "missing_required_parameter", "prompt")
    refused(walk.edit_json("prompt"), 400, "missing_required_parameter", "prompt")
    refused(walk.edit(prompt="é" * 32_001), 400, "string_above_max_length", "prompt")


@row("E3", "a model that cannot edit says so")
def _(walk: Walk) -> None:
    refused(walk.edit(model="walk-draws-only"), 400, ("unsupported_model", "invalid_value"), "model")


@row("E4", "the source pictures' pixels are known, and priced")
def _(walk: Walk) -> None:
    body = made(walk.edit(("image", picture(2048, 1024)), ("image", picture(1024, 512)), model=f"gpu-fast/{MODEL}"))
    inputs = [item for item in body["metadata"]["line_items"] if item["type"] == "input"]
    assert sum(float(item["quantity"]) for item in inputs) == 2.5


# --- forms ------------------------------------------------------------------------------------------------------


@row("M1", "pictures under any of their names, alone, repeated and mixed, in order")
def _(walk: Walk) -> None:
    one, two, three = picture(64, 64), picture(96, 64), picture(128, 64)
    for parts in (
        [("image", one)],
        [("image[]", one)],
        [("image[0]", one), ("image[1]", two)],
        [("image", one), ("image", two)],
        [("image[]", one), ("image", two), ("image[7]", three)],
    ):
        made(walk.edit(*parts))
    fields = {"prompt": (None, b"x"), "model": (None, MODEL.encode()), "size": (None, SMALL.encode())}
    mixed = [("image", one), ("prompt", fields["prompt"]), ("image[]", two), *list(fields.items())[1:]]
    body = made(walk.http.post(EDIT + "?explain=true", files=mixed))
    inputs = [item for item in body["metadata"]["line_items"] if item["type"] == "input"]
    assert sum(float(item["quantity"]) for item in inputs) == (64 * 64 + 96 * 64) / 2**20


@row("M2", "what a part says of its type and name is not believed")
def _(walk: Walk) -> None:
    for name, kind in (
        ("upload", "application/octet-stream"),
        ("/home/me/cat.png", "image/gif"),
        ("x.txt", "text/html"),
    ):
        made(walk.edit(("image", (name, PICTURE, kind))))


@row("M3", "PNG, JPEG and WebP; anything else, cut or empty is a 400")
def _(walk: Walk) -> None:
    for form in ("PNG", "JPEG", "WEBP"):
        made(walk.edit(("image", picture(form=form))))
    wrong = ("invalid_image_file", "unsupported_file_mimetype")
    for data in (b"", b"no picture", b"<html>", picture(400, 400)[:-200], PICTURE[:20], b"\x89PNG\r\n\x1a\n"):
        refused(walk.edit(("image", data)), 400, wrong, "image")


@row("M4", "one to sixteen pictures, or as many as the model takes; without a file name as well")
def _(walk: Walk) -> None:
    refused(walk.form(EDIT, {"prompt": "x", "model": MODEL}), 400)
    refused(walk.edit(("other", PICTURE)), 400, "missing_required_parameter", "image")
    refused(walk.edit(*[("image[]", PICTURE)] * 17), 400, (), "image")
    refused(walk.edit(*[("image[]", PICTURE)] * 5), 400, (), "image")  # four at this model
    made(walk.edit(*[("image[]", PICTURE)] * 4))
    answer = walk.edit(("image", (None, PICTURE)))
    assert answer.status_code == 200 or refused(answer, 400, "invalid_type")


@row("M5", "one mask, a PNG whose transparent part may change, as large as the first picture, never dropped")
def _(walk: Walk) -> None:
    masked = {"model": "walk-takes-a-mask"}
    made(walk.edit(("image", PICTURE), ("mask", mask()), **masked))
    for wrong in (picture(), picture(form="JPEG"), mask(32, 32), b"x", b""):
        refused(walk.edit(("image", PICTURE), ("mask", wrong), **masked), 400, (), "mask")
    refused(walk.edit(("image", PICTURE), ("mask", mask()), ("mask", mask()), **masked), 400, (), "mask")
    refused(walk.edit(("image", PICTURE), ("mask", mask())), 400, "unsupported_parameter", "mask")


@row("M6", "in a form numbers and booleans are text")
def _(walk: Walk) -> None:
    made(walk.edit(n="2", output_format="jpeg", output_compression="50", partial_images="0", stream="False"), 2)
    assert walk.edit(stream="TRUE").headers["content-type"].startswith("text/event-stream")
    for name, value in (("n", "two"), ("n", "1.5"), ("n", "२"), ("stream", "yes"), ("partial_images", "x")):
        refused(walk.edit(**{name: value}), 400, "invalid_type", name)


@row("M7", "an empty field is absent; an n of 0 is not")
def _(walk: Walk) -> None:
    made(walk.edit(size="", response_format="", n="", user="", quality="", background=""))
    refused(walk.edit(n="0"), 400, "integer_below_min_value", "n")


@row("M8", "unknown fields are taken, flattened ones as well")
def _(walk: Walk) -> None:
    made(walk.edit(**{"strength": "0.5", "look[name]": "x", "tags[]": "a", "deep[a][b]": "1"}))
    made(walk.edit(("image", PICTURE), ("control_image", PICTURE), model="walk-takes-a-mask"))


@row("M9", "a broken form is a 400, an odd boundary is none")
def _(walk: Walk) -> None:
    fields = b"".join(
        b'------LangChain4j\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % pair
        for pair in ((b"prompt", b"x"), (b"model", MODEL.encode()), (b"size", SMALL.encode()), (b"image", PICTURE))
    )
    whole = fields + b"------LangChain4j--\r\n"
    kind = "multipart/form-data; boundary=----LangChain4j"
    made(walk.http.post(EDIT, content=whole, headers={"content-type": kind}))
    broken = [(whole[:-30], kind), (b"\x00\xff" * 500, kind), (b"", kind), (whole, "multipart/form-data")]
    broken += [(whole, "multipart/form-data; boundary="), (whole, "multipart/form-data; boundary=other")]
    for content, said in broken:
        refused(walk.http.post(EDIT, content=content, headers={"content-type": said}), 400)


@row("M10", "the fields of a generation, input_fidelity, and a markup where a model takes one")
def _(walk: Walk) -> None:
    made(walk.edit(quality="high", background="opaque", moderation="low", user="u", input_fidelity="high", n="1"))
    made(walk.edit(input_fidelity="low"))
    refused(walk.edit(input_fidelity="medium"), 400, "invalid_value", "input_fidelity")
    source = picture(1024, 1024)
    over = ("markup", mask(1024, 1024))
    newest = {"model": "gpt-image-2.5-flare", "size": "1024x1024"}
    made(walk.edit(("image", source), over, **newest))
    refused(walk.edit(("image", source), over, ("mask", mask(1024, 1024)), **newest), 400, (), "markup")
    refused(walk.edit(("image", source), over), 400, "unsupported_parameter", "markup")


# --- JSON -------------------------------------------------------------------------------------------------------


@row("J1", "one to sixteen pictures as data URLs")
def _(walk: Walk) -> None:
    made(
        walk.edit_json(
            images=[{"image_url": data_url(picture(form="JPEG"), "image/jpeg")}, {"image_url": data_url(PICTURE)}]
        )
    )
    made(walk.edit_json(model="walk-takes-a-mask", mask={"image_url": data_url(mask())}, input_fidelity="high", n=1))
    refused(walk.edit_json(images=[{"image_url": data_url(PICTURE)}] * 17), 400, (), "images")


@row("J2", "there are no files to name")
def _(walk: Walk) -> None:
    refused(walk.edit_json(images=[{"file_id": "file-1"}]), 400, "unsupported_parameter", "images")


@row(
    "J3",
    "a URL leads to the public web and nowhere else, by name, by number and by redirect",
    "tests/router/test_transport_hosts.py::test_no_redirect_leads_inside",
)
def _(walk: Walk) -> None:
    own = f"http://127.0.0.1:{walk.router.port}/v1/models"
    elsewhere = ["ftp://a.example/x", "file:///etc/passwd", "http://user:word@127.0.0.1/x", "http://169.254.169.254/x"]
    inside = ["http://localhost/x", "http://[::1]/x", "http://10.0.0.1/x", "http://0x7f.1/x"]
    for url in (own, *elsewhere, *inside):
        refused(walk.edit_json(images=[{"image_url": url}]), 400, (), "images")


@row("J4", "whatever is wrong with the list of pictures is a 400 that names it")
def _(walk: Walk) -> None:
    refused(walk.edit_json("images"), 400, (), "images")
    good = {"image_url": data_url(PICTURE)}
    items = [good | {"file_id": "file-1"}, {}, "x", {"image_url": 5}, {"image_url": "data:image/png,plain"}]
    for images in (None, [], "x", good, *([item] for item in items), [{"image_url": "data:image/png;base64,%%"}]):
        refused(walk.edit_json(images=images), 400, (), "images")


# --- variations -------------------------------------------------------------------------------------------------


@row("V1", "a variation is of one picture, by the default model if none is named")
def _(walk: Walk) -> None:
    def vary(*files: tuple[str, bytes], **fields: str) -> httpx.Response:
        return walk.form(VARY, {"size": SMALL} | fields, *files)

    made(vary(("image", PICTURE)))
    made(vary(("image", PICTURE), model=MODEL, n="2", response_format="b64_json", user="u"), 2)
    refused(vary(("other", PICTURE)), 400, "missing_required_parameter", "image")
    refused(vary(("image", PICTURE), ("image", PICTURE)), 400, (), "image")
    refused(vary(("image", b"no picture")), 400, (), "image")


@row("V2", "variations where the catalogue says so, else a 400 that names the model")
def _(walk: Walk) -> None:
    body = made(walk.form(VARY, {"model": "sandbox-variations", "response_format": "b64_json"}, ("image", PICTURE)))
    assert opened(body["data"][0]).size == (1024, 1024)
    assert base64.b64decode(body["data"][0]["b64_json"]) != PICTURE
    refused(walk.form(VARY, {"model": "walk-draws-only"}, ("image", PICTURE)), 400, "unsupported_model", "model")


@row("V3", "a variation is never streamed")
def _(walk: Walk) -> None:
    made(walk.form(VARY, {"model": MODEL, "size": SMALL, "stream": "true"}, ("image", PICTURE)))
