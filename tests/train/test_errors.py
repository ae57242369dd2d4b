"""Settings and batches that FAM cannot work with: the message names what was given and what to do instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import Trainer

from hf_fam import FAMArguments, FAMMixin, FAMTrainer, RelativeFlatness, attach
from hf_fam.processes.decisions import NonFiniteFlatnessError
from hf_fam.train.requirements import check_requirements, refuse_parallelism
from support.tiny import (
    arguments,
    assert_same_weights,
    classified,
    fam_trainer,
    hook_count,
    largest_difference,
    logged,
    tiny_bert,
    weights,
)

FIRST_BLOCK = "bert.encoder.layer.0.output.dense"
LAST_BLOCK = "bert.encoder.layer.1.output.dense"


def message_of(kind: type[Exception], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


def assert_says(message: str, *parts: str) -> None:
    assert [part for part in parts if part not in message] == [], message
    assert len(message) < 500 and "\n" not in message


# Arguments


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_strength_out_of_range(value: float) -> None:
    said = message_of(ValueError, lambda: FAMArguments(fam_lambda=value))
    assert_says(said, f"fam_lambda={value!r}", "at least 0", "None for the default")


@pytest.mark.parametrize(
    "name, value, remedy",
    [
        ("fam_estimator", "hutchinson", "'gauss_newton'"),
        ("fam_loss_scaling", "right", "'corrected'"),
        ("fam_probes", 0, "whole number from 1 to 10000"),
        ("fam_warmup_steps", -1.0, "a fraction below 1"),
        ("fam_warmup_steps", float("nan"), "a fraction below 1"),
        ("fam_warmup_steps", float("inf"), "a fraction below 1"),
        ("fam_probes", 1.5, "whole number from 1 to 10000, or None"),
        ("fam_probes", True, "whole number from 1 to 10000, or None"),
        ("fam_probes", "several", "whole number from 1 to 10000, or None"),
        ("fam_probes", float("inf"), "whole number from 1 to 10000, or None"),
        ("fam_warmup_steps", None, "give a number of at least 0"),
        ("fam_layer", 0, 'in YAML with quotes: "0"'),
        ("fam_layer", None, '"representation"'),
        ("fam_center", "false", "True, False or None"),
        ("fam_smoothing", 1.0, "at least 0 and below 1"),
        ("fam_smoothing", -0.1, "at least 0 and below 1"),
        ("fam_smoothing", float("nan"), "at least 0 and below 1"),
        ("fam_smoothing", "some", "give a number of at least 0"),
    ],
)
def test_argument_out_of_range(name: str, value: Any, remedy: str) -> None:
    assert_says(message_of(ValueError, lambda: FAMArguments(**{name: value})), f"{name}={value!r}", remedy)


@pytest.mark.parametrize("estimator", ["hessian", "perturbation", "dense"])
def test_smoothing_with_an_estimator_that_cannot(estimator: str) -> None:
    said = message_of(ValueError, lambda: FAMArguments(fam_estimator=estimator, fam_smoothing=0.1))
    assert_says(said, "fam_smoothing=0.1", f'"{estimator}"', "set it to 0")


@pytest.mark.parametrize("estimator", ["perturbation", "dense"])
def test_probes_of_an_estimator_that_has_none(estimator: str) -> None:
    said = message_of(ValueError, lambda: FAMArguments(fam_estimator=estimator, fam_probes=4))
    assert_says(said, "fam_probes=4", f'"{estimator}"', "None")


def test_counts_may_be_given_as_yaml_and_searches_give_them() -> None:
    for given, count in (("4", 4), (2.0, 2)):
        probes = FAMArguments(fam_probes=given, fam_estimator="hessian").fam_probes
        assert probes == count and isinstance(probes, int)


def test_arguments_of_another_kind(tmp_path: Path) -> None:
    said = message_of(ValueError, lambda: FAMTrainer(tiny_bert(), arguments(tmp_path), fam_args={"fam_lambda": 0.1}))
    assert_says(said, "fam_args={'fam_lambda': 0.1}", "FAMArguments(...)")


@pytest.mark.parametrize("layer", [None, 3, ["classifier"]])
def test_layer_that_is_neither_name_nor_module(layer: Any) -> None:
    assert_says(message_of(ValueError, lambda: RelativeFlatness(tiny_bert(), layer)), f"layer={layer!r}", "module")


# Classes that go past the term


class PastTheMixin(FAMTrainer):
    """What the swap of one word makes of a Trainer with a loss of its own."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        return model(**inputs).loss


