"""What a client gets for a good request, byte by byte where clients are strict. Ids quote the contract."""

import base64
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import pytest

from pricing import ImageSize
from router.api import Exchange
from router.api.wire import parse_generation
from router.blob import Blob
from router.types import GeneratedImage, Operation
from tests.router.api.fake import MODELS, FakeGateway, mask, picture

pytestmark = pytest.mark.anyio

GENERATE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
OK = {"prompt": "a cat", "model": "flux.2-dev-turbo"}
PNG = picture()


async def post(client: httpx.AsyncClient, body: dict[str, Any], **options: Any) -> dict[str, Any]:
    response = await client.post(GENERATE, json=body, **options)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def edit(client: httpx.AsyncClient, *files: tuple[str, Any], path: str = EDIT, **fields: str) -> httpx.Response:
    sent: list[Any] = [(name, (None, value.encode())) for name, value in fields.items()]
    return await client.post(path, files=[*files, *sent])


# --- the body ---------------------------------------------------------------------------------------------------


async def test_r1_r2_r9_r10_the_body(client: httpx.AsyncClient) -> None:
    body = await post(client, OK | {"n": 3, "response_format": "b64_json"})
    assert type(body["created"]) is int
    assert body["created"] < 2**32
    assert len(body["data"]) == 3
    assert (body["output_format"], body["size"]) == ("png", "8x6")
    assert body["id"].startswith("req_")
    metadata = body["metadata"]
    assert metadata["cost"] == "0.024"
    assert metadata["cost_currency"] == "USD"
    assert (metadata["model"], metadata["executed_model"]) == ("flux.2-dev-turbo", "fal/flux.2-dev-turbo")
    assert (metadata["provider"], metadata["provider_name"]) == ("fal", "fal.ai")
    assert metadata["line_items"][0]["metric"] == "megapixel"
    assert metadata["attempts"][0]["cost"] == "0.008"
    assert metadata["warnings"][0]["code"] == "size_changed"
    assert metadata["basis"] == "measured"
    assert "routing" not in metadata


async def test_r3_base64_is_plain(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    (item,) = (await post(client, OK | {"response_format": "b64_json"}))["data"]
    assert base64.b64decode(item["b64_json"], validate=True) == gateway.data


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(base64.b64encode(PNG), id="clean"),
        pytest.param(base64.encodebytes(PNG), id="line-breaks"),
        pytest.param(base64.urlsafe_b64encode(PNG), id="url-safe"),
        pytest.param(base64.b64encode(PNG).rstrip(b"="), id="unpadded"),
        pytest.param(b'"' + base64.b64encode(PNG) + b'\\"}', id="quotes"),
    ],
)
async def test_r3_a_providers_base64_is_cleaned(client: httpx.AsyncClient, gateway: FakeGateway, sent: Any) -> None:
    gateway.change["images"] = (GeneratedImage(b64=Blob(sent), format="png"),)
    (item,) = (await post(client, OK | {"response_format": "b64_json"}))["data"]
    assert base64.b64decode(item["b64_json"], validate=True) == PNG


async def test_r3_bytes_are_encoded(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    large = picture(400, 400)
    assert len(large) > 256 * 1024
    gateway.change["images"] = (GeneratedImage(data=large, format="png"), GeneratedImage(data=PNG, format="png"))
    body = await post(client, OK | {"response_format": "b64_json", "n": 2})
    assert [base64.b64decode(item["b64_json"], validate=True) for item in body["data"]] == [large, PNG]


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"response_format": "url"}, {"url"}),
        ({"response_format": "b64_json"}, {"b64_json"}),
        ({}, {"url"}),
        ({"model": "gpt-image-2"}, {"b64_json"}),
    ],
)
async def test_r5_exactly_the_keys_asked_for(client: httpx.AsyncClient, change: dict[str, str], keys: set[str]) -> None:
    assert [set(item) for item in (await post(client, OK | change | {"n": 2}))["data"]] == [keys, keys]


