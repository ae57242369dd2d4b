"""The section about flatness-aware training in a model card."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..flatness.strength import delta_of
from ..inputs.text import printable

TAGS = ("hf_fam", "relative-flatness")

# These marks identify the section, so that a second call replaces it.
_SECTION_BEGIN, _SECTION_END = "<!-- hf_fam: begin -->", "<!-- hf_fam: end -->"
_SECTION = re.compile(rf"\n*^{_SECTION_BEGIN}$.*^{_SECTION_END}$\n*", re.DOTALL | re.MULTILINE)

_FLATNESS_TEMPLATE = """
## Flatness-aware training

Trained with hf_fam, which adds λ κ to the loss. κ is the relative flatness of one layer
([Adilova et al. 2023](https://arxiv.org/abs/2307.02337)), and a small κ is flat.

| | |
| --- | --- |
{rows}

To second order, λ κ is the mean rise of the loss when the features that enter the layer are perturbed in a random
direction. The perturbation has the fraction δ of their length. κ as logged is a mean over the steps since the log
before, on the batches of the training and with its dropout.

κ may rise during a training, although the term holds it down. It grows with the weights of the layer, and a new head
starts with small ones. The term makes κ smaller than it would be without it, not smaller than at the start.

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

_COMMAND_TEMPLATE = """
## The command that repeats the training

{fence}bash
{command}
{fence}
"""


@dataclass(frozen=True)
class FlatnessSummary:
    """Summary of a flatness-aware training for a model card.

    Attributes:
        layer: dotted name of the feature layer.
        in_features: m, its number of features.
        estimator: name of the estimator at the end of the training.
        strength: lambda after the warm-up.
        kappa: last logged relative flatness, or None.
        kappa_before: first logged relative flatness, or None.
        base_model: name of the model that was fine-tuned, or None.
        step_time_ratio: duration of a step relative to plain training, or None.
        centered: whether the features were centered on their running mean.
        smoothing: eps of the smoothed kappa.
        last_strength: last logged lambda, or None. It is lower if the training ended during the warm-up.

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
    smoothing: float = 0.0
    last_strength: float | None = None

    @property
    def delta(self) -> float:
        """Return the relative size of feature perturbations, ``sqrt(2 m lambda)``."""
        return delta_of(self.strength, self.in_features)

    def _last_strength_if_different(self) -> str | None:
        last_strength = self.last_strength
        return (
            None
            if last_strength is None or math.isclose(last_strength, self.strength, rel_tol=1e-3)
            else f"{last_strength:.4g}"
        )

    def to_markdown(self) -> str:
        """Return the section of the card, with escaped names."""
        rows = {
            "base model": self.base_model,
            "layer": self.layer,
            "features": "centered on their running mean" if self.centered else None,
            "estimator of κ": self.estimator,
            "smoothing ε": f"{self.smoothing:g}" if self.smoothing else None,
            "strength λ": f"{self.strength:.4g}",
            "λ at the end of training, as logged (warm-up)": self._last_strength_if_different(),
            f"δ = √(2 m λ), m = {self.in_features} features": f"{self.delta:.4g}",
            "κ at the start of training, as logged": _format_number(self.kappa_before),
            "κ at the end of training, as logged": _format_number(self.kappa),
            "time of a step, relative to plain training": self.step_time_ratio and f"{self.step_time_ratio:.3g}",
        }
        lines = [f"| {name} | {escape_markdown(value)} |" for name, value in rows.items() if value is not None]
        return _FLATNESS_TEMPLATE.format(rows="\n".join(lines))


def extend_model_card(
    path: str | Path,
    summary: FlatnessSummary | None,
    results: Sequence[EvalResult] = (),
    command: str | None = None,
) -> list[str]:
    r"""Add tags and sections about the training to a model card.

    They replace the sections of an earlier call.

    Args:
        path: the README.md that ``Trainer.create_model_card`` wrote.
        summary: contents of the section about flatness. None for plain training: no section and no tags.
        results: results of the evaluation, for the card's metadata. If there are none, the card keeps its own.
        command: command line that repeats the training.

    Returns:
        The card's tags.

    Raises:
        FileNotFoundError: the card does not exist.
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
        raise FileNotFoundError(f"{path}: there is no model card to extend: call Trainer.create_model_card first.")
    card = ModelCard.load(path)
    card.data.tags = _merge_tags(card.data.tags, TAGS if summary is not None else ())
    if results:
        card.data.eval_results = list(results)
        card.data.model_name = card.data.get("model_name") or path.resolve().parent.name
    other_text = _SECTION.sub("\n", card.text).rstrip()
    section = (summary.to_markdown() if summary is not None else "") + (_command_section(command) if command else "")
    card.text = f"{other_text}\n\n{_SECTION_BEGIN}\n{section}\n{_SECTION_END}\n" if section else f"{other_text}\n"
    card.save(path)
    return list(card.data.tags)


def first_logged(history: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the first value of a name in a Trainer's log, or None.

    Examples:
        >>> first_logged([{"loss": 1.0}, {"fam_kappa": 2.0}, {"fam_kappa": 1.5}], "fam_kappa")
        2.0
    """
    return next((float(logs[name]) for logs in history if name in logs), None)


def last_logged(history: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the last value of a name in a Trainer's log, or None.

    Examples:
        >>> last_logged([{"fam_kappa": 2.0}, {"fam_kappa": 1.5}, {"train_runtime": 9.0}], "fam_kappa")
        1.5
    """
    return first_logged([*reversed(history)], name)


def escape_markdown(text: object) -> str:
    r"""Return text on one line whose special characters Markdown shows as they are.

    Examples:
        >>> print(escape_markdown("pre_classifier | <b>\n# x"))
        pre\_classifier \| \<b\> \# x
    """
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", printable(" ".join(str(text).split())))


def _format_number(value: float | None) -> str:
    return "not logged" if value is None else f"{value:.4g}"


def _command_section(command: str) -> str:
    """Return a fenced block, with a fence longer than any inside the command."""
    longest = max((len(backticks) for backticks in re.findall("`+", command)), default=0)
    return _COMMAND_TEMPLATE.format(fence="`" * max(3, longest + 1), command=printable(command))


def _merge_tags(tags: str | list[str] | None, new: Sequence[str]) -> list[str]:
    old = [tags] if isinstance(tags, str) else list(tags or [])
    return list(dict.fromkeys([*old, *new]))
