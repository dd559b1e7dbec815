import dataclasses

import pytest

from pricing import ImageSize
from router.blob import Blob
from router.records import changed
from router.types import GeneratedImage


def test_a_changed_record_differs_in_what_was_changed_and_leaves_the_first_alone() -> None:
    before = GeneratedImage(b64=Blob(b"AAAA"), plain=True, format="png", revised_prompt="a cat")
    after = changed(before, size=ImageSize(2, 1), b64=None)
    assert after == dataclasses.replace(before, size=ImageSize(2, 1), b64=None)
    assert (before.b64, before.size) == (b"AAAA", None)


def test_a_field_that_a_record_does_not_have_is_refused() -> None:
    with pytest.raises(AttributeError, match="sise"):
        changed(GeneratedImage(data=b"x"), sise=None)
