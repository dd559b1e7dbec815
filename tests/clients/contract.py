"""What an application does with OpenAI's Python client, for every version of it from 1.109 on.

    python contract.py http://127.0.0.1:8000/v1 KEY

Runs against ``pixelroute serve --sandbox`` with whatever ``openai`` is installed; needs nothing else. Exits with 1 and
a line per failure.
"""

from __future__ import annotations

import base64
import io
import struct
import sys
import traceback
import urllib.request
import warnings
import zlib
from collections.abc import Callable

import openai

BASE, KEY = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=BASE, api_key=KEY)
CHECKS: list[Callable[[], None]] = []
MODEL = "flux.2-dev-turbo"


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS.append(function)
    return function


def png(width: int, height: int, alpha: int = 255) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes((90, 120, 200, alpha)) * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def size_of(data: bytes) -> str:
    assert data[:8] == b"\x89PNG\r\n\x1a\n", data[:16]
    return "{}x{}".format(*struct.unpack(">II", data[16:24]))


def fails(kind: type[openai.APIError], call: Callable[[], object]) -> openai.APIError:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


@check
def generate_url() -> None:
    answer = client.images.generate(model=MODEL, prompt="a mountain", size="1024x1024", n=2)
    assert len(answer.data) == 2
    for image in answer.data:
        with urllib.request.urlopen(image.url) as response:
            assert response.headers["content-type"] == "image/png"
            assert size_of(response.read()) == "1024x1024"
    assert answer._request_id
    assert isinstance(answer.created, int)


@check
def generate_base64() -> None:
    answer = client.images.generate(model=MODEL, prompt="a mountain", size="512x512", response_format="b64_json")
    assert size_of(base64.b64decode(answer.data[0].b64_json, validate=True)) == "512x512"
    assert answer.data[0].url is None


@check
def generate_gpt_image() -> None:
    answer = client.images.generate(
        model="openai/gpt-image-2",  # pinned, since only OpenAI itself reports tokens
        prompt="a mountain",
        size="1024x1024",
        quality="low",
        output_format="png",
        response_format="b64_json",
        user=None,
    )
    assert size_of(base64.b64decode(answer.data[0].b64_json)) == "1024x1024"
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


@check
def generate_legacy() -> None:
    answer = client.images.generate(model="dall-e-3", prompt="a mountain", quality="standard", style="vivid")
    assert answer.data[0].url or answer.data[0].b64_json


@check
def raw_response() -> None:
    raw = client.images.with_raw_response.generate(model=MODEL, prompt="a mountain")
    assert raw.headers["x-pixelroute-provider"]
    assert raw.parse().data


@check
def edit() -> None:
    for image in (png(64, 64), io.BytesIO(png(64, 64)), ("source.png", png(64, 64)), [png(64, 64), png(32, 32)]):
        answer = client.images.edit(model=MODEL, image=image, prompt="add stars", size="1024x1024")
        assert size_of(base64.b64decode(answer.data[0].b64_json)) == "1024x1024"
        assert answer.data[0].url.startswith("http")


@check
def edit_with_mask() -> None:
    answer = client.images.edit(model="gpt-image-2", image=png(64, 64), mask=png(64, 64, 0), prompt="add stars")
    assert answer.data[0].b64_json


@check
def variation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        answer = client.images.create_variation(model="sandbox-variations", image=png(64, 64), n=1)
    assert answer.data[0].url


@check
def models() -> None:
    names = [model.id for model in client.models.list()]
    assert MODEL in names
    pinned = next(name for name in names if "/" in name)
    assert client.models.retrieve(pinned).id == pinned


@check
def stream() -> None:
    events = list(client.images.generate(model="gpt-image-2", prompt="a", stream=True, partial_images=2))
    kinds = [event.type for event in events]
    assert kinds[-1] == "image_generation.completed", kinds
    assert set(kinds[:-1]) <= {"image_generation.partial_image"}
    assert size_of(base64.b64decode(events[-1].b64_json))


@check
def errors() -> None:
    error = fails(openai.NotFoundError, lambda: client.images.generate(model="no-such-model", prompt="a"))
    assert (error.code, error.param) == ("model_not_found", "model")
    assert error.request_id
    error = fails(openai.BadRequestError, lambda: client.images.generate(model=MODEL, prompt="a", size="0x0"))
    assert (error.code, error.param, error.type) == ("invalid_value", "size", "invalid_request_error")
    error = fails(openai.BadRequestError, lambda: client.images.edit(model=MODEL, prompt="a", image=b"no picture"))
    assert error.param == "image"
    error = fails(openai.BadRequestError, lambda: client.images.generate(model="sandbox-refused", prompt="a"))
    assert error.code == "moderation_blocked"
    wrong = openai.OpenAI(base_url=BASE, api_key="sk-wrong")
    fails(openai.AuthenticationError, lambda: wrong.models.list())
    error = fails(openai.InternalServerError, lambda: client.images.generate(model="sandbox-down", prompt="a"))
    assert error.code == "all_providers_failed"


def main() -> int:
    failed = 0
    for function in CHECKS:
        try:
            function()
        except Exception:
            failed += 1
            print(f"openai {openai.__version__}: {function.__name__} failed\n{traceback.format_exc(limit=-2)}")
    print(f"openai {openai.__version__}: {len(CHECKS) - failed} of {len(CHECKS)} passed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
