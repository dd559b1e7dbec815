"""No body, however strange, is answered with a 5xx, and every refusal is an error object."""

import asyncio
import json
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.api import build_app, fields, routes
from tests.router.api.conftest import KEY, Key
from tests.router.api.fake import FakeGateway, mask, picture

PNG = picture()
APP = build_app(routes(FakeGateway(), keys=[Key()]))
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
tempting: st.SearchStrategy[Any] = st.sampled_from(
    ["auto", "1024x1024", "0x0", "url", "b64_json", "png", "jpeg", "transparent", "high", "16:9", "1K", "square_hd",
     "true", "", "1", 0, 1, 4, 10, 11, -1, 2**63, 2**64, 1.0, 1e308, True, [], {}, None]
)  # fmt: skip
names = st.sampled_from(sorted(fields.KINDS)) | st.text(max_size=12)
objects = st.dictionaries(names, tempting | anything, max_size=10)
near_misses = st.builds(lambda more: {"prompt": "a", "model": "gpt-image-2"} | more, objects)


def send(path: str, content: bytes, content_type: str) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(APP)
        async with httpx.AsyncClient(transport=transport, base_url="http://router.test") as client:
            return await client.post(
                path, content=content, headers={"Content-Type": content_type, "Authorization": f"Bearer {KEY}"}
            )

    return asyncio.run(go())


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        assert "event: error" not in response.text
        return
    body = response.json()
    if response.status_code >= 400:
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert isinstance(body["error"]["message"], str)
        assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)
    elif response.status_code == 202:
        assert body["status"] in ("processing", "completed")  # what takes no time may have ended
    else:
        assert body["data"]


@QUICK
@given(near_misses)
def test_json_objects(body: dict[str, Any]) -> None:
    check(send("/v1/images/generations", json.dumps(body).encode(), "application/json"))


@QUICK
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_json_bytes(body: bytes) -> None:
    for path in ("/v1/images/generations", "/v1/images/edits"):
        check(send(path, body, "application/json"))


@QUICK
@given(near_misses, anything | st.lists(st.fixed_dictionaries({"image_url": st.text() | anything})), anything)
def test_json_edits(body: dict[str, Any], images: Any, masked: Any) -> None:
    check(send("/v1/images/edits", json.dumps(body | {"images": images, "mask": masked}).encode(), "application/json"))


pictures = st.sampled_from([PNG, picture(form="jpeg"), picture(form="webp"), mask(), b"", b"\x89PNG"])
damaged = st.builds(
    lambda data, at, cut, byte: data[: at % (len(data) + 1)] + byte + data[(at + cut) % (len(data) + 1) :],
    pictures, st.integers(0, 400), st.integers(0, 20), st.binary(max_size=3),
)  # fmt: skip
headers = st.sampled_from(
    [b'Content-Disposition: form-data; name="%s"', b'content-disposition: form-data; name="%s"; filename="a;b\\"c"',
     b"Content-Disposition: form-data; name=%s", b"Content-Disposition: form-data; filename*=utf-8''%s"]
)  # fmt: skip
part_names = st.sampled_from([b"image", b"image[]", b"image[1]", b"mask", b"prompt", b"model", b"n", b"size"]) | (
    names.map(lambda name: name.encode("utf-8", "surrogatepass"))
)
values = pictures | damaged | st.binary(max_size=20) | st.sampled_from([b"a", b"gpt-image-2", b"1", b"1024x1024"])
parts = st.builds(lambda head, name, value: head % name + b"\r\n\r\n" + value, headers, part_names, values)
boundaries = st.sampled_from([b"X", b"----LangChain4j", b"a b", b"'"])


@QUICK
@given(boundaries, st.lists(parts, max_size=6), st.binary(max_size=4), st.integers(0, 30))
def test_forms(boundary: bytes, content: list[bytes], junk: bytes, cut: int) -> None:
    good = [b'Content-Disposition: form-data; name="prompt"\r\n\r\na',
            b'Content-Disposition: form-data; name="model"\r\n\r\ngpt-image-2']  # fmt: skip
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in [*good, *content])
    body += b"--" + boundary + b"--\r\n" + junk
    body = body[: len(body) - cut] if cut < 20 else body
    for path in ("/v1/images/edits", "/v1/images/variations"):
        check(send(path, body, f'multipart/form-data; boundary="{boundary.decode()}"'))


@QUICK
@given(st.binary(max_size=200), st.text(st.characters(codec="latin-1"), max_size=30).map(lambda t: t.encode("latin-1")))
def test_form_bytes(body: bytes, boundary: bytes) -> None:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(APP)
        async with httpx.AsyncClient(transport=transport, base_url="http://router.test") as client:
            kind = b"multipart/form-data; boundary=" + boundary.replace(b"\r", b"").replace(b"\n", b"")
            return await client.post(
                "/v1/images/edits",
                content=b"--" + boundary + body,
                headers=[(b"Content-Type", kind), (b"Authorization", b"Bearer " + KEY.encode())],
            )

    check(asyncio.run(go()))
