"""Flatness-aware training, the subject of this package."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..flatness.relative_flatness import RelativeFlatness
from ..train.flat_training import whole_model
from ..train.trainer import FAMMixin, make_flat
from ..train.training_args import FAMArguments
from .base import Method, register


@register
class FAM(Method):
    """``loss + strength * kappa``, with the Trainer's own ``fam_*`` fields where it has them."""

    name = "fam"
    field = "fam_lambda"
    can_be_zero = True
    description = "flatness-aware: loss + lambda kappa, the relative flatness of one layer (Adilova et al. 2023)"

    def resolve(self, trainer: Any) -> Method:
        """Return the method with the default strength of the estimator that this Trainer uses."""
        if self.strength is not None:
            return self
        fam = trainer.fam_args if isinstance(trainer, FAMMixin) else FAMArguments()
        flatness = RelativeFlatness(
            whole_model(trainer), fam.fam_layer, fam.fam_estimator, fam.fam_probes, center=fam.fam_center
        )
        flatness.detach()
        return dataclasses.replace(self, strength=flatness.default_strength)

    def apply(self, trainer: Any) -> None:
        """Add the flatness term."""
        make_flat(trainer, self.strength)
