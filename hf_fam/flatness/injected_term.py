"""The gradient of the head's flatness term, added in the backward pass by an identity.

The backward of the identity receives g = dL/dz, which contains every scale of the loss. With hard labels
``g = c (p - onehot)``, so g gives both the item weights and the probabilities. The logits need not be stored, and the
loss is not differentiated again. Its own backward has freed its temporaries by then. The gradient of W is added to the
one from the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..calculus.derivatives import wide
from .chunks import row_chunks, rows_with_weight, select_rows
from .class_vectors import ClassVectors, WeightGradient, backward_through_sketch, logit_gradient, scale_rows
from .loss_derivatives import split_gradient


class InjectedCall:
    """One call of the head.

    Attributes:
        strength: lambda, a leaf; its gradient is kappa times the scale of the loss.
        is_canceled: whether the backward pass adds nothing.
        squares: tensor for the squared norms of the gradients; None if they are not needed.
        weight_hook: hook on the gradient of W.
        weight_term: function that adds the term to the gradient of W.
    """

    def __init__(self, strength: Tensor) -> None:
        self.strength = strength
        self.is_canceled = False
        self.squares: Tensor | None = None
        self.weight_hook: torch.utils.hooks.RemovableHandle | None = None
        self.weight_term: Callable[[Tensor], None] | None = None

    def add_to_weight_gradient(self, gradient: Tensor) -> Tensor | None:
        """Add the term to the gradient of W from the loss.

        This saves a second buffer of the size of W.
        """
        term, self.weight_term = self.weight_term, None
        if term is None:
            return None
        self.remove_hook()
        if 0 in gradient.stride():  # an expanded tensor cannot be changed in place
            gradient = gradient.clone()
        term(gradient)
        return gradient

    def remove_hook(self) -> None:
        """Remove the hook from W."""
        if self.weight_hook is not None:
            self.weight_hook.remove()
            self.weight_hook = None


class InjectFlatness(torch.autograd.Function):
    """The identity on logits, whose backward adds the gradient of lambda kappa.

    Args of ``apply``: logits ``(..., C)``, features ``(..., m)``, weight ``(C, m)``, strength, signs (see `row_signs`),
    weights_only, an `InjectedCall` or None, and the smoothing eps. The strength is a scalar leaf whose gradient becomes
    kappa.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        features: Tensor,
        weight: Tensor,
        strength: Tensor,
        signs: Tensor | None,
        weights_only: bool,
        call: InjectedCall | None,
        smoothing: float,
    ) -> Tensor:
        """Return the logits, and store two numbers for each row."""
        top, rest = confidence(logits.reshape(-1, logits.shape[-1]))
        ctx.save_for_backward(features, weight, strength, signs, top, rest)
        ctx.weights_only, ctx.call, ctx.smoothing = weights_only, call, smoothing
        return logits.detach()  # no view, which the model could not change in place

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the loss plus those of the term."""
        if ctx.call is not None and ctx.call.is_canceled:
            return (gradient, *[None] * 7)
        with torch.autocast(gradient.device.type, enabled=False):
            return (*_add_term(ctx, gradient), *[None] * 4)


def _add_term(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of logits, features, weight and strength."""
    features, weight, strength, signs, top, rest = ctx.saved_tensors
    needs_phi, needs_w = ctx.needs_input_grad[1] and not ctx.weights_only, ctx.needs_input_grad[2]
    g, phi, dtype = gradient.reshape(-1, gradient.shape[-1]), features.reshape(-1, features.shape[-1]), rest.dtype
    c, label = hard_label_weights(g, top, rest)
    vectors = ClassVectors.from_weight(weight, signs, dtype, ctx.smoothing)
    grad_z = g if ctx.weights_only else g.clone()
    grad_phi = torch.zeros_like(phi) if needs_phi else None
    # With a hook, the term is added to the gradient of W from the loss.
    is_weight_later = ctx.call is not None and ctx.call.weight_hook is not None
    is_weight_now = needs_w and not (is_weight_later and signs is None)
    weight_gradient = WeightGradient(vectors.rows, vectors.center, strength) if is_weight_now else None
    means: list[tuple[Tensor, Tensor]] = []
    scales = c * phi.to(dtype).square().sum(-1)
    kappa = squares = rest.new_zeros(())
    nonzero_rows = rows_with_weight(c)
    for rows in row_chunks(nonzero_rows, *g.shape):
        c_chunk, top_chunk = select_rows(c, rows), select_rows(top, rows)
        others = other_probabilities(
            select_rows(g, rows), c_chunk, select_rows(label, rows), top_chunk, select_rows(rest, rows)
        )
        terms = vectors.terms(others, top_chunk)
        scale = select_rows(scales, rows)
        kappa = kappa + scale @ terms.variance
        if grad_phi is not None:
            factor = 2 * strength * c_chunk * terms.variance
            grad_phi[rows] = (factor.unsqueeze(-1) * select_rows(phi, rows)).to(phi.dtype)
        grad_logits, scaled_q, scaled_gap = logit_gradient(others, scale, terms, ctx.smoothing)
        if weight_gradient is not None:
            weight_gradient.add(scaled_q, terms.mean, top_chunk, scaled_gap)
        else:
            means.append((terms.mean, scaled_gap))
        if not ctx.weights_only:
            squares = squares + torch.linalg.vector_norm(grad_logits).square()
            grad_z[rows] += grad_logits.mul_(strength).to(grad_z.dtype)
        del others, terms, grad_logits, scaled_q, scaled_gap  # frees memory for the next chunk
    if ctx.call is not None and ctx.call.squares is not None:
        loss_square = torch.linalg.vector_norm(g, dtype=dtype).square()
        ctx.call.squares.copy_(torch.stack([squares, loss_square]))
    grad_w = None if weight_gradient is None else weight_gradient.finish()
    if is_weight_later and needs_w:
        center, smoothing = vectors.center, ctx.smoothing

        def add_to(gradient: Tensor) -> None:
            if grad_w is not None and signs is not None:
                backward_through_sketch(grad_w, signs, gradient)
                return
            term = WeightGradient(weight.detach(), center, strength, gradient)
            for rows, (mean, scaled_gap) in zip(row_chunks(nonzero_rows, *g.shape), means, strict=True):
                chunk = (select_rows(t, rows) for t in (g, c, label, top, rest))
                others = other_probabilities(*chunk)
                scaled_q = scale_rows(others, select_rows(scales, rows), smoothing)
                term.add(scaled_q, mean, select_rows(top, rows), scaled_gap)
            term.finish()

        ctx.call.weight_term = add_to
        returned_grad_w = None
    else:
        returned_grad_w = grad_w if grad_w is None or signs is None else backward_through_sketch(grad_w, signs)
    return (
        grad_z.view_as(gradient),
        None if grad_phi is None else grad_phi.view_as(features),
        None if returned_grad_w is None else returned_grad_w.to(weight.dtype),
        kappa.to(strength.dtype),
    )


