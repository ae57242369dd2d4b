"""The head's term in the backward pass: an identity on the logits that adds the gradient of lambda kappa.

Its backward receives g = dL/dz with every scale of the loss inside. With hard labels ``g = c (p - onehot)``, so both
the item weights and the probabilities are read off g: the logits need not be kept, the loss is not differentiated
another time, and by then its own backward has let go of its temporaries. The gradient of W is added to the one that W
gets from the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...calculus.derivatives import wide
from ...layer.linear_map import LinearMap
from ..batch import Batch, Seeds
from ..head_loss import NoClosedForm
from ..loss_graph import is_cross_entropy
from ..row_signs import row_signs
from ..softmax_head import ClassVectors, WeightGradient, chunks_of, of_logits, take, through_sketch
from ..strength import is_strength
from .base import ActsIn, Estimator, Operations


class InjectedHead(Estimator):
    """kappa of a large head under cross-entropy with hard labels, acting in the backward pass.

    Where lambda is not known in the forward pass, or the graph does not show such a loss, the estimator that acts in
    the loss serves instead.

    Args:
        in_loss: the head's estimator that acts in the loss.
        row_probes: P, the number of row probes; 0 for the exact form.
    """

    acts_in = ActsIn.BACKWARD_PASS
    can_center = False

    def __init__(self, in_loss: Estimator, row_probes: int) -> None:
        super().__init__(in_loss.choice)
        self.name = in_loss.name
        self.default_strength = in_loss.default_strength
        self.probes, self.tail_derivatives = in_loss.probes, 0
        self._in_loss, self._row_probes = in_loss, row_probes
        self._may_act, self._acts = True, False
        self._strength = 0.0
        self._seeds = Seeds()
        self._calls: list[InjectedCall] = []

    def begin(self, strength: float | None, next_seeds: Callable[[], Seeds], mean: Tensor | None) -> None:
        """Put the term behind the head's output in the next forward pass, if lambda is given.

        Raises:
            ValueError: lambda is negative or not finite.
        """
        self.forget()
        self.layer.perturb = None
        if strength is not None and not is_strength(strength):
            raise ValueError(f"strength={strength!r}: give a finite lambda of at least 0.")
        self._acts = self._may_act and strength is not None
        if self._acts:
            assert strength is not None
            self._strength, self._seeds = strength, next_seeds()
            self.layer.perturb = self.inject

    def relative_cost(self, operations: Operations) -> float | None:
        """Return that of the estimator in the loss."""
        return self._in_loss.relative_cost(operations)

    def forget(self) -> None:
        """Remove the hooks of the last forward pass."""
        for call in self._calls:
            call.remove_hook()
        self._calls = []

    def for_batch(self, batch: Batch) -> Estimator:
        """Return itself for one call under cross-entropy; from the first other batch on the one in the loss."""
        if not self._acts:
            return self._in_loss
        calls = batch.pre_activations
        if len(calls) == 1 and is_cross_entropy(batch.loss, calls[0], batch.graph):
            return self
        for call in self._calls:
            call.is_canceled = True
        self.forget()
        self._may_act, self._acts, self.layer.perturb = False, False, None
        self._in_loss.tail_derivatives = 2  # whose form has to be found by a product
        return self._in_loss

    def replacement(self, error: NoClosedForm, batch: Batch) -> Estimator:
        """Return what replaces the estimator in the loss."""
        return self._in_loss.replacement(error, batch)

    def inject(self, features: Tensor, output: Tensor, linear_map: LinearMap) -> Tensor:
        """Return the head's output, with the term behind it."""
        features, logits, weight = linear_map.feature_rows(features), linear_map.rows(output), linear_map.weight
        device, m = logits.device, features.shape[-1]
        strength = torch.full((), self._strength, dtype=wide(logits.dtype), device=device, requires_grad=True)
        signs = row_signs(self._row_probes, m, device, self._seeds)
        call = InjectedCall(strength)
        self._calls.append(call)
        if weight.is_leaf and weight.requires_grad:
            call.weight_hook = weight.register_hook(call.add_to_weight_gradient)
        injected_logits = InjectFlatness.apply(logits, features, weight, strength, signs, self.weights_only, call)
        return linear_map.outputs(injected_logits)

    def __call__(self, batch: Batch) -> Tensor:
        """Return zero for now; the backward pass fills in kappa, in the units of the loss."""
        kappa, scale = batch.loss.new_zeros(()), batch.loss.new_ones(())

        def remember_scale(gradient: Tensor) -> None:  # of gradient accumulation, of mixed precision
            scale.copy_(gradient.detach())

        def fill(gradient: Tensor) -> None:
            kappa.add_(gradient.detach() / scale)

        batch.loss.register_hook(remember_scale)
        for call in self._calls:
            call.strength.register_hook(fill)
        return kappa

    def gradient_squares(self, loss: Tensor, kappa: Tensor, reference: Tensor) -> Tensor | None:
        """Return zeros for now; the backward pass fills in ``||d kappa||^2`` and ``||d loss||^2`` by the logits."""
        if not self._acts:
            return self._in_loss.gradient_squares(loss, kappa, reference)
        if self.weights_only:
            return None
        (call,) = self._calls
        call.squares = kappa.new_zeros(2)
        return call.squares