def test_a_loss_of_ones_own_that_goes_past_the_term(tmp_path: Path) -> None:
    args = arguments(tmp_path, fam_lambda=0.1)
    trainer = PastTheMixin(tiny_bert(), args, train_dataset=classified())
    before = weights(trainer.model)
    said = message_of(RuntimeError, trainer.train)
    assert_says(said, "PastTheMixin", "class MyFAMTrainer(FAMMixin, MyTrainer)", "fam_lambda=0")
    assert largest_difference(before, weights(trainer.model)) == 0
    args.fam_lambda = 0.0
    trainer.train()


def test_mixin_behind_the_trainer() -> None:
    with pytest.raises(TypeError, match="class Behind: put FAMMixin in front of the Trainer"):
        type("Behind", (Trainer, FAMMixin), {})


def test_arguments_that_are_changed_later_are_checked_too(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path)
    trainer.args.fam_lambda = -1.0
    assert_says(message_of(ValueError, trainer.train), "fam_lambda=-1.0")


# The layer


def test_unknown_layer_is_refused_at_construction_with_near_names(tmp_path: Path) -> None:
    said = message_of(ValueError, lambda: fam_trainer(tmp_path, fam_layer="bert.pooler.dens"))
    assert_says(said, "'bert.pooler.dens'", "did you mean 'bert.pooler.dense'", "hf-fam layers")


def test_layer_of_another_model(tmp_path: Path) -> None:
    other = tiny_bert()
    assert_says(message_of(ValueError, lambda: fam_trainer(tmp_path, fam_layer=other.classifier)), "is not a module of")


def test_layer_of_another_kind(tmp_path: Path) -> None:
    said = message_of(TypeError, lambda: fam_trainer(tmp_path, fam_layer="bert.embeddings.word_embeddings"))
    assert_says(said, "'bert.embeddings.word_embeddings'", "Embedding", "torch.nn.Linear", "hf-fam layers")


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton", "perturbation"])
def test_nothing_trainable_at_or_below_the_layer(tmp_path: Path, estimator: str) -> None:
    model = tiny_bert()
    model.bert.requires_grad_(False)
    trainer = fam_trainer(tmp_path, model, fam_layer="representation", fam_estimator=estimator)
    said = message_of(ValueError, trainer.train)
    assert_says(said, "'bert.pooler.dense'", "trainable", "Unfreeze", "closer to the loss")


