from decimal import Decimal
from email.parser import BytesParser
from email.policy import HTTP

import httpx
import orjson
import pybase64
import pytest

from pricing import ImageSize, Reported
from router.blob import Blob
from router.errors import Billed, ErrorKind
from router.providers.openai import OpenAI
from router.types import InputImage, Operation
from tests.helpers import PNG, PNG_BYTES, SIZE, documented, edit_request, image_request, play, reply, target

OPENAI = OpenAI({})
B64 = pybase64.b64encode(PNG_BYTES).decode()
QUALITIES = {"low": "low", "medium": "medium", "high": "high", "hd": "high"}


def gpt(model: str = "gpt-image-2", **changes):
    values = {"endpoints": dict.fromkeys(Operation, model), "mask": True, "transparent": True}
    return target("openai", model, **({"qualities": QUALITIES, "streams": True, "max_inputs": 16} | values | changes))


def host(**changes):
    """A plain OpenAI-compatible host, as an operator declares it."""
    options = {"response_format": "b64_json", **changes.pop("options", {})}
    return target("gpu-fast", "flux.2-dev-turbo", **({"options": options, "formats": ("png",)} | changes))


def generated():
    return documented("openai/generated")


def form_of(request: httpx.Request) -> list[tuple[str, str | None, str, bytes]]:
    """(name, file name, media type, content) of each part, read by the standard library's MIME parser."""
    head = b"Content-Type: " + request.headers["content-type"].encode() + b"\r\n\r\n"
    message = BytesParser(policy=HTTP).parsebytes(head + request.read())
    parts = []
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        parts.append((name, part.get_filename(), part.get_content_type(), part.get_payload(decode=True)))
    return parts


def test_generation_is_one_call_with_tokens_and_usage():
    played = play(OPENAI.run(image_request(n=2, quality="hd", user="u-1"), gpt()), generated())
    (call,) = played.calls
    assert (call.request.method, str(call.request.url)) == ("POST", "https://api.openai.com/v1/images/generations")
    assert call.billable
    assert not call.stream
    assert played.sent() == {
        "model": "gpt-image-2",
        "prompt": "A serene mountain landscape at sunset",
        "n": 2,
        "size": "1024x1024",
        "quality": "high",
        "user": "u-1",
    }
    result = played.result
    assert result.tokens == {"text_input": 10, "image_input": 40, "image_output": 7024}
    assert result.usage == orjson.loads(generated().content)["usage"]
    assert (result.quality, result.background, result.provider_request_id) == ("high", "opaque", "req_011CUxyz")
    (image,) = result.images
    assert (image.size, image.format) == (SIZE, "png")
    assert pybase64.b64decode(bytes(image.b64)) == PNG_BYTES


def test_base64_of_a_large_answer_is_taken_as_it_lies():
    picture = pybase64.b64encode(bytes(range(256)) * 40)
    body = {"created": 1, "data": [{"b64_json": picture.decode()}, {"b64_json": picture.decode()}]}
    first, second = play(OPENAI.run(image_request(n=2), gpt()), reply(body)).result.images
    assert first.b64 == second.b64 == picture


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[{"b64_json" : "%b"}]}',
        b'{"b64_json":null,"data":[{"b64_json":"%b","revised_prompt":"say \\"b64_json\\": no"}]}',
        b'{"x":"ends in \\"b64_json","data":[{"b64_json":"%b"}]}',
        b'{"data":[{"b64_json":"' + B64.replace("/", "\\/").encode() + b'"}],"y":"%b"}',
    ],
)
def test_lifting_pictures_reads_the_same_as_a_parser(body):
    picture = pybase64.b64encode(PNG_BYTES * 40)
    content = body % picture
    item = orjson.loads(content)["data"][0]["b64_json"]
    (image,) = play(OPENAI.run(image_request(), gpt()), reply(content)).result.images
    assert image.b64 is not None
    text = bytes(image.b64).decode()
    assert text == item


@pytest.mark.parametrize("junk", ["not base64!", "AAAA====", "A\u00e9AA", "", "x" * 5001, "A" * 4000 + '\\u0000"'])
def test_a_picture_that_is_no_base64_is_unusable(junk):
    failure = play(OPENAI.run(image_request(), gpt()), reply({"data": [{"b64_json": junk}]})).failure()
    assert failure.kind is ErrorKind.UNUSABLE


