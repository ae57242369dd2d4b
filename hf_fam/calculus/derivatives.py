"""Second-order products shared by the estimators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# How torch says that something cannot be differentiated (again).
_REFUSALS = ("derivative for", "double backward", "use_reentrant")

# float16: the scale under which derivatives are looked at first, and the size that they are then brought to.
_FIRST_SCALE = 2.0**12
_LARGEST_DERIVATIVE = 2.0**5


class SecondDerivativeError(RuntimeError):
    """An operation between the feature layer and the loss has no second derivative."""


@contextlib.contextmanager
def second_derivatives() -> Iterator[None]:
    """Turn torch's refusals to differentiate into one exception.

    Raises:
        SecondDerivativeError: with torch's message.
    """
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in _REFUSALS):
            raise SecondDerivativeError(str(error)) from error
        raise


def gradients(
    output: Tensor, inputs: Sequence[Tensor], scale: Tensor | float = 1.0, create_graph: bool = True
) -> list[Tensor]:
    """First derivatives of ``scale * output``; zeros where ``output`` does not depend on an input.

    Args:
        output: a scalar, in the graph.
        inputs: what to differentiate by.
        scale: see `range_scale`; everything that is computed from the result has to be divided by it.
        create_graph: whether they can be differentiated again.
    """
    cotangent = _times(scale, output)
    with second_derivatives():
        found = torch.autograd.grad(
            output, inputs, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def range_scale(output: Tensor, inputs: Sequence[Tensor]) -> Tensor | float:
    """A power of two that keeps derivatives of ``output`` by half-precision inputs in their range; 1 for other dtypes.

    Second derivatives of a mean over thousands of tokens are far below 6e-8, float16's smallest number. The scale
    brings the largest first derivative to about 32, as a gradient scaler would. It costs one first-order pass, and
    waits for no device.

    Args:
        output: a scalar, in the graph.
        inputs: what it will be differentiated by.
    """
    if not any(x.dtype == torch.float16 for x in inputs):
        return 1.0
    cotangent = _times(_FIRST_SCALE, output)
    with second_derivatives():
        found = torch.autograd.grad(output, inputs, cotangent, retain_graph=True, allow_unused=True)
    sizes = [g.abs().max().float() for g in found if g is not None and g.numel()]
    if not sizes:
        return 1.0
    largest = torch.stack(sizes).max()
    scale = _FIRST_SCALE * torch.exp2(torch.floor(torch.log2(_LARGEST_DERIVATIVE / largest)))
    # Nothing to see: the scale of the look. Overflow: derivatives that large need no help.
    scale = torch.where(largest > 0, torch.where(largest.isfinite(), scale, 1.0), _FIRST_SCALE)
    return scale.clamp_max(2.0**15 if output.dtype == torch.float16 else 2.0**40)


def _times(scale: Tensor | float, output: Tensor) -> Tensor | None:
    """The cotangent that stands for ``scale * output``."""
    if isinstance(scale, Tensor):
        return scale.to(output.dtype)
    return None if scale == 1 else torch.full_like(output, scale)


def refuse_once_differentiable(first: Sequence[Tensor]) -> None:
    """See that no operation below was declared to be differentiable once: torch would take its curvature for zero.

    Args:
        first: first derivatives, as `gradients` returns them.

    Raises:
        SecondDerivativeError: there is one.
    """
    seen = set()
    waiting = [g.grad_fn for g in first if g.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise SecondDerivativeError("an autograd.Function is marked with @once_differentiable")
        waiting.extend(child for child, _ in node.next_functions if child is not None)


def vector_products(
    first: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor], create_graph: bool = True
) -> list[Tensor]:
    """H v for the Hessian H whose gradient is ``first``: one product over all ``inputs`` together."""
    pairs = [(g, v) for g, v in zip(first, vectors, strict=True) if g.requires_grad]
    if not pairs:  # the loss is affine in the inputs
        return [torch.zeros_like(x) for x in inputs]
    outputs, weights = zip(*pairs, strict=True)
    with second_derivatives():
        found = torch.autograd.grad(
            outputs, inputs, weights, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
    return [torch.zeros_like(x) if h is None else h for x, h in zip(inputs, found, strict=True)]


def rounding_error(products: Sequence[Tensor]) -> Tensor:
    """The size below which an entry counts as zero.

    Half precision is measured like single: an error that is taken for coupling costs variance, while an answer below
    half precision's own resolution (of one position among hundreds) that is taken for an error would cost a bias.
    """
    single = torch.finfo(torch.float32).eps
    return torch.stack([100 * min(torch.finfo(h.dtype).eps, single) * h.abs().max().float() for h in products]).max()


def quadratic_form(u: Sequence[Tensor], product: Sequence[Tensor], weights_only: bool) -> Tensor:
    """``u^T H u`` from u and H u, in float32 at least.

    With ``weights_only`` the Hessian is held constant and u depends on the weight alone, so that the gradient is
    ``2 (H u)^T du/dW``: term I of the FAM paper's Lemma 1.
    """
    total = torch.zeros((), dtype=wide(u[0].dtype), device=u[0].device)
    for left, right in zip(u, product, strict=True):
        if weights_only:
            right = right.detach()
            total = total + 2 * inner(left, right) - inner(left, right).detach()
        else:
            total = total + inner(left, right)
    return total


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Sum of the elementwise product, in float32 at least."""
    dtype = wide(left.dtype)
    return (left.to(dtype) * right.to(dtype)).sum()


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float64 stays, half precision is widened to float32."""
    return dtype if dtype == torch.float64 else torch.float32
