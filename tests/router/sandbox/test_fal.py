"""fal: the official client on the emulator, the queue's rules, both error shapes, the billed quantity."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import fal_client
import fal_client.client
import httpx
import pytest
from PIL import Image

from tests.router.sandbox.running import Hook, Sandbox

TURBO = "fal-ai/flux-2/turbo"
EDIT = "fal-ai/flux-2/turbo/edit"
TYPEWRITER = "A vintage typewriter with paper reading 'Chapter One'"


@pytest.fixture
def fal(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[fal_client.SyncClient]:
    """The official client; its addresses are constants, and https only, so they are replaced."""
    for name, address in (
        ("RUN_URL_FORMAT", f"{sandbox.url}/fal.run/"),
        ("QUEUE_URL_FORMAT", f"{sandbox.url}/queue.fal.run/"),
        ("REST_URL", f"{sandbox.url}/rest.fal.ai"),
        ("CDN_URL", f"{sandbox.url}/v3.fal.media"),
    ):
        monkeypatch.setattr(fal_client.client, name, address)
    client = fal_client.SyncClient(key=sandbox.key("fal"))
    yield client
    client._client.close()


def post(sandbox: Sandbox, endpoint: str, body: Any, url: str = "run", **headers: str) -> httpx.Response:
    auth = {"Authorization": f"Key {sandbox.key('fal')}"}
    return sandbox.http.post(f"{sandbox.base('fal', url)}/{endpoint}", headers=auth | headers, json=body)


def get(sandbox: Sandbox, url: str) -> httpx.Response:
    return sandbox.http.get(url, headers={"Authorization": f"Key {sandbox.key('fal')}"})


def finished(sandbox: Sandbox, ticket: dict[str, Any]) -> httpx.Response:
    """Poll until the status is 200."""
    for _ in range(500):
        reply = get(sandbox, ticket["status_url"])
        assert reply.status_code in (200, 202)
        if reply.status_code == 200:
            return reply
        assert reply.json()["status"] in ("IN_QUEUE", "IN_PROGRESS")
        time.sleep(0.01)
    raise AssertionError("never completed")


def size_of(sandbox: Sandbox, image: dict[str, Any]) -> tuple[int, int]:
    return Image.open(io.BytesIO(sandbox.http.get(image["url"]).content)).size


# The official client


def test_client_run(fal: fal_client.SyncClient, sandbox: Sandbox) -> None:
    result = fal.run(TURBO, arguments={"prompt": TYPEWRITER, "image_size": "landscape_4_3", "seed": 42})
    (image,) = result["images"]
    assert (image["width"], image["height"], image["content_type"]) == (1024, 768, "image/png")
    assert size_of(sandbox, image) == (1024, 768)
    assert result["seed"] == 42
    assert result["has_nsfw_concepts"] == [False]
    assert result["timings"]["inference"] > 0


def test_client_subscribe_and_handle(fal: fal_client.SyncClient) -> None:
    seen: list[Any] = []
    result = fal.subscribe(TURBO, arguments={"prompt": "a"}, with_logs=True, on_queue_update=seen.append)
    assert len(result["images"]) == 1
    assert isinstance(seen[-1], fal_client.Completed)
    assert seen[-1].metrics["inference_time"] > 0
    handle = fal.submit(TURBO, arguments={"prompt": "b"})
    assert len(handle.get()["images"]) == 1
    assert isinstance(fal.status(TURBO, handle.request_id), fal_client.Completed)
    assert fal.result(TURBO, handle.request_id)["prompt"] == "b"


@pytest.mark.anyio
@pytest.mark.usefixtures("fal")
async def test_asynchronous_client_upload_and_edit(sandbox: Sandbox, source: bytes) -> None:
    client = fal_client.AsyncClient(key=sandbox.key("fal"))
    url = await client.upload(source, "image/png", "source.png")
    arguments = {"prompt": "Add a starry night sky to this image", "image_urls": [url]}
    result = await client.subscribe(EDIT, arguments=arguments)
    await (await client._client).aclose()
    assert size_of(sandbox, result["images"][0]) == (1024, 1024)  # square_hd, not the source's size
    assert sandbox.billed("fal") == Decimal("0.016")


def test_client_errors(fal: fal_client.SyncClient, sandbox: Sandbox) -> None:
    with pytest.raises(fal_client.FalClientHTTPError) as wrong:
        fal.run(TURBO, arguments={})
    assert wrong.value.status_code == 422
    with pytest.raises(fal_client.FalClientHTTPError) as failed:
        fal.subscribe(f"{TURBO}--failed", arguments={"prompt": "a"})
    assert (failed.value.status_code, failed.value.error_type) == (500, "internal_error")
    stranger = fal_client.SyncClient(key="someone:else")
    with pytest.raises(fal_client.FalClientHTTPError) as unknown:
        stranger.run(TURBO, arguments={"prompt": "a"})
    stranger._client.close()
    assert unknown.value.status_code == 401


# The seed requests


def test_seed_42_twice_is_the_same_picture(sandbox: Sandbox) -> None:
    body = {"prompt": TYPEWRITER, "image_size": "landscape_4_3", "seed": 42}
    digests = set()
    for _ in range(2):
        image = post(sandbox, TURBO, body).json()["images"][0]
        digests.add(hashlib.sha256(sandbox.http.get(image["url"]).content).digest())
    assert len(digests) == 1


def test_four_pictures_are_four(sandbox: Sandbox) -> None:
    reply = post(sandbox, TURBO, {"prompt": TYPEWRITER, "image_size": "landscape_4_3", "num_images": 4})
    pictures = {sandbox.http.get(image["url"]).content for image in reply.json()["images"]}
    assert len(pictures) == 4
    assert reply.headers["x-fal-billable-units"] == "4"


def test_at_most_four_sources_count(sandbox: Sandbox, source: bytes) -> None:
    uri = "data:image/png;base64," + base64.b64encode(source).decode()
    reply = post(sandbox, EDIT, {"prompt": "mix", "image_urls": [uri] * 6})
    assert reply.headers["x-fal-billable-units"] == "5"


# Money


@pytest.mark.parametrize(
    ("width", "height", "units"),
    [
        (512, 512, 1),
        (1024, 768, 1),
        (1000, 1000, 1),
        (1344, 768, 1),
        (1024, 1024, 1),
        (1200, 1000, 2),
        (1280, 1024, 2),
        (1536, 1024, 2),
        (1920, 1080, 2),
        (2048, 1024, 2),
        (1449, 1448, 3),
        (1536, 1536, 3),
        (2048, 2048, 4),
    ],
)
def test_megapixels_of_the_published_table(sandbox: Sandbox, width: int, height: int, units: int) -> None:
    reply = post(sandbox, TURBO, {"prompt": "a", "image_size": {"width": width, "height": height}, "seed": 1})
    assert reply.headers["x-fal-billable-units"] == str(units)
    assert sandbox.billed("fal") == units * Decimal("0.008")


@pytest.mark.parametrize(
    ("endpoint", "body", "usd"),
    [
        ("fal-ai/flux-2/flash", {"image_size": "square"}, "0.005"),
        ("fal-ai/flux-2", {"image_size": {"width": 1920, "height": 1080}}, "0.024"),
        ("fal-ai/flux-2-pro", {"image_size": "square_hd"}, "0.03"),
        ("fal-ai/flux-2-pro", {"image_size": {"width": 1920, "height": 1080}}, "0.045"),
        ("fal-ai/flux-2-max", {"image_size": {"width": 2048, "height": 2048}}, "0.16"),
        ("fal-ai/flux-2-flex", {"image_size": {"width": 1920, "height": 1080}}, "0.10"),
        ("fal-ai/flux/schnell", {"image_size": "square_hd", "num_images": 4}, "0.012"),
        ("fal-ai/flux/dev", {"image_size": "square"}, "0.025"),
        ("fal-ai/bytedance/seedream/v4/text-to-image", {"image_size": {"width": 1920, "height": 1920}}, "0.03"),
    ],
)
def test_prices_of_the_model_pages(sandbox: Sandbox, endpoint: str, body: dict[str, Any], usd: str) -> None:
    reply = post(sandbox, endpoint, {"prompt": "a", "seed": 1} | body)
    assert reply.status_code == 200, reply.text
    assert sandbox.billed("fal") == Decimal(usd)


@pytest.mark.parametrize(
    ("endpoint", "body", "usd"),
    [
        ("fal-ai/flux-pro/v1.1", {"image_size": "square"}, "0.04"),
        ("openai/gpt-image-2", {"quality": "low", "image_size": "square_hd"}, "0.006"),
        ("openai/gpt-image-2", {"quality": "medium", "image_size": {"width": 1024, "height": 1536}}, "0.042"),
        ("openai/gpt-image-2", {"image_size": "landscape_4_3"}, "0.145"),  # high is the default
        ("openai/gpt-image-2", {"quality": "low", "image_size": {"width": 2560, "height": 1440}}, "0.007"),
        (
            "openai/gpt-image-2.5/flare/text-to-image",
            {"quality": "high", "image_size": "square_hd", "num_images": 2},
            "0.10536",
        ),
        ("openai/gpt-image-2.5/sunburst/text-to-image", {"quality": "max", "image_size": "square_hd"}, "0.21072"),
        ("fal-ai/nano-banana", {"num_images": 2}, "0.078"),
        ("fal-ai/nano-banana-2", {}, "0.08"),
        ("fal-ai/nano-banana-2", {"resolution": "0.5K"}, "0.06"),
        ("fal-ai/nano-banana-2", {"resolution": "2K"}, "0.12"),
        ("fal-ai/nano-banana-pro", {"resolution": "2K"}, "0.15"),
        ("fal-ai/ideogram/v3", {"rendering_speed": "TURBO"}, "0.03"),
        ("fal-ai/ideogram/v3", {}, "0.06"),
        ("fal-ai/ideogram/v3", {"rendering_speed": "QUALITY"}, "0.09"),
        ("fal-ai/recraft/v3/text-to-image", {}, "0.04"),
    ],
)
def test_prices_of_other_models(sandbox: Sandbox, endpoint: str, body: dict[str, Any], usd: str) -> None:
    reply = post(sandbox, endpoint, {"prompt": "a", "seed": 1} | body)
    assert reply.status_code == 200, reply.text
    assert sandbox.billed("fal") == Decimal(usd)


@pytest.mark.parametrize(
    ("endpoint", "body", "usd"),
    [
        ("fal-ai/flux-pro/kontext", {}, "0.04"),
        ("fal-ai/flux-pro/kontext/max", {}, "0.08"),
        ("openai/gpt-image-2/edit", {"quality": "low", "image_size": "square_hd"}, "0.015"),
        ("fal-ai/nano-banana/edit", {}, "0.039"),
        ("fal-ai/bytedance/seedream/v4/edit", {"image_size": {"width": 1024, "height": 1024}}, "0.03"),
    ],
)
def test_prices_of_other_edits(sandbox: Sandbox, source: bytes, endpoint: str, body: dict[str, Any], usd: str) -> None:
    uri = "data:image/png;base64," + base64.b64encode(source).decode()
    inputs = {"image_url": uri} if "kontext" in endpoint else {"image_urls": [uri]}
    reply = post(sandbox, endpoint, {"prompt": "a"} | inputs | body)
    assert reply.status_code == 200, reply.text
    assert sandbox.billed("fal") == Decimal(usd)
    assert post(sandbox, endpoint, {"prompt": "a"}).status_code == 422


def test_googles_models_refuse_and_describe_in_their_own_way(sandbox: Sandbox) -> None:
    reply = post(sandbox, "fal-ai/nano-banana", {"prompt": "a", "aspect_ratio": "16:9"}).json()
    assert reply["description"]
    assert reply["images"][0]["width"] is None
    assert size_of(sandbox, reply["images"][0]) == (1344, 768)
    refused = post(sandbox, "fal-ai/nano-banana", {"prompt": "nsfw"})
    assert (refused.status_code, refused.json()["detail"][0]["type"]) == (422, "no_media_generated")


@pytest.mark.parametrize(
    "body",
    [
        {"image_size": {"width": 1000, "height": 1024}},
        {"image_size": {"width": 3840, "height": 1024}},
        {"image_size": "square"},
        {"quality": "best"},
    ],
)
def test_what_gpt_image_does_not_offer(sandbox: Sandbox, body: dict[str, Any]) -> None:
    reply = post(sandbox, "openai/gpt-image-2", {"prompt": "a"} | body)
    assert reply.status_code == 422, reply.text


def test_inputs_are_counted_each_on_its_own(sandbox: Sandbox, source: bytes, large: bytes) -> None:
    uris = ["data:image/png;base64," + base64.b64encode(data).decode() for data in (source, source, large)]
    post(sandbox, EDIT, {"prompt": "a", "image_urls": uris[:2]})
    assert sandbox.billed("fal") == Decimal("0.024")
    post(sandbox, EDIT, {"prompt": "a", "image_urls": uris[2:]})
    assert sandbox.billed("fal") == Decimal("0.048")


def test_a_wrong_size_is_billed_as_made(sandbox: Sandbox) -> None:
    body = {"prompt": "a", "image_size": {"width": 2048, "height": 2048}}
    reply = post(sandbox, TURBO, body, **{"X-Sandbox-Fault": "wrong_size; width=512; height=512"})
    assert reply.headers["x-fal-billable-units"] == "1"
    assert sandbox.billed("fal") == Decimal("0.008")


def test_pricing_endpoint(sandbox: Sandbox) -> None:
    (price,) = get(sandbox, f"{sandbox.url}/api.fal.ai/v1/models/pricing?endpoint_id={TURBO}").json()["prices"]
    assert price == {"endpoint_id": TURBO, "unit_price": 0.008, "unit": "megapixels", "currency": "USD"}


# The queue


def test_queue_states_and_paths(sandbox: Sandbox) -> None:
    submitted = post(sandbox, TURBO, {"prompt": "a"}, "queue")
    ticket = submitted.json()
    assert (submitted.status_code, ticket["status"], ticket["queue_position"]) == (200, "IN_QUEUE", 0)
    assert ticket["status_url"].endswith(f"/queue.fal.run/fal-ai/flux-2/requests/{ticket['request_id']}/status")
    status = finished(sandbox, ticket)
    assert status.json()["status"] == "COMPLETED"
    assert "x-fal-billable-units" not in status.headers
    result = get(sandbox, ticket["response_url"])
    assert result.headers["x-fal-billable-units"] == "1"
    assert result.headers["x-fal-request-id"] == ticket["request_id"]
    whole_path = ticket["status_url"].replace("fal-ai/flux-2/", "fal-ai/flux-2/turbo/")
    assert get(sandbox, whole_path).status_code == 404


def test_queue_is_asked_too_early_and_for_nothing(sandbox: Sandbox) -> None:
    ticket = post(sandbox, f"{TURBO}--stuck", {"prompt": "a"}, "queue").json()
    assert get(sandbox, ticket["response_url"]).status_code == 400
    assert get(sandbox, ticket["status_url"]).status_code == 202
    assert get(sandbox, ticket["status_url"].replace(ticket["request_id"], "none")).status_code == 404


def test_completed_does_not_mean_success(sandbox: Sandbox) -> None:
    ticket = post(sandbox, f"{TURBO}--failed", {"prompt": "a"}, "queue").json()
    status = finished(sandbox, ticket).json()
    assert (status["status"], status["error_type"]) == ("COMPLETED", "internal_error")
    result = get(sandbox, ticket["response_url"])
    assert (result.status_code, result.json()["error_type"]) == (500, "internal_error")
    ticket = post(sandbox, TURBO, {"image_size": "square"}, "queue").json()
    assert finished(sandbox, ticket).json()["error"] == "Invalid status code: 422"
    assert get(sandbox, ticket["response_url"]).json()["detail"][0]["type"] == "missing"
    assert sandbox.billed("fal") == 0


def test_cancel(sandbox: Sandbox) -> None:
    ticket = post(sandbox, f"{TURBO}--stuck", {"prompt": "a"}, "queue").json()
    auth = {"Authorization": f"Key {sandbox.key('fal')}"}
    reply = sandbox.http.put(ticket["cancel_url"], headers=auth)
    assert (reply.status_code, reply.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert finished(sandbox, ticket).json()["error_type"] == "client_cancelled"
    reply = sandbox.http.put(ticket["cancel_url"], headers=auth)
    assert (reply.status_code, reply.json()) == (400, {"status": "ALREADY_COMPLETED"})
    reply = sandbox.http.put(ticket["cancel_url"].replace(ticket["request_id"], "none"), headers=auth)
    assert (reply.status_code, reply.json()) == (404, {"status": "NOT_FOUND"})
    assert sandbox.billed("fal") == 0


def test_status_stream(sandbox: Sandbox) -> None:
    ticket = post(sandbox, TURBO, {"prompt": "a"}, "queue").json()
    with sandbox.http.stream(
        "GET", f"{ticket['status_url']}/stream", headers={"Authorization": f"Key {sandbox.key('fal')}"}
    ) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        states = [json.loads(line[6:])["status"] for line in reply.iter_lines() if line.startswith("data: ")]
    assert states[-1] == "COMPLETED"
    assert "COMPLETED" not in states[:-1]


def test_faults_of_later_exchanges(sandbox: Sandbox) -> None:
    ticket = post(sandbox, f"{TURBO}--server_error:status=502:on=poll", {"prompt": "a"}, "queue").json()
    assert get(sandbox, ticket["status_url"]).status_code == 502
    sandbox.fault("truncated", provider="fal", on="result", count=1)
    ticket = post(sandbox, TURBO, {"prompt": "a"}, "queue").json()
    finished(sandbox, ticket)
    with pytest.raises(ValueError, match=r"."):
        get(sandbox, ticket["response_url"]).json()
    assert get(sandbox, ticket["response_url"]).json()["images"]


def test_start_deadline_of_the_caller(sandbox: Sandbox) -> None:
    ticket = post(sandbox, TURBO, {"prompt": "a"}, "queue", **{"X-Fal-Request-Timeout": "-1"}).json()
    assert finished(sandbox, ticket).json()["error_type"] == "request_timeout"
    result = get(sandbox, ticket["response_url"])
    assert (result.status_code, result.headers["x-fal-request-timeout-type"]) == (504, "user")
    in_time = post(sandbox, TURBO, {"prompt": "a"}, "queue", **{"X-Fal-Request-Timeout": "30.0"}).json()
    assert "error_type" not in finished(sandbox, in_time).json()
    for path in ("queue", "run"):
        reply = post(sandbox, TURBO, {"prompt": "a"}, path, **{"X-Fal-Request-Timeout": "30s"})
        assert (reply.status_code, reply.headers["x-fal-error-type"]) == (400, "bad_request")


# Inputs and refusals


@pytest.mark.parametrize(
    ("body", "where", "word"),
    [
        ({}, ["body", "prompt"], "missing"),
        ({"prompt": 5}, ["body", "prompt"], "value_error"),
        ({"prompt": "a", "num_images": 5}, ["body", "num_images"], "less_than_equal"),
        ({"prompt": "a", "num_images": 0}, ["body", "num_images"], "greater_than_equal"),
        ({"prompt": "a", "num_images": "2"}, ["body", "num_images"], "value_error"),
        ({"prompt": "a", "image_size": "huge"}, ["body", "image_size"], "one_of"),
        (
            {"prompt": "a", "image_size": {"width": 256, "height": 512}},
            ["body", "image_size", "width"],
            "greater_than_equal",
        ),
        ({"prompt": "a", "output_format": "gif"}, ["body", "output_format"], "one_of"),
        ({"prompt": "a", "seed": 1.5}, ["body", "seed"], "value_error"),
    ],
)
def test_validation_is_a_list(sandbox: Sandbox, body: dict[str, Any], where: list[str], word: str) -> None:
    reply = post(sandbox, TURBO, body)
    assert reply.status_code == 422
    assert [(wrong["loc"], wrong["type"]) for wrong in reply.json()["detail"]] == [(where, word)]


def test_inputs_that_cannot_be_loaded(sandbox: Sandbox) -> None:
    for url, word in (
        (f"{sandbox.url}/fal.media/files/none.png", "file_download_error"),
        ("ftp://example.com/x.png", "file_download_error"),
        ("data:image/png;base64,RXhhbXBsZSBkYXRh", "image_load_error"),
    ):
        reply = post(sandbox, EDIT, {"prompt": "a", "image_urls": [url]})
        assert (reply.status_code, reply.json()["detail"][0]["type"]) == (422, word)
    assert post(sandbox, EDIT, {"prompt": "a"}).json()["detail"][0]["type"] == "missing"
    assert sandbox.billed("fal") == 0


def test_string_details_and_infrastructure_errors(sandbox: Sandbox) -> None:
    assert post(sandbox, "fal-ai/unknown", {"prompt": "a"}).status_code == 404
    bearer = sandbox.http.post(
        f"{sandbox.base('fal', 'run')}/{TURBO}", headers=sandbox.bearer("fal"), json={"prompt": "a"}
    )
    assert bearer.status_code == 401
    assert isinstance(bearer.json()["detail"], str)
    down = post(sandbox, f"{TURBO}--down", {"prompt": "a"})
    assert down.json()["error_type"] == down.headers["x-fal-error-type"] == "runner_scheduling_failure"
    busy = post(sandbox, f"{TURBO}--429", {"prompt": "a"})
    assert busy.status_code == 429
    assert "retry-after" not in busy.headers  # fal documents none
    assert post(sandbox, f"{TURBO}--no_credit", {"prompt": "a"}).status_code == 403


def test_flux_refuses_with_200_and_bills(sandbox: Sandbox) -> None:
    reply = post(sandbox, TURBO, {"prompt": "something nsfw", "image_size": "square", "num_images": 2})
    assert reply.status_code == 200
    assert reply.json()["has_nsfw_concepts"] == [True, True]
    picture = Image.open(io.BytesIO(sandbox.http.get(reply.json()["images"][0]["url"]).content))
    assert picture.getextrema() == ((0, 0), (0, 0), (0, 0))
    assert sandbox.billed("fal") == Decimal("0.016")


def test_partner_models_refuse_with_422(sandbox: Sandbox) -> None:
    reply = post(sandbox, "fal-ai/flux-2-pro", {"prompt": "something nsfw"})
    assert (reply.status_code, reply.json()["detail"][0]["type"]) == (422, "content_policy_violation")
    assert sandbox.billed("fal") == 0


def test_defaults_and_sync_mode(sandbox: Sandbox) -> None:
    image = post(sandbox, TURBO, {"prompt": "a", "sync_mode": True, "output_format": "jpeg"}).json()["images"][0]
    head, _, payload = image["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(payload))).size == (1024, 768) == (image["width"], image["height"])


def test_legacy_upload(sandbox: Sandbox, source: bytes) -> None:
    headers = {"Authorization": f"Key {sandbox.key('fal')}"}
    body = {"file_name": "a.png", "content_type": "image/png"}
    urls = sandbox.http.post("/rest.fal.ai/storage/upload/initiate?storage_type=gcs", json=body, headers=headers).json()
    put = sandbox.http.put(urls["upload_url"], content=source, headers={"content-type": "image/png"})
    assert put.status_code == 200
    assert sandbox.http.get(urls["file_url"]).content == source


def test_webhook_once_or_twice(sandbox: Sandbox, hook: Hook) -> None:
    post(sandbox, f"{TURBO}?fal_webhook={hook.url}", {"prompt": "a", "image_size": "square"}, "queue")
    (message,) = hook.wait(1)
    assert (message["status"], message["error"]) == ("OK", None)
    assert message["payload"]["images"][0]["width"] == 512
    body = {"prompt": "a [fault: failed, duplicate_webhook]"}
    post(sandbox, f"{TURBO}?fal_webhook={hook.url}", body, "queue")
    messages = hook.wait(3)[1:]
    assert [message["status"] for message in messages] == ["ERROR", "ERROR"]
    assert messages[0] == messages[1]
    assert messages[0]["error"] == "Invalid status code: 500"
