"""An extension of griffe: the reference shows a default as its value, `"auto"`, and not as the name of a constant.

mkdocs.yml names this file. griffe reads the source without running it, so without this it would show `AUTO`.
"""

from __future__ import annotations

import ast
from typing import Any

import griffe


class DefaultValues(griffe.Extension):
    """Puts values of constants in the place of their names."""

    def on_module_members(self, *, node: Any, mod: griffe.Module, **kwargs: Any) -> None:
        """Add the constants of lines such as `ONE, TWO = "one", "two"`, which griffe passes over."""
        for statement in (line for line in getattr(node, "body", ()) if isinstance(line, ast.Assign)):
            (target, *_), value = statement.targets, statement.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                for name, constant in zip(target.elts, value.elts, strict=True):
                    if isinstance(name, ast.Name):
                        mod.set_member(name.id, griffe.Attribute(name.id, value=ast.unparse(constant)))

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Go through every function of the package, once all of it is read."""
        for function in functions(pkg):
            for parameter in function.parameters:
                parameter.default = value_of(parameter.default)


def functions(module: griffe.Object) -> list[griffe.Function]:
    """All functions and methods that are defined in a module or below it."""
    found: list[griffe.Function] = []
    for member in module.members.values():
        if isinstance(member, griffe.Function):
            found.append(member)
        elif isinstance(member, griffe.Module | griffe.Class):
            found += functions(member)
    return found


def value_of(default: Any) -> Any:
    """The value of a name that is bound to a literal; anything else as it is."""
    if not isinstance(default, griffe.ExprName):
        return default
    try:
        constant = default.resolved
        constant = constant.final_target if isinstance(constant, griffe.Alias) else constant
        return ast.unparse(ast.parse(str(constant.value), mode="eval")) if is_literal(str(constant.value)) else default
    except (AttributeError, griffe.GriffeError):
        return default


def is_literal(text: str) -> bool:
    """Whether a piece of source is a value that needs no name."""
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return False
    return True
