"""The Trainer's whole life with FAM in it: searching, choosing the best, saving, loading, copying, subclassing."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)

from hf_fam import FAMMixin, FAMSeq2SeqTrainer, FAMSeq2SeqTrainingArguments, FAMTrainer
from support.tiny import (
    PLAIN,
    arguments,
    assert_same_weights,
    classified,
    fam_trainer,
    gradients_of_first_step,
    hook_count,
    largest_difference,
    logged,
    plain_arguments,
    texts,
    tiny_bert,
    tiny_llama,
    weights,
)

EVERY_ESTIMATOR: list[dict[str, Any]] = [
    {"fam_estimator": "closed_form"},
    {"fam_estimator": "hessian", "fam_layer": "bert.encoder.layer.1.output.dense"},
    {"fam_estimator": "gauss_newton", "fam_layer": "bert.encoder.layer.1.output.dense"},
    {"fam_estimator": "perturbation", "fam_layer": "representation"},
    {"fam_estimator": "dense"},
]
ESTIMATORS = pytest.mark.parametrize("given", EVERY_ESTIMATOR, ids=lambda given: given["fam_estimator"])


class KeepEvaluated(TrainerCallback):
    """Keeps the weights of every evaluation."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.seen.append(weights(model))


def test_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    kept = KeepEvaluated()
    every_step = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = fam_trainer(
        tmp_path,
        fam_lambda=0.1,
        learning_rate=0.1,
        load_best_model_at_end=True,
        eval_dataset=classified(10),
        callbacks=[kept],
        **every_step,
    )
    trainer.train()
    losses = logged(trainer, "eval_loss")
    best = losses.index(min(losses))
    assert losses[-1] != losses[best]
    assert largest_difference(weights(trainer.model), kept.seen[best]) == 0


