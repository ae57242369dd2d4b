"""Types of arguments of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from ..inputs.numbers import LARGEST_WHOLE
from ..inputs.text import LONGEST_VALUE, one_line


class OneLineParser(argparse.ArgumentParser):
    """A parser that refuses arguments in one line, without its usage."""

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
