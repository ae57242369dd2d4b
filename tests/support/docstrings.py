"""What the docstrings of public classes and functions lack.

PYTHONPATH=tests python -m support.docstrings    lists it
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LONGEST_FIRST_LINE = 80


def documented() -> list[str]:
    """The names that the reference lists."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    return [n for page in pages for n in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)]


def resolve(name: str) -> Any:
    """The object of a name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def members(thing: Any) -> Iterator[tuple[str, Any]]:
    """The object, and the public methods that a class defines itself."""
    yield thing.__name__, thing
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if inspect.isfunction(function) and not name.startswith("_"):
                yield f"{thing.__name__}.{name}", function


def first_line_is_long(thing: Any) -> bool:
    """Whether the first line has more characters than a list of names can show."""
    return len((inspect.getdoc(thing) or "").partition("\n")[0]) > LONGEST_FIRST_LINE


def raises_without_saying_so(thing: Any) -> bool:
    """Whether a function, or the constructor of a class, raises what its docstring does not mention."""
    function = thing
    if inspect.isclass(thing):
        # That of a dataclass is generated.
        function = next((vars(thing)[n] for n in ("__post_init__", "__init__") if n in vars(thing)), None)
    if not inspect.isfunction(function) or "Raises:" in (inspect.getdoc(thing) or ""):
        return False
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in statements(function))


def statements(function: Callable[..., Any]) -> Iterator[ast.AST]:
    """The parts of a function, without those of functions inside it."""
    if function.__code__.co_filename.startswith("<"):
        return
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    pending: list[ast.AST] = list(ast.iter_child_nodes(tree))
    while pending:
        node = pending.pop()
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            yield node
            pending += ast.iter_child_nodes(node)


def has_no_example(thing: Any) -> bool:
    """Whether there is nothing that one can run."""
    return ">>>" not in (inspect.getdoc(thing) or "")


def results() -> set[str]:
    """The names of types that come out of documented functions with an example, or of the parts of these types.

    Their example is that of the function.
    """
    things = [resolve(name) for name in documented()]
    shown = [f for thing in things for _, f in members(thing) if inspect.isfunction(f) and not has_no_example(f)]
    found = {word for function in shown for word in handed_out(function)}
    classes = {thing.__name__: thing for thing in things if inspect.isclass(thing)}
    while True:
        of_parts = {word for name in found & set(classes) for word in parts(classes[name])}
        if of_parts <= found:
            return found
        found |= of_parts


def handed_out(function: Any) -> set[str]:
    """The names in what a function returns, or gives to a function of the user."""
    given = [re.findall(r"Callable\[\[(.*?)\]", str(a)) for n, a in function.__annotations__.items() if n != "return"]
    return words(function.__annotations__.get("return")) | {w for texts in given for text in texts for w in words(text)}


def parts(kind: type) -> set[str]:
    """The names in the annotations of a class: its fields, properties and methods, also those of its bases."""
    found: set[str] = set()
    for base in kind.__mro__[:-1]:
        for annotation in vars(base).get("__annotations__", {}).values():
            found |= words(annotation)
        for member in vars(base).values():
            function = member.fget if isinstance(member, property) else member
            if inspect.isfunction(function):
                found |= words(function.__annotations__.get("return"))
    return found


def words(annotation: Any) -> set[str]:
    """The names in an annotation."""
    return set(re.findall(r"\w+", annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")))


def lacking() -> dict[str, list[str]]:
    """The names that break each rule; an example is asked of what the reference lists itself, not of methods."""
    found: dict[str, list[str]] = {"first line": [], "raises": [], "example": []}
    shown_elsewhere = results()
    for name in documented():
        thing = resolve(name)
        for member_name, member in members(thing):
            if first_line_is_long(member):
                found["first line"].append(member_name)
            if raises_without_saying_so(member):
                found["raises"].append(member_name)
        needs_example = not (inspect.isclass(thing) and issubclass(thing, Exception | enum.Enum))
        if needs_example and has_no_example(thing) and thing.__name__ not in shown_elsewhere:
            found["example"].append(name)
    return found


if __name__ == "__main__":
    for rule, names in lacking().items():
        print(f"{rule}: {len(names)}\n  " + "\n  ".join(names))
