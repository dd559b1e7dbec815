"""Which size a target is asked for when it does not make the one that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing import ImageSize
from router.config import load
from router.types import SizeRule, distance

SHIPPED = sorted(
    {target.sizes for target in load([Path(__file__).parents[2] / "providers.yaml"], {}, keyless=True).targets},
    key=str,
)
sizes = st.builds(ImageSize, st.integers(1, 6000), st.integers(1, 6000))
quick = settings(max_examples=300, deadline=None)


def size(text: str) -> ImageSize:
    return ImageSize.parse(text)


@quick
@given(st.sampled_from(SHIPPED), sizes)
def test_every_shipped_rule_has_a_nearest_size_to_any(rule: SizeRule, asked: ImageSize) -> None:
    found = rule.nearest(asked)
    assert found is not None
    assert rule.accepts(found)
    if rule.accepts(asked):
        assert found == asked


@quick
@given(st.sampled_from(SHIPPED), sizes)
def test_what_covers_a_size_is_made_and_large_enough(rule: SizeRule, asked: ImageSize) -> None:
    found = rule.covering(asked)
    if found is not None:
        assert rule.accepts(found)
        assert found.width >= asked.width
        assert found.height >= asked.height
    if rule.accepts(asked):
        assert found == asked


FIXED = SizeRule(fixed=(size("1024x1024"), size("1536x1024"), size("1024x1536"), size("512x512")))
BOUNDED = SizeRule(min_side=256, max_side=2048, multiple_of=16, max_pixels=2**21)


@pytest.mark.parametrize(
    ("rule", "asked", "nearest", "covering"),
    [
        (FIXED, "1000x1000", "1024x1024", "1024x1024"),
        (FIXED, "600x600", "512x512", "1024x1024"),  # shape first, then pixels
        (FIXED, "1920x1080", "1536x1024", None),  # a smaller one is never enlarged
        (FIXED, "900x1400", "1024x1536", "1024x1536"),
        (BOUNDED, "1000x1000", "1008x1008", "1008x1008"),
        (BOUNDED, "1920x1080", "1920x1088", "1920x1088"),
        (BOUNDED, "100x100", "256x256", "256x256"),
        (BOUNDED, "4000x4000", "1440x1440", None),
        (BOUNDED, "3000x100", "2048x256", None),
        (SizeRule(max_ratio=3.0, max_side=4096, multiple_of=16), "3000x500", "2112x704", "3008x1008"),
        (SizeRule(min_pixels=2**20, max_side=4096), "512x256", "1449x724", "1449x725"),
    ],
)
def test_by_example(rule: SizeRule, asked: str, nearest: str, covering: str | None) -> None:
    assert str(rule.nearest(size(asked))) == nearest
    assert rule.covering(size(asked)) == (covering and size(covering))


@given(sizes, sizes)
def test_distance_is_symmetric_and_null_for_the_same(one: ImageSize, other: ImageSize) -> None:
    assert distance(one, other) == pytest.approx(distance(other, one))
    assert distance(one, one) == (0, 0)
