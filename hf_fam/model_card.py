"""What a model card says about flatness-aware training, added to the card that the Trainer writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from .flatness.perturbation import delta_of

TAGS = ("hf_fam", "relative-flatness")

# The section is found again by its frame, so that a second call replaces it.
_BEGIN, _END = "<!-- hf_fam: begin -->", "<!-- hf_fam: end -->"
_SECTION = re.compile(rf"\n*^{_BEGIN}$.*^{_END}$\n*", re.DOTALL | re.MULTILINE)

_TEMPLATE = """
## Flatness-aware training

Trained with hf_fam (`pip install hf-fam`), which adds λ κ to the loss: κ is the relative flatness of one layer
([Adilova et al. 2023](https://arxiv.org/abs/2307.02337)), and a small κ is flat.

| | |
| --- | --- |
| layer | {layer} |
| estimator of κ | {estimator} |
| gradient of κ | {gradient} |
| strength λ | {strength} |
| δ = √(2 m λ), m = {in_features} features | {delta} |
| κ at the end of training, as logged | {kappa} |

To second order, λ κ is what the loss rises by, on average, when the features that enter the layer are perturbed in a
random direction by the fraction δ of their length.

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


@dataclass(frozen=True)
class FlatnessSummary:
    """How a model was trained, for its card.

    Attributes:
        layer: dotted name of the feature layer.
        in_features: m, its number of features.
        estimator: name of the estimator that was in use at the end.
        gradient: ``"full"`` or ``"weights_only"``.
        strength: lambda.
        kappa: relative flatness as it was logged last, or None if it never was.

    Examples:
        >>> FlatnessSummary("classifier", 400, "closed_form", "full", strength=0.005, kappa=None).delta
        2.0
    """

    layer: str
    in_features: int
    estimator: str
    gradient: str
    strength: float
    kappa: float | None

    @property
    def delta(self) -> float:
        """Relative size of the feature perturbations that the strength stands for, ``sqrt(2 m lambda)``."""
        return delta_of(self.strength, self.in_features)

    def to_markdown(self) -> str:
        """The section of the card; names are escaped, so that none can change its structure."""
        return _TEMPLATE.format(
            layer=escape_markdown(self.layer),
            estimator=escape_markdown(self.estimator),
            gradient=escape_markdown(self.gradient),
            strength=f"{self.strength:.4g}",
            in_features=self.in_features,
            delta=f"{self.delta:.4g}",
            kappa="not logged" if self.kappa is None else f"{self.kappa:.4g}",
        )


def extend_model_card(path: str | Path, summary: FlatnessSummary) -> None:
    r"""Add tags and a section about the training to a model card; an earlier such section is replaced.

    Args:
        path: the README.md that ``Trainer.create_model_card`` wrote.
        summary: what the section says.

    Raises:
        FileNotFoundError: there is no card.
        ValueError: the card's metadata is not a valid block of YAML.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "README.md")
        >>> _ = path.write_text("---\ntags:\n- generated_from_trainer\n---\n# My model\n")
        >>> extend_model_card(path, FlatnessSummary("classifier", 384, "closed_form", "full", 0.001, 1.5))
        >>> ModelCard.load(path).data.tags
        ['generated_from_trainer', 'hf_fam', 'relative-flatness']
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no model card to extend; call Trainer.create_model_card first.")
    card = ModelCard.load(path)
    card.data.tags = _merged(card.data.tags, TAGS)
    body = _SECTION.sub("\n", card.text).rstrip()
    card.text = f"{body}\n\n{_BEGIN}\n{summary.to_markdown()}\n{_END}\n"
    card.save(path)


def last_logged(history: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The last value of a name in a Trainer's ``state.log_history``, or None.

    Examples:
        >>> last_logged([{"fam_kappa": 2.0}, {"fam_kappa": 1.5}, {"train_runtime": 9.0}], "fam_kappa")
        1.5
    """
    return next((float(logs[name]) for logs in reversed(history) if name in logs), None)


def escape_markdown(text: object) -> str:
    r"""Text that shows as it is, on one line, in a paragraph or a table cell.

    Examples:
        >>> print(escape_markdown("pre_classifier | <b>\n# x"))
        pre\_classifier \| \<b\> \# x
    """
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", " ".join(str(text).split()))


def _merged(tags: str | list[str] | None, new: Sequence[str]) -> list[str]:
    present = [tags] if isinstance(tags, str) else list(tags or [])
    return list(dict.fromkeys([*present, *new]))
