"""The tree itself: nothing of the machine it was made on, and a purpose for every folder."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = {".md", ".py", ".toml", ".yaml", ".yml", ".txt", ".json", ".sql", ".sh", ".js", ".mjs", ".html", ".css", ""}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


# Written in pieces, or this file would find itself.
HOSTS = [
    *("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "yarnpkg" + ".com", "debian" + ".org/debian"),
    "static.crates" + ".io",
]
PLACES = ["/work" + "/", "/root" + "/", "/opt" + "/py", "/opt" + "/wheels", "/Users" + "/"]


@pytest.mark.parametrize("needle", HOSTS + PLACES)
def test_no_file_names_a_registry_or_a_place_on_a_machine(needle: str) -> None:
    found = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix in TEXT and needle in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert found == []


def packages() -> list[str]:
    return sorted(
        str(init.parent.relative_to(ROOT))
        for top in ("pricing", "router")
        for init in (ROOT / top).rglob("__init__.py")
    )


def layout() -> dict[str, str]:
    """Path -> purpose, from the tree under CONTRIBUTING.md's heading Layout. Two spaces of indent per level."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(r"^## Layout$.*?^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    entries: dict[str, str] = {}
    stack: list[str] = []
    for line in block[1].splitlines():
        match = re.fullmatch(r"((?:  )*)(\S.*?)\s{2,}(\S.*)", line)
        assert match is not None, f"not a path and its purpose: {line!r}"
        indent, names, purpose = match.groups()
        del stack[len(indent) // 2 :]
        for name in names.split(", "):
            entries["".join([*stack, name]).rstrip("/")] = purpose
        stack.append(names)
    return entries


def test_every_folder_has_its_purpose_in_contributing() -> None:
    told = layout()
    folders = [
        str(path.relative_to(ROOT)) for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")
    ]
    folders = [name for name in folders if any(path.is_relative_to(ROOT / name) for path in tracked())]
    assert [name for name in [*packages(), *folders] if name not in told] == []


def test_every_module_of_the_two_packages_themselves_has_its_purpose() -> None:
    told = layout()
    modules = [
        str(path.relative_to(ROOT))
        for top in ("pricing", "router")
        for path in (ROOT / top).glob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    ]
    assert [name for name in modules if name not in told] == []


def test_the_layout_names_nothing_that_is_not_there() -> None:
    assert [path for path in layout() if "<" not in path and not list(ROOT.glob(path))] == []


@pytest.mark.parametrize("package", packages())
def test_every_module_says_what_it_is(package: str) -> None:
    for path in (ROOT / package).glob("*.py"):
        assert path.read_text() == "" or ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_make_help_lists_every_verb() -> None:
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\w+)", listed, re.MULTILINE) == phony.split()
