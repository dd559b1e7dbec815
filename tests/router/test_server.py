import asyncio
from typing import Any, cast

import pytest

from router.server import Joined

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Wire:
    """A transport that notes what is sent at once."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def writelines(self, pieces: Any) -> None:
        self.sent.append(b"".join(pieces))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def joined(wire: Wire) -> Joined:
    return Joined(cast(asyncio.Transport, wire))


async def test_head_and_body_go_out_together(wire: Wire, joined: Joined) -> None:
    joined.write(HEAD)
    joined.write(b"one")
    joined.write(b"two")
    joined.write(HEAD)
    joined.write(b"")
    assert wire.sent == [HEAD + b"one", b"two", HEAD]
    await asyncio.sleep(0)
    assert len(wire.sent) == 3


async def test_a_head_does_not_wait_for_a_body_that_is_still_to_be_made(wire: Wire, joined: Joined) -> None:
    joined.write(HEAD)
    assert not wire.sent
    await asyncio.sleep(0)
    joined.write(b"event")
    assert wire.sent == [HEAD, b"event"]


async def test_nothing_is_lost_when_the_connection_is_closed(wire: Wire, joined: Joined) -> None:
    joined.write(HEAD)
    joined.close()
    assert (wire.sent, joined.is_closing()) == ([HEAD], True)
    await asyncio.sleep(0)
    assert wire.sent == [HEAD]
