"""What the pages say about the repository is so: public names, modules, figures, and where a visitor finds them."""

from __future__ import annotations

import ast
import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import hf_fam
from support.includes import INCLUDED
from support.module_table import ROOMS, module_table

ROOT = Path(__file__).parents[2]
PACKAGE, DOCS = ROOT / "hf_fam", ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.relative_to(DOCS).parts[0] != "generated")
# What they do is said where the command is: `hf-fam demo`.
NOT_FOR_USERS = {"hf_fam.cli.demo", "hf_fam.flatness.estimators", "hf_fam.recipes.text_regression"}


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def documented() -> list[str]:
    """What the pages of the reference name."""
    pages = sorted((DOCS / "reference").glob("*.md"))
    return [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)]


def resolve(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def listed(path: Path) -> list[str]:
    """``__all__`` of a module."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(x, "id", None) == "__all__" for x in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def public_names() -> list[str]:
    found = [f"hf_fam.{name}" for name in hf_fam.__all__]  # which __init__.pyi lists
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found += [f"{module}.{name}" for name in listed(path) if module not in NOT_FOR_USERS]
    return found


def test_every_public_name_is_in_the_reference() -> None:
    names = public_names()
    assert "hf_fam.FAMTrainer" in names and "hf_fam.gan.interpolate" in names
    present = {id(resolve(name)) for name in documented()}
    assert [name for name in names if id(resolve(name)) not in present] == []


def test_the_reference_names_each_thing_once() -> None:
    names = documented()
    assert len({id(resolve(name)) for name in names}) == len(names)
    assert all(getattr(resolve(name), "__doc__", None) for name in names)


def test_the_table_of_modules_is_what_they_say_of_themselves() -> None:
    assert text("generated/modules.md") == module_table(), "run `make tables`"


def test_every_room_is_drawn() -> None:
    drawn = re.findall(r'font-weight="600">(\w+)<', text("img/rooms.svg"))
    assert sorted(drawn) == sorted(ROOMS)


def shown() -> set[str]:
    """The files of docs/img that a page, or what it includes, shows."""
    sources = [*PAGES, *DOCS.glob("generated/**/*.md"), ROOT / "README.md"]
    return {
        name
        for source in sources
        if source.name != "figures.md"
        for name in re.findall(r"img/([\w.-]+\.\w+)", source.read_text(encoding="utf-8"))
    }


def test_every_figure_is_shown_and_every_one_shown_exists() -> None:
    present = {path.name for path in (DOCS / "img").iterdir()}
    assert shown() == present


def test_every_figure_has_a_command_that_makes_it() -> None:
    rows = [row.split("|") for row in text("figures.md").splitlines() if row.startswith("| `")]
    makers = {pattern: row[2].strip() for row in rows for pattern in re.findall(r"`([^`]+)`", row[1])}
    unknown = [path.name for path in (DOCS / "img").iterdir() if not any(fnmatch(path.name, p) for p in makers)]
    assert unknown == [], "add them to docs/figures.md"
    for maker in makers.values():
        if maker != "drawn by hand":
            script = re.match(r"`python (recipes/\S+\.py)", maker)
            assert script and (ROOT / script.group(1)).is_file(), maker


@pytest.mark.parametrize("page", ["does-it-help.md", "cost.md", "choosing.md"])
def test_a_click_from_the_start(page: str) -> None:
    assert f"({page})" in text("index.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_formulas_are_text(page: Path) -> None:
    text = INCLUDED.sub("", page.read_text(encoding="utf-8"))
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert not re.search(r"\$[^$\n]+\$|\\\(|\\\[|\\(frac|sum|kappa|lambda)\b", prose)
