"""The card of a whole run: every line of it, its metadata by the Hub's own classes, hostile names, adapters."""

from __future__ import annotations

import html
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from hf_fam import FAMTrainer
from hf_fam.train.evaluation_results import evaluation_results
from support.tiny import arguments, classified, tiny_bert

GOLDEN = Path(__file__).parent / "golden" / "model_card.md"
SAID: dict[str, Any] = {
    "model_name": "My model",
    "finetuned_from": "org/base",
    "tasks": "text-classification",
    "dataset": "GLUE RTE",
    "dataset_tags": "nyu-mll/glue",
    "dataset_args": "rte",
    "license": "mit",
    "command": "accelerate launch run.py fam.yaml --seed 1",
    "step_time_ratio": 1.25,
}
HOSTILE = [
    "quotes \" and ' and \\",
    "line\n---\nlicense: other\n---\n# Owned",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1)) ![i](y) <!-- hf_fam: end -->",
    "&anchor *alias !!python/object:os.system",
    "| cell | # x `code` ```",
    "a: b: - c",
    "{{ jinja }} {0} %s",
]


def trained(folder: Path, model: Any = None, **given: Any) -> FAMTrainer:
    trainer = FAMTrainer(
        model=tiny_bert() if model is None else model,
        args=arguments(folder, max_steps=2, **given),
        train_dataset=classified(16),
        eval_dataset=classified(8),
        compute_metrics=lambda found: {"accuracy": 0.5, "odd": float("nan"), "name": "text"},
    )
    trainer.train()
    trainer.evaluate()
    return trainer


def normalized(card: str) -> str:
    """Without versions, and without the numbers that training gives."""
    card = re.sub(r"(?m)^- (Transformers|Pytorch|Datasets|Tokenizers|optimizer:) .*$", r"- \1 VERSION", card)
    card = re.sub(r"(?m)^(\| κ at the \w+ of training, as logged \|) [\d.e+-]+ \|$", r"\1 NUMBER |", card)
    return re.sub(r"(type: loss\n +value:|\n- Loss:) [\d.e+-]+", r"\1 NUMBER", card)


