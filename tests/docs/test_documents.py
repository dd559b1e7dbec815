"""Documents agree with each other and with the code."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT


def documents() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def anchors(path: Path) -> set[str]:
    """The anchors of a file's headings, the way code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{target} does not exist"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{target} has no such heading"


def test_every_environment_variable_is_in_the_readme() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "router").rglob("*.py"))
    readme = (ROOT / "README.md").read_text()
    used = set(re.findall(r"\bPIXELROUTE_[A-Z_]+[A-Z]\b", code))
    assert used
    assert {name for name in used if name not in readme} == set()


def test_every_command_has_a_help_text() -> None:
    from router.cli import main

    for name, command in main.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", "") is not None or parameter.param_type_name == "argument", (
                f"{name} {parameter.name}"
            )


def test_the_changelog_begins_with_what_is_unreleased_or_this_version() -> None:
    from router import __version__

    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0].lower().strip("[]").startswith(("unreleased", __version__))
