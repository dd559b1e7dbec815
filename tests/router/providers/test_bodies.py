import base64

import orjson
import pytest

from pricing import ImageSize
from router.blob import Blob
from router.errors import ErrorKind, ProviderError
from router.providers import bodies, events, sizes
from router.types import InputImage
from tests.helpers import PNG, image_request, target

QUALITIES = {"low": "draft", "standard": "fine", "auto": "auto"}


@pytest.mark.parametrize(
    ("word", "sent", "warned"),
    [
        (None, None, False),
        ("low", "draft", False),
        ("standard", "fine", False),
        ("auto", "auto", False),
        ("fine", "fine", False),
        ("high", None, True),
    ],
)
def test_quality_words(word, sent, warned):
    warnings: list = []
    assert bodies.quality(image_request(quality=word), target(qualities=QUALITIES), warnings) == sent
    assert bool(warnings) is warned


@pytest.mark.parametrize("word", [None, "auto", "standard"])
def test_words_that_lose_nothing_raise_no_warning(word):
    warnings: list = []
    assert bodies.quality(image_request(quality=word), target(), warnings) is None
    assert not warnings


@pytest.mark.parametrize(
    ("wanted", "formats", "sent"),
    [
        (None, ("png", "jpeg"), "png"),
        (None, ("jpeg",), "jpeg"),
        ("webp", ("jpeg", "png"), "png"),
        ("webp", ("jpeg",), "jpeg"),
        ("webp", ("png", "webp"), "webp"),
        ("gif", (), "gif"),
    ],
)
def test_the_format_asked_for_is_the_best_to_convert_from(wanted, formats, sent):
    assert bodies.picture_format(image_request(output_format=wanted), target(formats=formats)) == sent


def test_pictures_in_json_wherever_they_stand():
    body = bodies.JsonBody()
    large = InputImage(Blob(bytes(range(256)) * 1000), "webp", None)
    fields = {"z": body.base64(large), "a": [body.data_uri(PNG), {"b": body.data_uri(large)}], "prompt": 'say "x"'}
    content = body.dump(fields)
    assert isinstance(content, bodies.Pieces)
    read = orjson.loads(b"".join(content))
    assert read["a"][0].startswith("data:image/png;base64,iVBORw0KGgo")
    assert read["a"][1]["b"] == "data:image/webp;base64," + read["z"]
    assert content.length == len(b"".join(content))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 196_607, 196_608, 196_609, 400_000])
def test_base64_in_steps_is_base64_of_the_whole(length):
    data = bytes(length)
    text = bodies.Base64(data)
    assert b"".join(text) == base64.b64encode(data)
    assert text.length == sum(map(len, text))


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("size", {"size": "1200x800"}),
        ("image_size", {"image_size": {"width": 1200, "height": 800}}),
        ("image_size_text", {"image_size": "1200x800"}),
        ("width_height", {"width": 1200, "height": 800}),
        ("aspect_ratio", {"aspect_ratio": "3:2"}),
        ("none", {}),
    ],
)
def test_sizes_in_a_providers_words(words, field):
    fields: dict = {}
    warnings: list = []
    sizes.put(fields, ImageSize(1200, 800), words, warnings)
    assert fields == field
    assert not warnings
    sizes.put(fields, None, words, warnings)
    assert fields == field


def test_a_shape_no_word_has_is_approximated_with_a_warning():
    fields: dict = {}
    warnings: list = []
    sizes.put(fields, ImageSize(1000, 910), "aspect_ratio", warnings)
    assert fields == {"aspect_ratio": "1:1"}
    assert [warning.code for warning in warnings] == ["size_approximated"]
    sizes.put(fields := {"aspect_ratio": "2:3"}, ImageSize(1000, 910), "aspect_ratio", [])
    assert fields == {"aspect_ratio": "2:3"}, "the client's own word"


def test_an_event_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(events, "LARGEST_EVENT", 1000)
    reader = events.EventReader()
    assert list(reader.feed(b"data: " + b"x" * 900)) == []
    with pytest.raises(ProviderError) as raised:
        list(reader.feed(b"x" * 200))
    assert raised.value.kind is ErrorKind.NO_ANSWER


def test_events_with_several_lines_comments_and_no_name():
    reader = events.EventReader()
    stream = b": hello\n\nevent: a\ndata: 1\ndata:2\nid: 7\n\ndata: x\r\n\r\n\n"
    assert list(reader.feed(stream)) == [("a", b"1\n2"), ("", b"x")]
