"""Every recipe runs to its end: by all methods, resumed, in one and in two processes, with a card that is valid."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from hf_fam.recipes import TASKS, default_configuration
from hf_fam.recipes.common.yaml_files import read_yaml
from support.launch import LATE_THREADS, ROOT, launch
from support.tiny_recipes import MAKERS, RECIPES, made, typed

FSDP2 = "recipes/causal_lm"
METHODS = ("fam", "plain", "sam")
METRICS = {
    "text_classification": {"accuracy", "f1", "matthews_correlation", "nll", "ece"},
    "text_regression": {"pearson", "spearman", "mean_squared_error"},
    "token_classification": {"accuracy", "f1", "matthews_correlation", "nll", "ece"},
    "image_classification": {"accuracy", "f1", "matthews_correlation", "nll", "ece"},
    "causal_lm": {"accuracy", "nll", "perplexity", "ece"},
}


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return {recipe: made(recipe, tmp_path_factory.mktemp(recipe)) for recipe in MAKERS}


def run(recipe: str, method: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The recipe in this process."""
    arguments = typed(recipe, method, given)
    monkeypatch.setattr("sys.argv", [str(RECIPES / recipe / "run.py"), *arguments])
    return importlib.import_module(f"hf_fam.recipes.{recipe}").main(arguments)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def distance(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def scores(folder: Path, part: str = "eval") -> dict[str, float]:
    """What is saved of the evaluation, except how long it took."""
    found = json.loads((folder / f"{part}_results.json").read_text())
    return {k: v for k, v in found.items() if not k.endswith(("runtime", "per_second"))}


def card_of(folder: Path) -> str:
    """Without the folder's own name."""
    return (folder / "README.md").read_text(encoding="utf-8").replace(folder.name, "")


@pytest.mark.parametrize("recipe", MAKERS)
def test_runs_to_its_end_and_resumes(
    flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    given = {**flags[recipe], "per_device_train_batch_size": 8}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    found = run(recipe, "fam", {**given, "output_dir": whole}, monkeypatch)
    for part in ("eval", "predict"):
        assert all(math.isfinite(found[f"{part}_{name}"]) for name in METRICS[recipe])
    card = ModelCard.load(whole / "README.md")
    assert {"hf_fam", "relative-flatness"} <= {*card.data.tags}
    # Stop after the first step, go on.
    checkpoint = whole / "checkpoint-2"
    again = {**given, "output_dir": halves, "resume_from_checkpoint": checkpoint}
    run(recipe, "fam", again, monkeypatch)
    assert distance(whole, halves) == 0
    assert scores(whole) == scores(halves)
    assert card_of(whole) == card_of(halves)  # kappa at the start is that of the first half
    resume = r"contains a trained model: .*, or go on from its last checkpoint with --resume_from_checkpoint last\.$"
    with pytest.raises(ValueError, match=resume):
        run(recipe, "fam", {**given, "output_dir": whole}, monkeypatch)
    for folder in whole.glob("checkpoint-*"):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"contains a trained model: choose another folder, or delete this one\.$"):
        run(recipe, "fam", {**given, "output_dir": whole}, monkeypatch)


@pytest.mark.parametrize("method", ["plain", "sam"])
@pytest.mark.parametrize(
    "recipe", [pytest.param(r, marks=[] if r == "text_classification" else pytest.mark.slow) for r in MAKERS]
)
def test_other_methods(
    flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, method: str
) -> None:
    """They differ from FAM, resume, and claim nothing of it."""
    given = {**flags[recipe], "per_device_train_batch_size": 8}
    run(recipe, "fam", {**given, "output_dir": tmp_path / "fam", "fam_lambda": 0.1}, monkeypatch)
    run(recipe, method, {**given, "output_dir": tmp_path / "whole"}, monkeypatch)
    resumed = {
        **given,
        "output_dir": tmp_path / "halves",
        "resume_from_checkpoint": tmp_path / "whole" / "checkpoint-2",
    }
    run(recipe, method, resumed, monkeypatch)
    assert distance(tmp_path / "whole", tmp_path / "halves") == 0
    assert distance(tmp_path / "whole", tmp_path / "fam") > 1e-5
    assert "hf_fam" not in ModelCard.load(tmp_path / "whole" / "README.md").data.tags


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", MAKERS)
@pytest.mark.slow
def test_two_processes_are_one(
    flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, method: str
) -> None:
    check_two_processes(flags[recipe], tmp_path, monkeypatch, recipe, method)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_two_processes_that_accumulate(
    flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Words of four micro-batches, each with another number of them."""
    more = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    check_two_processes(flags["token_classification"], tmp_path, monkeypatch, "token_classification", method, **more)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_are_one_fast(
    flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_two_processes(flags["text_classification"], tmp_path, monkeypatch, "text_classification", "fam")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_fsdp2(flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented command in two processes, of which accelerate thinks that they are on GPUs, is one process."""
    command = f"accelerate launch --config_file recipes/accelerate_configs/fsdp2.yaml {FSDP2}/run.py {FSDP2}/fsdp2.yaml"
    pages = (
        RECIPES / "causal_lm" / "README.md",
        RECIPES / "causal_lm" / "fsdp2.yaml",
        ROOT / "docs" / "distributed.md",
    )
    for page in pages:
        assert command in page.read_text(encoding="utf-8").replace("\\\n    ", "")
    given = {**flags["causal_lm"], "fam_lambda": 0.1}
    one, two = tmp_path / "one", tmp_path / "two"
    run("causal_lm", "fsdp2", {**given, "output_dir": one, "per_device_train_batch_size": 8, "bf16": True}, monkeypatch)
    given = {**given, "output_dir": two, "per_device_train_batch_size": 4}
    printed = launch(ROOT / FSDP2 / "run.py", *typed("causal_lm", "fsdp2", given), config="fsdp2.yaml", as_gpus=True)
    assert printed.count("FSDP shards the model: the flatness term of 'lm_head' acts in the backward pass") == 1
    state = json.loads((two / "trainer_state.json").read_text())
    assert state["global_step"] == 3 and all(e["fam_kappa"] > 0 for e in state["log_history"] if "fam_kappa" in e)
    assert distance(one, two) < 0.05 * distance(one, Path(one, "checkpoint-1")), "beyond the rounding of bfloat16"
    assert scores(two) == pytest.approx(scores(one), rel=0.01, abs=0.01)


def check_two_processes(
    flags: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, method: str, **more: Any
) -> None:
    one, two = folder / "one", folder / "two"
    run(recipe, method, {**flags, "output_dir": one, "per_device_train_batch_size": 8}, monkeypatch)
    script = RECIPES / recipe / "run.py"
    given = {**flags, "output_dir": two, "per_device_train_batch_size": 4, **more}
    printed = launch(script, *typed(recipe, method, given), more_path=LATE_THREADS)
    assert "a thread frees its tensor" in printed, "the processes end while a thread of gloo still runs"
    states = [json.loads((path / "trainer_state.json").read_text()) for path in (one, two)]
    assert [state["train_batch_size"] for state in states] == [8, given["per_device_train_batch_size"]]
    assert distance(one, two) < 1e-4
    assert distance(one, Path(one, "checkpoint-1")) > 1e-3, "the training is too short to tell"
    assert scores(two) == pytest.approx(scores(one), rel=1e-3, abs=1e-4)
    # Rows that fill up the last batch count in no metric; in the loss of their batch they do.
    predicted = [scores(path, "predict") for path in (one, two)]
    losses = [found.pop("predict_loss") for found in predicted]
    assert predicted[1] == pytest.approx(predicted[0], rel=1e-3, abs=1e-4)
    assert losses[1] == pytest.approx(losses[0], rel=0.3)
    card = ModelCard.load(two / "README.md")
    assert f"--num_processes 2 --mixed_precision no recipes/{recipe}/run.py" in card.text
    assert "- num_devices: 2" in card.text
    known = {result.metric_type: result.metric_value for result in ModelCard.load(one / "README.md").data.eval_results}
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == pytest.approx(known, rel=1e-3, abs=1e-4)


def test_pushing_passes_the_card_on(
    flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the upload, which is left out."""
    sent: list[Any] = []
    api = SimpleNamespace(upload_folder=lambda **kwargs: sent.append(kwargs))
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: api)
    monkeypatch.setattr(
        "transformers.Trainer.init_hf_repo", lambda self, **kwargs: setattr(self, "hub_model_id", "me/x")
    )
    given = {**flags["causal_lm"], "per_device_train_batch_size": 8, "output_dir": tmp_path / "out"}
    run("causal_lm", "fam", {**given, "push_to_hub": True, "hub_strategy": "end", "hub_token": "hf_x"}, monkeypatch)
    # Once by save_model, once with the card.
    assert [(call["repo_id"], Path(call["folder_path"])) for call in sent] == [("me/x", tmp_path / "out")] * 2
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {"hf_fam", "relative-flatness", "lora"} <= {*card.data.tags} and card.data.eval_results
    # Nor in any other file, training_args.bin among them, though the upload needs it.
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"hf_x" in path.read_bytes()]
    assert "hf_x" not in str(card) and "push_to_hub" not in str(card) and str(tmp_path) not in str(card)


def test_every_module_is_a_task_with_a_launcher_and_configurations() -> None:
    modules = {path.stem for path in (ROOT / "hf_fam" / "recipes").glob("*.py")} - {"__init__"}
    assert modules == {*TASKS} == {*MAKERS} and [*TASKS] == sorted(TASKS)
    assert {path.stem for path in default_configuration("causal_lm").parent.iterdir()} == modules
    for task in TASKS:
        assert {path.name for path in (RECIPES / task).iterdir() if path.is_file()} == {
            "README.md",
            "run.py",
            *(f"{method}.yaml" for method in METHODS),
            *(["fsdp2.yaml", "banking77.py", "report.py"] if task == "causal_lm" else []),
            *(["cifar10n.py"] if task == "image_classification" else []),
        }


@pytest.mark.parametrize("recipe", [pytest.param(r, marks=[] if r == "causal_lm" else pytest.mark.slow) for r in TASKS])
def test_launchers_work_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    """As far as the data, which is not there."""
    monkeypatch.chdir(tmp_path)
    folder = RECIPES / recipe
    output = launch(folder / "run.py", str(folder / "fam.yaml"), "--train_file=no.csv", config=None, fails=True)
    assert output.splitlines()[-1] == "hf-fam train: --train_file='no.csv': there is no such file."


@pytest.mark.parametrize("recipe", MAKERS)
def test_configurations_differ_in_their_method_alone(recipe: str) -> None:
    read = {m: read_yaml(RECIPES / recipe / f"{m}.yaml") for m in METHODS}
    assert read["fam"] == read_yaml(default_configuration(recipe))
    assert [values.pop("method") for values in read.values()] == list(METHODS)
    assert [values.pop("output_dir") for values in read.values()] == [f"out/{recipe}/{m}" for m in METHODS]
    assert read["sam"].pop("sam_rho") == 0.05
    assert read["fam"] == read["plain"] == read["sam"]


@pytest.mark.skipif("HF_FAM_DATA" not in os.environ, reason="set HF_FAM_DATA to the folder of the real data sets")
@pytest.mark.parametrize("task", ["rte", "mrpc", "cola", "sst2", "stsb", "wnli"])
def test_real_glue_files(
    flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    folder = Path(os.environ["HF_FAM_DATA"], "glue", task)
    recipe = "text_regression" if task == "stsb" else "text_classification"
    given = {k: v for k, v in flags[recipe].items() if not k.endswith("_file")}
    files = {"train_file": folder / "train.parquet", "validation_file": folder / "dev.parquet"}
    few = {"max_train_samples": 32, "max_eval_samples": 16, "max_seq_length": 16, "do_predict": False}
    found = run(recipe, "fam", {**given, **files, **few, "task_name": task, "output_dir": tmp_path}, monkeypatch)
    assert math.isfinite(found["eval_loss"])


@pytest.mark.skipif("HF_FAM_DATA" not in os.environ, reason="set HF_FAM_DATA to the folder of the real data sets")
def test_real_cifar_10(flags: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ["HF_FAM_DATA"], "cifar10")
    given = {k: v for k, v in flags["image_classification"].items() if not k.endswith("_dir")}
    files = {"train_file": folder / "train-15k.parquet", "validation_file": folder / "test.parquet"}
    few = {"max_train_samples": 32, "max_eval_samples": 16, "do_predict": False, "augmentation": "flip_crop"}
    few["ignore_mismatched_sizes"] = True  # ten classes, the tiny model has two
    found = run("image_classification", "fam", {**given, **files, **few, "output_dir": tmp_path}, monkeypatch)
    assert math.isfinite(found["eval_nll"])