async def test_r5_edits_without_a_word_carry_both(client: httpx.AsyncClient) -> None:
    body = (await edit(client, ("image", PNG), **OK)).json()
    assert set(body["data"][0]) == {"b64_json", "url"}


async def test_r4_r15_urls_are_absolute(make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway) -> None:
    async with make_client() as client:
        url = (await post(client, OK))["data"][0]["url"]
        assert url == "http://router.test/v1/media/abc.png?sig=1"
    async with make_client(public_url="https://pictures.example/") as client:
        assert (await post(client, OK))["data"][0]["url"] == "https://pictures.example/v1/media/abc.png?sig=1"
        gateway.change["images"] = (GeneratedImage(url="https://cdn.example/a.png"),)
        assert (await post(client, OK))["data"][0]["url"] == "https://cdn.example/a.png"


async def test_r6_revised_prompt(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.change["images"] = (
        GeneratedImage(b64=Blob(base64.b64encode(PNG)), url="/x", revised_prompt='a "fluffy" cat 🐈'),
    )
    for form in ("url", "b64_json"):
        (item,) = (await post(client, OK | {"response_format": form}))["data"]
        assert item["revised_prompt"] == 'a "fluffy" cat 🐈'
        assert set(item) == {form, "revised_prompt"}


@pytest.mark.parametrize(
    ("quality", "asked", "echoed"),
    [
        ("high", None, "high"),
        ("auto", None, None),
        ("hd", "hd", None),
        ("standard", None, None),
        ("xhigh", None, None),
        ("xhigh", "xhigh", "xhigh"),
        ("max", "high", None),
        (None, None, None),
    ],
)
async def test_r8_c4_quality(
    client: httpx.AsyncClient, gateway: FakeGateway, quality: str | None, asked: str | None, echoed: str | None
) -> None:
    gateway.change["quality"] = quality
    assert (await post(client, OK | ({"quality": asked} if asked else {}))).get("quality") == echoed


@pytest.mark.parametrize(
    ("background", "echoed"), [("auto", None), ("opaque", "opaque"), ("transparent", "transparent"), (None, None)]
)
async def test_r7_background(
    client: httpx.AsyncClient, gateway: FakeGateway, background: str | None, echoed: str | None
) -> None:
    gateway.change["background"] = background
    assert (await post(client, OK)).get("background") == echoed


DETAILS = {"text_tokens": 20, "image_tokens": 0}
COUNTS = {"input_tokens": 20, "output_tokens": 80, "total_tokens": 100}


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        pytest.param(COUNTS | {"input_tokens_details": DETAILS}, True, id="complete"),
        pytest.param(
            COUNTS | {"input_tokens_details": DETAILS, "output_tokens_details": DETAILS}, True, id="with-output-details"
        ),
        pytest.param(COUNTS, False, id="no-details"),
        pytest.param({"input_tokens": 5}, False, id="partial"),
        pytest.param(COUNTS | {"input_tokens_details": {"text_tokens": 1}}, False, id="half-details"),
        pytest.param(COUNTS | {"input_tokens_details": None}, False, id="null-details"),
        pytest.param(COUNTS | {"input_tokens_details": DETAILS, "total_tokens": "100"}, False, id="text"),
        pytest.param({}, False, id="empty"),
        pytest.param(None, False, id="none"),
    ],
)
async def test_r11_usage_is_complete_or_absent(
    client: httpx.AsyncClient, gateway: FakeGateway, usage: Any, told: bool
) -> None:
    gateway.change["usage"] = usage
    assert (await post(client, OK)).get("usage") == (usage if told else None)


