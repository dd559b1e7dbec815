"""A body in memory reads like any of httpx's; the bounds themselves are tested with the transport and the pool."""

import httpx
import pytest

from router.blob import Blob
from router.bounded import TooLarge, Whole, whole

pytestmark = pytest.mark.anyio


async def test_a_whole_answer_reads_as_httpx_would_read_it() -> None:
    headers = [(b"Content-Type", b"application/json; charset=utf-8"), (b"X-Request-Id", b"r1")]
    body = '{"data":"é"}'.encode()
    ours, theirs = Whole(200, headers, Blob(body)), httpx.Response(200, headers=headers, content=body)
    assert (ours.content, ours.text, ours.json()) == (theirs.content, theirs.text, theirs.json())
    assert (ours.is_success, ours.is_closed, ours.headers["x-request-id"]) == (True, True, "r1")
    assert ours.read() == await ours.aread() == body
    await ours.aclose()


async def test_it_is_bounded_like_one_that_is_still_to_be_read() -> None:
    answer = Whole(200, [], Blob(b"123", b"45"))
    assert await whole(answer, 5) is answer
    with pytest.raises(TooLarge):
        await whole(answer, 4)
