import base64
import json
import re
from collections.abc import Callable
from decimal import Decimal

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.blob import Blob
from router.errors import ErrorKind, ProviderError
from router.providers import answers
from router.whole import Whole
from tests.helpers import reply


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e99"}, 86400.0),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 GMT", "date": "Fri, 20 Nov 2026 10:00:00 GMT"}, 30.0),
        ({"retry-after": "Fri, 20 Nov 2026 09:00:00 GMT", "date": "Fri, 20 Nov 2026 10:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 GMT"}, None),
        ({"retry-after": "Fri, 20 Nov 2026 10:00:30 -0000", "date": "Fri, 20 Nov 2026 10:00:00 GMT"}, None),
        ({"retry-after": "later", "date": "Fri, 20 Nov 2026 10:00:00 GMT"}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert answers.retry_after_s(httpx.Headers(headers)) == seconds


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijklmnop1234",
        "Bearer abcdef0123456789abcdef",
        "https://internal.example.com/x?sig=1",
        "queue.fal.run.internal:8080",
        "10.0.0.17:9000",
        "billing@example.com",
        "A" * 200,
    ],
)
def test_quoted_reasons_hold_no_secrets(secret):
    words = answers.reason(f"It failed for {secret} today")
    assert words is not None
    assert secret not in words
    assert words.startswith("It failed for ")


def test_quoted_reasons_are_one_short_line():
    assert answers.reason("two\r\nlines\x00 here") == "two lines here"
    assert len(answers.reason("word " * 500) or "") == 300
    assert answers.reason("Traceback (most recent call last):\n  File x") is None
    assert answers.reason({"no": "text"}) is None
    assert answers.reason("a lone surrogate \ud800") == "a lone surrogate ?"


def test_account_errors_quote_nothing():
    failure = answers.failure(reply({}, 401), message="Incorrect API key provided: sk-1***9", code="invalid_api_key")
    assert "sk-" not in failure.message
    assert failure.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, Decimal(1)),
        (0.1, Decimal("0.1")),
        (4.5, Decimal("4.5")),
        (1e-10, Decimal("1e-10")),
        ("0.5", Decimal("0.5")),
        (Decimal("2.5"), Decimal("2.5")),
        (-1, None),
        (True, None),
        (None, None),
        ("1_0_x", None),
        (10**12, None),
        (float("inf"), None),
    ],
)
def test_amounts(value, expected):
    assert answers.amount(value) == expected


@pytest.mark.parametrize(
    ("text", "format"),
    [("image/png", "png"), ("image/JPG; q=1", "jpeg"), ("PNG", "png"), ("text/html", None), (None, None), (3, None)],
)
def test_media_formats(text, format):
    assert answers.media_format(text) == format


@pytest.mark.parametrize(
    "url",
    ["ftp://x/y", "javascript:alert(1)", "//x/y", "https://", "https://x y", "https://a@b/c", 3, None, "x" * 9001],
)
def test_what_is_no_link(url):
    assert answers.linked(url) is None
    assert answers.link(url) is None


def test_exact_numbers_and_junk():
    assert answers.parse_exact(reply(b'{"cost": 0.1000000000000000055}')) == {"cost": Decimal("0.1000000000000000055")}
    for body in (b"", b"<html>", b'{"a":', b"NaN", b'{"a":Infinity}', b"[" * 100_000, b"\xff", b"1" * 5000):
        for parse in (answers.parse, answers.parse_exact):
            if body == b"1" * 5000 and parse is answers.parse:
                continue  # orjson reads it as a float
            with pytest.raises(ProviderError) as raised:
                parse(reply(body))
            assert raised.value.kind is ErrorKind.NO_ANSWER


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(value=JSON)
def test_readers_take_anything(value):
    assert answers.mapping(value) == (value if isinstance(value, dict) else {})
    assert isinstance(answers.items(value), list)
    assert answers.count(value) >= 0
    words = answers.text(value)
    assert words is None or words.encode()
    readers: tuple[Callable[[object], object], ...] = (
        answers.integer,
        answers.amount,
        answers.size_text,
        answers.media_format,
        answers.linked,
        answers.inlined,
        answers.link,
        answers.reason,
        answers.identifier,
    )
    for reader in readers:
        reader(value)
    answers.size(value, value)
    answers.field_of(value, {})


def in_pieces(content: bytes, cuts: list[float]) -> Blob:
    at = sorted(int(cut * len(content)) for cut in cuts)
    return Blob(*(content[start:end] for start, end in zip([0, *at], [*at, len(content)], strict=True)))


@given(
    pictures=st.lists(st.binary(max_size=3000), max_size=3),
    blank=st.sampled_from(["", " ", " " * 70]),
    prompt=st.sampled_from(["a cat", 'says "b64_json": "no"', "\\", "é"]),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    end=st.integers(0, 9),
)
def test_lifting_reads_an_answer_in_pieces_like_a_parser_reads_it_whole(pictures, blank, prompt, cuts, end):
    texts = [base64.b64encode(picture).decode() for picture in pictures]
    items = [{"revised_prompt": prompt, "b64_json": text, "b64_json_2": None} for text in texts]
    content = json.dumps({"data": items, "usage": {"b64_json": "short"}}, separators=(",", f":{blank}")).encode()
    content = content[: len(content) - end]
    answer = Whole(200, [], in_pieces(content, cuts))
    if end:
        with pytest.raises(ProviderError, match="could not be read"):
            answers.parse_lifted(answer, b"b64_json")
        return
    found, values = answers.parse_lifted(answer, b"b64_json")
    put_back = [item | {"b64_json": as_text(answers.lifted(item["b64_json"], values))} for item in found["data"]]
    assert found | {"data": put_back} == {"data": items, "usage": {"b64_json": "short"}}


def as_text(value):
    return bytes(value).decode() if isinstance(value, Blob) else value


def test_a_value_in_pieces_is_not_copied():
    pieces = (b'{"data":[{"b64_json":"AA', b"A" * 4000, b"A" * 4000, b'AA"}]}')
    _, (value,) = answers.parse_lifted(Whole(200, [], Blob(*pieces)), b"b64_json")
    assert {id(piece) for piece in value} >= {id(pieces[1]), id(pieces[2])}


@given(
    data=st.binary(max_size=200),
    spoil=st.sampled_from(["", "=", "====", "A", "-", "\n"]),
    at=st.floats(0, 1),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    small=st.sampled_from([answers._SMALL, 0]),
)
def test_base64_in_pieces_is_base64_as_a_whole(data, spoil, at, cuts, small):
    text = base64.b64encode(data)
    place = int(at * len(text))
    text = text[:place] + spoil.encode() + text[place:]
    good = (
        re.fullmatch(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)", text)
        is not None
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(answers, "_SMALL", small)  # short texts are looked at in another way than long ones
        assert (answers.inlined(in_pieces(text, cuts)) is not None) == good
