"""The head's kappa in chunks and from row probes, against the form that takes all at once."""

from __future__ import annotations

import itertools
import secrets

import pytest
import torch
from torch import Tensor

from hf_fam.flatness import chunks
from hf_fam.flatness.batch import Seeds
from hf_fam.flatness.row_signs import random_row_signs, row_signs
from hf_fam.flatness.softmax_head import softmax_flatness, softmax_flatness_and_derivatives

N, C, M = 7, 11, 3


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(secrets.randbits(32))


def case(rows: int = N) -> list[Tensor]:
    """phi, z, W and c."""
    tensors = [torch.randn(*s, dtype=torch.float64) for s in ((rows, M), (rows, C), (C, M))]
    return [*(t.requires_grad_() for t in tensors), torch.rand(rows, dtype=torch.float64)]


def with_gradients(kappa: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [kappa.detach(), *torch.autograd.grad(kappa, inputs)]


def in_chunks(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", rows * C + 1)
    monkeypatch.setattr(chunks, "MAX_UNCHUNKED", 0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("probes", [None, 2])
@pytest.mark.parametrize("rows", [1, 3, N, 2 * N])
@pytest.mark.parametrize("count", [1, N])
def test_chunks_change_nothing(
    count: int, rows: int, probes: int | None, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes that do not divide N, a batch of one, rows that have no weight at all."""
    phi, z, w, c = case(count)
    c[1::3] = 0
    signs = random_row_signs(probes or 0, M, c.device)
    options = {"signs": signs, "smoothing": smoothing}
    expected = with_gradients(softmax_flatness(phi, z, w, c, **options), [phi, z, w])
    in_chunks(monkeypatch, rows)
    found = with_gradients(3 * softmax_flatness(phi, z, w, c, **options), [phi, z, w])
    torch.testing.assert_close(found, [3 * t for t in expected], rtol=1e-11, atol=1e-13)


def test_no_row_has_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks(monkeypatch, 2)
    phi, z, w, c = case()
    assert all(not t.any() for t in with_gradients(softmax_flatness(phi, z, w, 0 * c), [phi, z, w]))


def test_weights_only_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks(monkeypatch, 2)
    phi, z, w, c = case()
    kappa = softmax_flatness(phi, z, w, c, weights_only=True)
    of_phi, of_z, of_w = torch.autograd.grad(kappa, [phi, z, w], allow_unused=True)
    assert of_phi is None and of_z is None
    torch.testing.assert_close(of_w, softmax_flatness_and_derivatives(phi, z, w, c)[3].detach())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunked", [False, True])
def test_row_probes_are_unbiased(chunked: bool, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all signs, values and gradients average to the exact ones; several probes are the mean of single ones."""
    phi, z, w, c = case()
    exact = with_gradients(softmax_flatness(phi, z, w, c, smoothing=smoothing), [phi, z, w])
    if chunked:
        in_chunks(monkeypatch, 3)
    every = [torch.tensor(r).unsqueeze(1) for r in itertools.product((-1, 1), repeat=M)]
    single = [with_gradients(softmax_flatness(phi, z, w, c, signs=r, smoothing=smoothing), [phi, z, w]) for r in every]
    mean = [torch.stack(parts).mean(0) for parts in zip(*single, strict=True)]
    torch.testing.assert_close(mean, exact, rtol=1e-11, atol=1e-13)
    assert not torch.isclose(single[0][0], exact[0], rtol=1e-3)
    together = with_gradients(
        softmax_flatness(phi, z, w, c, signs=torch.cat(every, 1), smoothing=smoothing), [phi, z, w]
    )
    torch.testing.assert_close(together, exact, rtol=1e-11, atol=1e-13)


def test_row_signs_are_shared_by_the_whole_step() -> None:
    """Every process and micro-batch of a step must use one sketch, so that they can be summed."""
    cpu = torch.device("cpu")
    micro_batches = [row_signs(4, M, cpu, Seeds((1, 2), first_item=item)) for item in (0, 3)]
    next_step = row_signs(4, M, cpu, Seeds((1, 3)))
    assert all(isinstance(signs, Tensor) for signs in (*micro_batches, next_step))
    assert torch.equal(*micro_batches) and not torch.equal(micro_batches[0], next_step)
    assert row_signs(0, M, cpu, Seeds((1, 2))) is None


def test_spread_of_row_probes_falls_with_their_number() -> None:
    phi, z, w, c = (t.detach() for t in case())
    w = torch.randn(C, 64, dtype=torch.float64)

    def draw(probes: int) -> torch.Tensor:
        return softmax_flatness(phi, z, w, c, signs=random_row_signs(probes, 64, c.device))

    exact = softmax_flatness(phi, z, w, c)
    spread = {p: torch.stack([draw(p) for _ in range(200)]).sub(exact).div(exact).std() for p in (1, 16)}
    assert 2.5 < spread[1] / spread[16] < 6


def test_variance_of_a_row_probe_is_known_and_bounded() -> None:
    """Over all signs r: r^T M r with M = sum_i a_i Cov_i has the variance 2 sum_{j != l} M_jl^2, at most 2 (Tr M)^2."""
    phi, z, _, c = (t.detach() for t in case())
    w = torch.randn(C, 6, dtype=torch.float64)
    p = z.softmax(-1)
    moved = w - (p @ w).unsqueeze(1)
    m = torch.einsum("n,nk,nki,nkj->ij", c * phi.square().sum(-1), p, moved, moved)
    every = [torch.tensor(r).unsqueeze(1) for r in itertools.product((-1, 1), repeat=6)]
    found = torch.stack([softmax_flatness(phi, z, w, c, signs=r) for r in every])
    torch.testing.assert_close(found.mean(), m.trace(), rtol=1e-11, atol=0)
    variance = 2 * (m.square().sum() - m.diag().square().sum())
    torch.testing.assert_close(found.var(correction=0), variance, rtol=1e-9, atol=0)
    assert 0 < variance < 2 * m.trace() ** 2


def by_pairs(phi: Tensor, z: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """kappa as a sum of positive terms, in which nothing cancels: Var = 1/2 sum_kl p_k p_l ||w_k - w_l||^2."""
    p = z.softmax(-1)
    squares = (w.unsqueeze(0) - w.unsqueeze(1)).square().sum(-1)
    return (c * phi.square().sum(-1)) @ torch.einsum("nk,nl,kl->n", p, p, squares) / 2


def leading(margin: float) -> list[Tensor]:
    """phi, z and W in float32, and c; in every row one class leads the second by the margin."""
    phi, z, w, c = (t.detach().float() for t in case())
    top = torch.randint(C, (N, 1))
    return [phi, z.scatter(1, top, z.amax(1, keepdim=True) + margin), w, c]


@pytest.mark.parametrize("margin", [0.0, 5.0, 10.0, 20.0, 40.0, 80.0])
def test_confident_rows_are_exact_in_single_precision(margin: float) -> None:
    """A lead of 20 leaves the other classes 1e-9 of the probability: below what float32 tells from 1."""
    *inputs, c = leading(margin)
    found, expected = (
        with_gradients(of(*parts, c.to(parts[0].dtype)), parts)
        for of, parts in (
            (softmax_flatness, [t.requires_grad_() for t in inputs]),
            (by_pairs, [t.detach().double().requires_grad_() for t in inputs]),
        )
    )
    assert found[0] > 0
    for mine, true in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double() / true.norm(), true / true.norm(), rtol=0, atol=3e-6)


@pytest.mark.parametrize("margin", [0.0, 5.0, 10.0, 20.0])
def test_rounding_in_chunks_is_bounded_by_the_weights(margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a row is confident the error is large beside its kappa, and small beside that of an undecided row."""
    phi, z, w, c = leading(margin)
    in_chunks(monkeypatch, 3)
    found = softmax_flatness(phi, z, w, c).double()
    expected = by_pairs(*(t.double() for t in (phi, z, w, c)))
    largest = (w - w.mean(0)).square().sum(-1).max()
    assert (found - expected).abs() < 8 * torch.finfo(torch.float32).eps * largest * (c @ phi.square().sum(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_chunks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    phi, z, w, c = (t.detach() for t in case())
    phi, z, w = (t.to(dtype).requires_grad_() for t in (phi, z, w))
    exact = with_gradients(softmax_flatness(*(t.double() for t in (phi, z, w)), c), [phi, z, w])
    in_chunks(monkeypatch, 3)
    found = with_gradients(softmax_flatness(phi, z, w, c.float()), [phi, z, w])
    assert found[0].dtype == torch.float32 and all(t.dtype == dtype for t in found[1:])
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[1:], exact[1:], rtol=2e-2, atol=2e-2)


def test_a_common_offset_is_harmless_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    phi, z, w, c = (t.detach().float() for t in case())
    expected = softmax_flatness(phi, z, w, c)
    in_chunks(monkeypatch, 3)
    torch.testing.assert_close(softmax_flatness(phi, z, w + 100 * torch.randn(M), c), expected, rtol=1e-2, atol=0)


def test_memory_is_bounded_by_the_chunk() -> None:
    """Beyond the gradient of the logits and of W, little more than three chunks."""
    rows, classes, width = 600, 40_000, 4
    phi, z = torch.randn(rows, width, requires_grad=True), torch.randn(rows, classes, requires_grad=True)
    w = torch.randn(classes, width, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        softmax_flatness(phi, z, w, torch.rand(rows)).backward()
    total = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    assert peak < 4 * (z.numel() + 3.2 * chunks.CHUNK_ELEMENTS)
