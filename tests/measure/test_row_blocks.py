"""Lanczos and the row blocks against LAPACK and ARPACK; the three ways to keep blocks agree."""

from __future__ import annotations

import secrets
import warnings

import pytest
import torch
from scipy.sparse.linalg import eigsh

from hf_fam import measure_relative_flatness
from hf_fam.calculus.lanczos import largest_eigenvalues
from hf_fam.flatness.row_blocks import RowBlocks
from hf_fam.measure import measurement_run, spectrum
from hf_fam.measure.findings import MeasuredModel
from hf_fam.measure.report import html_report
from support.measured import cross_entropy, mlp, points, reference


def symmetric(count: int, size: int) -> torch.Tensor:
    a = torch.randn(count, size, size, dtype=torch.float64)
    return a + a.mT


@pytest.mark.parametrize("size", [1, 2, 5, 60])
def test_lanczos_equals_lapack(size: int) -> None:
    torch.manual_seed(secrets.randbits(32))
    stack = symmetric(7, size)
    stack[1] = 0
    stack[2] = -torch.eye(size)  # its Krylov space is exhausted at once
    stack[3] = torch.outer(stack[3, 0], stack[3, 0])
    start = torch.randn(7, size, dtype=torch.float64)
    result, residuals, converged = largest_eigenvalues(lambda v: torch.einsum("bij,bj->bi", stack, v), start)
    true = torch.linalg.eigvalsh(stack)[:, -1]
    torch.testing.assert_close(result, true, rtol=1e-9, atol=1e-9)
    assert (residuals < 1e-6).all() and converged.all()


def test_lanczos_equals_scipy_and_its_residual_bounds_the_error() -> None:
    torch.manual_seed(secrets.randbits(32))
    stack, start = symmetric(1, 200), torch.randn(1, 200, dtype=torch.float64)
    true = eigsh(stack[0].numpy(), k=1, which="LA", return_eigenvectors=False)[0]
    result = largest_eigenvalues(lambda v: v @ stack[0], start, iterations=200)
    assert result.values.item() == pytest.approx(true, rel=1e-9) and result.converged.all()
    rough, residual, converged = largest_eigenvalues(lambda v: v @ stack[0], start, iterations=12)
    assert rough.item() < true and not converged.any()
    # Of some eigenvalue, which need not be the largest one after so few products.
    assert (torch.linalg.eigvalsh(stack[0]) - rough).abs().min() <= residual.item()
    single = largest_eigenvalues(lambda v: v @ stack[0].float(), start.float(), iterations=200, tolerance=0)
    assert single.converged.all()  # to the rounding of float32


def test_kept_rows_equal_dense_blocks() -> None:
    phi, h, v = torch.randn(50, 4), torch.randn(50, 3), torch.randn(3, 4)
    kept, folded, lost = RowBlocks(3, 4), RowBlocks(3, 4, max_numbers=100), RowBlocks(3, 4, max_numbers=40)
    for blocks in (kept, folded, lost):
        for part in torch.arange(50).split(9):
            blocks.add(phi[part], h[part])
    true = torch.einsum("ns,ni,nj,sj->si", h, phi, phi, v)
    torch.testing.assert_close(kept.product(v), true)
    torch.testing.assert_close(folded.product(v), true)
    torch.testing.assert_close(folded.product(v[1:], start=1), true[1:])
    assert lost.has_overflown and not kept.has_overflown
    assert not folded.has_overflown  # 50 rows of 7 numbers do not fit into a space of 100, the dense blocks do


@pytest.mark.parametrize("space", [10**6, 400, 20])
def test_kappa_max_however_the_blocks_are_kept(space: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement_run, "RowBlocks", lambda d, m: RowBlocks(d, m, space))
    model, data = mlp(secrets.randbits(32)), points(30)
    result = measure_relative_flatness(model, data, ["2", "4"], loss_fn=cross_entropy, batch_size=7)
    for record, index in zip(result, (2, 4), strict=True):
        rel = 1e-5 if space == 20 else 1e-8
        assert record.kappa_max == pytest.approx(reference(model, data, index).kappa_max.item(), rel=rel)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_has_not_converged_is_a_lower_bound_and_says_so(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept blocks and passes over the data: three iterations are too few for blocks of 7 x 7."""
    monkeypatch.setattr(measurement_run, "RowBlocks", lambda d, m: RowBlocks(d, m, 20 if streamed else 10**6))
    for limit in ("_MOST_PASSES", "_MOST_PRODUCTS"):
        monkeypatch.setattr(spectrum, limit, 3)
    model, data = mlp(secrets.randbits(32)), points(30)
    measures = ("trace", "max_eigenvalue", "hessian_max_eigenvalue")
    with pytest.warns(UserWarning, match="'2' is a lower bound: Lanczos iterations reached their limit") as caught:
        table = measure_relative_flatness(model, data, "2", measures, loss_fn=cross_entropy)
    assert [str(w.message).split()[0] for w in caught] == ["kappa_max", "hessian_max_eigenvalue"]
    (result,) = table
    assert result.not_converged == ("kappa_max", "hessian_max_eigenvalue")
    true = reference(model, data, 2)
    assert 0 < result.kappa_max < true.kappa_max.item()
    assert f">={result.kappa_max:.4g}" in str(table) and f">={result.hessian_max_eigenvalue:.4g}" in str(table)
    assert '"not_converged": [' in table.to_json() and table.to_pandas()["not_converged"][0] == result.not_converged
    page = html_report(MeasuredModel("m", table), None, data="d", settings={}, command="c")
    assert f"≥ {result.kappa_max:.4g}" in page and "a lower bound" in page


def test_what_has_converged_is_no_bound() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = measure_relative_flatness(mlp(1), points(30), "2", loss_fn=cross_entropy)
    assert table[0].not_converged == () and ">=" not in str(table)