class InjectedCall:
    """One call of the head.

    Attributes:
        strength: lambda, a leaf; its gradient is kappa times the scale of the loss.
        is_canceled: the backward pass adds nothing.
        squares: where to put the squared norms of the gradients, if they are asked for.
    """

    def __init__(self, strength: Tensor) -> None:
        self.strength = strength
        self.is_canceled = False
        self.squares: Tensor | None = None
        self.weight_hook: torch.utils.hooks.RemovableHandle | None = None
        self.weight_term: Callable[[Tensor], None] | None = None

    def add_to_weight_gradient(self, gradient: Tensor) -> Tensor | None:
        """Add the term to the gradient that W got from the loss, which saves a second buffer of the size of W."""
        term, self.weight_term = self.weight_term, None
        if term is None:
            return None
        self.remove_hook()
        gradient = gradient.clone() if 0 in gradient.stride() else gradient  # expanded from fewer numbers
        term(gradient)
        return gradient

    def remove_hook(self) -> None:
        """Leave W as it was."""
        if self.weight_hook is not None:
            self.weight_hook.remove()
            self.weight_hook = None


class InjectFlatness(torch.autograd.Function):
    """The identity on logits; its backward adds the gradient of lambda kappa.

    Args of ``apply``: logits ``(..., C)``, features ``(..., m)``, weight ``(C, m)``, strength (a scalar leaf whose
    gradient becomes kappa), signs (see `row_signs`), weights_only, and an `InjectedCall` or None.
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
    ) -> Tensor:
        """The logits as they are; keeps two numbers a row."""
        top, rest = confidence(logits.reshape(-1, logits.shape[-1]))
        ctx.save_for_backward(features, weight, strength, signs, top, rest)
        ctx.weights_only, ctx.call = weights_only, call
        return logits.view_as(logits)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the loss, with those of the term."""
        if ctx.call is not None and ctx.call.is_canceled:
            return (gradient, *[None] * 6)
        with torch.autocast(gradient.device.type, enabled=False):
            return (*_add_term(ctx, gradient), *[None] * 3)


