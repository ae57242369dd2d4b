"""Estimators of relative flatness, one in each file."""

from ..head_loss import NoClosedForm
from .base import ActsIn, Choice, Estimator, Operations
from .closed_form import ClosedForm
from .dense import Dense
from .gauss_newton import GaussNewtonProbes
from .hessian import HessianProbes
from .perturbation import FeaturePerturbation
from .registry import (
    FULL,
    GRADIENTS,
    WEIGHTS_ONLY,
    check_choice,
    default_lambda,
    estimator_called,
    estimator_names,
    estimators,
    make_estimator,
    register,
    unregister,
)
from .row_probes import RowProbes

__all__ = [
    "FULL",
    "GRADIENTS",
    "WEIGHTS_ONLY",
    "ActsIn",
    "Choice",
    "ClosedForm",
    "Dense",
    "Estimator",
    "FeaturePerturbation",
    "GaussNewtonProbes",
    "HessianProbes",
    "NoClosedForm",
    "Operations",
    "RowProbes",
    "check_choice",
    "default_lambda",
    "estimator_called",
    "estimator_names",
    "estimators",
    "make_estimator",
    "register",
    "unregister",
]

# The order in which they are listed.
for _kind in (ClosedForm, RowProbes, HessianProbes, GaussNewtonProbes, FeaturePerturbation, Dense):
    register(_kind)
