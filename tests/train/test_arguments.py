"""FAM's arguments: alone, mixed into the Trainer's, from the command line, from files, and written to JSON."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, Trainer, TrainingArguments

from hf_fam import FAMArguments, FAMSeq2SeqTrainingArguments, FAMTrainer, FAMTrainingArguments
from hf_fam.flatness.estimators import default_lambda
from support.tiny import arguments, classified, fam_trainer, logged, plain_arguments, tiny_bert

FLAGS = ["--fam_lambda", "0.01", "--fam_layer", "representation", "--fam_probes", "3", "--fam_warmup_steps", "0.5"]
GIVEN = {"fam_lambda": 0.01, "fam_layer": "representation", "fam_probes": 3, "fam_warmup_steps": 0.5}


def given_of(args: Any) -> dict[str, Any]:
    return {name: getattr(args, name) for name in GIVEN}


def test_plain_training_arguments_give_the_defaults(tmp_path: Path) -> None:
    trainer = FAMTrainer(model=tiny_bert(), args=plain_arguments(tmp_path), train_dataset=classified())
    assert trainer.fam_args == FAMArguments()
    trainer.train()
    assert trainer.relative_flatness.layer.name == "classifier"
    assert logged(trainer, "fam_lambda") == pytest.approx([default_lambda("closed_form", 3, at_head=True)] * 4)


def test_fam_args_stand_beside_plain_training_arguments(tmp_path: Path) -> None:
    fam_args = FAMArguments(fam_lambda=0.125, fam_layer="representation")
    trainer = FAMTrainer(
        model=tiny_bert(), args=plain_arguments(tmp_path), train_dataset=classified(), fam_args=fam_args
    )
    trainer.train()
    assert trainer.relative_flatness.layer.name == "bert.pooler.dense"
    assert logged(trainer, "fam_lambda") == [0.125] * 4


def test_fam_args_win_over_those_in_the_training_arguments(tmp_path: Path) -> None:
    trainer = FAMTrainer(
        model=tiny_bert(),
        args=arguments(tmp_path, fam_lambda=1.0),
        train_dataset=classified(),
        fam_args=FAMArguments(fam_lambda=0.125),
    )
    trainer.train()
    assert logged(trainer, "fam_lambda") == [0.125] * 4


def test_parser_reads_them_alone() -> None:
    (fam,) = HfArgumentParser(FAMArguments).parse_args_into_dataclasses(FLAGS)
    assert given_of(fam) == GIVEN


def test_parser_reads_them_beside_the_training_arguments(tmp_path: Path) -> None:
    parser = HfArgumentParser((FAMArguments, TrainingArguments))
    fam, args = parser.parse_args_into_dataclasses([*FLAGS, "--output_dir", str(tmp_path), "--max_steps", "7"])
    assert given_of(fam) == GIVEN
    assert type(args) is TrainingArguments and args.max_steps == 7


@pytest.mark.parametrize("kind", [FAMTrainingArguments, FAMSeq2SeqTrainingArguments])
def test_parser_reads_them_mixed_in(tmp_path: Path, kind: type) -> None:
    (args,) = HfArgumentParser(kind).parse_args_into_dataclasses([*FLAGS, "--output_dir", str(tmp_path)])
    assert given_of(args) == GIVEN
    assert args.output_dir == str(tmp_path)


def test_parser_explains_every_argument() -> None:
    text = " ".join(HfArgumentParser(FAMArguments).format_help().split())
    for field in dataclasses.fields(FAMArguments):
        assert f"--{field.name}" in text and field.metadata["help"].split(";")[0][:20] in text


def test_yaml_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "fam.yaml"
    file.write_text(f"output_dir: {tmp_path}\nfam_lambda: 0.01\nfam_layer: representation\nfam_probes: 2\n")
    (args,) = HfArgumentParser(FAMTrainingArguments).parse_yaml_file(str(file))
    assert (args.fam_lambda, args.fam_layer, args.fam_probes) == (0.01, "representation", 2)


@pytest.mark.parametrize("name", ["fam_lambda", "fam_warmup_steps"])
def test_yaml_numbers_like_1e_3_are_numbers(tmp_path: Path, name: str) -> None:
    """YAML reads 1e-3, without a dot, as a string."""
    file = tmp_path / "fam.yaml"
    file.write_text(f"output_dir: {tmp_path}\n{name}: 1e-3\n")
    (args,) = HfArgumentParser(FAMTrainingArguments).parse_yaml_file(str(file))
    assert getattr(args, name) == 0.001


def test_whole_numbers_become_floats() -> None:
    """A hyperparameter search casts what it tries to the type that is there: 0 would make an integer of 0.01."""
    assert isinstance(FAMArguments(fam_lambda=0).fam_lambda, float)


def test_word_where_a_number_belongs_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="fam_lambda='strong'.*number"):
        FAMArguments(fam_lambda="strong")  # type: ignore[arg-type]


def test_dictionary_is_read(tmp_path: Path) -> None:
    (args,) = HfArgumentParser(FAMTrainingArguments).parse_dict({"output_dir": str(tmp_path), **GIVEN})
    assert given_of(args) == GIVEN


@pytest.mark.parametrize("kind", [FAMTrainingArguments, FAMSeq2SeqTrainingArguments])
def test_positional_output_dir_stays_first(tmp_path: Path, kind: type) -> None:
    args = kind(str(tmp_path), fam_lambda=0.01)
    assert (args.output_dir, args.fam_lambda, args.fam_layer) == (str(tmp_path), 0.01, "auto")


def test_arguments_are_written_to_json(tmp_path: Path) -> None:
    written = json.loads(FAMTrainingArguments(str(tmp_path), **GIVEN).to_json_string())
    assert {name: written[name] for name in GIVEN} == GIVEN


def test_arguments_can_be_pickled(tmp_path: Path) -> None:
    """The Trainer saves them as training_args.bin."""
    args = FAMTrainingArguments(str(tmp_path), **GIVEN)
    assert given_of(pickle.loads(pickle.dumps(args))) == GIVEN


def test_layer_may_be_given_as_a_module(tmp_path: Path) -> None:
    model = tiny_bert()
    trainer = fam_trainer(tmp_path, model, fam_layer=model.bert.pooler.dense, fam_lambda=0.1)
    assert trainer.args.fam_layer == "bert.pooler.dense"
    assert json.loads(trainer.args.to_json_string())["fam_layer"] == "bert.pooler.dense"
    trainer.train()
    assert trainer.relative_flatness.layer.module is model.bert.pooler.dense


def test_layer_may_be_given_as_a_name(tmp_path: Path) -> None:
    trainer = fam_trainer(tmp_path, fam_layer="bert.encoder.layer.1.output.dense", fam_lambda=0.1)
    assert trainer.relative_flatness.layer.module is trainer.model.bert.encoder.layer[1].output.dense


def test_plain_trainer_accepts_the_arguments(tmp_path: Path) -> None:
    """So that a script needs one line of difference between its baseline and FAM."""
    args = arguments(tmp_path, fam_lambda=0.01)
    Trainer(model=tiny_bert(), args=args, train_dataset=classified()).train()


def test_fields_are_those_that_the_design_names() -> None:
    named = {
        "fam_layer",
        "fam_lambda",
        "fam_estimator",
        "fam_probes",
        "fam_center",
        "fam_smoothing",
        "fam_warmup_steps",
    }
    assert named | {"fam_loss_scaling"} == {field.name for field in dataclasses.fields(FAMArguments)}


REMOVED = {
    "fam_max_grad_ratio": (0.5, "lower fam_lambda, or let it rise with fam_warmup_steps"),
    "fam_every_n_steps": (2, "remove it, the term acts in every step"),
    "fam_token_fraction": (0.25, 'fam_estimator="row_probes" is cheap for large vocabularies'),
    "fam_gradient": ("weights_only", 'remove it, or use RelativeFlatness(gradient="weights_only")'),
}


@pytest.mark.parametrize("name", REMOVED)
@pytest.mark.parametrize("way", ["FAMArguments", "FAMTrainingArguments", "FAMSeq2SeqTrainingArguments", "FAMTrainer"])
def test_a_field_that_was_removed_is_answered_by_what_to_use(tmp_path: Path, name: str, way: str) -> None:
    value, remedy = REMOVED[name]
    given = {name: value}
    with pytest.raises(ValueError) as caught:
        if way == "FAMArguments":
            FAMArguments(fam_lambda=0.1, **given)
        elif way == "FAMTrainingArguments":
            FAMTrainingArguments(str(tmp_path), **given)
        elif way == "FAMSeq2SeqTrainingArguments":
            FAMSeq2SeqTrainingArguments(str(tmp_path), **given)
        else:
            FAMTrainer(model=tiny_bert(), args=plain_arguments(tmp_path), **given)
    said = str(caught.value)
    assert said.startswith(f"{name} is not an argument of hf_fam: ") and remedy in said
    assert said.endswith(".") and said.count(". ") == 0 and "\n" not in said


def test_other_unknown_fields_are_refused_as_ever() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'fam_lamda'"):
        FAMArguments(fam_lamda=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("flags", "center"), [([], None), (["--fam_center"], True), (["--fam_center", "False"], False)]
)
def test_centring_on_the_command_line(flags: list[str], center: bool | None) -> None:
    (fam,) = HfArgumentParser(FAMArguments).parse_args_into_dataclasses(flags)
    assert fam.fam_center is center
