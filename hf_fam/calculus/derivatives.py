"""Second-order products shared by the estimators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Parts of torch's messages about operations without a (second) derivative.
_NOT_DIFFERENTIABLE = ("derivative for", "double backward", "use_reentrant")

# float16: derivatives are first computed under this scale, then brought to this size.
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
        if any(words in str(error) for words in _NOT_DIFFERENTIABLE):
            raise SecondDerivativeError(str(error)) from error
        raise


def gradients(
    output: Tensor, inputs: Sequence[Tensor], scale: Tensor | float = 1.0, create_graph: bool = True
) -> list[Tensor]:
    """Return the first derivatives of ``scale * output``.

    They are zeros where ``output`` does not depend on an input.

    Args:
        output: a scalar, in the graph.
        inputs: the tensors to differentiate by.
        scale: see `range_scale`; divide everything that is computed from the result by it.
        create_graph: keep a graph, so that the derivatives can be differentiated again.
    """
    cotangent = _cotangent(scale, output)
    with second_derivatives():
        derivatives = torch.autograd.grad(
            output, inputs, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, derivatives, strict=True)]


def range_scale(output: Tensor, inputs: Sequence[Tensor]) -> Tensor | float:
    """Return a power of two that keeps float16 derivatives in their range.

    The scale is 1 if no input is in float16.

    Second derivatives of a mean over thousands of tokens are far below 6e-8, float16's smallest number. The scale
    brings the largest first derivative to about 32, as a gradient scaler would. It costs one first-order pass and no
    synchronization with the device.

    Args:
        output: a scalar, in the graph.
        inputs: the tensors that ``output`` will be differentiated by.
    """
    if not any(x.dtype == torch.float16 for x in inputs):
        return 1.0
    cotangent = _cotangent(_FIRST_SCALE, output)
    with second_derivatives():
        derivatives = torch.autograd.grad(output, inputs, cotangent, retain_graph=True, allow_unused=True)
    sizes = [g.abs().max().float() for g in derivatives if g is not None and g.numel()]
    if not sizes:
        return 1.0
    largest = torch.stack(sizes).max()
    scale = _FIRST_SCALE * torch.exp2(torch.floor(torch.log2(_LARGEST_DERIVATIVE / largest)))
    # All derivatives are 0: keep the first scale. Some overflow: derivatives that large need no scale.
    scale = torch.where(largest > 0, torch.where(largest.isfinite(), scale, 1.0), _FIRST_SCALE)
    return scale.clamp_max(2.0**15 if output.dtype == torch.float16 else 2.0**40)


def _cotangent(scale: Tensor | float, output: Tensor) -> Tensor | None:
    """Return the cotangent that stands for ``scale * output``."""
    if isinstance(scale, Tensor):
        return scale.to(output.dtype)
    return None if scale == 1 else torch.full_like(output, scale)


def refuse_once_differentiable(first: Sequence[Tensor]) -> None:
    """Refuse operations that are marked as differentiable only once.

    torch would take their curvature for zero.

    Args:
        first: first derivatives, as `gradients` returns them.

    Raises:
        SecondDerivativeError: the graph contains such an operation.
    """
    seen = set()
    stack = [g.grad_fn for g in first if g.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise SecondDerivativeError("an autograd.Function is marked with @once_differentiable")
        stack.extend(child for child, _ in node.next_functions if child is not None)


def vector_products(
    first: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor], create_graph: bool = True
) -> list[Tensor]:
    """Return H v for the Hessian H whose gradient is ``first``.

    One product covers all ``inputs`` together.
    """
    pairs = [(g, v) for g, v in zip(first, vectors, strict=True) if g.requires_grad]
    if not pairs:  # the loss is affine in the inputs
        return [torch.zeros_like(x) for x in inputs]
    outputs, weights = zip(*pairs, strict=True)
    with second_derivatives():
        products = torch.autograd.grad(
            outputs, inputs, weights, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
    return [torch.zeros_like(x) if h is None else h for x, h in zip(inputs, products, strict=True)]


def rounding_error(products: Sequence[Tensor]) -> Tensor:
    """Return the size below which an entry counts as zero.

    Half precision is judged like single precision. Rounding that is taken for coupling costs variance. Coupling that is
    taken for rounding costs a bias, and one position among hundreds can lie below half precision's resolution.
    """
    single = torch.finfo(torch.float32).eps
    return torch.stack([100 * min(torch.finfo(h.dtype).eps, single) * h.abs().max().float() for h in products]).max()


def quadratic_form(u: Sequence[Tensor], product: Sequence[Tensor], weights_only: bool) -> Tensor:
    """Return ``u^T H u`` from u and H u, in float32 or wider.

    With ``weights_only`` the Hessian is held constant, and u depends on the weight alone. Then the gradient is
    ``2 (H u)^T du/dW``, term I of the FAM paper's Lemma 1.
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
    """Return the sum of the elementwise product, in float32 or wider."""
    dtype = wide(left.dtype)
    return (left.to(dtype) * right.to(dtype)).sum()


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float64 as it is, float32 for all others."""
    return dtype if dtype == torch.float64 else torch.float32
