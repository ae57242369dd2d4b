"""Arguments that are truth values, functions or objects of one class: passed on, or refused by name."""

from __future__ import annotations

from typing import Any

from .text import quote


def require_flag(name: str, value: Any) -> bool:
    """Return a truth value; numpy's are taken, too.

    Args:
        name: name of the argument, for the message.
        value: what was given.

    Raises:
        TypeError: names the argument and the value.

    Examples:
        >>> require_flag("resample", "no")
        Traceback (most recent call last):
            ...
        TypeError: resample='no': give True or False.
    """
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return bool(value)
    raise TypeError(f"{name}={quote(value)}: give True or False.")


def require_function(name: str, value: Any, what: str) -> None:
    """Refuse what cannot be called; None is allowed.

    Args:
        name: name of the argument, for the message.
        value: what was given.
        what: description of the function, for the message.

    Raises:
        TypeError: names the argument and the value.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name}={quote(value)}: give {what}, or None.")


def require_instance(name: str, value: Any, classes: type | tuple[type, ...], what: str) -> None:
    """Refuse an object of another class.

    Args:
        name: name of the argument, for the message.
        value: what was given.
        classes: the classes that are allowed.
        what: description of what is allowed, for the message.

    Raises:
        TypeError: names the argument and the value.
    """
    if not isinstance(value, classes):
        raise TypeError(f"{name}={quote(value)}: give {what}.")
