"""What a stranger installs: pinned packages that name no registry, and a wheel that lacks nothing."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.txt", "tests/requirements.txt")


def locked(name: str) -> dict[str, Requirement]:
    """Every requirement of a lock file, by its canonical name."""
    logical = (ROOT / name).read_text().replace("\\\n", " ").splitlines()
    requirements = [Requirement(line.partition("--hash")[0]) for line in logical if line]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_and_hashed(name: str) -> None:
    for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines():
        assert re.fullmatch(r"[\w.-]+==[\w.+-]+( ; [^-]+)?\s+(--hash=sha256:[0-9a-f]{64}\s*)+", line), line[:100]


def test_what_tests_need_includes_what_the_router_needs() -> None:
    runtime, tests = locked(LOCKS[0]), locked(LOCKS[1])
    assert {name: str(requirement) for name, requirement in runtime.items()}.items() <= {
        name: str(requirement) for name, requirement in tests.items()
    }.items()


@pytest.mark.parametrize("name", LOCKS)
def test_the_pins_satisfy_the_project(name: str) -> None:
    """`make lock` was run after the last change of a dependency."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = config["project"]["optional-dependencies"]
    wanted = [*config["project"]["dependencies"], *extras["demo"], *config["dependency-groups"]["build"]]
    if name != LOCKS[0]:
        wanted += extras["test"]
    pins = locked(name)
    for requirement in map(Requirement, wanted):
        if requirement.name != "pixelroute":
            pin = pins[canonicalize_name(requirement.name)]
            (version,) = (specifier.version for specifier in pin.specifier)
            assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_carries_every_file_of_the_packages(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for package in ("pricing", "router"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT).as_posix() in inside
    assert {"router/providers.default.yaml", "router/ledger/schema.sql", "pricing/books/fal.yaml"} <= inside
    assert {"router/py.typed", "pricing/py.typed"} <= inside
    assert not [name for name in inside if name.startswith(("tests", "grafana"))]


def test_the_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Installed alone, it finds its price books, its default configuration and its schema."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    run = subprocess.run(
        [sys.executable, "-m", "router", "check"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import router, pricing; print(router.__file__, pricing.__file__)"],
        cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(path.startswith(str(site)) for path in where.stdout.split())


def test_every_import_is_a_declared_dependency() -> None:
    """A package that only happens to be installed, as a dependency of another, may be gone tomorrow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        canonicalize_name(Requirement(text).name)
        for text in [
            *project["dependencies"],
            *project["optional-dependencies"]["demo"],
            *project["optional-dependencies"]["s3"],
            *project["optional-dependencies"]["redis"],
        ]
    }
    distributions = packages_distributions()
    imported: dict[str, str] = {}
    for path in [*(ROOT / "router").rglob("*.py"), *(ROOT / "pricing").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            imported |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    for name, where in imported.items():
        if name not in sys.stdlib_module_names and name not in ("router", "pricing"):
            provided = {canonicalize_name(each) for each in distributions[name]}
            assert provided & declared, f"{where} imports {name}, which pyproject.toml does not name"