def test_data_uri_in_b64_json_and_size_auto():
    body = {"size": "auto", "data": [{"b64_json": f"data:image/webp;base64,{B64}"}]}
    (image,) = play(OPENAI.run(image_request(), host()), reply(body)).result.images
    assert (image.b64, image.format, image.size) == (B64.encode(), "webp", None)


def test_a_plain_host_is_sent_little_and_may_answer_with_urls():
    request = image_request(output_format="png", quality="auto", response_format="url", seed=7)
    played = play(OpenAI({"api": "http://gpu-fast.example:8080/v1/"}).run(request, host()),
                  documented("openai/compatible_url"))  # fmt: skip
    assert str(played.calls[0].request.url) == "http://gpu-fast.example:8080/v1/images/generations"
    assert played.sent() == {
        "response_format": "b64_json",
        "model": "flux.2-dev-turbo",
        "prompt": "A serene mountain landscape at sunset",
        "n": 1,
        "size": "1024x1024",
        "seed": 7,
    }
    assert played.result.images[0].url == "http://gpu-fast.example:8080/generated/1.png"
    assert played.result.usage is None
    assert played.result.tokens == {}


def test_what_a_gpt_image_model_does_not_take_is_left_out_with_warnings():
    request = image_request(response_format="url", style="vivid", seed=1, input_fidelity="high", moderation="low")
    played = play(OPENAI.run(request, gpt(options={"response_format": "b64_json"})), generated())
    assert not {"response_format", "style", "seed", "input_fidelity"} & played.sent().keys()
    assert played.sent()["moderation"] == "low"
    assert {warning.param for warning in played.result.warnings} == {"style", "seed", "input_fidelity"}


def test_formats_compression_background():
    request = image_request(output_format="webp", output_compression=60, background="transparent")
    sent = play(OPENAI.run(request, gpt()), generated()).sent()
    assert (sent["output_format"], sent["output_compression"], sent["background"]) == ("webp", 60, "transparent")


def test_unknown_fields_pass_but_not_those_that_decide_cost_or_place():
    extra = {"complexity": "high", "n": 10, "model": "other", "stream": True, "webhook_url": "https://x", "svg": None}
    played = play(OPENAI.run(image_request(extra=extra), gpt()), generated())
    sent = played.sent()
    assert sent["complexity"] == "high"
    assert (sent["n"], sent["model"]) == (1, "gpt-image-2")
    assert not {"stream", "webhook_url", "svg"} & sent.keys()
    assert {warning.param for warning in played.result.warnings} == {"n", "model", "stream", "webhook_url"}


def test_declared_parameters_are_renamed_and_others_dropped():
    listed = image_request(extra={"steps": 4, "sampler": "x"})
    assert play(OPENAI.run(listed, host(options={"parameters": ["steps"]})), generated()).sent()["steps"] == 4
    options = {"parameters": {"steps": "num_inference_steps"}}
    played = play(OPENAI.run(image_request(extra={"steps": 4, "sampler": "x"}), host(options=options)), generated())
    assert played.sent()["num_inference_steps"] == 4
    assert not {"steps", "sampler", "parameters"} & played.sent().keys()
    assert [warning.param for warning in played.result.warnings] == ["sampler"]


# --- edits ------------------------------------------------------------------------------------------------------------


def test_edit_with_one_picture_is_multipart_that_any_parser_reads():
    played = play(OPENAI.run(edit_request(mask=PNG, prompt='A "starry"\r\nsky ☆', extra={"flag": True}), gpt()),
                  generated())  # fmt: skip
    call = played.calls[0]
    assert str(call.request.url) == "https://api.openai.com/v1/images/edits"
    assert call.billable
    assert form_of(call.request) == [
        ("flag", None, "text/plain", b"true"),
        ("model", None, "text/plain", b"gpt-image-2"),
        ("prompt", None, "text/plain", 'A "starry"\r\nsky ☆'.encode()),
        ("n", None, "text/plain", b"1"),
        ("size", None, "text/plain", b"1024x1024"),
        ("image", "image.png", "image/png", PNG_BYTES),
        ("mask", "mask.png", "image/png", PNG_BYTES),
    ]


