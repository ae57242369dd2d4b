"""The variance of probes of coupled rows: the formula of docs/coupled-rows.md, and that of the drawn matrices."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness
from hf_fam.flatness.batch import Seeds
from hf_fam.flatness.coupling import Coupling
from hf_fam.flatness.directions import block_count, direction, draw, draw_for_trace
from hf_fam.flatness.estimators.dense import dense_flatness
from hf_fam.flatness.estimators.hessian import hessian_probe
from hf_fam.layer.feature_layer import FeatureLayer
from hf_fam.layer.linear_map import LinearMap, RowMap
from support.tails import Attention, Pool

KINDS = ["attention", "batchnorm", "mixer", "recurrent"]


class Mixer(nn.Module):
    """A layer over positions with a residual connection."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = nn.Linear(positions, positions)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.positions(x.mT)).mT


class Recurrent(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.state = nn.Linear(m, m)

    def forward(self, x: Tensor) -> Tensor:
        state = x[:, 0].tanh()
        for t in range(1, x.shape[1]):
            state = (x[:, t] + self.state(state)).tanh()
        return state


def network(kind: str, m: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Model, inputs and labels; the first layer's rows are coupled."""
    if kind == "batchnorm":
        tail: list[nn.Module] = [nn.BatchNorm1d(m, track_running_stats=False), nn.Tanh(), nn.Linear(m, 3)]
        shape = (7, m)
    else:  # a single item
        mixing = {
            "attention": [nn.Tanh(), Attention(m), Pool()],
            "mixer": [Mixer(5), Pool()],
            "recurrent": [Recurrent(m)],
        }
        tail, shape = [*mixing[kind], nn.Linear(m, 3)], (1, 5, m)
    model = nn.Sequential(nn.Linear(m, m), *tail).double()
    return model, torch.randn(shape, dtype=torch.float64), torch.randint(0, 3, shape[:1])


def form(model: nn.Sequential, inputs: Tensor, labels: Tensor) -> Tensor:
    """The form M in the entries of A, ``M_ij,kl = sum_st W_si W_tk H_sj,tl``, by torch.func."""
    parameters = dict(model.named_parameters())
    weight = parameters["0.weight"].detach()

    def loss_of(w: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, {**parameters, "0.weight": w}, (inputs,)), labels)

    return torch.einsum("si,sjtl,tk->ijkl", weight, torch.func.hessian(loss_of)(weight), weight)


def variance(M: Tensor, share: Callable[[int, int], float]) -> Tensor:
    """The variance of a probe, from the formula; ``share`` is the probability that two features share a block."""
    m = len(M)
    p = torch.tensor([[share(i, k) if i != k else 0.0 for k in range(m)] for i in range(m)], dtype=M.dtype)
    off = 1 - torch.eye(m, dtype=M.dtype)
    independent = 2 * (M.square().sum() - torch.einsum("ijij->ij", M).square().sum())
    excess = (
        torch.einsum("ijil,kjkl->ikjl", M, M)
        + torch.einsum("ijkj,ilkl->ikjl", M, M)
        + torch.einsum("ijkl,ilkj->ikjl", M, M)
    )
    return independent + 2 * torch.einsum("ikjl,ik,jl->", excess, p, off)


def in_blocks(m: int, blocks: int) -> Callable[[int, int], float]:
    length = math.ceil(m / blocks)
    return lambda i, k: float(i // length == k // length)


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("kind", ["attention", "batchnorm"])
def test_formula_by_enumeration(kind: str, blocks: int) -> None:
    m, seed = 3, secrets.randbits(32)
    print("seed", seed)  # shown where the test fails
    torch.manual_seed(seed)
    model, inputs, labels = network(kind, m)
    M = form(model, inputs, labels)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * (m + blocks * m))
    identity = RowMap(m, m, lambda: torch.eye(m, dtype=torch.float64))
    matrices = torch.stack(
        [direction(identity.weight, identity, s[:m], s[m:].view(blocks, m)).T for s in signs]  # u of row t is A e_t
    )
    probes = torch.einsum("nij,ijkl,nkl->n", matrices, M, matrices)
    torch.testing.assert_close(probes.mean(), torch.einsum("ijij->", M), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(probes.var(correction=0), variance(M, in_blocks(m, blocks)), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_probes_have_the_variance_of_independent_entries(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 16 features, each has a block of its own; a matrix of rank one has several times the variance."""
    torch.manual_seed(2)
    m, count = 8, 1500
    model, inputs, labels = network(kind, m)
    M = form(model, inputs, labels)
    independent, rank_one = variance(M, lambda i, k: 0.0), variance(M, lambda i, k: 1.0)
    assert rank_one > 1.5 * independent
    flatness = RelativeFlatness(model, "0", "hessian", probes=count, gradient="weights_only")
    flatness.seed(4)
    probes: list[Tensor] = []

    def recorded(*args: Any, **options: Any) -> Tensor:
        probes.append(hessian_probe(*args, **options))
        return probes[-1]

    monkeypatch.setattr("hf_fam.flatness.estimators.hessian.hessian_probe", recorded)
    with flatness.capture():
        loss = F.cross_entropy(model(inputs), labels)
    mean = flatness(loss)
    true = dense_flatness(loss, model[0].weight).kappa  # type: ignore[arg-type]
    assert len(probes) == count and abs(mean - true) < 5 * (independent / count).sqrt()
    assert 0.75 * independent < torch.stack(probes).var() < 1.35 * independent


@pytest.mark.parametrize("coupling", [Coupling.ITEMS, Coupling.BATCH])
@pytest.mark.parametrize(("m", "length"), [(3, 1), (16, 1), (17, 2), (40, 3)])
def test_drawn_matrices_have_blocks(m: int, length: int, coupling: Coupling) -> None:
    """Entries are signs, rows of one block are equal up to their sign, and rows of different ones are independent."""
    identity = RowMap(m, m, lambda: torch.eye(m, dtype=torch.float64))
    units = torch.eye(m, dtype=torch.float64).expand(2, m, m)  # two items, whose rows are the unit vectors
    (u,) = draw([units], identity, coupling, Seeds((1,)))
    (trace,) = draw_for_trace([units], [units], identity, coupling, Seeds((1,)))
    assert block_count(m, m) == math.ceil(m / length)
    for matrices in (u.mT, trace.mT):
        assert torch.equal(matrices[0], matrices[1]) == (coupling is Coupling.BATCH)
        for matrix in matrices:
            assert set(matrix.unique().tolist()) == {-1.0, 1.0}
            is_equal = (matrix @ matrix.T).abs() == m
            blocks = torch.arange(m) // length
            assert is_equal[blocks[:, None] == blocks].all()
            if m >= 40:  # few features are equal by chance
                assert torch.equal(is_equal, blocks[:, None] == blocks)


class Grouped(nn.Module):
    """A grouped convolution whose positions are pooled, or the same with a coupled batch."""

    def __init__(self, coupled: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(4, 4, 3, groups=2, padding=1)
        self.norm = nn.BatchNorm1d(4, track_running_stats=False) if coupled else nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.convolution(x)).tanh().mean(-1))


@pytest.mark.parametrize("coupling", [Coupling.ITEMS, Coupling.BATCH])
@pytest.mark.parametrize("blocks", [1, 2, 4, 6])
def test_blocks_of_convolutions_by_patches(blocks: int, coupling: Coupling) -> None:
    """u = W_g A_g phi_t of every group, with A_g written out."""
    linear_map: LinearMap = FeatureLayer(Grouped(False).double(), "convolution").linear_map
    m, groups, items = linear_map.in_features, linear_map.groups, 3
    assert (m, groups) == (6, 2)
    x = torch.randn(items, 4, 5, dtype=torch.float64)
    own = (items,) if coupling is Coupling.ITEMS else ()
    r = torch.randn(*own, groups * m, dtype=torch.float64)
    a = torch.randn(*own, blocks, groups * m, dtype=torch.float64)
    block = torch.arange(m) // math.ceil(m / blocks)
    matrices = r.view(*own, groups, m, 1) * a.view(*own, blocks, groups, m).transpose(-3, -2)[..., block, :]
    weight = linear_map.weight.view(groups, -1, m)
    phi = linear_map.feature_rows(x).unflatten(-1, (groups, m))
    true = torch.einsum("gdi,ngij,ntgj->ntgd", weight, matrices.expand(items, groups, m, m), phi).flatten(-2)
    torch.testing.assert_close(direction(x, linear_map, r, a), true)


@pytest.mark.parametrize("coupling", [Coupling.ITEMS, Coupling.BATCH])
def test_traces_of_groups_have_matrices_of_their_own(coupling: Coupling) -> None:
    m, outputs = 40, 20
    linear_map = FeatureLayer(nn.Sequential(nn.Conv1d(2 * m, 2 * outputs, 1, groups=2)), "0").linear_map
    x = torch.eye(m).repeat(2, 1).expand(3, 2 * m, m)  # position t has unit vector t in both groups
    z = torch.zeros(3, m, 2 * outputs)
    (u,) = draw_for_trace([x], [z], linear_map, coupling, Seeds((1,)))
    for matrix in u.mT:
        assert set(matrix.unique().tolist()) == {-1.0, 1.0}
        blocks = torch.arange(2 * outputs) // 2  # 10 blocks in each group
        assert torch.equal((matrix @ matrix.T).abs() == m, blocks[:, None] == blocks)
