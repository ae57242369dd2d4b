"""Whether the Trainer's model is compiled, by its arguments or by the launcher."""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState


def compiling_setting(args: Any) -> str | None:
    """Return the setting that makes accelerate compile the Trainer's model, for a message; None without one.

    accelerate compiles the model without ``args.torch_compile``, too, if its launcher, its configuration or the
    environment names a backend.

    Args:
        args: the ``TrainingArguments`` of a ``Trainer`` that exists.
    """
    if args.torch_compile:
        return "torch_compile=True"
    backend = AcceleratorState().dynamo_plugin.backend.value.lower()
    return None if backend == "no" else f"`accelerate launch --dynamo_backend {backend}` (ACCELERATE_DYNAMO_BACKEND)"