async def test_r11_broken_output_details_do_not_spoil_the_rest(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.change["usage"] = COUNTS | {"input_tokens_details": DETAILS, "output_tokens_details": {"text_tokens": 1}}
    assert (await post(client, OK))["usage"] == COUNTS | {"input_tokens_details": DETAILS}


async def test_r14_nothing_is_null(client: httpx.AsyncClient) -> None:
    body = await post(client, OK)
    assert all(value is not None for value in (*body.values(), *body["metadata"].values(), *body["data"][0].values()))


async def test_what_has_no_price_has_no_cost(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.change = {"basis": "unpriced", "cost_nanos": 0}
    response = await client.post(GENERATE, json=OK)
    assert "x-pixelroute-cost" not in response.headers
    metadata = response.json()["metadata"]
    assert (metadata["basis"], "cost" in metadata) == ("unpriced", False)


async def test_explain(client: httpx.AsyncClient) -> None:
    assert "routing" in (await post(client, OK, headers={"X-Pixelroute-Explain": "1"}))["metadata"]
    response = await client.post(GENERATE + "?explain=true", json=OK)
    assert response.json()["metadata"]["routing"] == {"candidates": []}


async def test_dry_run(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    response = await client.post(GENERATE + "?dryRun=true", json=OK)
    assert (response.status_code, response.json()["estimated"]) == (200, True)
    response = await client.post(EDIT + "?dryRun=true", files=[("image", PNG), ("prompt", (None, b"x"))])
    assert response.status_code == 400  # no model: checked as ever
    response = await client.post(GENERATE + "?dryRun=true", json=OK | {"n": 0})
    assert response.status_code == 400
    assert gateway.requests == []


@pytest.mark.parametrize("query", ["dryRun=yes", "dryRun", "dryrun=1", "explain=2", "dryRun=true&dryRun=x"])
async def test_a_dry_run_is_never_paid_by_mistake(client: httpx.AsyncClient, gateway: FakeGateway, query: str) -> None:
    response = await client.post(f"{GENERATE}?{query}", json=OK)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_value")
    assert gateway.requests == []


# --- headers ----------------------------------------------------------------------------------------------------


async def test_h1_h2_h3_h5_headers(client: httpx.AsyncClient, gateway: FakeGateway, seen: list[Exchange]) -> None:
    first, second = [await client.post(GENERATE, json=OK) for _ in range(2)]
    headers = first.headers
    assert headers["x-request-id"] == first.json()["id"] == gateway.ids[0] == seen[0].request_id
    assert headers["x-request-id"] != second.headers["x-request-id"]
    assert headers["x-request-id"].isascii()
    assert headers["openai-processing-ms"].isdigit()
    assert headers["openai-version"] == "2020-10-01"
    assert headers["x-pixelroute-provider"] == "fal"
    assert headers["x-pixelroute-model"] == "fal/flux.2-dev-turbo"
    assert headers["x-pixelroute-request-id"] == headers["x-request-id"]
    assert headers["x-pixelroute-cost"] == "0.008"
    assert headers["x-pixelroute-attempts"] == "1"
    assert float(headers["x-pixelroute-overhead-ms"]) >= 0
    assert headers["x-pixelroute-reason"] == "cheapest"
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(first.content)
    assert seen[0].body_out == len(first.content)
    assert seen[0].body_in > 0


async def test_h5_an_unprintable_reason_does_no_harm(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.change["reason"] = "günstig\r\nSet-Cookie: x"
    response = await client.post(GENERATE, json=OK)
    assert response.headers["x-pixelroute-reason"] == "g?nstig??Set-Cookie: x"
    gateway.change["reason"] = "x" * 500
    response = await client.post(GENERATE, json=OK)
    assert "x-pixelroute-reason" not in response.headers
    assert response.json()["metadata"]["reason"] == "x" * 500


# --- reading fields ---------------------------------------------------------------------------------------------

ALL = {
    "n": 2, "size": "1024x768", "quality": "high", "output_format": "webp", "output_compression": 80,
    "background": "opaque", "moderation": "low", "style": "vivid", "seed": 42, "response_format": "url",
    "input_fidelity": "high",
}  # fmt: skip


async def test_every_field_arrives(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    await post(client, OK | ALL | {"user": "u", "safety_identifier": "s", "guidance_scale": 3.5, "n": 2.0})
    request = gateway.requests[0]
    for name, value in ALL.items():
        assert getattr(request, name) == (ImageSize(1024, 768) if name == "size" else value), name
    assert request.user == "s"
    assert request.extra == {"guidance_scale": 3.5}
    assert request.operation is Operation.GENERATE
    await edit(client, ("image", PNG), **OK, **{name: str(value) for name, value in ALL.items()}, user="u", x="3.5")
    request = gateway.requests[1]
    for name, value in ALL.items():
        assert getattr(request, name) == (ImageSize(1024, 768) if name == "size" else value), name
    assert (request.user, request.extra) == ("u", {"x": "3.5"})


async def test_g3_null_is_absent(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    nothing = dict.fromkeys([*ALL, "user", "stream", "partial_images", "provider", "made_up", "svg", "aspect_ratio"])
    await post(client, OK | nothing)
    request = gateway.requests[0]
    assert (request.n, request.size, request.quality, request.stream, request.extra) == (1, None, None, False, {})


async def test_m7_empty_is_absent(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    response = await edit(client, ("image", PNG), **OK, size="", response_format="", n="", x="", stream="")
    assert response.status_code == 200
    assert (gateway.requests[0].n, gateway.requests[0].size, gateway.requests[0].extra) == (1, None, {})


async def test_g4_unknown_fields_are_the_providers(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    more = {"loras": [{"path": "x", "scale": 0.5}], "negative_prompt": "dog", "complexity": "low", "frame_count": 4}
    await post(client, OK | more)
    assert gateway.requests[0].extra == more


async def test_g6_any_unicode(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    prompt = "a\x00b 🐈\u202e\ud83e".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    await post(client, OK | {"prompt": prompt})
    assert gateway.requests[0].prompt == prompt
    await post(client, OK | {"prompt": "é" * 32000})
    assert len(gateway.requests[1].prompt) == 32000


async def test_g7_default_model(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    gateway.defaults = {Operation.GENERATE: "gpt-image-2", Operation.VARIATION: "gpt-image-2"}
    await post(client, {"prompt": "a"})
    assert (await edit(client, ("image", PNG), path=VARY)).status_code == 200
    assert [request.model for request in gateway.requests] == ["gpt-image-2"] * 2
    assert (await edit(client, ("image", PNG), prompt="x")).json()["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"size": "auto"}, None),
        ({"size": "1x1"}, ImageSize(1, 1)),
        ({"image_size": "landscape_4_3"}, ImageSize(1024, 768)),
        ({"image_size": "portrait_16_9"}, ImageSize(576, 1024)),
        ({"image_size": {"width": 1000, "height": 700}}, ImageSize(1000, 700)),
        ({"image_size": "1536x1024"}, ImageSize(1536, 1024)),
        ({"image_size": "square_hd", "size": "1024x1024"}, ImageSize(1024, 1024)),
        ({"image_size": "square", "size": "auto"}, ImageSize(512, 512)),
        ({"aspect_ratio": "1:1"}, ImageSize(1024, 1024)),
        ({"aspect_ratio": "16:9"}, ImageSize(1360, 768)),
        ({"aspect_ratio": "9:16"}, ImageSize(768, 1360)),
        ({"aspect_ratio": "auto"}, None),
        ({"resolution": "2K"}, ImageSize(2048, 2048)),
        ({"resolution": "0.5 MP", "aspect_ratio": "2:1"}, ImageSize(1024, 512)),
        ({"resolution": "4K", "aspect_ratio": "1:1", "size": "512x512"}, ImageSize(512, 512)),
        ({"aspect_ratio": "4:3", "size": "auto"}, ImageSize(1168, 880)),
    ],
)
async def test_sizes_under_all_their_names(
    client: httpx.AsyncClient, gateway: FakeGateway, fields: dict[str, Any], size: ImageSize | None
) -> None:
    body = await post(client, OK | fields)
    assert gateway.requests[0].size == size
    codes = {warning["code"] for warning in body["metadata"]["warnings"]}
    derived = size is not None and fields.get("size", "auto") == "auto" and "image_size" not in fields
    assert ("size_derived" in codes) == derived
    assert ("parameter_ignored" in codes) == ("resolution" in fields and "size" in fields)


@pytest.mark.parametrize(
    ("body", "headers", "policy"),
    [
        ({}, {}, None),
        ({"size_policy": "fit"}, {}, "fit"),
        ({}, {"X-Pixelroute-Size-Policy": "Nearest"}, "nearest"),
        ({"size_policy": "exact"}, {"X-Pixelroute-Size-Policy": "fit"}, "exact"),
        ({"aspect_ratio": "16:9"}, {}, "nearest"),  # a shape asks for no pixels
        ({"aspect_ratio": "16:9", "size_policy": "exact"}, {}, "exact"),
        ({"aspect_ratio": "16:9", "size": "512x512"}, {}, None),
    ],
)
async def test_g17_the_size_policy(
    client: httpx.AsyncClient,
    gateway: FakeGateway,
    body: dict[str, Any],
    headers: dict[str, str],
    policy: str | None,
) -> None:
    response = await client.post(GENERATE, json=OK | body, headers=headers)
    assert response.status_code == 200, response.text
    assert gateway.requests[0].size_policy == policy


async def test_a_size_policy_that_there_is_not(client: httpx.AsyncClient) -> None:
    for change in ({"json": OK | {"size_policy": "any"}}, {"json": OK, "headers": {"X-Pixelroute-Size-Policy": "any"}}):
        response = await client.post(GENERATE, **change)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "size_policy"


async def test_num_images(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    await post(client, OK | {"num_images": 4})
    await post(client, OK | {"num_images": 4, "n": 4})
    assert [request.n for request in gateway.requests] == [4, 4]


async def test_preferences(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    headers = {
        "X-Pixelroute-Sort": "fastest", "X-Pixelroute-Only": "fal, openai,", "X-Pixelroute-Max-Cost": "0.05",
        "X-Pixelroute-Max-Latency-S": "9", "X-Pixelroute-Allow-Fallbacks": "False",
    }  # fmt: skip
    await post(client, OK, headers=headers)
    body = {"sort": "cheapest", "order": ["a"], "ignore": ["b"], "min_success": 0.9, "max_cost": 0.1}
    await post(client, OK | {"provider": body}, headers=headers)
    first, second = (request.preferences for request in gateway.requests)
    assert (first.sort, first.only, str(first.max_cost)) == ("fastest", ("fal", "openai"), "0.05")
    assert (first.max_latency_s, first.allow_fallbacks) == (9.0, False)
    assert (second.sort, second.order, second.ignore, str(second.max_cost)) == ("cheapest", ("a",), ("b",), "0.1")
    assert (second.min_success, second.only) == (0.9, ("fal", "openai"))
    response = await client.post(GENERATE, json=OK, headers={"X-Pixelroute-Max-Cost": "cheap"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "provider.max_cost")


async def test_tags_by_body_and_by_header(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    headers = {"X-Pixelroute-Require-Tags": "region:eu, fast", "X-Pixelroute-Exclude-Tags": "preview"}
    await post(client, OK, headers=headers)
    await post(client, OK | {"provider": {"exclude_tags": ["non-commercial"]}}, headers=headers)
    first, second = (request.preferences for request in gateway.requests)
    assert (first.require_tags, first.exclude_tags) == (("region:eu", "fast"), ("preview",))
    assert (second.require_tags, second.exclude_tags) == (("region:eu", "fast"), ("non-commercial",))


async def test_models_to_ask_in_turn(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    await post(client, OK | {"models": ["a", "b"]})
    await post(client, {"prompt": "a cat", "models": [OK["model"], "b"]})
    await post(client, OK, headers={"X-Pixelroute-Models": "b, c"})
    await post(client, OK)
    await edit(client, ("image", A), ("models[]", (None, b"b")), **OK)
    asked = [(request.model, request.models) for request in gateway.requests]
    model = OK["model"]
    assert asked == [(model, ("a", "b")), (model, ("b",)), (model, ("b", "c")), (model, None), (model, ("b",))]


@pytest.mark.parametrize(
    ("headers", "more", "deadline_s"),
    [
        ({}, {}, None),
        ({"X-Stainless-Read-Timeout": "20"}, {}, 19.0),  # the answer must be there before the client gives up
        ({"X-Stainless-Timeout": "20"}, {}, 19.0),
        ({"X-Stainless-Read-Timeout": "20"}, {"stream": True}, None),  # where it is the time between two events
        ({"X-Stainless-Read-Timeout": "20"}, {"background": True}, None),
        ({"X-Stainless-Read-Timeout": "none"}, {}, None),
        ({"X-Stainless-Read-Timeout": "20", "X-Pixelroute-Deadline-S": "7.5"}, {"stream": True}, 7.5),
    ],
)
def test_how_long_the_client_waits(headers: dict[str, str], more: dict[str, Any], deadline_s: float) -> None:
    sent = {name.lower().encode(): value.encode() for name, value in headers.items()}
    assert parse_generation(orjson.dumps(OK | more), headers=sent).deadline_s == deadline_s


# --- forms ------------------------------------------------------------------------------------------------------

A, B, C = picture(8, 6), picture(9, 6, "jpeg"), picture(10, 6, "webp")


@pytest.mark.parametrize(
    "files",
    [
        pytest.param([("image", A)], id="one-image"),
        pytest.param([("image[]", A)], id="one-bracket"),
        pytest.param([("image[0]", A)], id="one-index"),
        pytest.param([("image[]", A), ("image[]", B), ("image[]", C)], id="several-brackets"),
        pytest.param([("image", A), ("image", B)], id="several-images"),
        pytest.param([("image", A), ("image[]", B), ("image[2]", C)], id="mixed"),
        pytest.param([("image", A)] * 16, id="sixteen"),
    ],
)
async def test_m1_image_parts(client: httpx.AsyncClient, gateway: FakeGateway, files: list[tuple[str, bytes]]) -> None:
    response = await edit(client, *files, **OK)
    assert response.status_code == 200, response.text
    assert [image.data for image in gateway.requests[0].images] == [data for _, data in files]


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "gif", "avif", "bmp", "tiff"])
async def test_m2_m3_e4_format_and_size_come_from_the_bytes(
    client: httpx.AsyncClient, gateway: FakeGateway, form: str
) -> None:
    response = await edit(client, ("image", ("x.png", picture(30, 20, form), "image/png")), **OK)
    assert response.status_code == 200, response.text
    (image,) = gateway.requests[0].images
    assert (image.format, image.size) == (form, ImageSize(30, 20))


async def test_m4_an_image_without_a_file_name(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    assert (await edit(client, ("image", (None, A)), **OK)).status_code == 200
    assert gateway.requests[0].images[0].data == A


async def test_m5_mask(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    assert (await edit(client, ("image", A), ("mask", mask(8, 6)), ("image", B), **OK)).status_code == 200
    assert gateway.requests[0].mask is not None
    assert gateway.requests[0].mask.size == ImageSize(8, 6)


async def test_m10_markup(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    response = await edit(client, ("image", picture()), ("markup", mask()), **OK)
    assert response.status_code == 200, response.text
    assert gateway.requests[0].markup is not None
    assert gateway.requests[0].markup.data == mask()


async def test_m8_flattened_extras(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    fields = {"obj[a][b]": "1", "obj[c]": "2", "list[]": "x", "provider[sort]": "fastest", "provider[only][]": "fal"}
    await edit(
        client, ("image", A), ("list[]", (None, b"y")), ("again", (None, b"1")), ("again", (None, b"2")), **OK, **fields
    )
    request = gateway.requests[0]
    assert request.extra == {"obj": {"a": {"b": "1"}, "c": "2"}, "list": ["y", "x"], "again": ["1", "2"]}
    assert (request.preferences.sort, request.preferences.only) == ("fastest", ("fal",))


async def test_m8_files_that_mean_nothing_here_are_the_providers(
    client: httpx.AsyncClient, gateway: FakeGateway
) -> None:
    await edit(client, ("image", A), ("control", PNG), ("weights", b"\xff\x00"), **OK)
    control, weights = gateway.requests[0].extra["control"], gateway.requests[0].extra["weights"]
    assert control == "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert weights == "data:application/octet-stream;base64,/wA="


async def test_m9_an_odd_boundary(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    parts = "".join(
        f'------LangChain4j\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in OK.items()
    )
    image = b'------LangChain4j\r\nContent-Disposition: form-data; name="image"; filename="a\\"b;.png"\r\n'
    image += b"Content-Type: image/png\r\n\r\n" + A + b"\r\n------LangChain4j--"
    response = await client.post(
        EDIT,
        content=parts.encode() + image,
        headers={"Content-Type": 'Multipart/Form-Data; Boundary="----LangChain4j"'},
    )
    assert response.status_code == 200, response.text
    assert gateway.requests[0].images[0].data == A


@pytest.mark.parametrize("size", [0, 1, 7, 1000, 65536])
async def test_a_picture_full_of_boundary_beginnings(
    client: httpx.AsyncClient, gateway: FakeGateway, size: int
) -> None:
    tricky = A + b"\r\n--X\r\r\n--XX"[: max(size, 1) % 12] + b"\r\n-" * (size // 3) + b"\r"
    body = b'--XXY\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + tricky + b"\r\n"
    for name, value in OK.items():
        body += f'--XXY\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    body += b"--XXY--\r\n"

    async def pieces() -> Any:
        for at in range(0, len(body), 13):
            yield body[at : at + 13]

    response = await client.post(EDIT, content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=XXY"})
    assert response.status_code == 200, response.text
    assert gateway.requests[0].images[0].data == tricky


async def test_forwarding_what_is_no_picture(
    make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway
) -> None:
    gateway.forwards = True
    async with make_client() as client:
        response = await edit(client, ("image", b"raw file contents"), ("mask", b"raw file contents"), **OK)
    assert response.status_code == 200, response.text
    (image,) = gateway.requests[0].images
    assert (image.data, image.format, image.size) == (b"raw file contents", None, None)
    assert {"input_undecodable"} <= {warning["code"] for warning in response.json()["metadata"]["warnings"]}


async def test_v1_v3_variations(client: httpx.AsyncClient, gateway: FakeGateway) -> None:
    response = await edit(client, ("image", A), path=VARY, model="gpt-image-2", n="2", stream="true")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert gateway.requests[0].operation is Operation.VARIATION
    assert (gateway.requests[0].n, gateway.requests[0].stream) == (2, False)
    response = await edit(client, ("image", A), ("image", A), path=VARY, model="gpt-image-2")
    assert response.json()["error"]["code"] == "array_above_max_length"
    response = await edit(client, path=VARY, model="gpt-image-2")
    assert response.json()["error"]["code"] == "missing_required_parameter"


# --- JSON edits -------------------------------------------------------------------------------------------------


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


async def test_j1_json_edit(make_client: Callable[..., httpx.AsyncClient], gateway: FakeGateway) -> None:
    fetched: list[str] = []

    async def fetch(url: str, *, max_bytes: int) -> bytes:
        fetched.append(url)
        return B

    large = picture(500, 500)
    images = [{"image_url": data_url(A)}, {"image_url": "https://x.example/b.jpg"}, {"image_url": data_url(large)}]
    async with make_client(fetch=fetch) as client:
        body = OK | {"images": images, "mask": {"image_url": data_url(mask())}, "input_fidelity": "high", "n": 2}
        response = await client.post(EDIT, json=body)
    assert response.status_code == 200, response.text
    request = gateway.requests[0]
    assert [image.data for image in request.images] == [A, B, large]
    assert request.mask is not None
    assert request.mask.data == mask()
    assert (fetched, request.operation, request.n) == (["https://x.example/b.jpg"], Operation.EDIT, 2)


BAD_JSON_EDITS: list[tuple[str, Any, str | None]] = [
    ("J4-missing", None, "missing_required_parameter"),
    ("J4-no-array", {"image_url": data_url(A)}, "invalid_type"),
    ("J4-empty", [], "invalid_value"),
    ("J4-strings", [data_url(A)], "invalid_type"),
    ("J4-neither", [{}], "invalid_value"),
    ("J4-both", [{"image_url": data_url(A), "file_id": "f"}], "invalid_value"),
    ("J4-url-number", [{"image_url": 5}], "invalid_type"),
    ("J4-broken-base64", [{"image_url": "data:image/png;base64,%%%"}], "invalid_image_file"),
    ("J4-unpadded-base64", [{"image_url": "data:image/png;base64,abc"}], "invalid_image_file"),
    ("J4-not-base64", [{"image_url": "data:image/png,abcd"}], "invalid_image_file"),
    ("J4-no-comma", [{"image_url": "data:image/png;base64"}], "invalid_image_file"),
    ("J4-non-ascii", [{"image_url": "data:image/png;base64,éééé"}], "invalid_image_file"),
    ("M3-empty", [{"image_url": "data:image/png;base64,"}], "invalid_image_file"),
    ("M3-no-image", [{"image_url": data_url(b"hello")}], "unsupported_file_mimetype"),
    ("J2-file-id", [{"file_id": "file-1"}], "unsupported_parameter"),
    ("J3-ftp", [{"image_url": "ftp://x.example/a.png"}], "invalid_value"),
    ("J3-file", [{"image_url": "file:///etc/passwd"}], "invalid_value"),
    ("J3-no-fetcher", [{"image_url": "https://x.example/a.png"}], "unsupported_value"),
    ("X11-17", [{"image_url": data_url(A)}] * 17, "array_above_max_length"),
]


@pytest.mark.parametrize(
    ("images", "code"), [row[1:] for row in BAD_JSON_EDITS], ids=[row[0] for row in BAD_JSON_EDITS]
)
async def test_bad_json_edit(client: httpx.AsyncClient, gateway: FakeGateway, images: Any, code: str | None) -> None:
    response = await client.post(EDIT, json=OK | {"images": images})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, "images")
    assert gateway.requests == []


async def test_json_edit_needs_a_prompt_and_a_fitting_mask(client: httpx.AsyncClient) -> None:
    good = {"images": [{"image_url": data_url(A)}]}
    assert (await client.post(EDIT, json=good)).json()["error"]["param"] == "prompt"
    response = await client.post(EDIT, json=OK | good | {"mask": {"image_url": data_url(mask(20, 20))}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "mask")
    response = await client.post(EDIT, json=OK | good | {"mask": "x"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "mask")


# --- models -----------------------------------------------------------------------------------------------------


async def test_l1_l3_l4_models(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models", headers={"Content-Type": "application/json"})).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == list(MODELS)
    for model in listed["data"]:
        assert set(model) >= {"id", "object", "created", "owned_by"}
        assert type(model["created"]) is int
        for path in (model["id"], model["id"].replace("/", "%2F")):
            url = httpx.URL("http://router.test").copy_with(raw_path=f"/v1/models/{path}".encode())
            assert (await client.get(url)).json() == model
    missing = await client.get("/v1/models/no%2Fsuch")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_health_readiness_metrics(make_client: Callable[..., httpx.AsyncClient]) -> None:
    problems: dict[str, str] = {}

    async def page(accept: str) -> tuple[bytes, str]:
        return f"asked {accept}\n".encode(), "text/plain; version=0.0.4"

    async with make_client(ready=lambda: problems, metrics=page) as client:
        client.headers.pop("Authorization")
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).status_code == 200
        problems["ledger"] = "disk full"
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["problems"]) == (503, {"ledger": "disk full"})
        response = await client.get("/metrics", headers={"Accept": "text/x"})
        assert (response.text, response.headers["content-type"]) == ("asked text/x\n", "text/plain; version=0.0.4")
        assert response.headers["x-request-id"]
