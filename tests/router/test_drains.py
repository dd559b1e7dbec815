"""What operators took out by hand, over restarts and crashes of this router."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from router.drains import Drains

pytestmark = pytest.mark.anyio

TARGETS = ("a/m", "b/m")


def drains(path: Path) -> tuple[Drains, list[tuple[str, bool]]]:
    """The words kept there, and what was applied."""
    applied: list[tuple[str, bool]] = []
    return Drains(path, TARGETS, lambda target, out: applied.append((target, out))), applied


async def test_a_word_holds_after_a_restart_until_it_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "data" / "ledger.drained.json"
    before, applied = drains(path)
    assert await before.say("a/m", True)
    assert await before.say("b/m", True)
    assert await before.say("b/m", False)
    assert applied == [("a/m", True), ("b/m", True), ("b/m", False)]
    after, applied = drains(path)
    await after.load()
    assert applied == [("a/m", True), ("b/m", False)]
    assert await after.say("a/m", False)
    last, applied = drains(path)
    await last.load()
    assert ("a/m", True) not in applied


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"a/m": 1}', b'{"a/m": {"out": 1, "at": "x"}}'])
async def test_a_file_that_is_none_of_ours_keeps_nobody_from_starting(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kept").write_bytes(content)
    known, applied = drains(tmp_path / "kept")
    await known.load()
    assert applied == []
    assert await known.say("a/m", True)


async def test_a_disk_that_takes_nothing_is_told_and_the_word_holds_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    known, applied = drains(tmp_path / "file" / "kept")  # no directory can be made there
    assert not await known.say("a/m", True)
    assert applied == [("a/m", True)]


async def test_older_words_and_those_of_other_targets_change_nothing(tmp_path: Path) -> None:
    known, applied = drains(tmp_path / "kept")
    await known.hear({"a/m": (True, 100.0)})
    await known.hear({"a/m": (False, 99.0), "c/m": (True, 200.0), "b/m": ("yes", 1.0)})
    assert applied == [("a/m", True)]
    await known.hear({"a/m": (False, 101.0)})
    assert applied == [("a/m", True), ("a/m", False)]


async def test_many_words_at_once_leave_the_last_of_each_on_disk(tmp_path: Path) -> None:
    known, _ = drains(tmp_path / "kept")
    assert all(await asyncio.gather(*(known.say(TARGETS[number % 2], number < 38) for number in range(40))))
    after, _ = drains(tmp_path / "kept")
    await after.load()
    assert {target: word.out for target, word in after.words.items()} == {"a/m": False, "b/m": False}