@pytest.mark.parametrize(("options", "part"), [({}, "image[]"), ({"image_part": "image"}, "image")])
def test_several_pictures(options, part):
    played = play(OPENAI.run(edit_request(images=(PNG, PNG)), host(options=options)), generated())
    names = [name for name, file, _, _ in form_of(played.calls[0].request) if file]
    assert names == [part, part]


def test_a_large_edit_is_sent_in_pieces_of_known_length():
    large = InputImage(Blob(b"\x89PNG", *(bytes([n]) * 100_000 for n in range(10))), "png", SIZE)
    request = play(OPENAI.run(edit_request(images=(large, large)), gpt()), generated()).calls[0].request
    pieces = list(request.stream)
    assert {id(piece) for piece in large.data} <= {id(piece) for piece in pieces}, "the picture is not copied"
    assert int(request.headers["content-length"]) == sum(map(len, pieces))
    assert request.headers["host"] == "api.openai.com"
    assert [content for name, _, _, content in form_of(request) if name == "image[]"] == [large.data] * 2


@pytest.mark.anyio
async def test_pieces_stream_the_same_bytes_asynchronously():
    large = InputImage(Blob(bytes(300_001)), "png", SIZE)
    request = play(OPENAI.run(edit_request(images=(large,)), gpt()), generated()).calls[0].request
    whole = b"".join(request.stream)
    assert b"".join([piece async for piece in request.stream]) == whole


def test_a_picture_cannot_bring_parts_of_its_own():
    played = play(OPENAI.run(edit_request(), gpt()), generated())
    again = play(OPENAI.run(edit_request(), gpt()), generated())
    boundaries = {each.calls[0].request.headers["content-type"] for each in (played, again)}
    assert len(boundaries) == 2, "a boundary that is known could be forged"


def test_field_names_cannot_end_their_header():
    extra = {'x"\r\nContent-Type: text/evil\r\n\r\n': "1"}
    request = play(OPENAI.run(edit_request(extra=extra), gpt()), generated()).calls[0].request
    assert b'\r\nContent-Disposition: form-data; name="x%22%0D%0AContent-Type: text/evil%0D%0A' in request.read()


@pytest.mark.parametrize(("model", "sent"), [("gpt-image-1.5", True), ("gpt-image-2", False)])
def test_input_fidelity_only_where_it_exists(model, sent):
    played = play(OPENAI.run(edit_request(input_fidelity="high"), gpt(model)), generated())
    names = [part[0] for part in form_of(played.calls[0].request)]
    assert ("input_fidelity" in names) is sent


def test_json_edit_for_hosts_without_multipart():
    xai = target("xai", "grok", options={"edit_as": "json", "size_as": "aspect_ratio", "response_format": "url"})
    played = play(OPENAI.run(edit_request(size=ImageSize(1920, 1080)), xai), documented("openai/xai"))
    sent = played.sent()
    assert sent["image"] == {"type": "image_url", "url": f"data:image/png;base64,{B64}"}
    assert (sent["aspect_ratio"], sent["resolution"]) == ("16:9", "2k")
    assert "size" not in sent
    assert played.result.reported == Reported(Decimal(200000000), "tick")
    assert played.result.images[0].format == "jpeg"
    assert played.result.images[0].url == "https://imgen.x.ai/xai-1.jpeg"
    two = play(OPENAI.run(edit_request(images=(PNG, PNG)), xai), documented("openai/xai"))
    assert len(two.sent()["images"]) == 2


def test_fields_that_a_host_rejects_are_left_out():
    where = host(options={"omit": ["seed", "style", "user"]})
    played = play(OPENAI.run(image_request(seed=1, style="vivid", user="u"), where), generated())
    assert not {"seed", "style", "user", "omit"} & played.sent().keys()
    assert {warning.param for warning in played.result.warnings} == {"seed", "style"}