def test_every_line(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    trainer.create_model_card(**SAID)
    assert normalized((tmp_path / "README.md").read_text(encoding="utf-8")) == GOLDEN.read_text(encoding="utf-8")


def test_numbers_are_those_of_the_log(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    trainer.create_model_card(**SAID)
    card = ModelCard.load(tmp_path / "README.md")
    kappas = [logs["fam_kappa"] for logs in trainer.state.log_history if "fam_kappa" in logs]
    assert len(kappas) == 2 and kappas[0] != kappas[1]
    assert f"| κ at the start of training, as logged | {kappas[0]:.4g} |" in card.text
    assert f"| κ at the end of training, as logged | {kappas[1]:.4g} |" in card.text
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["loss"] == pytest.approx(trainer.state.log_history[-1]["eval_loss"])
    assert {*results} == {"loss", "accuracy"}  # no NaN, no text, no seconds


def test_evaluation_is_the_last_one(tmp_path: Path) -> None:
    trainer = FAMTrainer(
        model=tiny_bert(),
        args=arguments(tmp_path, max_steps=2, learning_rate=0.1),
        train_dataset=classified(16),
        eval_dataset=classified(8),
    )
    trainer.train()
    first = trainer.evaluate(classified(2))["eval_loss"]
    last = trainer.evaluate()["eval_loss"]
    trainer.create_model_card(**SAID)
    (found,) = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert found.metric_value == pytest.approx(last) and abs(first - last) > 1e-3


@pytest.mark.parametrize(
    "given, rows",
    [
        (
            {"fam_center": True, "fam_warmup_steps": 8, "fam_lambda": 0.8},
            [
                "| features | centered on their running mean |",
                "| strength λ | 0.8 |",
                "| λ at the end of training, as logged (warm-up) | 0.4 |",
            ],
        ),
        ({"fam_smoothing": 0.1}, ["| smoothing ε | 0.1 |"]),
        (
            {"fam_layer": "representation", "fam_estimator": "hessian"},
            ["| layer | bert.pooler.dense |", "| estimator of κ | hessian |"],
        ),
    ],
    ids=["centered", "smoothed", "hidden layer"],
)
def test_rows_tell_how_it_was_trained(tmp_path: Path, given: dict[str, Any], rows: list[str]) -> None:
    args = arguments(tmp_path, max_steps=4, **given)
    trainer = FAMTrainer(model=tiny_bert(), args=args, train_dataset=classified(16))
    trainer.train()
    trainer.create_model_card(**SAID)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert [row for row in rows if row not in text] == []


def test_results_pass_through_the_hubs_classes(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    expected = evaluation_results(trainer.state.log_history, "text-classification", "nyu-mll/glue", "GLUE RTE", "rte")
    trainer.create_model_card(**SAID)
    metadata = yaml.safe_load((tmp_path / "README.md").read_text(encoding="utf-8").split("\n---\n")[0][4:])
    name, found = model_index_to_eval_results(metadata["model-index"])
    assert name == "My model" and found == expected
    again = ModelCardData(model_name=name, eval_results=found).to_dict()["model-index"]
    assert again == metadata["model-index"]


def test_no_data_set_no_results(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    trainer.create_model_card(tasks="text-classification")
    assert not ModelCard.load(tmp_path / "README.md").data.eval_results


@pytest.mark.parametrize("fam_lambda", [0.01, 0.0])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(tmp_path: Path, name: str, fam_lambda: float) -> None:
    """They stand in the metadata as they are, and in the text as text."""
    trainer = trained(tmp_path, fam_lambda=fam_lambda)
    names = {"model_name": name, "finetuned_from": name, "dataset": name, "dataset_tags": name, "dataset_args": name}
    trainer.create_model_card(**{**SAID, **names, "command": name})
    trainer.create_model_card(**{**SAID, **names, "command": name})
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "mit" and data["base_model"] == name and data["datasets"] == [name]
    assert data["model-index"][0]["name"] == name
    assert {r.dataset_name for r in card.data.eval_results} == {name}
    assert yaml.safe_load(text.split("\n---\n")[0][4:])["license"] == "mit"
    # Out of the fenced command, nothing of the name is markup.
    prose = re.sub(r"(?ms)^(`{3,})bash\n.*?^\1$", "", card.text)
    assert not re.search(r"(?<!\\)<script", prose)
    assert not re.search(r"(?<!\\)\]\(javascript", prose)
    assert "\n# Owned" not in prose and "\n---\n" not in prose
    assert [line for line in prose.splitlines() if line.startswith("# ")] == [line_of_title(prose)]
    assert card.text.count("## The command that repeats the training") == 1
    assert html.unescape(card.text).count("\n## Flatness-aware training\n") == (1 if fam_lambda else 0)


def line_of_title(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("# "))


def test_a_local_folder_is_not_published(tmp_path: Path) -> None:
    folder = tmp_path / "secret_place"
    tiny_bert().save_pretrained(folder)
    model = type(tiny_bert()).from_pretrained(folder)
    trained(tmp_path / "out", model).create_model_card()
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "secret_place" not in text and "from scratch" not in text


def test_a_new_model_is_not_called_fine_tuned(tmp_path: Path) -> None:
    trained(tmp_path).create_model_card(dataset="GLUE RTE")
    card = ModelCard.load(tmp_path / "README.md")
    assert "This model was trained from scratch on the GLUE RTE dataset." in card.text
    assert "huggingface.co/)" not in card.text and not card.data.get("base_model")


def test_adapters_keep_their_tags_when_they_are_saved_again(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = tmp_path / "secret_place"
    tiny_bert().save_pretrained(folder)
    base = type(tiny_bert()).from_pretrained(folder)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    trainer = trained(tmp_path / "out", peft.get_peft_model(base, config))
    trainer.save_model()
    trainer.create_model_card(**{k: v for k, v in SAID.items() if k != "finetuned_from"}, tags="mine")
    before = ModelCard.load(tmp_path / "out" / "README.md")
    assert before.data.library_name == "peft"
    assert {"mine", "hf_fam", "relative-flatness", "lora"} <= {*before.data.tags}
    assert "secret_place" not in str(before)
    trainer.save_model()
    after = ModelCard.load(tmp_path / "out" / "README.md")
    assert {*before.data.tags} <= {*after.data.tags}
    assert after.data.eval_results == before.data.eval_results
    assert "## Flatness-aware training" in after.text


def test_push_to_hub_passes_on_what_the_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the upload, which is left out."""
    trainer = trained(tmp_path)
    trainer.hub_model_id = "me/mine"
    sent: list[Any] = []
    api = SimpleNamespace(upload_folder=lambda **kwargs: sent.append(kwargs))
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: api)
    trainer.push_to_hub(command="run me", **{k: v for k, v in SAID.items() if k != "command"})
    assert len(sent) == 1
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "\nrun me\n" in text and "## Flatness-aware training" in text
