import pytest

from router.blob import Blob

PIECES = (b"ab", b"cdef", b"g")


@pytest.mark.parametrize("length", range(1, 10))
def test_both_ends_are_those_of_the_whole(length: int) -> None:
    assert Blob(*PIECES).head(length) == b"abcdefg"[:length]
    assert Blob(*PIECES).tail(length) == b"abcdefg"[-length:]


def test_it_is_joined_once_and_kept_so() -> None:
    blob = Blob(*PIECES)
    assert list(blob) == list(PIECES)
    assert bytes(blob) == b"abcdefg"
    assert bytes(blob) is bytes(blob)
    assert list(blob) == [b"abcdefg"]


def test_equal_bytes_are_equal_whatever_their_pieces() -> None:
    assert Blob(b"abc", b"d") == Blob(b"ab", b"cd") == b"abcd"
    assert hash(Blob(b"abc", b"d")) == hash(Blob(b"ab", b"cd")) == hash(b"abcd")
    assert Blob(b"abc") != b"abd"
    assert not Blob()
    assert bytes(Blob()) == b""


def test_what_it_holds_is_not_shown() -> None:
    assert repr(Blob(b"secret", b"!")) == "<7 bytes>"
