"""Types of arguments of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..inputs.flags import same_flag
from ..inputs.numbers import LARGEST_WHOLE
from ..inputs.text import LONGEST_VALUE, did_you_mean, one_line, quote


class OneLineParser(argparse.ArgumentParser):
    """A parser that refuses arguments in one line, without its usage.

    All spellings of an option that `same_flag` knows are the same, and an unknown option is answered with the nearest
    one.

    Args:
        *args: positional arguments of ``ArgumentParser``.
        passes_unknown: let `parse_known_args` return unknown options, instead of refusing them.
        **kwargs: keyword arguments of ``ArgumentParser``.

    Examples:
        >>> parser = OneLineParser()
        >>> _ = parser.add_argument("--num_labels", type=int)
        >>> parser.parse_args(["--num-labels", "3"]).num_labels
        3
    """

    def __init__(self, *args: Any, passes_unknown: bool = False, **kwargs: Any) -> None:
        self.spellings: dict[str, str] = {}
        self.passes_unknown = passes_unknown
        super().__init__(*args, **kwargs)

    def add_argument(self, *names: Any, **options: Any) -> Any:
        """Add an argument, and remember how its options are spelled."""
        self.spellings |= {same_flag(name): name for name in names if str(name).startswith("--")}
        return super().add_argument(*names, **options)

    @property
    def flags(self) -> list[str]:
        """Names of the options, without their dashes."""
        return [name[2:] for name in self.spellings.values()]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments in the spelling of the parser."""
        words = [self.as_spelled(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, unknown = super().parse_known_args(words, namespace)
        if unknown and not self.passes_unknown:
            self.error(self.unknown(unknown))
        return parsed, unknown

    def as_spelled(self, word: str) -> str:
        """Return a word of the command line with its option as the parser spells it."""
        name, equals, value = word.partition("=")
        return f"{self.spellings.get(same_flag(name), name)}{equals}{value}" if word.startswith("--") else word

    def unknown(self, words: Sequence[str]) -> str:
        """Return the message about words that mean nothing to the parser."""
        option = next((word.partition("=")[0] for word in words if word.startswith("--")), None)
        shown = f"unrecognized arguments: {one_line(' '.join(words), LONGEST_VALUE)}"
        return shown if option is None else shown + did_you_mean(option, [*self.spellings.values()])

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is no choice, such as a misspelled command or task, with the nearest one."""
        if action.choices is not None and value not in action.choices:
            known = [*map(str, action.choices)]
            near = did_you_mean(str(value), known)
            raise argparse.ArgumentError(
                action, f"invalid choice: {quote(value)}{near} (choose from {', '.join(known)})"
            )

    def error(self, message: str) -> NoReturn:
        """Print the message and end the program with status 2."""
        self.exit(2, one_line(f"{self.prog}: error: {message}") + "\n")


def whole(low: int, high: int = LARGEST_WHOLE) -> Callable[[str], int]:
    """Return the type of a whole number within bounds.

    Args:
        low: smallest number.
        high: largest number.

    Examples:
        >>> whole(1)("12")
        12
    """

    def convert(text: str) -> int:
        try:
            number = int(text) if len(text) <= 20 else None
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            raise argparse.ArgumentTypeError(
                f"{one_line(text, LONGEST_VALUE)}: give a whole number from {low} to {high}"
            )
        return number

    return convert
