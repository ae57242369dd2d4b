"""One training, cut into processes and micro-batches in different ways; imported and launched by tests/invariants."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import BertConfig, BertForMultipleChoice, Trainer

from hf_fam import FAMCallback, FAMTrainer
from hf_fam.flatness import chunks
from support.leaving import leave_together
from support.tiny import arguments, classified, logged, plain_arguments, texts, tiny_bert, tiny_llama


@dataclass
class Case:
    """A model, its data, and the settings under which the term is comparable with the loss."""

    model: Callable[[], nn.Module]
    data: Callable[[int], list[dict[str, Any]]]
    settings: dict[str, Any]
    double: bool = True
    steps: int = 5


def bert() -> nn.Module:
    """Its loss ignores num_items_in_batch; eager attention, which has second derivatives."""
    model = tiny_bert(dropout=0.0)
    model.set_attn_implementation("eager")
    return model


def llama() -> nn.Module:
    """Its loss honours num_items_in_batch, and is taken in float64 (transformers takes it in float32)."""
    model = tiny_llama()
    model.set_attn_implementation("eager")
    model.loss_function = next_token_loss
    return model


LARGE_CLASSES = 5_000


def large_llama() -> nn.Module:
    """With a large head, whose term acts in the backward pass."""
    model = tiny_llama(vocab_size=LARGE_CLASSES, max_position_embeddings=64)
    model.set_attn_implementation("eager")
    model.loss_function = next_token_loss
    return model


def long_texts(count: int) -> list[dict[str, Any]]:
    return texts(count, length=32)


def next_token_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Any = None, **kwargs: Any) -> Tensor:
    total = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return total / ((labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def multiple_choice() -> nn.Module:
    """The loss couples the choices of an item, which are rows of the feature layer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForMultipleChoice(BertConfig(**sizes, **rates, intermediate_size=16, max_position_embeddings=16))


def choices(count: int) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, 50, (count, 3, 5), generator=draw)
    labels = torch.randint(3, (count,), generator=draw)
    return [{"input_ids": t.tolist(), "labels": int(y)} for t, y in zip(tokens, labels, strict=True)]


def pooler(estimator: str, strength: float) -> dict[str, Any]:
    return {"fam_layer": "representation", "fam_estimator": estimator, "fam_lambda": strength}


BLOCK = "bert.encoder.layer.0.output.dense"
DOWN = "model.layers.0.mlp.down_proj"
CASES = {
    "head, closed form, ignores num_items_in_batch": Case(bert, classified, {"fam_lambda": 200.0}),
    "head, closed form, honours num_items_in_batch": Case(llama, texts, {"fam_lambda": 20.0}),
    "large head, closed form": Case(large_llama, long_texts, {"fam_lambda": 20.0, "fam_estimator": "closed_form"}),
    "large head, row probes": Case(large_llama, long_texts, {"fam_lambda": 20.0}),
    "head, closed form, float32": Case(lambda: tiny_bert(dropout=0.0), classified, {"fam_lambda": 200.0}, double=False),
    "hidden layer, Gauss-Newton, rows on their own": Case(bert, classified, pooler("gauss_newton", 5.0)),
    "hidden layer, Hessian, rows on their own": Case(bert, classified, pooler("hessian", 5.0)),
    "hidden layer, Hessian, two probes, tokens of an item coupled": Case(
        bert, classified, {"fam_layer": BLOCK, "fam_estimator": "hessian", "fam_probes": 2, "fam_lambda": 500.0}
    ),
    "hidden layer, Gauss-Newton, tokens, honours num_items_in_batch": Case(
        llama, texts, {"fam_layer": DOWN, "fam_estimator": "gauss_newton", "fam_lambda": 5.0}
    ),
    "hidden layer, Hessian, one matrix shared by the batch": Case(multiple_choice, choices, pooler("hessian", 5.0)),
    "hidden layer, perturbation": Case(bert, classified, pooler("perturbation", 0.5)),
    "hidden layer, Gauss-Newton, centered": Case(bert, classified, {**pooler("gauss_newton", 5.0), "fam_center": True}),
    "hidden layer, perturbation, centered": Case(bert, classified, {**pooler("perturbation", 0.5), "fam_center": True}),
    "head, closed form, centered": Case(bert, classified, {"fam_lambda": 200.0, "fam_center": True}),
    "head, closed form, smoothed": Case(bert, classified, {"fam_lambda": 20.0, "fam_smoothing": 0.1}),
    "hidden layer, Gauss-Newton, smoothed": Case(
        bert, classified, {**pooler("gauss_newton", 5.0), "fam_smoothing": 0.1}
    ),
    "hidden layer, Gauss-Newton, warm-up": Case(
        bert, classified, {**pooler("gauss_newton", 5.0), "fam_warmup_steps": 0.6}
    ),
}


