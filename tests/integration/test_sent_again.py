"""A connection that breaks while the picture is being made: the official client sends again, and one is paid for."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import httpx
import pytest
from openai import APIConnectionError, OpenAI

from tests.integration.process import KEY, RouterProcess, until

MODEL = "sandbox-slow"
ASKED: dict[str, Any] = {"model": MODEL, "prompt": "a lake"}


class Breaking:
    """Passes connections on to the router, and breaks as many of the first as it is told once a provider is at work."""

    def __init__(self, router: RouterProcess, breaks: int = 1, calls: int = 1) -> None:
        self._router, self._breaks, self._calls = router, breaks, calls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/v1"
        self.connections = 0
        self._open = [self._listening]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._go(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._open:
            _shut(end)
        for thread in self._threads:
            thread.join()
        for end in self._open:
            end.close()

    def _go(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self._router.port))
            self._open += [client, server]
            self._go(self._pass_on, client, server)
            self._go(self._pass_on, server, client)
            if self.connections <= self._breaks:
                self._go(self._break, client, server)

    def _break(self, *ends: socket.socket) -> None:
        until(lambda: self._router.calls()["gpu-fast"]["total"] >= self._calls)
        for end in ends:
            _shut(end)

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is
        end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def own_router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    process = RouterProcess(tmp_path_factory.mktemp("sent-again"), speed=0.05)
    yield process
    assert process.stop() == 0


@pytest.fixture
def router(own_router: RouterProcess) -> RouterProcess:
    own_router.reset()
    return own_router


def official(way: Breaking, **more: Any) -> OpenAI:
    return OpenAI(base_url=way.url, api_key=KEY, timeout=30.0, **more)


@pytest.mark.parametrize("breaks", [1, 2])
def test_the_clients_own_second_try_gets_the_first_ones_picture(router: RouterProcess, breaks: int) -> None:
    with Breaking(router, breaks) as way, official(way) as client:
        answer = client.images.generate(**ASKED, response_format="b64_json")
    assert way.connections == breaks + 1
    assert answer.data
    assert base64.b64decode(answer.data[0].b64_json or "").startswith(b"\x89PNG")
    assert router.calls()["gpu-fast"]["total"] == router.calls()["gpu-fast"]["billed"] == 1


def test_also_when_it_comes_after_the_picture(router: RouterProcess) -> None:
    with Breaking(router) as way, official(way, max_retries=0) as client, pytest.raises(APIConnectionError):
        client.images.generate(**ASKED)
    until(lambda: router.calls()["gpu-fast"]["billed"] == 1)
    until(lambda: _in_flight(router) == 0)
    again = {"x-stainless-retry-count": "1"}
    first = router.post("/v1/images/generations", ASKED, headers=again)
    assert first.status_code == 200
    assert httpx.get(first.json()["data"][0]["url"]).content.startswith(b"\x89PNG")
    assert router.calls()["gpu-fast"]["total"] == 1
    # That one is answered: the next is another request, although it says that it was sent before.
    assert router.post("/v1/images/generations", ASKED, headers=again).json()["id"] != first.json()["id"]
    assert router.calls()["gpu-fast"]["total"] == 2


def _in_flight(router: RouterProcess) -> float:
    lines = httpx.get(f"{router.base}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("pixelroute_provider_in_flight{"))


def test_two_equal_requests_whose_connections_break_get_a_picture_each(router: RouterProcess) -> None:
    found: list[str] = []

    def ask(way: Breaking) -> None:
        with official(way) as client:
            found.append(client.images.generate(**ASKED).id)  # type: ignore[attr-defined]  # ours

    with Breaking(router, 2, calls=2) as way:
        threads = [threading.Thread(target=ask, args=(way,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(found)) == 2
    assert router.calls()["gpu-fast"]["total"] == 2


@pytest.mark.parametrize("change", [{"prompt": "a sea"}, {"n": 2}, {"size": "512x512"}])
def test_another_request_is_not_the_one_before(router: RouterProcess, change: dict[str, Any]) -> None:
    with Breaking(router) as way, official(way, max_retries=0) as client, pytest.raises(APIConnectionError):
        client.images.generate(**ASKED)
    answer = router.post("/v1/images/generations", ASKED | change, headers={"x-stainless-retry-count": "1"})
    assert answer.status_code == 200
    assert router.calls()["gpu-fast"]["total"] == 2


def test_a_request_sent_anew_by_its_user_is_a_new_one(router: RouterProcess) -> None:
    with Breaking(router) as way, official(way, max_retries=0) as client:
        with pytest.raises(APIConnectionError):
            client.images.generate(**ASKED)
        client.images.generate(**ASKED)
    assert router.calls()["gpu-fast"]["total"] == 2


def test_what_may_have_been_billed_is_not_bought_by_a_second_try(router: RouterProcess) -> None:
    hung = {"model": "sandbox-hang", "prompt": "a lake"}
    soon = {"x-pixelroute-deadline-s": "2"}
    headers = {"authorization": f"Bearer {KEY}"} | soon
    with Breaking(router) as way, pytest.raises(httpx.TransportError):
        httpx.post(f"{way.url}/images/generations", json=hung, headers=headers, timeout=30)
    until(lambda: _in_flight(router) == 0)
    answer = router.post("/v1/images/generations", hung, headers=soon | {"x-stainless-retry-count": "1"})
    assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
    assert router.calls()["gpu-fast"]["total"] == 1


def test_a_stream_goes_on_as_well(router: RouterProcess) -> None:
    seen = len(router.left())
    with (
        Breaking(router) as way,
        official(way, max_retries=0) as client,
        pytest.raises((APIConnectionError, httpx.HTTPError)),
    ):
        list(client.images.generate(**ASKED, stream=True))
    until(lambda: len(router.left()) > seen)
    streamed = router.post("/v1/images/generations", ASKED | {"stream": True}, headers={"x-stainless-retry-count": "1"})
    assert "event: image_generation.completed" in streamed.text
    assert router.calls()["gpu-fast"]["total"] == 1
