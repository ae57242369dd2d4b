"""What hf_fam/_compat.py uses of transformers, accelerate, TRL and sentence-transformers is still there.

By what it does on a tiny trainer, not by its name alone: each test fails when an installed version no longer has it.
"""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, BertConfig, Trainer

import hf_fam._compat as compat
from hf_fam._compat import (
    CheckpointHooks,
    GradientNormHook,
    WeightLoadingHooks,
    clip_gradients,
    forget_forward_pass,
    forget_source,
    loss_is_scaled,
    mark_scheduler_as_created,
    model_from_config,
    prepared_inputs,
    serves_config,
    step_directly,
    train_batch_size,
    without_patched_forward,
)
from support.languages import pairs, sentences, tiny_embedder, tiny_tokenizer
from support.tiny import (
    PLAIN,
    GradientRecorder,
    assert_same_weights,
    classified,
    logged,
    plain_arguments,
    tiny_bert,
    tiny_llama,
    weights,
)


def trainer_of(path: Path, kind: type[Trainer] = Trainer, **given: Any) -> Trainer:
    """A trainer of the given kind on a tiny model."""
    host = {name: given.pop(name) for name in ("callbacks", "model") if name in given}
    data = {"train_dataset": classified(), "eval_dataset": classified(8)}
    return kind(**{"model": tiny_bert(dropout=0.0), **host}, args=plain_arguments(path, **given), **data)


def batch_of(trainer: Trainer) -> dict[str, Any]:
    return dict(next(iter(trainer.get_train_dataloader())))


def test_every_entry_is_tested_here() -> None:
    entries = {name for name, value in vars(compat).items() if getattr(value, "__module__", "") == compat.__name__}
    assert {name for name in entries if not name.startswith("_")} <= globals().keys()


# Saving and loading


class Saving(CheckpointHooks, Trainer):
    """Notes when it is told of a checkpoint, and saves other weights than the model has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.told: list[str] = []

    def before_saving(self) -> None:
        self.told.append("before saving")

    def before_checkpoint(self) -> None:
        self.told.append(f"before step {self.state.global_step}")

    def state_to_save(self) -> dict[str, Tensor]:
        return {name: torch.full_like(weight, 7.0) for name, weight in self.model.state_dict().items()}

    def after_saving(self, folder: Path) -> None:
        self.told.append(folder.name)


def test_the_trainer_tells_of_its_checkpoints(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Saving, max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    assert trainer.told[:3] == ["before step 1", "before saving", "checkpoint-1"]
    assert trainer.told[3:] == ["before step 2", "before saving", "checkpoint-2"]
    trainer.save_model(str(tmp_path / "saved"))
    assert trainer.told[6:] == ["before saving", "saved"]  # which is no checkpoint
    for folder in ("checkpoint-2", "saved"):
        saved = load_file(tmp_path / folder / "model.safetensors")
        assert all((weight == 7).all() for weight in saved.values() if weight.is_floating_point())


class RefusingCheckpoints(CheckpointHooks, Trainer):
    def before_checkpoint(self) -> None:
        raise FloatingPointError("not this one")


class RefusingModels(CheckpointHooks, Trainer):
    def before_saving(self) -> None:
        raise FloatingPointError("not this one")


@pytest.mark.parametrize("kind", [RefusingCheckpoints, RefusingModels])
def test_a_checkpoint_can_be_refused(tmp_path: Path, kind: type[Trainer]) -> None:
    with pytest.raises(FloatingPointError, match="not this one"):
        trainer_of(tmp_path, kind, max_steps=1, save_strategy="steps", save_steps=1).train()
    assert list(tmp_path.glob("checkpoint-*/*.safetensors")) == []


def test_a_final_model_can_be_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, RefusingModels)
    with pytest.raises(FloatingPointError, match="not this one"):
        trainer.save_model(str(tmp_path / "final"))
    assert list(tmp_path.rglob("*.safetensors")) == []


class Loading(WeightLoadingHooks, Trainer):
    """Notes what was loaded, when the weights are already the loaded ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.told: list[tuple[str, bool]] = []

    def after_loading_weights(self, model: Any, folder: str) -> None:
        saved = load_file(Path(folder) / "model.safetensors")["classifier.weight"]
        self.told.append((Path(folder).name, torch.equal(saved, model.classifier.weight.detach())))