def test_markup_goes_where_there_is_a_place_for_it_and_nowhere_else():
    played = play(OPENAI.run(edit_request(markup=PNG), gpt(markup=True)), generated())
    assert form_of(played.calls[0].request)[-1] == ("markup", "markup.png", "image/png", PNG_BYTES)
    for without in (gpt(), gpt(markup=True, options={"edit_as": "json"})):
        played = play(OPENAI.run(edit_request(markup=PNG), without))
        assert (played.failure().kind, played.failure().param) == (ErrorKind.BAD_REQUEST, "markup")


def test_mask_is_refused_where_it_would_be_ignored():
    played = play(OPENAI.run(edit_request(mask=PNG), host()))
    assert not played.calls
    assert (played.failure().kind, played.failure().param) == (ErrorKind.BAD_REQUEST, "mask")


# --- streams ----------------------------------------------------------------------------------------------------------

PICTURE = pybase64.b64encode(PNG_BYTES * 30).decode()
USAGE = {"input_tokens": 8, "output_tokens": 1856, "total_tokens": 1864,
         "input_tokens_details": {"text_tokens": 8, "image_tokens": 0}}  # fmt: skip
PARTIAL = {"type": "image_generation.partial_image", "b64_json": PICTURE, "created_at": 1, "output_format": "png",
           "partial_image_index": 0, "quality": "high", "size": "1024x1024", "background": "opaque"}  # fmt: skip
COMPLETED = {"type": "image_generation.completed", "b64_json": PICTURE, "created_at": 1, "output_format": "png",
             "quality": "high", "size": "1024x1024", "background": "opaque", "usage": USAGE}  # fmt: skip


def stream_of(*events, newline=b"\n", status=200):
    lines = []
    for event in events:
        lines += [b"event: " + event["type"].encode(), b"data: " + orjson.dumps(event), b""]
    content = newline.join([*lines, b""])
    return httpx.Response(status, headers={"content-type": "text/event-stream; charset=utf-8"}, content=content)


STREAMING = image_request(stream=True, partial_images=2)


@pytest.mark.parametrize("chunk", [1, 7, 1000, 10**6])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_stream_gives_partials_then_the_result(chunk, newline):
    events = [PARTIAL, PARTIAL | {"partial_image_index": 1}, COMPLETED]
    played = play(OPENAI.run(STREAMING, gpt()), stream_of(*events, newline=newline), chunk=chunk)
    assert played.calls[0].stream
    assert played.calls[0].billable
    assert (played.sent()["stream"], played.sent()["partial_images"]) == (True, 2)
    assert [partial.index for partial in played.partials] == [0, 1]
    assert all(bytes(partial.image.b64) == PICTURE.encode() for partial in played.partials)
    assert played.result.tokens == {"text_input": 8, "image_output": 1856}
    assert played.result.usage == USAGE
    assert played.result.images[0].size == SIZE


def test_a_host_that_does_not_stream_after_all():
    played = play(OPENAI.run(STREAMING, gpt()), generated())
    assert played.result.tokens["image_output"] == 7024


def test_partials_are_asked_for_only_where_they_help():
    for request, where in (
        (image_request(stream=True, partial_images=0), gpt()),
        (image_request(stream=True, partial_images=2, n=2), gpt()),
        (STREAMING, gpt(streams=False)),
    ):
        played = play(OPENAI.run(request, where), generated())
        assert not played.calls[0].stream
        assert "stream" not in played.sent()


@pytest.mark.parametrize(
    ("error", "kind", "billed"),
    [
        ({"code": "moderation_blocked", "type": "image_generation_user_error"}, ErrorKind.REFUSED, None),
        ({"code": "insufficient_quota", "type": "insufficient_quota"}, ErrorKind.AUTH, Billed.NO),
        ({"code": "rate_limit_exceeded"}, ErrorKind.RATE_LIMITED, Billed.NO),
        ({"code": None, "type": "server_error"}, ErrorKind.SERVER_ERROR, None),
        ({"code": "invalid_value", "type": "invalid_request_error"}, ErrorKind.BAD_REQUEST, Billed.NO),
    ],
)
def test_an_error_inside_a_stream(error, kind, billed):
    failure = play(OPENAI.run(STREAMING, gpt()), stream_of(PARTIAL, {"type": "error", "error": error})).failure()
    assert (failure.kind, failure.billed) == (kind, billed)