class Detour(nn.Module):
    """Has a layer that its forward pass does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.unused, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.embedding(input_ids).mean(1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("estimator", ["hessian", "perturbation"])
def test_layer_that_is_not_called(tmp_path: Path, estimator: str) -> None:
    trainer = fam_trainer(tmp_path, Detour(), fam_layer="unused", fam_estimator=estimator)
    assert_says(message_of(ValueError, trainer.train), "'unused'", "not called", "hf-fam layers")


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton"])
def test_layer_below_attention_without_second_derivative(tmp_path: Path, estimator: str) -> None:
    model = tiny_bert(dropout=0.0, attn_implementation="sdpa")
    trainer = fam_trainer(tmp_path, model, fam_layer=FIRST_BLOCK, fam_estimator=estimator)
    said = message_of(RuntimeError, trainer.train)
    assert_says(
        said,
        f"'{FIRST_BLOCK}'",
        f'estimator="{estimator}"',
        "attention",
        'set_attn_implementation("eager")',
        'estimator="perturbation"',
    )
    assert hook_count(model) == 0


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton"])
def test_remedy_for_attention_works(tmp_path: Path, estimator: str) -> None:
    model = tiny_bert(dropout=0.0, attn_implementation="sdpa")
    model.set_attn_implementation("eager")
    trainer = fam_trainer(tmp_path, model, fam_layer=FIRST_BLOCK, fam_estimator=estimator)
    trainer.train()
    assert len(logged(trainer, "fam_kappa")) == 4


def test_perturbation_works_below_any_attention(tmp_path: Path) -> None:
    model = tiny_bert(dropout=0.0, attn_implementation="sdpa")
    trainer = fam_trainer(tmp_path, model, fam_layer=FIRST_BLOCK, fam_estimator="perturbation")
    trainer.train()
    assert len(logged(trainer, "fam_kappa")) == 4


def test_closed_form_of_a_hidden_layer(tmp_path: Path) -> None:
    """Not a fallback: it was asked for by name, where it cannot be."""
    said = message_of(
        ValueError, lambda: fam_trainer(tmp_path, fam_layer="representation", fam_estimator="closed_form")
    )
    assert_says(said, "'bert.pooler.dense'", "closed_form", '"gauss_newton"')


# The way of training


@pytest.mark.parametrize("estimator", ["closed_form", "perturbation"])
def test_static_graph(tmp_path: Path, estimator: str) -> None:
    """Seen in two processes: their gradients differed, with the perturbation too."""
    said = message_of(ValueError, lambda: fam_trainer(tmp_path, ddp_static_graph=True, fam_estimator=estimator))
    assert_says(said, "ddp_static_graph=True", "set it to False")


def test_processes_that_do_not_see_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by `accelerate launch` with two CPU processes and without use_cpu=True."""
    trainer = fam_trainer(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    said = message_of(ValueError, lambda: check_requirements(trainer.args, trainer.relative_flatness))
    assert_says(said, "2 processes were started", "alone", "use_cpu=True")


def test_older_fsdp(tmp_path: Path) -> None:
    """Version 2 runs in tests/distributed/test_sharded_trainer.py."""
    trainer = fam_trainer(tmp_path)
    trainer.is_fsdp_enabled = True
    plugin = trainer.accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=2)
    refuse_parallelism(trainer)
    plugin.fsdp_version = 1
    said = message_of(ValueError, lambda: refuse_parallelism(trainer))
    assert_says(said, "FSDP version 1", "use version 2", "--fsdp_version 2", 'fsdp_config={"version": 2}')


@pytest.mark.parametrize("kind", ["tp", "cp", "sp"])
def test_other_kinds_of_parallelism(tmp_path: Path, kind: str) -> None:
    trainer = fam_trainer(tmp_path)
    setattr(trainer, f"get_{kind}_size", lambda: 2)
    said = message_of(ValueError, lambda: refuse_parallelism(trainer))
    assert_says(said, f"{kind}_size=2", "use FSDP version 2 or DistributedDataParallel")


def test_data_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path)
    monkeypatch.setattr(type(args), "n_gpu", 2)
    said = message_of(ValueError, lambda: FAMTrainer(model=tiny_bert(), args=args, train_dataset=classified()))
    assert_says(said, "2 GPUs", "DataParallel", "accelerate launch", "CUDA_VISIBLE_DEVICES")


