"""The table of a comparison while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from ..compare import Progress

_UP_AND_CLEAR = "\x1b[{}F\x1b[J"


class LiveTable:
    """Shows how far a comparison is: in place on a terminal, and as one line a run elsewhere.

    Args:
        stream: where it is printed.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lines = stream, 0
        self._is_terminal = stream.isatty()

    def update(self, progress: Progress) -> None:
        """Show how far the comparison is."""
        if not self._is_terminal:
            self._stream.write(f"{one_line(progress)}\n")
        else:
            self.close()
            lines = table_lines(progress)
            self._stream.write("\n".join(lines) + "\n")
            self._lines = len(lines)
        self._stream.flush()

    def close(self) -> None:
        """Remove the table."""
        if self._lines:
            self._stream.write(_UP_AND_CLEAR.format(self._lines))
            self._lines = 0


def one_line(progress: Progress) -> str:
    """Return one line for the run that ended."""
    from ..compare.table import format_settings

    run = progress.run
    settings = format_settings(run.settings)
    return (
        f"run {progress.done} of at most {progress.total}: {run.phase} {run.method}"
        f"{f' ({settings})' if settings else ''}, {remaining(progress)}"
    )


def table_lines(progress: Progress) -> list[str]:
    """Return the lines of the table."""
    rows = [("", "final runs", "mean score", "seconds a run")]
    for name, count, mean, seconds in progress.methods:
        rows.append(
            (
                name,
                str(count),
                "-" if mean is None else f"{mean:.2f}",
                "-" if seconds is None else f"{seconds:.1f}",
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, one_line(progress)]


def remaining(progress: Progress) -> str:
    """Return the time that is left at most."""
    from ..compare.budget import format_time

    return f"at most {format_time(progress.seconds_left)} left"
