"""The loss over a whole data set: value, gradient and products with the Hessian."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..inputs.kinds import require_function, require_instance
from ..inputs.numbers import require_number
from ..inputs.text import quote

Loss = Callable[[Any, Any], Tensor]
# Rows of a Hessian that are computed at a time.
ROWS = 64


class Halves(Protocol):
    """A neuron that stands for two equal copies of itself."""

    def scale(self, model: nn.Module, factors: dict[int, Tensor]) -> None:
        """Scale the decay of its weights; ``factors`` is by the id of a parameter."""


class HalfSquaredError(nn.Module):
    """Half the sum of squared differences, over all items and outputs.

    Examples:
        >>> HalfSquaredError()(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])).item()
        2.5
    """

    reduction = "sum"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 0.5 * ||outputs - targets||^2.

        Args:
            outputs: a tensor.
            targets: a tensor of the same shape.

        Raises:
            ValueError: the shapes differ.
        """
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs have shape {tuple(outputs.shape)}, targets {tuple(targets.shape)}: give equal shapes."
            )
        return 0.5 * (outputs - targets).square().sum()


class Objective:
    """The loss of a model over data, in float64 and evaluation mode.

    Args:
        loss: called with outputs and targets for batches that are pairs, with outputs and the batch for dicts; None:
            the model's own (``outputs.loss``).
        data: batches, ``(inputs, targets)`` or dicts of a model's arguments; or one such batch. The object can be
            iterated more than once, such as a list or a DataLoader without random augmentation.
        reduction: how the losses of batches are combined: "mean", weighted by the number of items (the length of the
            first tensor), or "sum". None: ``loss.reduction``, else "mean".
        weight_decay: alpha of the penalty ``alpha / 2 ||theta||^2`` over all trainable parameters, which is added to
            the loss. An optimizer's ``weight_decay`` has this meaning in SGD; AdamW's has no objective.

    Raises:
        ValueError: the data are an iterator or empty, the reduction is unknown, or the weight decay is negative.
        TypeError: a batch is neither a pair nor a dict.
    """

    def __init__(self, loss: Loss | None, data: Any, reduction: str | None = None, weight_decay: float = 0.0) -> None:
        self.weight_decay = require_number("weight_decay", weight_decay, 0)
        self.halves: Halves | None = None
        self.loss = loss
        require_function("loss", loss, "a function of outputs and targets")
        self.reduction = getattr(loss, "reduction", "mean") if reduction is None else reduction
        if not isinstance(self.reduction, str) or self.reduction not in ("mean", "sum"):
            raise ValueError(
                f'reduction={quote(self.reduction)}: give "mean" if the loss of a batch is the mean over its items, or '
                '"sum".'
            )
        require_instance("data", data, (Iterable, Mapping), "batches, such as (inputs, targets)")
        if isinstance(data, Iterator):
            raise ValueError(
                f"data is a {type(data).__name__}, which can be iterated only once: give a list or a DataLoader."
            )
        one_pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(t, Tensor) for t in data)
        self.data: Iterable[Any] = [data] if one_pair or _is_dict(data) else data
        self.items = sum(_length(batch) for batch in self.data)
        if not self.items:
            raise ValueError("data has no batches: give at least one.")

    def batch_losses(self, model: nn.Module) -> Iterator[Tensor]:
        """Yield the loss of each batch, a scalar in the graph.

        The scalars add up to the loss of the data.
        """
        parameter = next(model.parameters())
        for batch in self.data:
            # The fused attention kernels have no second derivative.
            with sdpa_kernel(SDPBackend.MATH):
                loss = self._call(model, _cast(batch, parameter.device, parameter.dtype))
            if not isinstance(loss, Tensor) or loss.dim():
                shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"loss must be a scalar tensor for each batch, not {shape}.")
            if loss.dtype != parameter.dtype:
                raise ValueError(
                    f"the loss is computed in {loss.dtype}, which is not precise enough: causal models of transformers "
                    "cast their logits. Give a loss without a cast, such as lambda outputs, batch: torch.nn.functional."
                    "cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch['labels'][:, 1:].flatten())."
                )
            yield loss * (_length(batch) / self.items) if self.reduction == "mean" else loss

    def value(self, model: nn.Module) -> float:
        """Return the loss."""
        with torch.no_grad():
            values = [float(loss) for loss in self.batch_losses(model)]
            if self.weight_decay:
                values.append(float(self.decay(model) @ flat(trainable(model)).square()) / 2)
            return math.fsum(values)

    def decay(self, model: nn.Module) -> Tensor:
        """Return the weight decay of every trainable parameter, one vector.

        The weights of a neuron in `halves` count as those of two equal copies. Both have the incoming weights, which
        count twice. They share the outgoing ones, which count half.
        """
        parameters = trainable(model)
        factors = {id(p): torch.full_like(p, self.weight_decay) for p in parameters}
        if self.halves is not None:
            self.halves.scale(model, factors)
        return flat(factors[id(p)] for p in parameters)

    def value_and_gradient(self, model: nn.Module) -> tuple[float, Tensor]:
        """Return the loss and its gradient in all trainable parameters.

        The gradient is one vector.
        """
        parameters = trainable(model)
        values, total = [], torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
        for loss in self.batch_losses(model):
            total = total.to(loss.device) + flat_gradient(loss, parameters)
            values.append(float(loss.detach()))
        if self.weight_decay:
            decay, weights = self.decay(model), flat(parameters).detach()
            values.append(float(decay @ weights.square()) / 2)
            total = total + decay * weights
        return math.fsum(values), total

    def hessian_product(self, model: nn.Module, vector: Tensor) -> Tensor:
        """Return the Hessian in all trainable parameters times a vector."""
        parameters, total = trainable(model), torch.zeros_like(vector)
        for loss in self.batch_losses(model):
            gradient = flat_gradient(loss, parameters, create_graph=True)
            total += flat_gradient(gradient @ vector, parameters)
        return total + self.decay(model) * vector if self.weight_decay else total

    def hessian(self, model: nn.Module) -> Tensor:
        """Return the whole Hessian of a small model, one product for each parameter."""
        parameters = trainable(model)
        size = sum(p.numel() for p in parameters)
        total = torch.zeros(size, size, dtype=parameters[0].dtype, device=parameters[0].device)
        for loss in self.batch_losses(model):
            gradient = flat_gradient(loss, parameters, create_graph=True)
            if not gradient.requires_grad:  # a loss that is linear in the parameters
                continue
            for rows in torch.arange(size, device=total.device).split(ROWS):
                units = torch.nn.functional.one_hot(rows, size).to(total)
                products = torch.autograd.grad(
                    gradient, parameters, units, retain_graph=True, is_grads_batched=True, allow_unused=True
                )
                total[rows] += torch.cat(
                    [
                        total.new_zeros(len(rows), p.numel()) if product is None else product.reshape(len(rows), -1)
                        for p, product in zip(parameters, products, strict=True)
                    ],
                    dim=1,
                )
        if self.weight_decay:
            total += torch.diag(self.decay(model))
        return (total + total.T) / 2

    def _call(self, model: nn.Module, batch: Any) -> Any:
        if _is_dict(batch):
            outputs = model(**batch)
            return outputs["loss"] if self.loss is None else self.loss(outputs, batch)
        inputs, targets = batch
        outputs = model(**inputs) if _is_dict(inputs) else model(inputs)
        if self.loss is None:
            raise ValueError("loss=None stands for the model's own loss, which needs batches that are dicts.")
        return self.loss(outputs, targets)


