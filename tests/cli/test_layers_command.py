"""``hf-fam layers`` on tiny random models of several kinds, and what it says when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_fam import RelativeFlatness
from hf_fam.cli.layer_table import ModelConfigError, dummy_inputs, layer_table, load_model, trace_forward
from hf_fam.cli.main import main

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = BertConfig(vocab_size=50, num_labels=3, **SMALL)
MODELS = {
    "bert": (BertForSequenceClassification, BERT),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=3),
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    "vit": (ViTForImageClassification, ViTConfig(image_size=16, patch_size=8, num_labels=3, **SMALL)),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0),
    ),
}


def save(folder: Path, kind: str = "bert") -> str:
    """A model's folder with its configuration alone, no weights."""
    model_class, config = MODELS[kind]
    with torch.device("meta"):
        model_class._from_config(config).config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "architectures": [model_class.__name__]}))
    return str(folder)


def rows_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    assert main(["layers", *arguments, "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["layers"]}


def test_bert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(capsys, save(tmp_path), "--all")
    assert len(rows) == 2 * 6 + 2
    assert list(rows)[-2:] == ["bert.pooler.dense", "classifier"]
    head, pooler = rows["classifier"], rows["bert.pooler.dense"]
    assert (head["role"], head["outputs"], head["features"], head["rows"]) == ("head", 3, 16, 1)
    assert (head["estimator"], pooler["estimator"]) == ("closed_form", "gauss_newton")
    assert (pooler["role"], pooler["rows"]) == ("representation", 1)
    assert rows["bert.encoder.layer.1.output.dense"]["rows"] == 64
    assert rows["bert.encoder.layer.1.attention.self.value"]["needs_eager"]
    assert not rows["bert.encoder.layer.1.attention.output.dense"]["needs_eager"]
    costs = [row["cost"] for row in rows.values()]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 1 > costs[-1] > 0


def test_text_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", save(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("BertForSequenceClassification")
    assert "the last 12 of 14" in lines[0]
    header, table = lines[2], lines[3:15]
    for column in ("role", "d x m", "estimator"):  # aligned: every cell begins where its header does
        at = header.index(column)
        assert all(line[at - 1] == " " and line[at] != " " for line in table)
    assert any("eager" in line for line in table)
    assert 'attn_implementation="eager"' in "\n".join(lines)


def test_distilbert_and_num_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(capsys, save(tmp_path, "distilbert"), "--num_labels", "7")
    assert rows["classifier"]["outputs"] == 7
    assert rows["pre_classifier"]["role"] == "representation"


def test_gpt2_layers_of_its_own_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(capsys, save(tmp_path, "gpt2"))
    assert rows["lm_head"]["estimator"] == "closed_form"
    assert rows["lm_head"]["rows"] == 32  # no more than there are positions
    last = rows["transformer.h.1.mlp.c_fc"]
    assert (last["kind"], last["outputs"], last["features"]) == ("Conv1D", 64, 16)
    assert (last["estimator"], last["why_not"]) == ("gauss_newton", None)


def test_vit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(capsys, save(tmp_path, "vit"), "--all")
    assert rows["classifier"]["rows"] == 1
    patches = next(row for name, row in rows.items() if row["kind"] == "Conv2d")
    assert (patches["outputs"], patches["features"], patches["rows"]) == (16, 3 * 8 * 8, 4)
    assert (patches["estimator"], patches["why_not"]) == ("gauss_newton", None)


def test_layers_of_unsupported_kind(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, num_labels=2)
    with torch.device("meta"):
        model = T5ForSequenceClassification(config)
        model.add_module("upsample", torch.nn.ConvTranspose2d(4, 6, 3))
    row = next(row for row in layer_table(model).layers if row.name == "upsample")
    assert (row.outputs, row.features, row.why_not) == (6, 36, "unsupported")
    monkeypatch.setattr("hf_fam.cli.layer_table.load_model", lambda *_: model)
    main(["layers", "somewhere", "--all"])
    assert "unsupported: feature layers are torch.nn.Linear, Conv1d" in capsys.readouterr().out


def test_t5_counts_encoder_and_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(capsys, save(tmp_path, "t5"), "--all")
    names = list(rows)
    assert names[-1] == "lm_head"
    assert names.index("encoder.block.1.layer.1.DenseReluDense.wo") < names.index(
        "decoder.block.0.layer.0.SelfAttention.q"
    )


def test_model_that_cannot_be_traced(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """T5's classifier looks for the end of the text: without values there is none."""
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, num_labels=2)
    with torch.device("meta"):
        table = layer_table(T5ForSequenceClassification(config))
    assert table.untraced
    assert [row.cost for row in table.layers] == [None] * len(table.layers)
    assert table.layers[-1].estimator == "closed_form"
    config.save_pretrained(tmp_path)
    assert main(["layers", str(tmp_path), "--task", "sequence-classification"]) == 0
    assert "Order and costs are unknown" in capsys.readouterr().out


def test_shared_layers_are_counted() -> None:
    config = transformers.AlbertConfig(
        vocab_size=50, embedding_size=8, num_labels=2, **{**SMALL, "num_hidden_layers": 3}
    )
    with torch.device("meta"):
        table = layer_table(transformers.AlbertForSequenceClassification(config))
    assert {row.times for row in table.layers if "albert_layers" in row.name} == {3}


def test_layer_outside_the_forward_pass() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BERT)
        model.spare = torch.nn.Linear(2, 2)
    (row,) = [row for row in layer_table(model).layers if row.name == "spare"]
    assert (row.why_not, row.estimator) == ("not called", None)


def test_trace_of_a_convolutional_network() -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    with torch.device("meta"):
        model = ResNetForImageClassification(config).eval()
    trace = trace_forward(model, dummy_inputs(model, 64))
    *_, (name, head) = trace.calls.items()
    assert (name, head.flops, head.tail) == ("classifier.1", 2 * 3 * 16, 0)
    assert sum(call.flops for call in trace.calls.values()) == trace.flops


def test_every_listed_layer_can_be_chosen(tmp_path: Path) -> None:
    """What the table calls an estimator is what the library takes, on a model with weights."""
    table = layer_table(load_model(save(tmp_path)))
    model = BertForSequenceClassification(BERT)
    for row in table.layers:
        assert RelativeFlatness(model, row.name).estimator == row.estimator


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "masked-lm"])
def test_backbone_asks_for_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str) -> None:
    BertModel(BERT).save_pretrained(tmp_path)
    assert main(["layers", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "is a BertModel, which has no head" in message
    assert task in message
    assert "image-classification" not in message
    assert main(["layers", str(tmp_path), "--task", task]) == 0
    assert main(["layers", str(tmp_path), "--task", task.replace("-", "_")]) == 0


def test_tasks_of_the_recipes_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BertModel(BERT).save_pretrained(tmp_path)
    for task in ("text_classification", "text-regression", "token_classification"):
        assert main(["layers", str(tmp_path), "--task", task]) == 0
        assert "classifier" in capsys.readouterr().out


def test_the_length_of_texts_is_that_of_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["layers", save(tmp_path)])
    assert "training step (texts of 64 tokens)." in capsys.readouterr().out
    main(["layers", save(tmp_path, "vit")])
    assert "extra time of a training step.\n" in capsys.readouterr().out


def errors(tmp_path: Path) -> list[tuple[str, list[str], str]]:
    (tmp_path / "empty").mkdir()
    contents = {
        "broken": "{",
        "unknown": '{"model_type": "no_such_type"}',
        "nameless": '{"model_type": "bert"}',
        "foreign": '{"model_type": "bert", "architectures": ["MyBert"]}',
        "impossible": json.dumps(
            {"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 5, "num_attention_heads": 2}
        ),
    }
    for name, text in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    return [
        ("empty", [], "contains no config.json"),
        ("broken", [], "not a valid JSON"),
        ("unknown", [], "no_such_type"),
        ("nameless", [], "names no architecture: choose a head with --task sequence-classification"),
        ("foreign", [], "MyBert, which transformers does not contain"),
        ("impossible", [], "no BertForMaskedLM can be made"),
        ("nameless", ["--task", "poetry"], "--task poetry: choose one of sequence-classification"),
        ("nameless", ["--task", "image-classification"], "no AutoModelForImageClassification can be made"),
    ]


def test_errors_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, options, expected in errors(tmp_path):
        assert main(["layers", str(tmp_path / name), *options]) == 1
        out, err = capsys.readouterr()
        assert expected in err
        assert err.count("\n") == 1
        assert out == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no/such-model", "is no folder here and not in the cache, and the Hub cannot be reached"),
        ("./no/such/folder", "is no folder here and not the name of a model on the Hub"),
    ],
)
def test_unknown_model_offline(capsys: pytest.CaptureFixture[str], name: str, expected: str) -> None:
    assert main(["layers", name]) == 1
    assert expected in capsys.readouterr().err


def test_model_without_weights() -> None:
    with pytest.raises(ModelConfigError, match="Dropout has no layer"):
        layer_table(torch.nn.Dropout())


def test_arguments_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["layers", "model", "--length", "0"])
    assert "--length: 0: give a whole number from 1" in capsys.readouterr().err


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from hf_fam.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    for option, expected in (("--help", "layers"), ("--version", "hf-fam 0.1.0")):
        output = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True).stdout
        assert expected in output
        assert output.endswith("[]\n")
