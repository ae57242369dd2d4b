"""What the pages say about the repository is so: public names, modules, figures, and where a visitor finds them."""

from __future__ import annotations

import ast
import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE, DOCS = ROOT / "hf_fam", ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# What they do is said where the command is: `hf-fam demo`.
NOT_FOR_USERS = {"hf_fam.cli.demo"}


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def documented() -> list[str]:
    return re.findall(r"^::: (\S+)$", text("reference.md"), re.MULTILINE)


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
    found = []
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


def table_rows() -> list[list[Path]]:
    """The modules of each row of the architecture's table; a name without a folder has that of the one before it."""
    table = text("architecture.md").partition("## The modules")[2].partition("\n## ")[0]
    rows = []
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        folder, paths = "", []
        for name in re.findall(r"`([\w./]+)`", row):
            folder = name.rpartition("/")[0] or folder
            paths.append(PACKAGE / (name if "/" in name or not folder else f"{folder}/{name}"))
        rows.append(paths)
    return rows


def row_of(module: Path) -> int | None:
    """The row of a module: its own, or that of its package if no module of that package has one."""
    rows = table_rows()
    own = [number for number, paths in enumerate(rows) if module in paths]
    if own:
        return own[0]
    if any(path.parent == module.parent for paths in rows for path in paths if module.parent != PACKAGE):
        return None
    package = [number for number, paths in enumerate(rows) if any(p in module.parents for p in paths)]
    return package[0] if package else None


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def test_every_module_named_exists_and_every_module_is_named() -> None:
    named = [path for paths in table_rows() for path in paths]
    assert len(named) > 30
    assert [str(path) for path in named if not path.exists()] == []
    assert [str(path) for path in modules() if row_of(path) is None] == []


def imported(path: Path) -> list[Path]:
    """The modules of the package that a module imports at its top."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = path.parents[node.level - 1]
        names = [node.module] if node.module else [alias.name for alias in node.names]
        for name in names:
            target = base.joinpath(*name.split("."))
            found += [p for p in (target.with_suffix(".py"), target / "__init__.py") if p.is_file()]
    return found


def test_modules_import_from_those_above_them() -> None:
    wrong = []
    for path in modules():
        for other in imported(path):
            one, two = row_of(path), row_of(other)
            if one is not None and two is not None and two > one:
                wrong.append(f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}, which is below it")
    assert wrong == []


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


@pytest.mark.parametrize("page", ["when-not-to-use.md", "cost.md", "choosing.md"])
def test_a_click_from_the_start(page: str) -> None:
    assert f"({page})" in text("index.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_formulas_are_text(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.search(r"\$[^$\n]+\$|\\\(|\\\[|\\(frac|sum|kappa|lambda)\b", prose)
