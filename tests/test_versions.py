"""The oldest versions that are allowed are those that `make test-minimum` tests, and the version is one everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import hf_fam

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# Tools, the documentation and what the tests compare with are not what a user installs.
TABLES = ("dependencies", "classifier", "demo", "landscape", "measure", "recipes")


def bounds() -> dict[str, set[str]]:
    """The lower bounds of each package, in all tables."""
    found: dict[str, set[str]] = {}
    for table in TABLES:
        (entries,) = re.findall(rf"^{table} = \[(.*?)\]", PROJECT, re.MULTILINE | re.DOTALL)
        for package, version in re.findall(r'"([\w-]+)>=([\d.]+)"', entries):
            found.setdefault(package, set()).add(version)
    return found


def pins() -> dict[str, str]:
    text = (ROOT / "constraints-minimum.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)==([\d.]+)$", text, re.MULTILINE))


def same(one: str, other: str) -> bool:
    """1.3 is 1.3.0."""
    return one.removesuffix(".0").removesuffix(".0") == other.removesuffix(".0").removesuffix(".0")


def test_lower_bounds_are_tested() -> None:
    tested = pins()
    assert {"torch", "transformers", "accelerate", "numpy", "huggingface_hub"} <= bounds().keys()
    for package, versions in bounds().items():
        assert package in tested, f"{package} is missing in constraints-minimum.txt"
        for version in versions:
            assert same(version, tested[package]), (package, version, tested[package])


def test_lower_bounds_are_stated() -> None:
    page = (ROOT / "docs" / "release.md").read_text(encoding="utf-8")
    (entries,) = re.findall(r"^dependencies = \[(.*?)\]", PROJECT, re.MULTILINE | re.DOTALL)
    for package, version in re.findall(r'"([\w-]+)>=([\d.]+)"', entries):
        assert f"| {package} | {version} |" in page


def test_one_version() -> None:
    (project,) = re.findall(r'^version = "(.+)"$', PROJECT, re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert project == hf_fam.__version__
    assert f"\nversion: {project}\n" in citation
    assert re.search(rf"^## \[(Unreleased|{re.escape(project)})\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