class Watch(TrainerCallback):
    """Keeps, for every step, the layer that is flattened, if there is one; it is one of the model that is trained."""

    def __init__(self) -> None:
        self.trainer: FAMTrainer | None = None
        self.seen: list[tuple[str | None, float | None]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        assert self.trainer is not None
        flatness = self.trainer.relative_flatness
        self.seen.append((None if flatness is None else flatness.layer.name, args.fam_lambda))
        assert flatness is None or any(m is flatness.layer.module for m in model.modules())


def test_search_over_strength_and_layer(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {"fam_lambda": [0.0, 0.25], "fam_layer": ["head", "representation"]}
    watch = Watch()
    trainer = fam_trainer(
        tmp_path,
        model_init=lambda: tiny_bert(),
        eval_dataset=classified(10),
        callbacks=[watch],
        max_steps=2,
    )
    watch.trainer = trainer
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {name: trial.suggest_categorical(name, values) for name, values in space.items()},
        n_trials=4,
        backend="optuna",
        direction="minimize",
        sampler=optuna.samplers.GridSampler(space, seed=0),
    )
    assert set(best.hyperparameters) == set(space)
    # Two trials of two steps without strength, and two of two steps with it.
    assert sorted(watch.seen, key=str) == [
        *[("bert.pooler.dense", 0.25)] * 2,
        *[("classifier", 0.25)] * 2,
        *[(None, 0.0)] * 4,
    ]


def test_layer_is_found_again_in_a_new_model(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, tiny_bert(), fam_lambda=0.1)
    first = trainer.model
    trainer.model = trainer.model_wrapped = tiny_bert(seed=1)
    trainer.train()
    assert trainer.relative_flatness.layer.module is trainer.model.classifier
    assert hook_count(first) == 0


def test_a_trainer_has_one_private_attribute_more_than_the_trainer_it_derives_from(tmp_path: Path) -> None:
    plain = Trainer(model=tiny_bert(), args=plain_arguments(tmp_path), train_dataset=classified())
    fam = fam_trainer(tmp_path)
    for trained in (False, True):
        more = vars(fam).keys() - vars(plain).keys()
        assert {name for name in more if name.startswith("_")} == {"_fam"}, trained
        assert more == {"_fam", "fam_args"}, trained
        plain.train()
        fam.train()


def test_reading_the_estimator_neither_constructs_nor_refuses(tmp_path: Path) -> None:
    """It is the one that the trainer made; settings and models that changed since are looked at in training."""
    trainer = fam_trainer(tmp_path, fam_lambda=0.1)
    made = trainer.relative_flatness
    trainer.args.fam_layer, trainer.args.fam_estimator = "no such layer", "no such estimator"
    trainer.model = tiny_bert(seed=1)
    assert trainer.relative_flatness is made
    with pytest.raises(ValueError, match="no such estimator"):
        trainer.train()


def test_there_is_no_estimator_without_strength(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, fam_lambda=0.0, fam_layer="no such layer")
    assert trainer.relative_flatness is None
    trainer.train()
    assert trainer.relative_flatness is None
    trainer.args.fam_lambda, trainer.args.fam_layer = 0.1, "head"
    trainer.train()
    made = weakref.ref(trainer.relative_flatness)
    assert made().layer.name == "classifier"
    trainer.args.fam_lambda = 0.0
    assert trainer.relative_flatness is None
    trainer.train()
    assert trainer.relative_flatness is None
    gc.collect()
    assert made() is None, "it would keep its model in memory"


@pytest.mark.parametrize("fam_lambda", [0.1, 0.0])
def test_log_leaves_the_callers_dictionary_alone(tmp_path: Path, fam_lambda: float) -> None:
    """To other logs than those of the loss the Trainer itself adds the epoch."""
    seen: list[tuple[dict[str, float], dict[str, float]]] = []

    class Logging(FAMTrainer):
        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            before = dict(logs)
            super().log(logs, *args, **kwargs)
            seen.append((before, logs))

    args = arguments(tmp_path, fam_lambda=fam_lambda, max_steps=2)
    trainer = Logging(model=tiny_bert(), args=args, train_dataset=classified())
    trainer.train()
    assert sum("loss" in before for before, _ in seen) == 2
    assert all(after == before for before, after in seen if "loss" in before)
    assert not any(name.startswith("fam_") for _, after in seen for name in after)
    assert len(logged(trainer, "fam_kappa")) == (2 if fam_lambda else 0)


def test_layer_may_be_changed_between_trainings(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, fam_lambda=0.1)
    for layer, name in (("head", "classifier"), ("representation", "bert.pooler.dense")):
        trainer.args.fam_layer = layer
        trainer.train()
        assert trainer.relative_flatness.layer.name == name
    assert hook_count(trainer.model) == 0


def test_model_init_trains_a_new_model_each_time(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, model_init=lambda: tiny_bert(), fam_lambda=0.1, fam_layer="representation")
    trainer.train()
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert_same_weights(trainer.model, first)
    assert hook_count(first) == hook_count(trainer.model) == 0


def summed_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """As the Trainer asks of a compute_loss_func."""
    total = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


@pytest.mark.parametrize("parts", [1, 4])
def test_compute_loss_func_is_flattened_like_the_models_own_loss(tmp_path: Path, parts: int) -> None:
    model = tiny_bert(dropout=0.0).double()
    strong = {"fam_lambda": 50.0, "gradient_accumulation_steps": parts, "per_device_train_batch_size": 8 // parts}
    found = gradients_of_first_step(tmp_path, model, compute_loss_func=summed_loss, **strong)
    whole = gradients_of_first_step(tmp_path, model, fam_lambda=50.0, per_device_train_batch_size=8)
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10)


def test_label_smoothing_changes_the_loss_and_not_the_term(tmp_path: Path) -> None:
    model = tiny_bert(dropout=0.0).double()
    with_term, without = (
        {
            smoothing: gradients_of_first_step(
                tmp_path, model, fam_lambda=strength, label_smoothing_factor=smoothing, fam_estimator="closed_form"
            )
            for smoothing in (0.0, 0.3)
        }
        for strength in (50.0, 0.0)
    )
    for name in without[0.0]:
        hard, smooth = (with_term[s][name] - without[s][name] for s in (0.0, 0.3))
        torch.testing.assert_close(hard, smooth, rtol=1e-7, atol=1e-10)
    assert any((without[0.0][name] - without[0.3][name]).abs().max() > 1e-3 for name in without[0.0])


def test_saved_model_loads_without_hf_fam(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, fam_lambda=0.1, save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    torch.save(trainer.model.classifier.weight, tmp_path / "classifier.pt")
    script = """
import sys
sys.modules["hf_fam"] = None
import torch
from transformers import AutoModelForSequenceClassification

def no_hf_fam():
    try:
        import hf_fam
    except ImportError:
        return True

assert no_hf_fam()
expected = torch.load("classifier.pt")
for folder in ("saved", "checkpoint-2"):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(model.classifier.weight, expected), folder
print("loaded")
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "loaded", run.stderr


@ESTIMATORS
def test_model_can_be_copied_and_pickled_after_training(tmp_path: Path, given: dict[str, Any]) -> None:
    trainer = fam_trainer(tmp_path, fam_lambda=0.1, max_steps=2, **given)
    trainer.train()
    for copied in (copy.deepcopy(trainer.model), pickle.loads(pickle.dumps(trainer.model))):
        assert_same_weights(copied, trainer.model)
    assert hook_count(trainer.model) == 0


@ESTIMATORS
def test_model_can_be_pickled_after_an_exception_in_training(tmp_path: Path, given: dict[str, Any]) -> None:
    class Stop(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    trainer = fam_trainer(tmp_path, fam_lambda=0.1, callbacks=[Stop()], **given)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    pickle.dumps(trainer.model)
    assert hook_count(trainer.model) == 0


def test_sequence_to_sequence(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 50}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))
    data = [{"input_ids": d["input_ids"], "labels": d["input_ids"][:4]} for d in classified(8)]
    args = FAMSeq2SeqTrainingArguments(
        output_dir=str(tmp_path), **PLAIN, predict_with_generate=True, generation_max_length=5, fam_lambda=0.1
    )
    trainer = FAMSeq2SeqTrainer(model=model, args=args, train_dataset=data, eval_dataset=data[:4])
    trainer.train()
    assert trainer.relative_flatness.layer.module is model.lm_head
    assert trainer.relative_flatness.estimator == "closed_form"
    assert all(kappa > 0 for kappa in logged(trainer, "fam_kappa"))
    assert trainer.evaluate()["eval_loss"] > 0
    generated = trainer.predict(data[:4]).predictions
    assert len(generated) == 4 and (generated[:, 5:] == 0).all() and generated[:, 1:5].any()


def test_causal_language_model_with_tied_embeddings(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    trainer = fam_trainer(tmp_path, model, train_dataset=texts(8), fam_lambda=0.1)
    trainer.train()
    assert trainer.relative_flatness.estimator == "closed_form"
    assert len(logged(trainer, "fam_kappa")) == 4


def test_closed_form_survives_a_loss_in_float32_of_logits_in_float64(tmp_path: Path) -> None:
    """transformers computes the loss of language models in float32, whatever the model."""
    trainer = fam_trainer(tmp_path, tiny_llama().double(), train_dataset=texts(8), fam_lambda=0.1, max_steps=1)
    trainer.train()
    assert trainer.relative_flatness.estimator == "closed_form"


class PairTrainer(Trainer):
    """A host with a loss of its own and other inputs than the model's."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        outputs = model(input_ids=inputs["input_ids"])
        loss = nn.functional.cross_entropy(2 * outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class FAMPairTrainer(FAMMixin, PairTrainer):
    pass


def test_mixin_in_front_of_a_trainer_with_its_own_loss(tmp_path: Path) -> None:
    plain = PairTrainer(tiny_bert(), plain_arguments(tmp_path, max_steps=1), train_dataset=classified())
    plain.train()
    fam = FAMPairTrainer(tiny_bert(), arguments(tmp_path, max_steps=1, fam_lambda=1.0), train_dataset=classified())
    with pytest.warns(UserWarning, match="closed form does not hold"):  # 2 z is not z
        fam.train()
    own = fam_trainer(tmp_path, max_steps=1, fam_lambda=1.0)
    own.train()
    assert logged(fam, "loss") == logged(plain, "loss") != logged(own, "loss")
    assert logged(fam, "grad_norm") != logged(plain, "grad_norm")
    assert logged(fam, "fam_kappa") != logged(own, "fam_kappa")
    plain.model.load_state_dict(fam.model.state_dict())
    assert fam.evaluate(classified(4))["eval_loss"] == plain.evaluate(classified(4))["eval_loss"]


class TupleTrainer(Trainer):
    """Batches that are no dictionaries, as of torch's TensorDataset."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        features, labels = inputs
        return nn.functional.cross_entropy(model(features), labels)


class FAMTupleTrainer(FAMMixin, TupleTrainer):
    pass


@pytest.mark.parametrize("estimator", ["closed_form", "gauss_newton", "perturbation"])
def test_batches_that_are_no_dictionaries(tmp_path: Path, estimator: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    data = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
    layer = "auto" if estimator == "closed_form" else "representation"
    args = arguments(tmp_path, fam_lambda=0.1, fam_estimator=estimator, fam_layer=layer, gradient_accumulation_steps=2)

    def collate(items: list[Any]) -> tuple[Tensor, ...]:
        return tuple(torch.stack(part) for part in zip(*items, strict=True))

    trainer = FAMTupleTrainer(model=model, args=args, train_dataset=data, data_collator=collate)
    trainer.train()
    assert len(logged(trainer, "fam_kappa")) == 4


def test_peft_adapters_below_the_head(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["classifier"])
    model = peft.get_peft_model(tiny_bert(), config)
    before = model.get_submodule("base_model.model.classifier.modules_to_save.default").weight.clone()
    trainer = fam_trainer(tmp_path, model, fam_lambda=0.1)
    trainer.train()
    active = model.get_submodule("base_model.model.classifier.modules_to_save.default")
    assert trainer.relative_flatness.layer.module is active
    assert not torch.equal(active.weight, before)
    assert all(kappa > 0 for kappa in logged(trainer, "fam_kappa"))


def test_tensorboard_shows_the_term(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = fam_trainer(tmp_path, report_to="tensorboard", fam_lambda=0.1)
    trainer.train()
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent)).Reload()
    for name in ("fam_kappa", "fam_term", "fam_lambda", "fam_delta", "loss"):
        shown = [event.value for event in events.Scalars(f"train/{name}")]
        assert shown == pytest.approx(logged(trainer, name), rel=1e-6), name
    assert len(events.Scalars("train/fam_grad_ratio")) == len(logged(trainer, "fam_grad_ratio")) == 1


def test_all_that_is_promised_is_logged_beside_the_loss(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, fam_lambda=0.1, fam_layer="representation", max_steps=1)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert {"loss", "fam_kappa", "fam_term", "fam_lambda", "fam_grad_ratio", "fam_delta"} <= entry.keys()
    assert entry["fam_term"] == pytest.approx(0.1 * entry["fam_kappa"], rel=1e-6)
    assert entry["fam_kappa"] > 0 and entry["fam_grad_ratio"] > 0


def test_works_on_a_model_that_is_not_from_transformers(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(40, 8), nn.Tanh())
            self.head = nn.Linear(8, 3)

        def forward(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.head(self.body(input_ids))
            return nn.functional.cross_entropy(logits, labels), logits

    trainer = fam_trainer(tmp_path, Plain(), fam_lambda=0.1, fam_layer="representation")
    trainer.train()
    assert trainer.relative_flatness.layer.name == "body.2"
    assert len(logged(trainer, "fam_kappa")) == 4


def test_two_trainers_share_a_model_one_after_the_other(tmp_path: Path) -> None:
    """Say, a first phase on the head and a second one on the representation."""
    model = tiny_bert()
    for layer, module in (("head", "classifier"), ("representation", "bert.pooler.dense")):
        trainer = fam_trainer(tmp_path, model, fam_lambda=0.1, fam_layer=layer)
        trainer.train()
        assert trainer.relative_flatness.layer.name == module
    assert hook_count(model) == 0
    assert isinstance(model, BertForSequenceClassification)


@pytest.mark.parametrize("given", [{}, {"fam_layer": "representation"}])
def test_a_head_that_is_replaced_after_construction_is_found(tmp_path: Path, given: dict[str, Any]) -> None:
    model = tiny_bert(dropout=0.0)
    trainer = fam_trainer(tmp_path, model, fam_lambda=1e-9, **given)
    model.classifier = torch.nn.Linear(16, 3)
    expected = fam_trainer(tmp_path, copy.deepcopy(model), fam_lambda=1e-9, **given)
    for each in (trainer, expected):
        torch.manual_seed(2)  # of the order of the batches
        each.train()
    assert logged(trainer, "fam_kappa") == pytest.approx(logged(expected, "fam_kappa"), rel=1e-6)


def test_an_adapter_that_is_added_after_construction_is_seen(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def trained(first: bool) -> list[float]:
        model = tiny_bert(dropout=0.0)
        config = peft.LoraConfig(target_modules=["dense"], init_lora_weights=False)
        if first:
            torch.manual_seed(2)
            model.add_adapter(config)
        trainer = fam_trainer(tmp_path, model, fam_layer="representation", fam_lambda=1e-9)
        if not first:
            torch.manual_seed(2)
            model.add_adapter(config)
        torch.manual_seed(3)  # of the order of the batches
        trainer.train()
        return logged(trainer, "fam_kappa")

    assert trained(first=False) == pytest.approx(trained(first=True), rel=1e-6)


@pytest.mark.parametrize("given", [{}, {"fam_layer": "representation"}, {"fam_estimator": "perturbation"}])
def test_a_copy_that_is_made_in_training_is_a_plain_model(tmp_path: Path, given: dict[str, Any]) -> None:
    """An average of weights, or the best model so far, kept in memory."""

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.copy, self.pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))

    kept = Keep()
    trainer = fam_trainer(tmp_path, tiny_bert(dropout=0.0), fam_lambda=10.0, callbacks=[kept], **given)
    trainer.train()
    gradients = []
    for model in (trainer.model, kept.copy, kept.pickled):
        model.zero_grad()
        model(input_ids=torch.tensor([[4, 5, 6]]), labels=torch.tensor([1])).loss.backward()
        gradients.append(model.classifier.weight.grad)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