def _add_term(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of logits, features, weight and strength."""
    features, weight, strength, signs, top, rest = ctx.saved_tensors
    to_phi, to_w = ctx.needs_input_grad[1] and not ctx.weights_only, ctx.needs_input_grad[2]
    g, phi, dtype = gradient.reshape(-1, gradient.shape[-1]), features.reshape(-1, features.shape[-1]), rest.dtype
    c, label = hard_label_weights(g, top, rest)
    vectors = ClassVectors.of(weight, signs, dtype)
    of_z = g if ctx.weights_only else g.clone()
    of_phi = torch.zeros_like(phi) if to_phi else None
    later = ctx.call is not None and ctx.call.weight_hook is not None  # when W has its gradient from the loss
    at_once = to_w and not (later and signs is None)
    of_w = WeightGradient(vectors.rows, vectors.center, strength) if at_once else None
    means: list[Tensor] = []
    amounts = c * phi.to(dtype).square().sum(-1)
    kappa = squares = rest.new_zeros(())
    some = None if torch.compiler.is_compiling() else c.nonzero().squeeze(1)
    for rows in chunks_of(some, *g.shape):
        p = probabilities(take(g, rows), take(c, rows), take(label, rows))
        mean = vectors.mean(p)
        variance = vectors.variance(p, mean)
        amount = take(amounts, rows)
        kappa = kappa + amount @ variance
        if of_phi is not None:
            scale = 2 * strength * take(c, rows) * variance
            of_phi[rows] = (scale.unsqueeze(-1) * take(phi, rows)).to(phi.dtype)
        added, weighted = of_logits(p, amount, vectors, mean, variance)
        if of_w is not None:
            of_w.add(weighted, mean)
        else:
            means.append(mean)
        if not ctx.weights_only:
            squares = squares + torch.linalg.vector_norm(added).square()
            of_z[rows] += added.mul_(strength).to(of_z.dtype)
        del p, added, weighted  # before the next chunk needs the room
    if ctx.call is not None and ctx.call.squares is not None:
        of_loss = torch.linalg.vector_norm(g, dtype=dtype).square()
        ctx.call.squares.copy_(torch.stack([squares, of_loss]))
    total_of_w = None if of_w is None else of_w.finish()
    if later and to_w:
        center = vectors.center

        def add_to(total: Tensor) -> None:
            if total_of_w is not None and signs is not None:
                through_sketch(total_of_w, signs, total)
                return
            term = WeightGradient(weight.detach(), center, strength, total)
            for rows, mean in zip(chunks_of(some, *g.shape), means, strict=True):
                p = probabilities(take(g, rows), take(c, rows), take(label, rows))
                term.add(p.mul_(take(amounts, rows).unsqueeze(-1)), mean)
            term.finish()

        ctx.call.weight_term = add_to
        of_weight = None
    else:
        of_weight = total_of_w if total_of_w is None or signs is None else through_sketch(total_of_w, signs)
    return (
        of_z.view_as(gradient),
        None if of_phi is None else of_phi.view_as(features),
        None if of_weight is None else of_weight.to(weight.dtype),
        kappa.to(strength.dtype),
    )


def confidence(z: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable class t of every row and ``(1 - p_t) / p_t``, exact however small, both of shape ``(N, 1)``.

    Examples:
        >>> import torch
        >>> confidence(torch.tensor([[0.0, 100.0, 0.0]]).double())
        (tensor([[1]]), tensor([[7.4402e-44]], dtype=torch.float64))
    """
    tops, rests = [], []
    for rows in chunks_of(None, *z.shape):
        part = z[rows].to(wide(z.dtype))
        largest, top = part.max(-1, keepdim=True)
        rests.append((part - largest).exp_().scatter_(1, top, 0.0).sum(-1, keepdim=True))
        tops.append(top)
    return torch.cat(tops), torch.cat(rests)


def hard_label_weights(g: Tensor, top: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Item weights c, shape ``(N,)``, and labels, shape ``(N, 1)``, from ``g = c (p - onehot)``.

    Where the label is the most probable class, ``c = -g_y / (1 - p_y)``; elsewhere ``c = g_t / p_t`` at the most
    probable class t. Rows without a gradient have c = 0, and so have those so confident that their kappa vanishes.

    Args:
        g: dL/dz, shape ``(N, C)``.
        top: the most probable class, shape ``(N, 1)``.
        rest: ``(1 - p_t) / p_t``, shape ``(N, 1)``.
    """
    label = g.argmin(-1, keepdim=True)
    g_top = g.gather(1, top).to(rest.dtype)
    tiny = torch.finfo(rest.dtype).tiny
    right = torch.where(rest > tiny, -g_top / rest.clamp_min(tiny), torch.zeros_like(rest))
    return (torch.where(label == top, right, g_top) * (1 + rest)).squeeze(1), label


def probabilities(g: Tensor, c: Tensor, label: Tensor) -> Tensor:
    """``softmax(z)`` of rows with c other than 0, from ``g = c (p - onehot)``.

    Args:
        g: dL/dz, shape ``(n, C)``.
        c: item weights, shape ``(n,)``.
        label: shape ``(n, 1)``.
    """
    one = torch.ones((), dtype=c.dtype, device=c.device)
    p = (g / torch.where(c == 0, one, c).unsqueeze(-1)).scatter_(1, label, 0.0)
    return p.scatter_(1, label, (1 - p.sum(-1, keepdim=True)).clamp_min(0.0))