@pytest.mark.parametrize("ending", [b"", b'data: {"type":', b"data: [DONE]\n\n", b": still there\n\n"])
def test_a_stream_that_breaks_off_may_be_billed(ending):
    answer = stream_of(PARTIAL)
    broken = httpx.Response(200, headers=answer.headers, content=answer.content + ending)
    played = play(OPENAI.run(STREAMING, gpt()), broken)
    assert len(played.partials) == 1
    assert (played.failure().kind, played.failure().billed) == (ErrorKind.NO_ANSWER, Billed.MAYBE)


def test_an_error_before_the_stream():
    body = {"error": {"message": "Slow down.", "type": "requests", "code": "rate_limit_exceeded", "param": None}}
    failure = play(OPENAI.run(STREAMING, gpt()), reply(body, 429, {"retry-after": "20"})).failure()
    assert (failure.kind, failure.retry_after_s) == (ErrorKind.RATE_LIMITED, 20.0)


# --- failures ---------------------------------------------------------------------------------------------------------


def error(code=None, type="invalid_request_error", param=None, **more):
    return {"error": {"message": "Something to read.", "type": type, "param": param, "code": code, **more}}


FILTERED = {"inner_error": {"code": "ResponsibleAIPolicyViolation", "content_filter_results": {}}}
ERRORS = [
    # status, body -> kind, billed, code, param    (OpenAI error table; Azure how-to; docs.x.ai; 2026-11-20)
    (400, error("invalid_value", param="size"), ErrorKind.BAD_REQUEST, Billed.NO, "invalid_value", "size"),
    (400, error("unknown_parameter", param="foo"), ErrorKind.BAD_REQUEST, Billed.NO, "unknown_parameter", "foo"),
    (400, error("moderation_blocked", "image_generation_user_error"), ErrorKind.REFUSED, None,
     "moderation_blocked", None),
    (400, error("billing_hard_limit_reached", "billing_limit_user_error"), ErrorKind.AUTH, Billed.NO,
     "billing_hard_limit_reached", None),
    (401, error("invalid_api_key"), ErrorKind.AUTH, Billed.NO, "invalid_api_key", None),
    (403, error(), ErrorKind.AUTH, Billed.NO, "invalid_request_error", None),
    (404, error("model_not_found"), ErrorKind.AUTH, Billed.NO, "model_not_found", None),
    (429, error("rate_limit_exceeded", "requests"), ErrorKind.RATE_LIMITED, Billed.NO, "rate_limit_exceeded", None),
    (429, error("insufficient_quota", "insufficient_quota"), ErrorKind.AUTH, Billed.NO, "insufficient_quota", None),
    (500, error(None, "server_error"), ErrorKind.SERVER_ERROR, None, "server_error", None),
    (503, error(None, "server_error"), ErrorKind.SERVER_ERROR, None, "server_error", None),
    (409, error(), ErrorKind.SERVER_ERROR, None, "invalid_request_error", None),
    (422, {"detail": "size must be WxH"}, ErrorKind.BAD_REQUEST, Billed.NO, None, None),
    # Azure
    (400, error("content_policy_violation", None, **FILTERED), ErrorKind.REFUSED, None,
     "ResponsibleAIPolicyViolation", None),
    (400, error("contentFilter", None), ErrorKind.REFUSED, None, "contentFilter", None),
    (429, {"error": {"code": "429", "message": "retry after 26 seconds"}}, ErrorKind.RATE_LIMITED, Billed.NO,
     "429", None),
    (404, {"error": {"code": "DeploymentNotFound", "message": "x"}}, ErrorKind.AUTH, Billed.NO,
     "DeploymentNotFound", None),
    # xAI's other shapes
    (400, {"code": "Client specified an invalid argument", "error": "Argument not supported: size"},
     ErrorKind.BAD_REQUEST, Billed.NO, "Client specified an invalid argument", None),
    (400, {"code": "Content violates usage guidelines (content moderation)", "error": "x"}, ErrorKind.REFUSED, None,
     "Content violates usage guidelines (content moderation)", None),
    (403, {"error": "no"}, ErrorKind.AUTH, Billed.NO, None, None),
    # Ark
    (400, error("InputTextSensitiveContentDetected", "BadRequest"), ErrorKind.REFUSED, None,
     "InputTextSensitiveContentDetected", None),
    (403, error("AccountOverdueError", "Forbidden"), ErrorKind.AUTH, Billed.NO, "AccountOverdueError", None),
    # edges
    (524, b"<html>a timeout occurred</html>", ErrorKind.NO_ANSWER, None, None, None),
    (529, b"", ErrorKind.RATE_LIMITED, Billed.NO, None, None),
    (302, b"", ErrorKind.SERVER_ERROR, None, None, None),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "kind", "billed", "code", "param"), ERRORS)
