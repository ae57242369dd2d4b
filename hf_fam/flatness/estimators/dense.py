"""The dense reference: kappa by the full Hessian of a small layer's weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...calculus.derivatives import gradients, vector_products, wide
from ...layer.feature_layer import FeatureLayer
from ...layer.finding import unwrap
from ..batch import Batch
from .base import Choice, Estimator

MAX_WEIGHTS = 10_000


class Dense(Estimator):
    """The definition itself, from the full Hessian: a reference for small layers."""

    name = "dense"
    default_strength = 0.001
    can_center = False

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        weight = choice.layer.linear_map.stored()
        _refuse_large_weight(weight)
        _refuse_made_weight(weight)
        _refuse_tied_weight(unwrap(choice.model), choice.layer)

    def __call__(self, batch: Batch) -> Tensor:
        """Return kappa of the batch by `dense_flatness`, in the graph."""
        layer = batch.linear_map
        return dense_flatness(
            batch.loss, layer.stored(), weights_only=batch.weights_only, matrix=layer.matrix, groups=layer.groups
        ).kappa


def _refuse_tied_weight(model: nn.Module, layer: FeatureLayer) -> None:
    """Refuse a weight that other modules share.

    Its Hessian covers all its uses, but kappa is that of one layer.
    """
    own_parameters = {id(p) for p in layer.module.parameters(recurse=False)}
    for name, module in model.named_modules():
        if module is not layer.module and own_parameters & {id(p) for p in module.parameters(recurse=False)}:
            raise ValueError(
                f"estimator=\"dense\" differentiates by the weight itself, but '{layer.name}' shares its weight with "
                f'\'{name}\': use "closed_form", "hessian" or "gauss_newton".'
            )


def _refuse_large_weight(weight: Tensor) -> None:
    if weight.numel() > MAX_WEIGHTS:
        raise ValueError(
            f'estimator="dense" supports layers of up to {MAX_WEIGHTS} weights, but this one has {weight.numel()}: use '
            '"closed_form", "hessian" or "gauss_newton".'
        )


def _refuse_made_weight(weight: Tensor) -> None:
    if not weight.is_leaf:
        raise ValueError(
            'estimator="dense" differentiates by the weight itself, but here it is made of other parameters (an '
            'adapter, a parametrization): use "closed_form", "hessian" or "gauss_newton".'
        )


@dataclass(frozen=True)
class DenseFlatness:
    """All variants of relative flatness of one layer.

    They are differentiable if the Hessian is. For a grouped convolution, each is a sum over the groups.

    Attributes:
        kappa: sum over all pairs of rows of ``<w_s, w_s'> Tr H_{s,s'}`` (Adilova et al. 2023, definition 3).
        kappa_max: ``sum_s ||w_s||^2 lambda_max(H_{s,s})`` (the released measuring code).
        layerwise: ``||W||_F^2 Tr H`` (section 3.2 of the paper).
    """

    kappa: Tensor
    kappa_max: Tensor
    layerwise: Tensor


def weight_hessian(loss: Tensor, weight: Tensor, create_graph: bool = True) -> Tensor:
    """Return d2L/dW2, the shape of W twice: ``(d, m, d, m)`` for a matrix.

    Args:
        loss: a scalar in the graph.
        weight: W as the layer stores it, a leaf that requires a gradient.
        create_graph: keep the Hessian differentiable.

    Raises:
        ValueError: W has more than ``MAX_WEIGHTS`` entries, or it is not a trainable parameter.
    """
    _refuse_large_weight(weight)
    _refuse_made_weight(weight)
    if not weight.requires_grad:
        raise ValueError('estimator="dense" cannot differentiate by a frozen weight: unfreeze it, or use "hessian".')
    (first,) = gradients(loss, [weight])
    rows = []
    for k in range(weight.numel()):
        unit = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
        unit[k] = 1
        rows += vector_products([first], [weight], [unit.view_as(weight)], create_graph=create_graph)
    return torch.stack(rows).view(*weight.shape, *weight.shape)


def dense_flatness(
    loss: Tensor,
    weight: Tensor,
    *,
    weights_only: bool = False,
    matrix: Callable[[Tensor], Tensor] = lambda stored: stored,
    groups: int = 1,
) -> DenseFlatness:
    """Return all variants of relative flatness, from the full Hessian.

    Args:
        loss: L, a scalar in the graph.
        weight: W as the layer stores it.
        weights_only: hold the Hessian constant.
        matrix: function that rearranges the stored weight into W, shape ``(d, m)``.
        groups: number of groups of a convolution. The rows of W are ordered by group.

    Raises:
        ValueError: see `weight_hessian`.

    Examples:
        >>> import torch
        >>> W = torch.eye(2, requires_grad=True)
        >>> loss = 0.5 * (torch.tensor([[1.0, 2.0]]) @ W.T).square().sum()  # H_{s,s'} = [s = s'] phi phi^T
        >>> dense_flatness(loss, W).kappa.item()
        10.0
    """
    stored = weight_hessian(loss, weight, create_graph=not weights_only).view(weight.numel(), weight.numel())
    w = matrix(weight)
    positions = matrix(torch.arange(weight.numel(), device=weight.device).view_as(weight)).flatten()
    hessian = stored[positions][:, positions].view(*w.shape, *w.shape)
    hessian, w = hessian.to(wide(w.dtype)), w.to(wide(w.dtype))
    traces = torch.einsum("siti->st", hessian)
    blocks = torch.einsum("sisj->sij", hessian)
    squares = w.square().sum(-1)
    group = torch.arange(len(w), device=w.device) * groups // len(w)
    return DenseFlatness(
        kappa=((w @ w.T) * traces * (group[:, None] == group)).sum(),
        kappa_max=(squares * torch.linalg.eigvalsh(blocks)[:, -1]).sum(),
        layerwise=squares.view(groups, -1).sum(-1) @ traces.diagonal().view(groups, -1).sum(-1),
    )