def confidence(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most probable class t of every row, and ``(1 - p_t) / p_t``.

    Both have shape ``(N, 1)``. The ratio is accurate even if it is tiny.

    Examples:
        >>> import torch
        >>> confidence(torch.tensor([[0.0, 100.0, 0.0]]).double())
        (tensor([[1]]), tensor([[7.4402e-44]], dtype=torch.float64))
    """
    top_classes, rest_ratios = [], []
    for rows in row_chunks(None, *z.shape):
        part = z[rows].to(wide(z.dtype))
        largest, top = part.max(-1, keepdim=True)
        rest_ratios.append((part - largest).exp_().scatter_(1, top, 0.0).sum(-1, keepdim=True))
        top_classes.append(top)
    return torch.cat(top_classes), torch.cat(rest_ratios)


def hard_label_weights(g: Tensor, top: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Return item weights c, shape ``(N,)``, and labels, shape ``(N, 1)``.

    From ``g = c (p - onehot)``, with weights that are all positive or all negative. If the label is the most probable
    class t, ``c = sum_{k != t} g_k / (1 - p_t)``, because g_t is imprecise in confident rows. Else ``c = g_t / p_t``.
    Rows without a gradient have c = 0, and so do rows so confident that their kappa underflows. With two classes, g is
    the same for both signs, so the weights are taken as positive there.

    Args:
        g: dL/dz, shape ``(N, C)``.
        top: the most probable class, shape ``(N, 1)``.
        rest: ``(1 - p_t) / p_t``, shape ``(N, 1)``.
    """
    sign, sums = split_gradient(g)
    label = g.argmin(-1, keepdim=True)
    if g.device.type != "cpu" or torch.compiler.is_compiling():
        label = torch.where(sign < 0, g.argmax(-1, keepdim=True), label)
    elif sign < 0:  # costs no wait on a CPU, and most often saves a pass
        label = g.argmax(-1, keepdim=True)
    tiny = torch.finfo(rest.dtype).tiny
    label_weight = torch.where(rest > tiny, sign * sums.to(rest.dtype) / rest.clamp_min(tiny), torch.zeros_like(rest))
    return (torch.where(label == top, label_weight, g.gather(1, top).to(rest.dtype)) * (1 + rest)).squeeze(1), label


def other_probabilities(g: Tensor, c: Tensor, label: Tensor, top: Tensor, rest: Tensor) -> Tensor:
    """Return the probabilities of rows with nonzero c, 0 at the most probable class, from ``g = c (p - onehot)``.

    Args:
        g: dL/dz, shape ``(n, C)``.
        c: item weights, shape ``(n,)``.
        label: labels, shape ``(n, 1)``.
        top: the most probable class t, shape ``(n, 1)``.
        rest: ``(1 - p_t) / p_t``, shape ``(n, 1)``.
    """
    one = torch.ones((), dtype=c.dtype, device=c.device)
    others = (g / torch.where(c == 0, one, c).unsqueeze(-1)).scatter_(1, label, 0.0).scatter_(1, top, 0.0)
    # The label has what the others leave of 1 - p_t. It is the most probable class itself, or another one.
    of_label = (rest / (1 + rest) - others.sum(-1, keepdim=True)).clamp_min(0.0)
    return others.scatter_(1, label, torch.where(label == top, 0.0, of_label))