def float64_copy(model: nn.Module) -> nn.Module:
    """Return a copy in float64 and evaluation mode.

    It is on the same device, or on the CPU if the device has no float64.
    """
    copied = copy.deepcopy(model)
    if any(parameter.device.type == "mps" for parameter in copied.parameters()):
        copied = copied.cpu()
    return copied.double().eval()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters; the loss is a function of them alone."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Return all entries in one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def flat_gradient(scalar: Tensor, parameters: Sequence[Tensor], **options: Any) -> Tensor:
    """Return the gradient as one vector.

    It is zero where the scalar does not depend on a parameter.
    """
    if not scalar.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters), dtype=scalar.dtype, device=scalar.device)
    return flat(torch.autograd.grad(scalar, parameters, materialize_grads=True, **options))


def relative_gradient(model: nn.Module, loss: float, gradient: Tensor) -> float:
    """Return ``||grad L|| ||theta|| / |L|``, the relative change of the loss for one of the parameters."""
    size = float(gradient.norm()) * float(flat(trainable(model)).detach().norm())
    return size / abs(loss) if loss else (math.inf if size else 0.0)


@torch.no_grad()
def move(model: nn.Module, step: Tensor) -> None:
    """Add a vector to the trainable parameters."""
    start = 0
    for parameter in trainable(model):
        parameter.add_(step[start : start + parameter.numel()].view_as(parameter))
        start += parameter.numel()


def _is_dict(batch: Any) -> bool:
    return isinstance(batch, Mapping)


def _length(batch: Any) -> int:
    """Return the number of items in a batch."""
    parts = list(batch.values()) if _is_dict(batch) else batch
    if not _is_dict(batch) and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise TypeError(
            f"data must consist of pairs (inputs, targets) or of dicts; a batch is a {type(batch).__name__}."
        )
    for part in parts:
        if _is_dict(part):
            return _length(part)
        if isinstance(part, Tensor) and part.dim():
            return len(part)
    raise TypeError("a batch has no tensor with a first dimension to count its items by.")


def _cast(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the batch on the model's device and in its precision."""
    if isinstance(batch, Tensor):
        return batch.to(device, dtype) if batch.is_floating_point() else batch.to(device)
    if _is_dict(batch):
        return {name: _cast(value, device, dtype) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_cast(value, device, dtype) for value in batch)
    return batch
