"""Second-order products shared by the estimators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# How torch says that something cannot be differentiated (again).
_REFUSALS = ("derivative for", "double backward", "use_reentrant")


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


def gradients(output: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """First derivatives that can be differentiated again; zeros where ``output`` does not depend on an input."""
    with second_derivatives():
        found = torch.autograd.grad(output, inputs, create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


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
