"""DistributedDataParallel over NCCL and FSDP2 with one process: the gradients are those of the model alone."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from hf_fam import RelativeFlatness, attach
from support.launch import free_port

ROWS, WIDTH, CLASSES, STRENGTH = 16, 8, 5, 0.3


@pytest.fixture(autouse=True)
def process_group(device: torch.device) -> Iterator[None]:
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0", "WORLD_SIZE": "1"}
    before = dict(os.environ)
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


def network(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES)]
    return nn.Sequential(*layers).double().to(device)


def data(device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return inputs.to(device), torch.randint(CLASSES, (ROWS,), generator=generator).to(device)


TERMS: dict[str, dict[str, Any]] = {
    "closed form": {},
    "hessian": {"layer": "0", "estimator": "hessian"},
    "gauss_newton": {"layer": "2", "estimator": "gauss_newton"},
    "perturbation": {"layer": "2", "estimator": "perturbation"},
}


def gradients(model: nn.Module, called: nn.Module, options: dict[str, Any], device: torch.device) -> list[Tensor]:
    inputs, labels = data(device)
    flatness = RelativeFlatness(called, **options)
    if options.get("estimator") == "perturbation":
        flatness.adapt_to_sharding()  # one matrix for the batch, as in the sharded model
    flatness.seed(5)
    with flatness.capture(STRENGTH):
        loss = F.cross_entropy(called(inputs), labels)
    (loss + STRENGTH * flatness(loss)).backward()
    flatness.detach()
    return [whole(p.grad) for p in model.parameters() if p.grad is not None]


def attached_gradients(model: nn.Module, device: torch.device) -> list[Tensor]:
    inputs, labels = data(device)
    attached = attach(model, STRENGTH)
    F.cross_entropy(model(inputs), labels).backward()
    attached.detach()
    return [whole(p.grad) for p in model.parameters() if p.grad is not None]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@pytest.mark.parametrize("name", TERMS)
def test_distributed_data_parallel(name: str, device: torch.device) -> None:
    alone, model = network(device), network(device)
    expected = gradients(alone, alone, TERMS[name], device)
    found = gradients(model, nn.parallel.DistributedDataParallel(model), TERMS[name], device)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["attach", "closed form", "perturbation"])
def test_fully_sharded(name: str, device: torch.device) -> None:
    model = network(device)
    sharded = copy.deepcopy(model)
    fully_shard(sharded, mesh=init_device_mesh(device.type, (1,)))
    if name == "attach":
        found, expected = (attached_gradients(m, device) for m in (sharded, model))
    else:
        found, expected = (gradients(m, m, TERMS[name], device) for m in (sharded, model))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_what_differentiates_twice_is_refused_when_sharded(device: torch.device) -> None:
    model = network(device)
    fully_shard(model, mesh=init_device_mesh(device.type, (1,)))
    with pytest.raises(ValueError, match="in a model that FSDP shards"):
        gradients(model, model, TERMS["hessian"], device)
