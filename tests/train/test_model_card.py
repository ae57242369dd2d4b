"""The model card: what hf_fam adds to the Trainer's, whatever the names are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import BertConfig, BertForSequenceClassification, Trainer

from hf_fam import FAMTrainer, FAMTrainingArguments
from hf_fam.train.model_card import FlatnessSummary, escape_markdown, extend_model_card, last_logged

HOSTILE = [
    "a: b",
    "- [x](y) `z` | *w* <script>",
    "line\n---\nlicense: mit\n---\n# Owned",
    "{{ jinja }} {format} %s ${x}",
    "<!-- hf_fam: begin --> <!-- hf_fam: end -->",
    "quotes \" and ' and \\",
    "ünïcode 模型",
    "null",
]


def summary(**changes: Any) -> FlatnessSummary:
    values = {"layer": "classifier", "in_features": 384, "estimator": "closed_form"}
    return FlatnessSummary(**{**values, "strength": 0.003, "kappa": 1.25, **changes})


def tiny() -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=2,
        )
    )


def make_trainer(folder: Path, model: Any) -> FAMTrainer:
    data = [{"input_ids": [k, k + 1, 2], "labels": k % 2} for k in range(8)]
    args = FAMTrainingArguments(
        output_dir=str(folder), max_steps=2, logging_steps=1, report_to="none", use_cpu=True, save_strategy="no"
    )
    return FAMTrainer(model=model, args=args, train_dataset=data, eval_dataset=data)


def write_trainer_card(trainer: Trainer, **kwargs: Any) -> Path:
    """The Trainer's own card, whatever FAMTrainer adds to it."""
    Trainer.create_model_card(trainer, **kwargs)
    return Path(trainer.args.output_dir, "README.md")


def test_adds_tags_and_section_and_keeps_the_rest(tmp_path: Path) -> None:
    path = write_trainer_card(make_trainer(tmp_path, tiny()), license="apache-2.0", tags="mine", model_name="m")
    before = ModelCard.load(path)
    extend_model_card(path, summary())
    after = ModelCard.load(path)
    assert after.data.tags == ["mine", "generated_from_trainer", "hf_fam", "relative-flatness"]
    untouched = {k: v for k, v in before.data.to_dict().items() if k != "tags"}
    assert {k: v for k, v in after.data.to_dict().items() if k != "tags"} == untouched
    assert after.text.startswith(before.text.rstrip())
    assert "| layer | classifier |" in after.text
    assert "| strength λ | 0.003 |" in after.text
    assert "| δ = √(2 m λ), m = 384 features | 1.518 |" in after.text
    assert "| κ at the end of training, as logged | 1.25 |" in after.text
    assert "{FAM}: Relative Flatness" in after.text


def test_second_call_replaces_the_section(tmp_path: Path) -> None:
    path = write_trainer_card(make_trainer(tmp_path, tiny()))
    extend_model_card(path, summary(kappa=1.0))
    extend_model_card(path, summary(kappa=None))
    once = path.read_text(encoding="utf-8")
    assert once.count("## Flatness-aware training") == 1
    assert "not logged" in once
    extend_model_card(path, summary(kappa=None))
    assert path.read_text(encoding="utf-8") == once


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_change_nothing_but_their_own_place(tmp_path: Path, name: str) -> None:
    trainer = make_trainer(tmp_path, tiny())
    path = write_trainer_card(trainer, model_name=name, tags=[name], license=name)
    extend_model_card(path, summary(layer=name))
    extend_model_card(path, summary(layer=name))
    card = ModelCard.load(path)
    assert card.data.to_dict()["license"] == name
    assert card.data.tags == [name, "generated_from_trainer", "hf_fam", "relative-flatness"]
    text = path.read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))["license"] == name
    section = text[text.index("\n<!-- hf_fam: begin -->\n") :]
    assert section.count("\n## ") == 1
    assert f"| layer | {escape_markdown(name)} |" in section
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert all(line.replace(r"\|", "").count("|") == 3 for line in rows)


def test_peft_card_keeps_its_tags(tmp_path: Path) -> None:
    """PEFT replaces the tags of the Trainer's card by its own, which is why ours are merged in afterwards."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    trainer = make_trainer(tmp_path, peft.get_peft_model(tiny(), config))
    trainer.save_model(str(tmp_path))  # writes PEFT's card, which the Trainer then takes into account
    path = write_trainer_card(trainer, tags=["mine"])
    of_peft = ModelCard.load(path)
    assert of_peft.data.library_name == "peft"
    extend_model_card(path, summary(layer="base_model.model.classifier.modules_to_save.default"))
    card = ModelCard.load(path)
    assert card.data.library_name == "peft"
    assert card.data.tags == [*of_peft.data.tags, "hf_fam", "relative-flatness"]
    assert "PEFT" in card.text
    assert r"classifier.modules\_to\_save.default" in card.text


def test_trainer_writes_the_whole_card(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, tiny())
    trainer.train()
    trainer.create_model_card(tags="mine")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.tags == ["mine", "generated_from_trainer", "hf_fam", "relative-flatness"]
    kappa = last_logged(trainer.state.log_history, "fam_kappa")
    assert f"| κ at the end of training, as logged | {kappa:.4g} |" in card.text
    assert "| layer | classifier |" in card.text
    trainer.fam_args.fam_lambda = 0.0  # plain training has the plain card
    trainer.create_model_card()
    assert "hf_fam" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_card_of_a_trainer_that_did_not_train(tmp_path: Path) -> None:
    make_trainer(tmp_path, tiny()).create_model_card()
    assert "hf_fam" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_card_says_what_warm_up_made_of_the_strength() -> None:
    shown = summary(last_strength=0.0005).to_markdown()
    assert "| λ at the end of training, as logged (warm-up) | 0.0005 |" in shown
    assert "warm-up" not in summary().to_markdown() and "warm-up" not in summary(last_strength=0.003).to_markdown()


def test_card_without_metadata(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# By hand\n", encoding="utf-8")
    extend_model_card(path, summary())
    card = ModelCard.load(path)
    assert card.data.tags == ["hf_fam", "relative-flatness"]
    assert card.text.startswith("# By hand")


def test_missing_card_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create_model_card first"):
        extend_model_card(tmp_path / "README.md", summary())


def test_broken_metadata_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("---\n- a list\n---\n", encoding="utf-8")
    with pytest.raises(ValueError, match="should be a dict"):
        extend_model_card(path, summary())


def test_last_logged_of_a_real_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, tiny())
    trainer.train()
    kappa = last_logged(trainer.state.log_history, "fam_kappa")
    assert kappa is not None
    assert kappa > 0
    assert last_logged(trainer.state.log_history, "no_such_name") is None
