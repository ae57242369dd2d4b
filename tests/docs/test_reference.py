"""The reference: its generated parts are current, defaults are values, and every argument has a line of its own."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")
pytest.importorskip("tomllib", reason="the site is built with Python 3.11 or newer")

import griffe
import yaml

import hf_fam
from support.command_tables import command_tables
from support.launch import ROOT
from support.repository_link import repository

DOCS = ROOT / "docs"
NAMES = sorted(
    name
    for page in (DOCS / "reference").glob("*.md")
    for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
)


def read_package(*extensions: str) -> Any:
    return griffe.load(
        "hf_fam",
        search_paths=[str(ROOT)],
        extensions=griffe.load_extensions(*extensions),
        docstring_parser="google",
        docstring_options={"warnings": False},
    )


PACKAGE = read_package("dataclasses", str(ROOT / "tests" / "support" / "default_values.py"))


def documented(name: str) -> Any:
    found = PACKAGE[name.removeprefix("hf_fam.")]
    return found.final_target if found.is_alias else found


def test_the_flags_are_those_of_the_parsers() -> None:
    text = (DOCS / "generated" / "command.md").read_text(encoding="utf-8")
    assert text == command_tables(), "run `make tables`"


def test_every_flag_is_explained() -> None:
    rows = re.findall(r"^\| `([^`]*)` \|([^|]*(?:\\\\\|[^|]*)*)\|$", command_tables(), re.MULTILINE)
    assert len(rows) > 50 and [flag for flag, meaning in rows if not meaning.strip()] == []


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_values(name: str) -> None:
    """A name would be a puzzle: `AUTO` is "auto"."""
    found = documented(name)
    functions = [found, *found.members.values()] if found.is_class else [found]
    for function in (f for f in functions if not f.is_alias and (f.is_function or f is found)):
        for parameter in getattr(function, "parameters", ()):
            assert not re.fullmatch(r"_?[A-Z][A-Z_]+|_\w+\(.*\)", str(parameter.default), re.DOTALL), parameter


def test_a_default_is_the_one_that_python_has() -> None:
    shown = {p.name: p.default for p in documented("hf_fam.FAMTrainingArguments").parameters}
    parameters = inspect.signature(hf_fam.FAMTrainingArguments).parameters
    fam = [name for name in parameters if name.startswith("fam_")]
    assert len(fam) > 5
    assert {name: eval(shown[name]) for name in fam} == {name: parameters[name].default for name in fam}


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_of_a_docstring_exists(name: str) -> None:
    """Several names in one line, or a heading among the arguments, would become a block of code on the page."""
    found = documented(name)
    objects = (
        [found, *(m for m in found.members.values() if not m.is_alias and m.is_function)] if found.is_class else [found]
    )
    for member in objects:
        if member.docstring is None or not hasattr(member, "parameters"):
            continue
        sections = member.docstring.parsed
        known = {p.name.lstrip("*") for p in member.parameters}
        described = {entry.name.lstrip("*") for s in sections if s.kind.value == "parameters" for entry in s.value}
        assert described <= known, f"{member.path}: {described - known}"
        for section in (s for s in sections if s.kind.value == "text"):
            arguments = re.findall(r"\n\n    (\w+(?:, \w+)*): ", section.value)
            assert arguments == [], f"{member.path}: arguments outside Args"


def test_the_site_links_to_the_repository_of_the_package() -> None:
    assert repository('X = 1\nREPOSITORY = "a"\n') == "a"
    assert repository((ROOT / "hatch_build.py").read_text(encoding="utf-8")).startswith("https://")


def test_search_leaves_the_study_out() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r'- "The study: [^"]*": (\S+)', settings)
    assert len(pages) >= 2
    for page in pages:
        _, front, _ = (DOCS / page).read_text(encoding="utf-8").split("---", 2)
        assert yaml.safe_load(front) == {"search": {"exclude": True}}, page


# What people type, and no page would have to say in these words but for search.
SEARCHES = ("freeze", "frozen", "lora", "sam", "nan", "fp16", "bf16", "accelerate", "deepspeed", "fsdp",
            "noise", "lambda", "resume", "checkpoint", "multi-gpu", "memory", "troubleshooting")  # fmt: skip


@pytest.mark.parametrize("word", SEARCHES)
def test_search_finds(word: str) -> None:
    """Pages are split into words as the search of the site splits them."""
    (separator,) = re.findall(r"separator: '(.*)'", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [page for page in DOCS.rglob("*.md") if "exclude: true" not in page.read_text(encoding="utf-8")]
    words = {w for page in pages for w in re.split(separator, page.read_text(encoding="utf-8").lower())}
    assert all(any(w.startswith(part) for w in words) for part in re.split(separator, word))


def pages_of_the_reference() -> list[Path]:
    return sorted((DOCS / "reference").glob("*.md"))


@pytest.mark.parametrize("page", pages_of_the_reference(), ids=lambda page: page.stem)
def test_every_page_is_in_the_navigation(page: Path) -> None:
    assert f": reference/{page.name}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


# Exceptions of the commands: the command prints them in one line, so no code catches them.
OF_COMMANDS = ("cli", "data", "recipes", "measure")


def test_every_exception_is_in_the_reference() -> None:
    files = [f for f in (ROOT / "hf_fam").rglob("*.py") if f.relative_to(ROOT / "hf_fam").parts[0] not in OF_COMMANDS]
    found = {
        name for f in files for name in re.findall(r"^class ([A-Z]\w+Error)\((?!nn\.)", f.read_text("utf-8"), re.M)
    }
    page = (DOCS / "reference" / "exceptions.md").read_text(encoding="utf-8")
    assert len(found) > 3 and {name for name in found if f".{name}\n" not in page} == set()