def test_model_in_data_parallel() -> None:
    said = message_of(ValueError, lambda: RelativeFlatness(nn.DataParallel(tiny_bert())))
    assert_says(said, "DataParallel", "accelerate launch", "CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("estimator", ["closed_form", "hessian"])
def test_whole_model_compiled(tmp_path: Path, estimator: str) -> None:
    said = message_of(ValueError, lambda: fam_trainer(tmp_path, torch_compile=True, fam_estimator=estimator))
    assert_says(said, "torch_compile=True", estimator, 'fam_estimator="perturbation"', "torch_compile=False")


def test_whole_model_compiled_by_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --dynamo_backend` sets this variable."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    said = message_of(ValueError, lambda: fam_trainer(tmp_path))
    assert_says(said, "--dynamo_backend inductor", "ACCELERATE_DYNAMO_BACKEND", "FAMCallback", "set no backend")
    assert fam_trainer(tmp_path, fam_estimator="perturbation")
    assert fam_trainer(tmp_path, fam_lambda=0)


def test_perturbation_is_not_refused_when_compiled(tmp_path: Path) -> None:
    assert fam_trainer(tmp_path, torch_compile=True, fam_estimator="perturbation").args.torch_compile


def test_liger_loss(tmp_path: Path) -> None:
    said = message_of(ValueError, lambda: fam_trainer(tmp_path, use_liger_kernel=True))
    assert_says(said, "use_liger_kernel=True", "liger_kernel_config={", "use_liger_kernel=False")


def test_liger_without_its_fused_loss_is_not_refused(tmp_path: Path) -> None:
    config = {"fused_linear_cross_entropy": False, "cross_entropy": False}
    assert fam_trainer(tmp_path, use_liger_kernel=True, liger_kernel_config=config).args.use_liger_kernel


def checkpointed(path: Path, reentrant: bool | None, **given: Any) -> FAMTrainer:
    """A trainer with gradient checkpointing of one kind, or none, from equal weights and random states."""
    model = tiny_bert(attn_implementation="eager")
    if reentrant is not None:
        given |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    return fam_trainer(path, model, fam_lambda=0.5, **given)


@pytest.mark.parametrize("estimator, layer", [("gauss_newton", LAST_BLOCK), ("perturbation", FIRST_BLOCK)])
def test_reentrant_checkpointing_around_the_layer(tmp_path: Path, estimator: str, layer: str) -> None:
    trainer = checkpointed(tmp_path, True, fam_layer=layer, fam_estimator=estimator)
    said = message_of(RuntimeError, trainer.train)
    assert_says(said, f"'{layer}'", "reentrant", 'gradient_checkpointing_kwargs={"use_reentrant": False}')
    assert hook_count(trainer.model.get_submodule(layer)) == 0


@pytest.mark.parametrize(
    "given",
    [
        {"fam_estimator": "closed_form"},
        {"fam_estimator": "gauss_newton", "fam_layer": "representation"},
        {"fam_estimator": "gauss_newton", "fam_layer": LAST_BLOCK},
        {"fam_estimator": "hessian", "fam_layer": FIRST_BLOCK},
        {"fam_estimator": "perturbation", "fam_layer": FIRST_BLOCK},
    ],
    ids=lambda given: f"{given['fam_estimator']}-{given.get('fam_layer', 'head')}",
)
def test_checkpointing_that_is_not_reentrant_changes_nothing(tmp_path: Path, given: dict[str, Any]) -> None:
    with_it, without = (checkpointed(tmp_path, reentrant, **given) for reentrant in (False, None))
    for trainer in (with_it, without):
        torch.manual_seed(3)
        trainer.train()
    assert with_it.model.is_gradient_checkpointing and not without.model.is_gradient_checkpointing
    assert largest_difference(weights(with_it.model), weights(without.model)) < 1e-5
    assert logged(with_it, "fam_kappa") == pytest.approx(logged(without, "fam_kappa"), rel=1e-4)
    assert logged(with_it, "fam_kappa")[0] != 0


def test_reentrant_checkpointing_below_the_layer_changes_nothing(tmp_path: Path) -> None:
    with_it, without = (checkpointed(tmp_path, reentrant, fam_layer="representation") for reentrant in (True, None))
    for trainer in (with_it, without):
        torch.manual_seed(3)
        trainer.train()
    assert logged(with_it, "fam_kappa") == pytest.approx(logged(without, "fam_kappa"), rel=1e-4)


class CheckpointedAbove(nn.Module):
    """The layer is not inside the reentrant block, but below it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.below, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        features = checkpoint(self.block, self.below(self.embedding(input_ids).mean(1)), use_reentrant=True)
        logits = self.head(features)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton"])
def test_reentrant_checkpointing_above_the_layer(tmp_path: Path, estimator: str) -> None:
    trainer = fam_trainer(tmp_path, CheckpointedAbove(), fam_layer="below", fam_estimator=estimator)
    assert_says(message_of(RuntimeError, trainer.train), "'below'", "use_reentrant")


def test_perturbation_works_below_reentrant_checkpointing(tmp_path: Path) -> None:
    """It needs first derivatives by backward() alone."""
    trainer = fam_trainer(tmp_path, CheckpointedAbove(), fam_layer="below", fam_estimator="perturbation")
    trainer.train()
    assert len(logged(trainer, "fam_kappa")) == 4


# The loss


def test_loss_that_is_not_a_scalar(tmp_path: Path) -> None:
    def per_item(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(outputs.logits, labels, reduction="none")

    trainer = fam_trainer(tmp_path, compute_loss_func=per_item)
    assert_says(message_of(ValueError, trainer.train), "scalar", "shape (4,)", "take its mean")


def focal(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    p = outputs.logits.softmax(-1).gather(-1, labels[:, None])
    return ((1 - p) ** 2 * -p.log()).mean()


@pytest.mark.parametrize("classes", [3, 2])
def test_focal_loss_falls_back_to_probes_with_one_warning(tmp_path: Path, classes: int) -> None:
    """With two classes any loss has a second derivative of the softmax's shape."""
    model = tiny_bert(num_labels=classes)
    trainer = fam_trainer(
        tmp_path, model, train_dataset=classified(classes=classes), compute_loss_func=focal, fam_lambda=0.1
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    about = [str(w.message) for w in caught if "closed form" in str(w.message)]
    assert len(about) == 1
    assert_says(about[0], "'classifier'", "second derivative", "Hessian probes", 'estimator="hessian"')
    assert trainer.relative_flatness.estimator == "hessian"
    assert len(logged(trainer, "fam_kappa")) == 4


def test_named_probes_are_not_warned_about(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, compute_loss_func=focal, fam_estimator="hessian")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()


def absolute_error(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return F.l1_loss(outputs.logits, F.one_hot(labels, 3).to(outputs.logits.dtype))


@pytest.mark.filterwarnings("ignore:The relative flatness of")
def test_loss_without_curvature_at_the_head_trains_on_the_loss_alone(tmp_path: Path) -> None:
    trained = []
    for strength in (0.0, 100.0):
        trainer = fam_trainer(tmp_path, compute_loss_func=absolute_error, fam_lambda=strength)
        trainer.train()
        trained.append(trainer)
    assert logged(trained[1], "fam_kappa") == [0.0] * 4
    assert_same_weights(trained[0].model, trained[1].model)


def test_loss_without_curvature_is_warned_about_once(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, compute_loss_func=absolute_error, fam_lambda=1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    (about,) = [str(w.message) for w in caught if "relative flatness of" in str(w.message)]
    assert_says(about, "'classifier'", "exactly 0", "no curvature")


# What becomes infinite or NaN


class Diverge:
    """A loss that is what it should be for some steps, and then NaN or infinite."""

    def __init__(self, after: int, factor: float) -> None:
        self.calls, self.after, self.factor = 0, after, factor

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        self.calls += 1
        return F.cross_entropy(outputs.logits, labels) * (self.factor if self.calls > self.after else 1.0)


def assert_last_checkpoint_is_usable(path: Path, steps: int, **given: Any) -> None:
    """Its weights are finite, and training goes on from it."""
    saved = sorted(path.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    assert [folder.name for folder in saved] == [f"checkpoint-{k + 1}" for k in range(steps)]
    assert all(tensor.isfinite().all() for tensor in load_file(saved[-1] / "model.safetensors").values())
    trainer = fam_trainer(path, tiny_bert(seed=1), max_steps=steps + 2, **given)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == steps + 2
    assert all(tensor.isfinite().all() for tensor in weights(trainer.model).values())


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "given",
    [
        {"fam_estimator": "closed_form"},
        {"fam_estimator": "gauss_newton", "fam_layer": "representation"},
        {"fam_estimator": "perturbation"},
    ],
    ids=lambda given: given["fam_estimator"],
)
def test_kappa_that_is_not_finite_names_step_cause_and_remedy(
    tmp_path: Path, given: dict[str, Any], factor: float
) -> None:
    looks = 1 if given["fam_estimator"] == "perturbation" else 0
    trainer = fam_trainer(
        tmp_path,
        compute_loss_func=Diverge(2 + looks, factor),
        save_strategy="steps",
        save_steps=1,
        fam_lambda=0.25,
        **given,
    )
    said = message_of(NonFiniteFlatnessError, trainer.train)
    assert_says(said, "at step 2", "learning rate", "fam_lambda=0.25", "fam_warmup_steps", "resume_from_checkpoint")
    assert_last_checkpoint_is_usable(tmp_path, 2, fam_lambda=0.25, **given)


@pytest.mark.parametrize("estimator", ["closed_form", "perturbation"])
def test_kappa_that_is_not_finite_stops_training_before_anything_is_logged_or_saved(
    tmp_path: Path, estimator: str
) -> None:
    loss = Diverge(3 if estimator == "perturbation" else 2, float("nan"))
    given = {"logging_strategy": "no", "max_steps": 20, "fam_lambda": 0.25, "fam_estimator": estimator}
    trainer = fam_trainer(tmp_path, compute_loss_func=loss, **given)
    assert_says(message_of(NonFiniteFlatnessError, trainer.train), "at step 2")
    assert trainer.state.global_step <= 3


def test_step_with_a_kappa_that_is_not_finite_is_not_taken(tmp_path: Path) -> None:
    """The model in memory is still that of the step before."""
    trainer = fam_trainer(tmp_path, compute_loss_func=Diverge(2, float("nan")), fam_lambda=0.25)
    message_of(NonFiniteFlatnessError, trainer.train)
    assert all(tensor.isfinite().all() for tensor in weights(trainer.model).values())


@pytest.mark.parametrize(
    "given", [{"torch_compile": True}, {"ddp_static_graph": True}, {"fam_layer": "bert.embeddings.word_embeddings"}]
)
def test_nothing_is_refused_without_strength(tmp_path: Path, given: dict[str, Any]) -> None:
    """lambda = 0 is plain training, which none of these disturbs."""
    fam_trainer(tmp_path, tiny_bert(), fam_lambda=0.0, **given)


def test_a_term_that_attach_has_put_on_the_model(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, tiny_bert())
    attached = attach(trainer.model, 0.1)
    with pytest.raises(ValueError, match="hf_fam.attach has put one on this model: detach"):
        trainer.train()
    attached.detach()
    trainer.train()


class TwoTasks(nn.Module):
    """Both heads are called; the loss is that of one."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.classifier = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor, task: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = (self.other(x), self.classifier(x))[int(task[0])]
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.filterwarnings("error:The relative flatness")
def test_batches_of_another_task_are_no_error_whenever_they_come(tmp_path: Path) -> None:
    """Also where the graph is looked at again, every hundredth time."""
    tasks = [1] * 100 + [0, 1, 0]
    data = [{"x": torch.randn(4), "task": task, "labels": 1} for task in tasks for _ in range(4)]
    given = {"train_sampling_strategy": "sequential", "max_steps": len(tasks), "fam_lambda": 0.1}
    trainer = fam_trainer(tmp_path, TwoTasks(), train_dataset=data, **given)
    trainer.train()
    kappas = logged(trainer, "fam_kappa")
    assert [kappa > 0 for kappa in kappas] == [task == 1 for task in tasks]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fam_layer": "representation", "fam_estimator": "closed_form"}, "lies below it"),
        ({"fam_layer": "bert.encoder.layer.0.output.dense", "fam_estimator": "row_probes"}, "lies below it"),
        ({"fam_layer": "bert.embeddings.word_embeddings"}, "bert.embeddings.word_embeddings"),
        ({"fam_layer": "bert.encoder.layer.0.intermediate.dense", "fam_estimator": "dense"}, "of up to"),
        ({"fam_estimator": "dense", "fam_center": True}, "fam_center"),
        ({"fam_layer": "representation", "fam_estimator": "hessian", "fam_smoothing": 0.1}, "fam_smoothing"),
        ({"fam_layer": "bert.no_such_layer"}, "no_such_layer"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_before_there_is_a_folder(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_fam.flatness.estimators.dense.MAX_WEIGHTS", 100)
    with pytest.raises((ValueError, TypeError), match=message):
        fam_trainer(tmp_path / "new" / "out", **settings)
    assert not [*tmp_path.iterdir()]