def test_error_table(status, body, kind, billed, code, param):
    failure = play(OPENAI.run(image_request(), gpt()), reply(body, status)).failure()
    assert (failure.kind, failure.billed, failure.code, failure.param) == (kind, billed, code, param)


@pytest.mark.parametrize(
    "body", [b"", b"<html>welcome</html>", b'{"data":[{"b64_json":"iVBOR', b'{"data":NaN}', b"\xff\xfe", b"["]
)
def test_a_success_that_cannot_be_read_may_be_billed(body):
    failure = play(OPENAI.run(image_request(), gpt()), reply(body)).failure()
    assert failure.kind is ErrorKind.NO_ANSWER
    assert failure.billed is None, "the table's MAYBE, unless the provider's facts know better"


@pytest.mark.parametrize("body", [{}, {"data": []}, {"data": [{}]}, [], None, {"data": [{"url": "ftp://x"}]}])
def test_a_success_without_a_picture(body):
    assert play(OPENAI.run(image_request(), gpt()), reply(body)).failure().kind is ErrorKind.UNUSABLE


def test_an_empty_success_keeps_its_tokens_as_evidence():
    failure = play(OPENAI.run(image_request(), gpt()), documented("openai/generated", data=[])).failure()
    assert failure.evidence is not None
    assert failure.evidence.tokens["image_output"] == 7024


def test_withheld_pictures_at_compatible_hosts():
    withheld = documented("openai/xai", data=[{"url": "", "respect_moderation": False}])
    failure = play(OPENAI.run(image_request(), host()), withheld).failure()
    assert failure.kind is ErrorKind.REFUSED
    assert failure.evidence is not None
    assert failure.evidence.reported == Reported(Decimal(200000000), "tick")

    failure = play(OPENAI.run(image_request(n=2), host()), documented("openai/ark_partly_refused")).failure()
    assert failure.kind is ErrorKind.REFUSED
    assert failure.evidence is not None
    assert failure.evidence.images[0].size == ImageSize(2048, 2048)


# --- Azure's classic form ---------------------------------------------------------------------------------------------

AZURE = OpenAI({"api": "https://house.openai.azure.com"})


def deployed(name="studio pictures", **changes):
    return gpt(name, sku="gpt-image-2", options={"api_version": "2025-04-01-preview"}, **changes)


def test_azures_classic_form_names_the_deployment_in_the_path_and_not_in_the_body():
    played = play(AZURE.run(image_request(seed=7, moderation="low"), deployed()), generated())
    assert str(played.calls[0].request.url) == (
        "https://house.openai.azure.com/openai/deployments/studio%20pictures/images/generations"
        "?api-version=2025-04-01-preview"
    )
    body = played.sent()
    assert "model" not in body
    assert (body["moderation"], "seed" in body) == ("low", False)  # what the sku names is a GPT image model
    assert played.result.tokens["image_output"]


def test_azures_classic_edit_is_the_same_form_below_edits():
    played = play(AZURE.run(edit_request(), deployed("gpt")), generated())
    assert str(played.calls[0].request.url).endswith("/deployments/gpt/images/edits?api-version=2025-04-01-preview")
    assert "model" not in {name for name, *_ in form_of(played.calls[0].request)}


def test_azures_v1_form_is_openais_own_at_another_address():
    v1 = OpenAI({"api": "https://house.openai.azure.com/openai/v1"})
    played = play(v1.run(image_request(), gpt("gpt-image-2")), generated())
    assert str(played.calls[0].request.url) == "https://house.openai.azure.com/openai/v1/images/generations"
    assert played.sent()["model"] == "gpt-image-2"
