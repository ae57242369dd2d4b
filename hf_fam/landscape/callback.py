"""WidenCallback: a layer gets more neurons in the middle of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import TrainerCallback

from ..inputs.numbers import require_whole
from .hidden_layer_search import find_hidden_layers
from .optimizer_state import StateTransfer
from .splitting import RATIO_OUTSIDE, check_ratio, widen_layers


class WidenCallback(TrainerCallback):
    """Widen layers within one ``Trainer.train()``.

    After the optimizer step number ``at_step``, `hf_fam.landscape.widen` gives the layers more neurons. The function
    stays as it is. The optimizer gets the new parameters, and keeps what it has gathered: its moments are those that
    the split neurons would have had. The learning rate schedule goes on.

    A checkpoint that was saved later holds the wider model. To resume from it, load the model from the checkpoint.

    Args:
        layer: see `widen`.
        by: see `widen`.
        at_step: the number of the optimizer step after which the layers are widened, at least 1.
        ratio: see `widen`.

    Raises:
        ValueError: ``by``, ``at_step`` or ``ratio`` is out of range.

    Examples:
        >>> import tempfile
        >>> from hf_fam.landscape.callback import WidenCallback
        >>> from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
        >>> config = BertConfig(
        ...     vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ... )
        >>> trainer = Trainer(
        ...     model=BertForSequenceClassification(config),
        ...     args=TrainingArguments(
        ...         output_dir=tempfile.mkdtemp(), max_steps=4, report_to="none", use_cpu=True, disable_tqdm=True
        ...     ),
        ...     train_dataset=[{"input_ids": [k, k + 1, 2], "labels": k % 2} for k in range(8)],
        ...     callbacks=[WidenCallback("*.intermediate.dense", by=4, at_step=2)],
        ... )
        >>> _ = trainer.train()
        {'train_runtime': ...}
        >>> trainer.model.config.intermediate_size
        20
    """

    def __init__(self, layer: str | Sequence[str], by: int, at_step: int, *, ratio: float = RATIO_OUTSIDE) -> None:
        by, at_step = require_whole("by", by), require_whole("at_step", at_step)
        check_ratio(ratio)
        self.layer, self.by, self.at_step, self.ratio = layer, by, at_step, ratio

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse what could not be widened, before anything is trained.

        Raises:
            ValueError: the training runs in several processes or compiled, ends before ``at_step``, or see `widen`.
            TypeError: see `widen`.
        """
        _refuse_wrapped(args)
        if state.global_step < self.at_step:
            if state.max_steps < self.at_step:
                raise ValueError(
                    f"at_step={self.at_step}: the training has only {state.max_steps} steps; give a smaller number."
                )
            find_hidden_layers(kwargs["model"], self.layer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Widen after the step ``at_step``."""
        if state.global_step == self.at_step:
            widen_in_training(kwargs["model"], kwargs["optimizer"], self.layer, self.by, self.ratio)


@torch.no_grad()
def widen_in_training(
    model: nn.Module,
    optimizer: Any,
    layer: str | nn.Module | Sequence[str | nn.Module],
    by: int,
    ratio: float = RATIO_OUTSIDE,
    neurons: Sequence[int] | None = None,
) -> None:
    """Widen layers and give the optimizer the new parameters, with its state.

    Args:
        model: see `widen`.
        optimizer: one of torch's, or accelerate's wrapper around it.
        layer: see `widen`.
        by: see `widen`.
        ratio: see `widen`.
        neurons: see `widen`.

    Raises:
        ValueError: see `widen`.
        TypeError: see `widen`.
    """
    inner: Any = optimizer
    while hasattr(inner, "optimizer"):  # a wrapper
        inner = inner.optimizer
    transfer = StateTransfer(inner, find_hidden_layers(model, layer))
    transfer.finish(widen_layers(model, layer, by, ratio, neurons), ratio)


def _refuse_wrapped(args: Any) -> None:
    """Refuse trainings in which something else keeps the old parameters."""
    reasons = {
        "several processes": args.world_size > 1,
        "DataParallel on several GPUs": args.n_gpu > 1,
        "DeepSpeed": bool(args.deepspeed),
        "FSDP": bool(args.fsdp),
        "torch.compile": args.torch_compile or AcceleratorState().dynamo_plugin.backend.value.lower() != "no",
    }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(
                f"WidenCallback cannot replace parameters in a training with {reason}, which keeps the old ones. "
                "End the training, call hf_fam.landscape.widen, and train on with a new Trainer."
            )
