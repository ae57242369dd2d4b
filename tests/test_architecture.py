"""The rooms of hf_fam: which may import which, and that no private attribute of another module is read.

docs/architecture.md draws them. Every import counts, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "hf_fam"

# Each room, and the rooms that it may import from besides itself.
ALLOWED: dict[str, set[str]] = {
    "inputs": set(),
    "calculus": set(),
    "processes": set(),
    "classifier": {"inputs"},
    "layer": {"calculus", "inputs"},
    "flatness": {"calculus", "layer", "inputs"},
    "train": {"calculus", "layer", "flatness", "processes", "inputs", "_compat"},
    "data": {"inputs"},
    "measure": {"calculus", "data", "layer", "flatness", "processes", "inputs", "_compat"},
    "landscape": {"calculus", "inputs", "layer"},
    "gan": {"calculus", "processes", "inputs", "_compat"},
    "methods": {"classifier", "inputs", "layer", "flatness", "train"},
    "frozen": {"inputs", "layer"},
    "compare": {"frozen", "inputs", "measure", "methods", "_version"},
    "recipes": {
        *("compare", "data", "frozen", "methods", "flatness", "layer", "measure", "processes", "inputs", "train"),
        "_compat",
    },
    "cli": {
        *("calculus", "compare", "data", "flatness", "frozen", "inputs", "layer", "measure", "methods", "processes"),
        *("recipes", "train", "_compat", "_version"),
    },
}
# Single modules beside the rooms.
ROOT_MODULES = {"__init__", "__main__", "_compat", "_version"}


def files() -> list[Path]:
    return sorted(path for kind in ("*.py", "*.pyi") for path in PACKAGE.rglob(kind))


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> Iterator[tuple[int, Path]]:
    """Line and file of every module of the package that a module imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_fam":
            base = PACKAGE.parent
        else:
            assert not (isinstance(node, ast.Import) and any(a.name.startswith("hf_fam") for a in node.names)), path
            continue
        module = base.joinpath(*node.module.split(".")) if node.module else base
        for name in [alias.name for alias in node.names]:
            inside = module / name
            candidates = (inside.with_suffix(".py"), inside / "__init__.py", module.with_suffix(".py"))
            target = next((c for c in candidates if c.is_file()), module / "__init__.py")
            assert target.is_file(), f"{path}:{node.lineno}: {module}"
            yield node.lineno, target


def test_every_folder_is_a_room() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(ALLOWED)
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT_MODULES


def test_no_arrow_leads_upward() -> None:
    wrong = []
    for path in files():
        room = room_of(path)
        if room in ("__init__", "__main__"):  # which stand above all rooms
            continue
        for line, target in imports(path):
            other = room_of(target)
            if other != room and other not in ALLOWED.get(room, set()):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {target.relative_to(PACKAGE)}")
    assert wrong == []


def test_the_rooms_have_an_order() -> None:
    """A room that may import another one is above it, so no two may import each other."""
    left = dict(ALLOWED)
    while left:
        ground = {room for room, below in left.items() if not below & set(left)}
        assert ground, f"a circle among {sorted(left)}"
        left = {room: below for room, below in left.items() if room not in ground}


def test_no_modules_import_each_other() -> None:
    targets = {path: {target for _, target in imports(path)} - {path} for path in files()}
    done: set[Path] = set()

    def visit(path: Path, above: list[Path]) -> None:
        assert path not in above, "a circle: " + " -> ".join(str(p.relative_to(PACKAGE)) for p in [*above, path])
        if path not in done:
            for target in targets[path]:
                visit(target, [*above, path])
            done.add(path)

    for path in targets:
        visit(path, [])


def own_names(tree: ast.Module) -> set[str]:
    """Private names that a module defines: methods, functions, attributes of self, fields."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    return names | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def test_private_attributes_are_read_where_they_belong() -> None:
    """torch's in calculus/torch_internals.py, those of other libraries in _compat.py, Python's in leaving.py."""
    wrong = []
    for path in files():
        if path.name in ("torch_internals.py", "_compat.py", "leaving.py") or path.suffix == ".pyi":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = own_names(tree) | set(dir(builtins))
        for node in ast.walk(tree):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            if private and node.attr not in own:
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []


def private_names(path: Path) -> set[str]:
    """Private attributes and functions that a module defines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {name for name in own_names(tree) if name.startswith("_") and not name.startswith("__")}


def test_tests_read_no_private_attribute_of_another_room() -> None:
    """A test of a room may look inside that room, one of the whole nowhere."""
    homes: dict[str, set[str]] = {}
    for path in files():
        for name in private_names(path):
            homes.setdefault(name, set()).add(room_of(path))
    wrong = []
    for path in sorted(TESTS.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own, room = own_names(tree), path.parent.name
        for node in ast.walk(tree):
            name = node.attr if isinstance(node, ast.Attribute) else ""
            if name in homes and name not in own and room not in homes[name]:
                wrong.append(f"{path.relative_to(TESTS)}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []
