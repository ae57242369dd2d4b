"""The largest eigenvalues against torch's, for matrices of every size: curvatures of a confident model are tiny."""

from __future__ import annotations

import pytest
import torch

from hf_fam.calculus.lanczos import largest_eigenvalues


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e10, 1.0, 1e-8, 1e-15, 1e-18])
def test_the_size_of_the_matrices_does_not_matter(scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stack = torch.randn(4, 12, 12, dtype=torch.float64)
    stack = stack @ stack.mT * torch.tensor([1.0, 1e-3, 1.0, -1.0]).double().view(-1, 1, 1)
    scaled = (scale * stack).to(dtype)
    found = largest_eigenvalues(lambda v: torch.einsum("bij,bj->bi", scaled, v), torch.randn(4, 12, dtype=dtype))
    expected = torch.linalg.eigvalsh(stack)
    error = (found.values.double() / scale - expected[:, -1]).abs() / expected.abs().amax(-1)
    assert found.converged.all() and error.max() < 1e3 * torch.finfo(dtype).eps