# The items as they are in the data set, so that what is repeated at the end is known.
IN_ORDER = {"train_sampling_strategy": "sequential"}


def trained(path: Path, name: str, batch: int, parts: int, items: int = 40, **given: Any) -> dict[str, Any]:
    """Weights and logs after a few steps; gradients are not clipped, which would hide their scale."""
    case = CASES[name]
    model = case.model().double() if case.double else case.model()
    data = given.pop("data", None) or case.data(items)
    sizes = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": parts,
        "per_device_eval_batch_size": 4,
    }
    settings = {"max_steps": case.steps, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.1}
    args = arguments(path, **{**settings, **sizes, **case.settings, **given})
    trainer = FAMTrainer(model=model, args=args, train_dataset=data, eval_dataset=data)
    elements = 4 * LARGE_CLASSES if case.model is large_llama else chunks.CHUNK_ELEMENTS  # four rows of logits
    with warnings.catch_warnings(), mock.patch.object(chunks, "CHUNK_ELEMENTS", elements):
        warnings.filterwarnings("ignore", message=".*ignores num_items_in_batch")
        trainer.train()
        largest = peak_memory(trainer, batch) if name in LARGE else None
    evaluated = trainer.evaluate()["eval_loss"]
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everywhere = trainer.accelerator.gather(weights.unsqueeze(0))
    return {
        "processes": trainer.accelerator.num_processes,
        "weights": weights,
        "same_everywhere": bool((everywhere == weights).all()),
        "eval_loss": evaluated,
        "peak_memory": largest,
        **{key: logged(trainer, key) for key in LOGGED},
    }


def peak_memory(trainer: FAMTrainer, batch: int) -> int:
    """Bytes that the forward and backward pass of one micro-batch allocate at most, beside what is there before."""
    items = [trainer.train_dataset[k] for k in range(batch)]
    trainer.model.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.training_step(trainer.model_wrapped, trainer.data_collator(items), torch.tensor(100))
    total = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    if trainer.relative_flatness is not None:
        trainer.relative_flatness.detach()
    return peak


CALLBACK_CASES = {
    # The stock Trainer multiplies the loss of such a model by the number of processes unless it is told not to.
    "ignores num_items_in_batch": Case(bert, classified, {"average_tokens_across_devices": False}),
    "honours num_items_in_batch": Case(llama, texts, {}),
}
CALLBACK_LOGS = ("loss", "fam_kappa", "fam_term", "fam_lambda", "fam_delta")


def trained_with_callback(path: Path, name: str, batch: int) -> dict[str, Any]:
    """Weights and logs of the stock Trainer with FAMCallback; two steps of different strength are logged together."""
    case = CALLBACK_CASES[name]
    model = case.model().double()
    settings = {"max_steps": 4, "logging_steps": 2, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.1}
    args = plain_arguments(path, **{**settings, "per_device_train_batch_size": batch, **case.settings})
    callback = FAMCallback(20.0, fam_warmup_steps=4)
    trainer = Trainer(model=model, args=args, train_dataset=case.data(40), callbacks=[callback])
    trainer.train()
    return {
        "processes": trainer.accelerator.num_processes,
        "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
        **{key: logged(trainer, key) for key in CALLBACK_LOGS},
    }


LARGE = [name for name in CASES if name.startswith("large head")]
LOGGED = ("loss", "fam_kappa", "fam_term", "fam_lambda", "fam_grad_ratio", "grad_norm")
UNEQUAL = [name for name in CASES if "num_items_in_batch" in name] + ["hidden layer, Hessian, rows on their own"]


def main(folder: Path) -> None:
    """Every case in the processes that were started; the first one writes what came out."""
    torch.set_num_threads(1)
    found = {}
    for name in CASES:
        for batch, parts in ((4, 1), (2, 2)):
            found[name, 40, batch, parts] = trained(folder, name, batch, parts)
    for name in UNEQUAL:
        for batch, parts, more in ((2, 2, {}), (4, 1, IN_ORDER), (4, 1, {"dataloader_drop_last": True})):
            found[(name, 20, batch, parts, *more)] = trained(folder, name, batch, parts, items=20, max_steps=7, **more)
    if PartialState().is_main_process:
        torch.save(found, folder / "found.pt")
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
