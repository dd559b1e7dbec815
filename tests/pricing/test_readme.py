"""pricing/README.md: its books load, its terms load, its examples give what it says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from pricing import check_price_books
from pricing.component import METRICS, ROUNDINGS, TOKENS, TYPES
from pricing.price import CERTAINTIES, REPORTED_UNITS, SOURCES

README = (Path(__file__).parents[2] / "pricing" / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_examples_give_what_they_say(tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        directory = tmp_path / name.removesuffix(".yaml")
        directory.mkdir()
        (directory / name).write_text(text)
        return directory

    book, terms = blocks("yaml")
    example = write("acme.yaml", book)
    (tmp_path / "terms.yaml").write_text(terms)
    assert check_price_books(example) == []
    names = {"example": example, "example_terms": tmp_path / "terms.yaml", "write": write}
    session = "\n".join(blocks("pycon"))
    parsed = doctest.DocTestParser().get_doctest(session, names, "pricing/README.md", None, 0)
    assert len(parsed.examples) > 20
    said: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(parsed, out=said.append)
    assert results.failed == 0, "".join(said)


def test_every_word_a_book_may_use_is_explained() -> None:
    for word in (*TYPES, *METRICS, *ROUNDINGS, *TOKENS, *SOURCES, *CERTAINTIES, *REPORTED_UNITS):
        assert re.search(rf"\b{word}\b", README), word
