"""Widening in the middle of training: what the training loss is after equally many further steps.

    python recipes/landscape/widening.py --output recipes/landscape/results/widening.json
    python recipes/landscape/widening.py --settings minilm --output recipes/landscape/results/widening_minilm.json

Each run trains a network, then goes on four times from the same weights with a fresh optimizer and the same batches: as
it is; with every hidden layer of its MLPs doubled by `widen(..., ratio=0.5)`; with ratio 1.5; and, for comparison, with
as many fresh neurons of random incoming and zero outgoing weights, which keep the function too. Training loss is that
over the whole training set in evaluation mode.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from hf_fam.cli.demo.data import read_rows
from hf_fam.cli.demo.model import packaged_model
from hf_fam.landscape import widen
from hf_fam.landscape.hidden_layer_search import all_hidden_layers

FRESH = "fresh neurons"
ARMS = {"no widening": None, "ratio 1/2": 0.5, "ratio 1.5": 1.5, FRESH: 1.0}
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """One network and task.

    Attributes:
        build: a model from a seed.
        data: training batches from a seed, the whole set once.
        loss: of a batch.
        layers: which layers are widened.
        before: steps before widening.
        after: steps after it.
        learning_rate: of AdamW, constant.
        batch_size: of training.
        every: steps between measurements of the training loss.
    """

    build: Callable[[int], nn.Module]
    data: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    layers: str
    before: int
    after: int
    learning_rate: float
    batch_size: int
    every: int


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


def teacher_data(seed: int) -> Batch:
    """A teacher of the same kind with 32 neurons, whose weights are large enough to bend."""
    torch.manual_seed(1000 + seed)
    x = torch.randn(1024, 16)
    teacher = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    with torch.no_grad():
        teacher[0].weight *= 4
        y = teacher(x)
        return {"x": x, "y": (y - y.mean(0)) / y.std(0)}


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch["x"]) - batch["y"]).square().mean()


def questions(seed: int) -> Batch:
    """The training questions of the demo; a word is a token, padded to 24."""
    rows = [row for row in read_rows() if row["split"] == "train"]
    words = sorted({word for row in rows for word in tokens(row["text"])})
    number = {word: k + 1 for k, word in enumerate(words)}
    names = sorted({row["label"] for row in rows})
    ids = torch.zeros(len(rows), 24, dtype=torch.long)
    for k, row in enumerate(rows):
        found = [number[word] for word in tokens(row["text"])][:24]
        ids[k, : len(found)] = torch.tensor(found)
    labels = torch.tensor([names.index(row["label"]) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def tokens(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split() or ["?"]


def tiny_transformer(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    data = questions(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=int(data["input_ids"].max()) + 1,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
            num_labels=int(data["labels"].max()) + 1,
        )
    )


def minilm(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(packaged_model(), num_labels=30)


def minilm_questions(seed: int) -> Batch:
    rows = [row for row in read_rows() if row["split"] == "train"]
    names = sorted({row["label"] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(packaged_model())
    texts = [row["text"] for row in rows]
    encoded = tokenizer(texts, truncation=True, max_length=16, padding="max_length", return_tensors="pt")
    return {**encoded, "labels": torch.tensor([names.index(row["label"]) for row in rows])}


def own_loss(model: nn.Module, batch: Batch) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


BERT_LAYERS = "bert.encoder.layer.*.intermediate.dense"
SETTINGS = {
    "mlp": Setting(mlp, teacher_data, squared_error, "0", 1500, 1500, 1e-2, 64, 100),
    "tiny_transformer": Setting(tiny_transformer, questions, own_loss, BERT_LAYERS, 200, 200, 1e-3, 32, 20),
    "minilm": Setting(minilm, minilm_questions, own_loss, BERT_LAYERS, 40, 40, 1e-4, 16, 20),
}


def run(name: str, setting: Setting, seed: int) -> list[dict[str, Any]]:
    """One record for each arm."""
    data, model = setting.data(seed), setting.build(seed)
    train(model, setting, data, seed, setting.before)
    start, records = training_loss(model, setting, data), []
    for arm, ratio in ARMS.items():
        copied = copy.deepcopy(model)
        if ratio is not None:
            width = next(all_hidden_layers(copied)).width
            widen(copied, setting.layers, by=width, ratio=ratio)
            if arm == FRESH:
                refresh(copied, width)
        widened = training_loss(copied, setting, data)
        curve = train(copied, setting, data, 10_000 + seed, setting.after)
        records.append(
            {
                "setting": name,
                "seed": seed,
                "arm": arm,
                "parameters": sum(p.numel() for p in copied.parameters()),
                "loss_before": start,
                "loss_widened": widened,
                "curve": curve,
                "loss": curve[-1][1],
            }
        )
        print(f"{name} seed {seed} {arm}: {start:.4f} -> {widened:.4f} -> {curve[-1][1]:.4f}", flush=True)
    return records


@torch.no_grad()
def refresh(model: nn.Module, width: int) -> None:
    """Draw the incoming weights of the new neurons anew, of the size that the old ones have."""
    for hidden in all_hidden_layers(model):
        for layer in hidden.incoming:
            layer.weight[width:] = torch.randn_like(layer.weight[width:]) * layer.weight[:width].std()
            layer.bias[width:] = 0


def train(model: nn.Module, setting: Setting, data: Batch, seed: int, steps: int) -> list[tuple[int, float]]:
    """AdamW; the training loss now and then."""
    optimizer = torch.optim.AdamW(model.parameters(), setting.learning_rate, weight_decay=0.0)
    torch.manual_seed(seed)  # dropout
    curve = []
    for step, batch in zip(range(1, steps + 1), batches(data, setting.batch_size, seed), strict=False):
        model.train()
        optimizer.zero_grad()
        setting.loss(model, batch).backward()
        optimizer.step()
        if step % setting.every == 0 or step == steps:
            curve.append((step, training_loss(model, setting, data)))
    return curve


def batches(data: Batch, size: int, seed: int) -> Iterator[Batch]:
    """The same for every arm."""
    generator = torch.Generator().manual_seed(seed)
    count = len(next(iter(data.values())))
    while True:
        for index in torch.randperm(count, generator=generator).split(size):
            yield {name: tensor[index] for name, tensor in data.items()}


@torch.no_grad()
def training_loss(model: nn.Module, setting: Setting, data: Batch) -> float:
    model.eval()
    count = len(next(iter(data.values())))
    parts = [{name: tensor[k : k + 256] for name, tensor in data.items()} for k in range(0, count, 256)]
    losses = [setting.loss(model, part).item() * len(next(iter(part.values()))) for part in parts]
    return sum(losses) / count


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["mlp", "tiny_transformer"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="before and after widening, instead of the setting's own numbers")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    records: list[dict[str, Any]] = []
    settings = {}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for name in options.settings:
        setting = SETTINGS[name]
        if options.steps:
            steps = {"before": options.steps, "after": options.steps, "every": options.steps}
            setting = Setting(**{**vars(setting), **steps})
        numbers = ("before", "after", "learning_rate", "batch_size")
        settings[name] = {key: value for key, value in vars(setting).items() if key in numbers}
        for seed in range(options.seeds):
            records += run(name, setting, seed)
            content = {"settings": settings, "versions": versions, "records": records}
            options.output.write_text(json.dumps(content, indent=1) + "\n")
    for name in options.settings:
        for arm in ARMS:
            losses = [r["loss"] for r in records if (r["setting"], r["arm"]) == (name, arm)]
            print(f"{name} {arm}: mean {statistics.mean(losses):.5f}")


if __name__ == "__main__":
    main()
