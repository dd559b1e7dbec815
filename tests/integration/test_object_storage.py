"""The whole router with its pictures in S3-compatible object storage, over the protocol."""

from __future__ import annotations

import httpx
import pytest

from tests.integration.beside import Beside
from tests.integration.process import KEY, RouterProcess
from tests.router.api.fake import picture
from tests.router.s3server import ACCESS, BUCKET, REGION, SECRET, S3Server

GENERATE = "/v1/images/generations"
OK = {"model": "flux.2-dev-turbo", "prompt": "a lake", "size": "512x512"}
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def storage():
    return S3Server()


@pytest.fixture
def router(tmp_path, storage):
    with Beside() as beside:
        more = tmp_path / "s3.yaml"
        more.write_text(
            f"""
            media:
              lifetime_s: 600
              s3:
                bucket: {BUCKET}
                endpoint: {beside.serve(storage.app())}
                region: {REGION}
                prefix: pixelroute
                access_key_env: S3_ID
                secret_key_env: S3_SECRET
            """
        )
        process = RouterProcess(tmp_path, more=more, env={"S3_ID": ACCESS, "S3_SECRET": SECRET})
        yield process
        assert process.stop() == 0
        assert SECRET not in process.log_path.read_text()
        assert not (tmp_path / "media").exists()


def named(storage: S3Server, folder: str) -> list[str]:
    return [key for key in storage.objects if key.startswith(f"pixelroute/{folder}/")]


def test_pictures_are_kept_in_the_bucket(router, storage):
    answer = router.post(GENERATE, OK).json()
    link = answer["data"][0]["url"]
    [key] = named(storage, "pictures")
    assert storage.objects[key].content_type == "image/png"
    picture = httpx.get(link)
    assert picture.content == storage.objects[key].data
    assert picture.headers["content-type"] == "image/png"
    assert picture.headers["cache-control"].startswith("public, max-age=")
    assert 0 < int(picture.headers["cache-control"].partition("max-age=")[2].partition(",")[0]) <= 600
    assert httpx.get(link, headers={"if-none-match": picture.headers["etag"]}).status_code == 304
    part = httpx.get(link, headers={"range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, picture.content[4:12])
    assert httpx.get(link[:-1]).status_code == 404

    # links outlive a restart: their key is in the bucket
    assert router.stop() == 0
    router.start()
    again = link.replace(httpx.URL(link).netloc.decode(), httpx.URL(router.base).netloc.decode())
    assert httpx.get(again).content == picture.content


def test_results_are_remembered_repeated_and_purged(router, storage):
    headers = {"idempotency-key": "once"}
    first = router.post(GENERATE, OK | {"response_format": "b64_json"}, headers=headers)
    assert first.status_code == 200, first.text
    assert router.stop() == 0
    router.start()
    second = router.post(GENERATE, OK | {"response_format": "b64_json"}, headers=headers)
    assert second.headers["idempotent-replayed"] == "true"
    assert second.json()["data"] == first.json()["data"]
    assert sum(calls["total"] for calls in router.calls().values()) == 0  # of the emulators, which restarted as well

    state = f"{router.base}/v1/requests/{first.json()['id']}"
    found = httpx.get(state, headers=HEADERS).json()
    assert found["status"] == "completed"
    assert httpx.delete(state, headers=HEADERS).json()["deleted_pictures"] == 1
    assert named(storage, "pictures") == []
    assert httpx.get(state, headers=HEADERS).status_code == 404


def test_storage_that_fails_takes_no_picture_from_a_client_that_wants_bytes(router, storage):
    source = {"image": ("a.png", picture(64, 64), "image/png")}
    link = router.post(GENERATE, OK).json()["data"][0]["url"]
    storage.failing = True
    edited = router.post("/v1/images/edits", data=OK, files=source).json()
    assert edited["data"][0].keys() == {"b64_json"}
    assert "url_unavailable" in [warning["code"] for warning in edited["metadata"]["warnings"]]
    lost = router.post(GENERATE, OK)
    assert (lost.status_code, lost.json()["error"]["code"]) == (500, "result_lost")
    assert lost.headers["x-should-retry"] == "false"  # it is paid
    away = httpx.get(link, timeout=30)
    assert (away.status_code, away.json()["error"]["code"]) == (503, "storage_unavailable")
    storage.failing = False
    assert httpx.get(link).status_code == 200
