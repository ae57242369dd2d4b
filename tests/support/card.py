"""A simulated accelerator, so that a test on a CPU sees what a program does to a device.

`install` registers a device type "card" for the whole process, so tests use it in a process of their own. Inside a
`Card` block, tensors on ``CARD`` hold their data on the CPU. The block counts

- waits: whatever makes the host wait for a device, such as ``.item()``, ``nonzero``, indexing by a mask, and copies
  between host and device;
- launches: operations that a device runs as kernels. Views and allocations are none.

An operation on tensors of both devices is an error, as on a real accelerator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

try:  # torch 2.10 and later
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as setup
except ImportError:
    setup = None

NAME = "card"

# Their results, or the sizes of them, are numbers that the host waits for.
_WAITS = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "equal", "is_nonzero", "_unique2",
    "unique_dim", "unique_consecutive", "bincount", "repeat_interleave", "histc",
}  # fmt: skip
# Operations that move data between devices, and those that accept indices from another one, by a copy.
_COPIES, _INDEXING = {"_to_copy", "copy_"}, {"index", "index_put_", "_index_put_impl_"}
# Operations that are no kernel, besides views.
_NO_LAUNCH = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh",
    "_unsafe_view", "_reshape_alias", "_local_scalar_dense", "set_", "resize_", "is_same_size", "sym_size",
}  # fmt: skip


class _Backend:
    """What torch asks a device type for."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def is_possible() -> bool:
    """Whether this torch can have a device type that is written in Python."""
    return setup is not None


def install() -> torch.device:
    """Register the device type; once, in a process of its own."""
    assert setup is not None
    setup(NAME, _Backend())
    torch.Generator = _Generator
    torch.tensor, Tensor.new_tensor, Tensor.tolist = _through_host(torch.tensor), _new_tensor, _tolist
    return torch.device(NAME, 0)


def _through_host(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A factory from lists and numbers that copies to the card what it makes on the host, as torch does in C++."""

    def make(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        on_card = device is not None and torch.device(device).type == NAME
        tensor = factory(*args, device="cpu" if on_card else device, **kwargs)
        return tensor.to(device) if on_card else tensor

    return make


def _new_tensor(self: Tensor, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    kwargs = {"dtype": dtype or self.dtype, "device": device or self.device, "requires_grad": requires_grad}
    return torch.tensor(data, **kwargs)


_plain_tolist = Tensor.tolist


def _tolist(self: Tensor) -> Any:
    return _plain_tolist(self.to("cpu") if isinstance(self, OnCard) else self)


class _Generator(torch.Generator):
    """A generator whose numbers for the card come from the CPU."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        return super().__new__(cls, "cpu" if torch.device(device).type == NAME else device)


class OnCard(Tensor):
    """A tensor on the card; its numbers are in `data_on_host`."""

    data_on_host: Tensor

    @staticmethod
    def __new__(cls, data: Tensor) -> OnCard:
        return Tensor._make_wrapper_subclass(
            cls, data.shape, strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, data: Tensor) -> None:
        self.data_on_host = data

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with Card() as uncounted:
            return uncounted.__torch_dispatch__(function, types, args, kwargs)

    __torch_function__ = torch._C._disabled_torch_function_impl


class Card(TorchDispatchMode):
    """Runs operations on the card, and counts them.

    Args:
        is_strict: a tensor of one number on the host is an error, too, as one on another card would be.

    Attributes:
        waits: number of times that the host waited, by operation.
        launches: number of kernels, by operation.
    """

    def __init__(self, *, is_strict: bool = False) -> None:
        super().__init__()
        self._is_strict = is_strict
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()

    def clear(self) -> None:
        self.waits.clear()
        self.launches.clear()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        device, name = kwargs.get("device"), function.overloadpacket.__name__
        goes_to_card = device is not None and torch.device(device).type == NAME
        on_host = [t for t in tensors if not isinstance(t, OnCard)]
        if not goes_to_card and len(on_host) == len(tensors):
            return function(*args, **kwargs)
        leaves_card = name == "_to_copy" and device is not None and not goes_to_card
        # A number on the host can be an argument of a kernel.
        arrays_on_host = [t for t in on_host if t.dim() or self._is_strict]
        waits_for_copy = name in _COPIES and not kwargs.get("non_blocking", False)
        copies = (waits_for_copy and on_host) or (name in _INDEXING and arrays_on_host)
        if name in _WAITS or (leaves_card and waits_for_copy) or copies or _indexes_by_mask(name, args):
            self.waits[name] += 1
        elif arrays_on_host and name not in _COPIES:
            raise RuntimeError(f"{function}: expected all tensors on one device, but some are on the card, some not")
        if not function.is_view and name not in _NO_LAUNCH:
            self.launches[name] += 1
        kwargs_on_host = tree_map(_on_host, kwargs)
        if goes_to_card:
            kwargs_on_host["device"] = torch.device("cpu")
        result = function(*tree_map(_on_host, args), **kwargs_on_host)
        if leaves_card or name == "_local_scalar_dense":
            return result
        if name == "copy_" and not isinstance(args[0], OnCard):
            return args[0]
        wrapped = tree_map(lambda t: OnCard(t) if isinstance(t, Tensor) else t, result)
        return return_and_correct_aliasing(function, args, kwargs, wrapped)


def _indexes_by_mask(name: str, args: Any) -> bool:
    return name in _INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _on_host(value: Any) -> Any:
    return value.data_on_host if isinstance(value, OnCard) else value


def launches_of(function: Callable[[], Any]) -> int:
    """Number of kernels that a function launches, on whatever device its tensors are."""
    with LaunchCounter() as counter:
        function()
    return counter.launches.total()


class LaunchCounter(TorchDispatchMode):
    """Counts the operations that are kernels, by operation, on the device where they run anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not function.is_view and function.overloadpacket.__name__ not in _NO_LAUNCH:
            self.launches[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))
