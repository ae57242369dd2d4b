"""FSDP2 in two CPU processes against one process without it; launched by tests/distributed/test_fsdp2.py."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from hf_fam import RelativeFlatness
from hf_fam.flatness.attach import attach
from support.leaving import leave_together

STRENGTH = 3.0
DRAW = torch.Generator().manual_seed(1)
INPUTS = torch.randn(8, 6, dtype=torch.float64, generator=DRAW)
LABELS = torch.randint(5, (8,), generator=DRAW)
HIDDEN = ("0", "1.0", "1.2")  # in the root group; first and last layer of a wrapped block
OPTIONS = {
    "default": {},
    "offloaded": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    "reshard": {"reshard_after_forward": True},
    "keep": {"reshard_after_forward": False},
}


def network() -> nn.Module:
    """A layer, a block of layers and a head."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 7))
    return nn.Sequential(nn.Linear(6, 8), block, nn.Tanh(), nn.Linear(7, 5)).double()


def shard(model: nn.Module, *, head: bool = False, **given: Any) -> None:
    """The block, the head if asked for, and what remains as the root group."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (model[1], *([model[3]] if head else []), model):
        fully_shard(part, mesh=mesh, **given)


def injected(model: nn.Module, inputs: Tensor, labels: Tensor, prepare: Callable[..., None], late: bool) -> None:
    """Loss and term of the head by injection, attached before or after the model is sharded."""
    if late:
        prepare(model)
    attached = attach(model, STRENGTH)
    if not late:
        prepare(model)
    nn.functional.cross_entropy(model(inputs).double(), labels).backward()
    attached.detach()


def perturbed(model: nn.Module, inputs: Tensor, labels: Tensor, prepare: Callable[..., None], layer: str) -> None:
    prepare(model)
    flatness = RelativeFlatness(model, layer, "perturbation")
    flatness.adapt_to_sharding()  # the model of one process, too, takes one matrix for the batch
    flatness.seed(5)
    with flatness.capture(0.3):
        loss = nn.functional.cross_entropy(model(inputs), labels)
    flatness(loss)
    loss.backward()
    flatness.detach()


def in_backward_pass(model: nn.Module, inputs: Tensor, labels: Tensor, prepare: Callable[..., None]) -> None:
    """Loss and term of the head by RelativeFlatness."""
    prepare(model)
    flatness = RelativeFlatness(model)
    with flatness.capture(STRENGTH):
        loss = nn.functional.cross_entropy(model(inputs), labels)
    kappa = flatness(loss)
    (loss + STRENGTH * kappa).backward()
    assert kappa > 0
    flatness.detach()


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "a weight has no gradient"
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gradients(term: Callable[..., None], data: slice, model: nn.Module, **given: Any) -> list[Tensor]:
    term(model, INPUTS[data].to(given.pop("dtype", torch.float64)), LABELS[data], **given)
    return [whole(p.grad) for p in model.parameters()]


def unsharded(model: nn.Module) -> None:
    """As it is."""


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative one of all weights."""
    return max(float((f - e).norm() / e.norm()) for f, e in zip(found, expected, strict=True))


def mine() -> slice:
    size = len(INPUTS) // dist.get_world_size()
    return slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)


def in_mixed_precision() -> float:
    """Weights in float32, the forward pass in bfloat16: each process's gradients in bfloat16, their mean in float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = network().float()
    low = {"dtype": torch.bfloat16, "late": True}
    expected = gradients(injected, mine(), copy.deepcopy(model).bfloat16(), prepare=unsharded, **low)
    expected = [g.float() for g in expected]
    for gradient in expected:
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    found = gradients(injected, mine(), model, prepare=lambda m: shard(m, mp_policy=policy), **low)
    assert all(g.dtype == torch.float32 for g in found)
    return error(found, expected)


def refusal(estimator: str, layer: str, strength: float | None = 0.1) -> str:
    model = network()
    shard(model)
    try:
        with RelativeFlatness(model, layer, estimator).capture(strength):
            model(INPUTS[mine()])
    except ValueError as refused:
        return str(refused)
    return "not refused"


def main(output: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    everything = slice(None)
    found: dict[str, Any] = {"processes": dist.get_world_size(), "errors": {}, "refusals": {}}
    errors = found["errors"]
    expected = gradients(injected, everything, network(), prepare=unsharded, late=True)
    plain = gradients(lambda m, x, y: nn.functional.cross_entropy(m(x), y).backward(), everything, network())
    found["size_of_term"] = error(plain, expected)
    for name, options in OPTIONS.items():
        for head in (False, True):
            for late in (False, True):
                sharded = gradients(
                    injected,
                    mine(),
                    network(),
                    prepare=lambda m, head=head, options=options: shard(m, head=head, **options),
                    late=late,
                )
                where, when = "own group" if head else "root", "after" if late else "before"
                errors[f"attach, head in {where}, {when} sharding, {name}"] = error(sharded, expected)
        for head in (False, True):
            sharded = gradients(
                in_backward_pass,
                mine(),
                network(),
                prepare=lambda m, head=head, options=options: shard(m, head=head, **options),
            )
            errors[f"backward pass, head in {'own group' if head else 'root'}, {name}"] = error(sharded, expected)
        for layer in (*HIDDEN, "head"):
            alone = gradients(perturbed, everything, network(), prepare=unsharded, layer=layer)
            sharded = gradients(
                perturbed,
                mine(),
                network(),
                prepare=lambda m, options=options, layer=layer: shard(m, head=layer == "head", **options),
                layer=layer,
            )
            errors[f"perturbation of {layer}, {name}"] = error(sharded, alone)
    averaged = gradients(injected, mine(), nn.parallel.DistributedDataParallel(network()), prepare=unsharded, late=True)
    errors["attach, DistributedDataParallel"] = error(averaged, expected)
    errors["attach, mixed precision"] = in_mixed_precision()
    for estimator, layer in (("gauss_newton", "1.0"), ("hessian", "0"), ("dense", "head")):
        found["refusals"][estimator] = refusal(estimator, layer)
    found["refusals"]["no strength"] = refusal("auto", "head", strength=None)
    if dist.get_rank() == 0:
        output.write_text(json.dumps(found))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
