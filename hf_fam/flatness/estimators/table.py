"""The table of estimators in the documentation.

``python -m hf_fam.flatness.estimators.table`` prints it.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import Estimator, estimators

_HEADER = (
    "estimator",
    "what it is",
    "acts in",
    "derivatives",
    "default λ up to 4,096 classes",
    "probes",
    "centers",
    "smooths",
)


def estimator_table(kinds: Iterable[type[Estimator]] | None = None) -> str:
    """Return the traits of the estimators as a Markdown table.

    Args:
        kinds: the estimators. Defaults to all registered ones.

    Examples:
        >>> print(estimator_table().splitlines()[2])
        | `closed_form` | Exact, for heads ... | the loss | 2 | 0.003 | - | yes | yes |
    """
    lines = [_line(_HEADER), _line(["---"] * len(_HEADER))]
    for kind in estimators() if kinds is None else kinds:
        cells = (
            f"`{kind.name}`",
            (kind.__doc__ or "").splitlines()[0].rstrip("."),
            kind.acts_in.value,
            str(kind.tail_derivatives or "-"),
            f"{kind.default_strength:g}",
            str(kind.default_probes or "-"),
            "yes" if kind.can_center else "no",
            "yes" if kind.can_smooth else "no",
        )
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(estimator_table(), end="")
