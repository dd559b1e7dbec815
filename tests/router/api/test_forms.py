"""Forms as they arrive: in whatever pieces, the parts are the same."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.api.forms import FormError, FormReader

BOUNDARY = b"Xy-7"
DELIMITER = b"\r\n--" + BOUNDARY


def form(*parts: bytes) -> bytes:
    head = b'Content-Disposition: form-data; name="image"\r\n\r\n'
    return b"".join(b"--" + BOUNDARY + b"\r\n" + head + part + b"\r\n" for part in parts) + b"--" + BOUNDARY + b"--\r\n"


def read(*chunks: bytes) -> list[bytes]:
    reader = FormReader(f"multipart/form-data; boundary={BOUNDARY.decode()}")
    for chunk in chunks:
        reader.feed(chunk)
    return [bytes(part.data) for part in reader.finish()]


# What looks like a boundary, or like the beginning of one, again and again.
tempting = st.lists(st.sampled_from([DELIMITER[:n] for n in range(1, len(DELIMITER))] + [b"a", b"\n", b"--"])).map(
    b"".join
)


@settings(max_examples=300, deadline=None)
@given(st.lists(tempting.filter(lambda part: DELIMITER not in part), min_size=1, max_size=3), st.data())
def test_the_parts_are_those_that_were_sent(parts: list[bytes], data: st.DataObject) -> None:
    body = form(*parts)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8))), len(body)]
    assert read(*(body[start:end] for start, end in pairwise(cuts))) == parts


@pytest.mark.parametrize("size", [1, 2, 7, len(DELIMITER), 64, 4096, 65536])
def test_a_picture_is_whole_whatever_size_its_chunks_have(size: int) -> None:
    picture = random.Random(3).randbytes(100_000 if size > 7 else 2000)
    body = form(b"a", picture, b"b")
    assert read(*(body[at : at + size] for at in range(0, len(body), size))) == [b"a", picture, b"b"]


def test_chunks_in_the_midst_of_a_picture_are_kept_as_they_are() -> None:
    body, middle = form(b"p" * 1000), b"q" * 1000
    reader = FormReader(f"multipart/form-data; boundary={BOUNDARY.decode()}")
    for chunk in (body[:200], middle, body[200:]):
        reader.feed(chunk)
    (part,) = reader.finish()
    assert any(piece is middle for piece in part.data)


def test_what_follows_a_picture_without_its_boundary_is_no_form() -> None:
    body = form(b"p" * 1000)
    with pytest.raises(FormError, match="closing boundary"):
        read(body[:500], b"q" * 1000)
