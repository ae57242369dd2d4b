"""What a model card says about flatness-aware training, added to the card that the Trainer writes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..flatness.strength import delta_of

TAGS = ("hf_fam", "relative-flatness")

# The section is found again by its frame, so that a second call replaces it.
_BEGIN, _END = "<!-- hf_fam: begin -->", "<!-- hf_fam: end -->"
_SECTION = re.compile(rf"\n*^{_BEGIN}$.*^{_END}$\n*", re.DOTALL | re.MULTILINE)

_FLATNESS = """
## Flatness-aware training

Trained with hf_fam (`pip install hf-fam`), which adds λ κ to the loss: κ is the relative flatness of one layer
([Adilova et al. 2023](https://arxiv.org/abs/2307.02337)), and a small κ is flat.

| | |
| --- | --- |
{rows}

To second order, λ κ is what the loss rises by, on average, when the features that enter the layer are perturbed in a
random direction by the fraction δ of their length. κ as logged is a mean over the steps since the log before, on the
batches of the training and with its dropout.

```bibtex
@inproceedings{{adilova2023fam,
  title     = {{{{FAM}}: Relative Flatness Aware Minimization}},
  author    = {{Adilova, Linara and Abourayya, Amr and Li, Jianning and Dada, Amin and Petzka, Henning and Egger, Jan
               and Kleesiek, Jens and Kamp, Michael}},
  booktitle = {{Proceedings of Machine Learning Research}},
  volume    = {{221}},
  pages     = {{37--49}},
  year      = {{2023}},
  note      = {{arXiv:2307.02337}}
}}
```
"""

_COMMAND = """
## The command that repeats the training

{fence}bash
{command}
{fence}
"""


@dataclass(frozen=True)
class FlatnessSummary:
    """How a model was trained, for its card.

    Attributes:
        layer: dotted name of the feature layer.
        in_features: m, its number of features.
        estimator: name of the estimator that was in use at the end.
        strength: lambda.
        kappa: relative flatness as it was logged last, or None if it never was.
        kappa_before: as it was logged first, or None.
        base_model: name of the model that was fine-tuned, or None if there was none.
        step_time_ratio: seconds a step over those of plain training, if they were measured.
        centered: whether features were taken around their running mean.
        last_strength: lambda as it was logged last, or None: warm-up may have kept it lower.

    Examples:
        >>> FlatnessSummary("classifier", 400, "closed_form", strength=0.005, kappa=None).delta
        2.0
    """

    layer: str
    in_features: int
    estimator: str
    strength: float
    kappa: float | None
    kappa_before: float | None = None
    base_model: str | None = None
    step_time_ratio: float | None = None
    centered: bool = False
    last_strength: float | None = None

    @property
    def delta(self) -> float:
        """Relative size of the feature perturbations that the strength stands for, ``sqrt(2 m lambda)``."""
        return delta_of(self.strength, self.in_features)

    def _lower_at_the_end(self) -> str | None:
        last = self.last_strength
        return None if last is None or math.isclose(last, self.strength, rel_tol=1e-3) else f"{last:.4g}"

    def to_markdown(self) -> str:
        """The section of the card; names are escaped, so that none can change its structure."""
        rows = {
            "base model": self.base_model,
            "layer": self.layer,
            "features": "centered on their running mean" if self.centered else None,
            "estimator of κ": self.estimator,
            "strength λ": f"{self.strength:.4g}",
            "λ at the end of training, as logged (warm-up)": self._lower_at_the_end(),
            f"δ = √(2 m λ), m = {self.in_features} features": f"{self.delta:.4g}",
            "κ at the start of training, as logged": _number(self.kappa_before),
            "κ at the end of training, as logged": _number(self.kappa),
            "time of a step, relative to plain training": self.step_time_ratio and f"{self.step_time_ratio:.3g}",
        }
        shown = [f"| {name} | {escape_markdown(value)} |" for name, value in rows.items() if value is not None]
        return _FLATNESS.format(rows="\n".join(shown))


def extend_model_card(
    path: str | Path,
    summary: FlatnessSummary | None,
    results: Sequence[EvalResult] = (),
    command: str | None = None,
) -> list[str]:
    r"""Add tags and sections about the training to a model card; earlier such sections are replaced.

    Args:
        path: the README.md that ``Trainer.create_model_card`` wrote.
        summary: what the section about flatness says; None leaves it and the tags out (plain training).
        results: of the evaluation, for the card's metadata; without any those that are there stay.
        command: what repeats the training.

    Returns:
        The card's tags.

    Raises:
        FileNotFoundError: there is no card.
        ValueError: the card's metadata is not a valid block of YAML.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "README.md")
        >>> _ = path.write_text("---\ntags:\n- generated_from_trainer\n---\n# My model\n")
        >>> extend_model_card(path, FlatnessSummary("classifier", 384, "closed_form", 0.001, 1.5))
        ['generated_from_trainer', 'hf_fam', 'relative-flatness']
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no model card to extend; call Trainer.create_model_card first.")
    card = ModelCard.load(path)
    card.data.tags = _merged(card.data.tags, TAGS if summary is not None else ())
    if results:
        card.data.eval_results = list(results)
        card.data.model_name = card.data.get("model_name") or path.resolve().parent.name
    body = _SECTION.sub("\n", card.text).rstrip()
    section = (summary.to_markdown() if summary is not None else "") + (_command_section(command) if command else "")
    card.text = f"{body}\n\n{_BEGIN}\n{section}\n{_END}\n" if section else f"{body}\n"
    card.save(path)
    return list(card.data.tags)


def first_logged(history: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The first value of a name in a Trainer's ``state.log_history``, or None.

    Examples:
        >>> first_logged([{"loss": 1.0}, {"fam_kappa": 2.0}, {"fam_kappa": 1.5}], "fam_kappa")
        2.0
    """
    return next((float(logs[name]) for logs in history if name in logs), None)


def last_logged(history: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The last value of a name in a Trainer's ``state.log_history``, or None.

    Examples:
        >>> last_logged([{"fam_kappa": 2.0}, {"fam_kappa": 1.5}, {"train_runtime": 9.0}], "fam_kappa")
        1.5
    """
    return first_logged([*reversed(history)], name)


def escape_markdown(text: object) -> str:
    r"""Text that shows as it is, on one line, in a paragraph or a table cell.

    Examples:
        >>> print(escape_markdown("pre_classifier | <b>\n# x"))
        pre\_classifier \| \<b\> \# x
    """
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", " ".join(str(text).split()))


def _number(value: float | None) -> str:
    return "not logged" if value is None else f"{value:.4g}"


def _command_section(command: str) -> str:
    """In a fence that is longer than any within the command."""
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    return _COMMAND.format(fence="`" * max(3, longest + 1), command=command)


def _merged(tags: str | list[str] | None, new: Sequence[str]) -> list[str]:
    present = [tags] if isinstance(tags, str) else list(tags or [])
    return list(dict.fromkeys([*present, *new]))
