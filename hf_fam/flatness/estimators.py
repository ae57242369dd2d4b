"""The estimators by name: which there are, which one serves a layer, and what each needs."""

from __future__ import annotations

from torch import nn

from ..layer.feature_layer import FeatureLayer
from ..layer.finding import AUTO
from .batch import Estimator
from .dense import dense_kappa
from .gauss_newton_probe import GaussNewtonProbes
from .head_sampling import HeadSampling
from .heads import LARGE_VOCABULARY, ClosedForm
from .hessian_probe import HessianProbes
from .perturbation import FeaturePerturbation

CLOSED_FORM = "closed_form"
ROW_PROBES = "row_probes"
HEAD_ESTIMATORS = (CLOSED_FORM, ROW_PROBES)
HESSIAN = "hessian"
GAUSS_NEWTON = "gauss_newton"
PERTURBATION = "perturbation"
DENSE = "dense"
WITHOUT_PROBES = (PERTURBATION, DENSE)  # the closed form has some if it turns out not to hold
ESTIMATORS = (AUTO, CLOSED_FORM, ROW_PROBES, HESSIAN, GAUSS_NEWTON, PERTURBATION, DENSE)

# Probes by default: those of a tail cost a double backward pass of it each, those of a head's rows next to nothing.
TAIL_PROBES = 1
ROW_PROBES_BY_DEFAULT = 16

FULL = "full"
WEIGHTS_ONLY = "weights_only"
GRADIENTS = (FULL, WEIGHTS_ONLY)


def check_choice(name: str, given: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices."""
    if given not in choices:
        raise ValueError(f"{name}={given!r}: choose one of {', '.join(map(repr, choices))}.")


def choose_estimator(estimator: str, layer: FeatureLayer, head: FeatureLayer | None) -> str:
    """The estimator that ``"auto"`` stands for, after checking that the chosen one can serve the layer."""
    if estimator == AUTO:
        if head is layer:
            return ROW_PROBES if layer.out_features > LARGE_VOCABULARY else CLOSED_FORM
        return HESSIAN if head is None else GAUSS_NEWTON
    if estimator == GAUSS_NEWTON and head is None:
        raise ValueError(f'estimator="{GAUSS_NEWTON}" found no layer into the logits: use "{HESSIAN}".')
    return estimator


def make_estimator(name: str, probes: int, sampling: HeadSampling) -> Estimator:
    """A fresh one.

    Args:
        name: of the estimator.
        probes: how many.
        sampling: what a head's closed form draws at random.
    """
    if name in HEAD_ESTIMATORS:
        return ClosedForm(sampling)
    if name == DENSE:
        return dense_kappa
    if name == PERTURBATION:
        return FeaturePerturbation()
    return HessianProbes(probes) if name == HESSIAN else GaussNewtonProbes(probes)


def refuse_tied_weight(model: nn.Module, layer: FeatureLayer) -> None:
    """The Hessian of a shared parameter is that of all its uses, and kappa is that of one layer."""
    own = {id(p) for p in layer.module.parameters(recurse=False)}
    for name, module in model.named_modules():
        if module is not layer.module and own & {id(p) for p in module.parameters(recurse=False)}:
            raise ValueError(
                f"estimator=\"{DENSE}\" differentiates by the weight itself, and '{layer.name}' shares its weight with "
                f'\'{name}\': use "{CLOSED_FORM}", "{HESSIAN}" or "{GAUSS_NEWTON}".'
            )
