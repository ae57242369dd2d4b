"""Whether the network above a layer is piecewise linear with kinks, as behind ReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..layer.feature_layer import FeatureLayer
from ..layer.finding import find_head, unwrap
from .data import Batches, to_device
from .feature_perturbation import GAUSSIAN, perturbed, random_matrix
from .forward import evaluate, frozen_for_evaluation, loss_of
from .measuring import measure_relative_flatness
from .results import LayerFlatness


def has_kinks(
    model: nn.Module, data: Any, layer: FeatureLayer, flatness: LayerFlatness, options: dict[str, Any]
) -> bool | None:
    """Return True if the tail is piecewise linear but not linear.

    Then the Hessian is the Gauss-Newton matrix. None if it is unknown.

    Args:
        model: the model.
        data: the data.
        layer: the feature layer. The head has no network above it.
        flatness: its measurement.
        options: how it was measured.
    """
    _, head = find_head(unwrap(model))
    if head is layer.module:
        return False
    try:
        gauss_newton, hessian = (
            measure_relative_flatness(
                model, data, layer.module, ("trace",), estimator=name, probes=1, progress=False, **options
            )[0].kappa
            for name in ("gauss_newton", "hessian")
        )
    except (TypeError, ValueError):  # no layer that makes logits
        return None
    tolerance = 1e-6 if next(model.parameters()).dtype == torch.float64 else 1e-3
    if not abs(gauss_newton - hessian) <= tolerance * abs(gauss_newton):  # also for NaN
        return False
    return not _is_affine(model, data, layer, head, options)


def _is_affine(model: nn.Module, data: Any, layer: FeatureLayer, head: nn.Module, options: dict[str, Any]) -> bool:
    """Return True if the logits are an affine function of the layer's output.

    They are compared on the first batch. An affine tail has no kinks.
    """
    outputs: list[Tensor] = []
    matrix = random_matrix(GAUSSIAN, layer.in_features, torch.Generator().manual_seed(0))
    matrices = matrix.float().expand(layer.linear_map.groups, -1, -1)
    batches = Batches(data, options["batch_size"], options["collate_fn"], seed=options["seed"]).first
    handle = head.register_forward_hook(lambda module, args, output: outputs.append(output.double()))
    try:
        with frozen_for_evaluation(model) as frozen, torch.no_grad():
            device = next(frozen.parameters()).device
            first_batch = to_device(batches(), device)
            for factor in (0.0, 1.0, -1.0):
                with perturbed(layer, factor * matrices.to(device)):
                    evaluate(options["loss_fn"] or loss_of, frozen, first_batch)
    finally:
        handle.remove()
    middle, above, below = outputs
    return bool((above + below - 2 * middle).abs().max() <= 1e-4 * (above - below).abs().max())