def test_the_trainer_tells_of_loading(tmp_path: Path) -> None:
    steps = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    trainer = trainer_of(tmp_path, Loading, load_best_model_at_end=True, learning_rate=0.1, **steps)
    trainer.train()
    losses = logged(trainer, "eval_loss")
    assert trainer.told == [(f"checkpoint-{1 + losses.index(min(losses))}", True)]
    resumed = trainer_of(tmp_path, Loading, model=tiny_bert(seed=1), **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.told == [("checkpoint-1", True)]


# The training loop


class Noting(Trainer):
    """Counts the calls of what hf_fam calls by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches, self.clipped = 0, 0

    def _prepare_inputs(self, inputs: Any) -> Any:
        self.batches += 1
        return super()._prepare_inputs(inputs)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        self.clipped += 1
        return super()._clip_grad_norm(model)


def test_inputs_are_prepared_as_the_training_loop_does(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Noting, max_steps=2)
    trainer.train()
    assert trainer.batches == 2
    batch = batch_of(trainer)
    prepared = prepared_inputs(trainer, batch)
    assert trainer.batches == 3
    assert prepared.keys() == batch.keys()
    assert all(tensor.device == trainer.args.device for tensor in prepared.values())
    with pytest.raises(ValueError, match="empty"):
        prepared_inputs(trainer, {})


def test_gradients_are_clipped_as_the_training_loop_does(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Noting, max_steps=2, max_grad_norm=0.5)
    trainer.train()
    assert trainer.clipped == 2
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norm = clip_gradients(trainer, trainer.model)
    assert trainer.clipped == 3
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert float(norm) == pytest.approx(count**0.5)
    clipped = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])
    assert float(clipped.norm()) == pytest.approx(0.5, rel=1e-4)


class SparseNorm(GradientNormHook, Trainer):
    """Logs every step, and needs the norm of the second."""

    def needs_gradient_norm(self) -> bool:
        return self.state.global_step == 1


def test_a_trainer_can_skip_the_norm_of_its_gradients(tmp_path: Path) -> None:
    settings = {"max_steps": 3, "max_grad_norm": 0.0, "logging_steps": 1}
    plain, sparse = (trainer_of(tmp_path, kind, **settings) for kind in (Trainer, SparseNorm))
    for trainer in (plain, sparse):
        trainer.train()
    norms, kept = ([entry.get("grad_norm") for entry in t.state.log_history[:3]] for t in (plain, sparse))
    assert kept == [None, norms[1], None] and None not in norms


def test_batch_size_is_the_one_that_was_found(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, auto_find_batch_size=True, max_steps=1)
    assert train_batch_size(trainer) == trainer.args.train_batch_size == 4
    seen: list[int] = []

    class TooLargeAtFirst(GradientRecorder):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            seen.append(train_batch_size(trainer))
            if len(seen) == 1:
                raise RuntimeError("CUDA out of memory.")

    trainer.add_callback(TooLargeAtFirst())
    trainer.train()
    assert seen[0] == 4 > seen[1] == train_batch_size(trainer) == trainer.state.train_batch_size


@pytest.mark.parametrize("marked", [True, False])
def test_a_schedule_that_is_marked_as_created_is_made_anew(tmp_path: Path, marked: bool) -> None:
    class OwnSchedule(Trainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if self.lr_scheduler is None:
                rates = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, lambda step: 1 / (1 + step))
                self.lr_scheduler = rates
                if marked:
                    mark_scheduler_as_created(self)
            return self.lr_scheduler

    trainer = trainer_of(tmp_path, OwnSchedule, max_steps=2)
    trainer.train()
    first = logged(trainer, "learning_rate")
    trainer.train()
    assert (logged(trainer, "learning_rate") == first) == marked


@pytest.mark.parametrize("averages", [True, False])
def test_a_trainer_can_be_told_to_average_micro_batches(tmp_path: Path, averages: bool) -> None:
    """As hf_fam tells it where a model, like this one, accepts num_items_in_batch and ignores it."""
    recorded = []
    for parts in (1, 2):
        recorder = GradientRecorder()
        given = {"gradient_accumulation_steps": parts, "per_device_train_batch_size": 8 // parts, "max_steps": 1}
        trainer = trainer_of(tmp_path, callbacks=[recorder], max_grad_norm=0.0, **given)
        assert loss_is_scaled(trainer) is None, "until it is told, the Trainer goes by a rule"
        if averages:
            trainer.model_accepts_loss_kwargs = trainer.loss_is_scaled_for_ga = False
            assert loss_is_scaled(trainer) is False
        torch.manual_seed(3)  # of the order of the batches
        trainer.train()
        recorded.append(recorder.steps[0]["classifier.weight"])
    torch.testing.assert_close(recorded[1], (1 if averages else 2) * recorded[0], rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not hasattr(Trainer, "loss_is_scaled_for_ga"), reason="the rule alone decides in this transformers")
def test_what_a_trainer_is_told_wins_over_its_rule(tmp_path: Path) -> None:
    norms = []
    for told in (None, False, True):
        trainer = trainer_of(tmp_path, gradient_accumulation_steps=2, max_steps=1)
        trainer.loss_is_scaled_for_ga = told
        torch.manual_seed(3)
        trainer.train()
        norms += logged(trainer, "grad_norm")
    assert norms[0] == norms[2] == pytest.approx(2 * norms[1], rel=1e-4)


# Models and configurations

SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def test_a_model_is_made_from_its_configuration() -> None:
    model = model_from_config(transformers.BertForSequenceClassification, BertConfig(**SIZES, num_labels=5))
    assert type(model) is transformers.BertForSequenceClassification
    assert model(input_ids=torch.tensor([[3, 4]])).logits.shape == (1, 5)


def test_auto_classes_know_which_configurations_they_serve() -> None:
    config = BertConfig(**SIZES)
    assert serves_config(AutoModelForSequenceClassification, config)
    assert not serves_config(AutoModelForImageClassification, config)


def test_a_configuration_forgets_where_it_came_from(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert config.name_or_path == str(tmp_path)
    forget_source(config)
    assert not config.name_or_path
    assert str(tmp_path) not in str(config.to_dict())


# What trainers collect for their logs


def looked_at_first(trainer: Trainer, restores: bool) -> Trainer:
    """The trainer after a training; before that its loss was computed once, at other weights."""
    batch, before = prepared_inputs(trainer, batch_of(trainer)), weights(trainer.model)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(5)
    with forget_forward_pass(trainer) if restores else contextlib.nullcontext():
        trainer.compute_loss(trainer.model.train(), batch)
    trainer.model.load_state_dict(before)
    trainer.train()
    return trainer


@pytest.mark.parametrize("restores", [True, False])
def test_a_look_at_the_loss_of_trl_leaves_no_trace(tmp_path: Path, restores: bool) -> None:
    """And would leave one, in the number of tokens and in the means, if it were not taken back."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    datasets = pytest.importorskip("datasets")

    def trainer() -> Any:
        options = {**PLAIN, "max_steps": 2, "bf16": False, "gradient_checkpointing": False}
        data = datasets.Dataset.from_dict(sentences())
        return trl.SFTTrainer(
            model=tiny_llama(pad_token_id=0),
            args=trl.SFTConfig(output_dir=str(tmp_path), train_sampling_strategy="sequential", **options),
            train_dataset=data,
            processing_class=tiny_tokenizer(),
        )

    fresh, looked = trainer(), looked_at_first(trainer(), restores)
    fresh.train()
    for name in ("num_tokens", "entropy"):
        assert len(logged(fresh, name)) == 2
        assert (logged(looked, name) == logged(fresh, name)) == restores, name


@pytest.mark.parametrize("restores", [True, False])
def test_a_look_at_the_loss_of_sentence_transformers_leaves_no_trace(tmp_path: Path, restores: bool) -> None:
    """And would leave one, in the mean of the loss's parts, if it were not taken back."""
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    datasets = pytest.importorskip("datasets")

    class Parts(nn.Module):
        """A loss of two parts, the first of which is larger when it is computed first."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.calls = model, 0

        def forward(self, features: Any, labels: Any = None) -> dict[str, Tensor]:
            self.calls += 1
            one, two = (self.model(f)["sentence_embedding"] for f in features)
            return {"apart": (one - two).square().mean() * 0 + 100.0 / self.calls, "long": one.square().mean()}

    model = tiny_embedder(tmp_path)
    trainer = library.SentenceTransformerTrainer(
        model=model,
        args=library.SentenceTransformerTrainingArguments(output_dir=str(tmp_path), **{**PLAIN, "max_steps": 1}),
        train_dataset=datasets.Dataset.from_dict(pairs()),
        loss=Parts(model),
    )
    looked_at_first(trainer, restores)
    (apart,) = logged(trainer, "apart")
    assert apart == pytest.approx(50.0 if restores else 75.0)


# What accelerate puts around a model


def test_a_model_runs_outside_the_autocast_that_accelerate_puts_around_it() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(4, 8)
    plain = copy.deepcopy(model)
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    patched = prepared.forward
    rounded = prepared(x)
    assert not torch.equal(rounded, plain(x)), "nothing was put around the model"
    with without_patched_forward([prepared, *prepared]):
        assert torch.equal(prepared(x), plain(x))
    assert prepared.forward == patched
    assert torch.equal(prepared(x), rounded)
    assert_same_weights(prepared, plain)


def test_no_step_while_gradients_are_accumulated() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=1.0))
    step_directly(optimizer)
    weight.grad = torch.ones(1)
    for is_last, expected in ((False, 1.0), (True, 0.0)):
        accelerator.gradient_state._set_sync_gradients(is_last)
        optimizer.step()
        assert weight.item() == expected


def test_other_optimizers_keep_their_step() -> None:
    class Own(torch.optim.SGD):
        pass

    optimizer = Accelerator(cpu=True).prepare(Own([torch.nn.Parameter(torch.ones(1))], lr=1.0))
    step_directly(optimizer)
    assert "step" not in vars(optimizer)
    plain = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    step_directly(plain)
    assert "step" not in vars(plain)
