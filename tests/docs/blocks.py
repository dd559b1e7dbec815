"""Fenced blocks of Markdown files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    file: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def blocks(file: str, *languages: str) -> list[Block]:
    """The file's blocks in these languages, in order."""
    text = (ROOT / file).read_text()
    return [
        Block(file, text.count("\n", 0, match.start()) + 2, match["language"], match["text"])
        for match in _FENCE.finditer(text)
        if match["language"] in languages
    ]


def commands(block: Block) -> list[str]:
    """A shell block's commands: continued lines joined, comments and empty lines left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.partition("  # ")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
