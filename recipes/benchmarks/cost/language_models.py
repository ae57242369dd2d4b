"""Configurations of the scaling curves: small Llamas, heads alone, and SmolLM2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed


@dataclass(frozen=True)
class Method:
    """A contender; ``depth`` is the number of blocks above the layer, None for the head."""

    estimator: str
    probes: int | None = None
    depth: int | None = None

    @property
    def name(self) -> str:
        parts = [self.estimator]
        parts += [f"x{self.probes}"] if self.probes else []
        parts += [f"{self.depth} blocks above"] if self.depth is not None else []
        return ", ".join(parts)

    def arguments(self, layers: int) -> dict[str, Any]:
        layer = "head" if self.depth is None else f"model.layers.{layers - 1 - self.depth}.mlp.down_proj"
        return {
            "fam_layer": layer,
            "fam_estimator": self.estimator,
            "fam_probes": self.probes,
            "fam_lambda": 1e-6,
        }


HEAD = (Method("closed_form"), Method("row_probes"))


@dataclass(frozen=True)
class Point:
    """One configuration on one axis, with the methods that are compared there with plain training."""

    axis: str
    model: str = "llama"  # or "head", "smollm2"
    batch: int = 4
    tokens: int = 64
    width: int = 256
    vocabulary: int = 16_384
    layers: int = 4
    processes: int = 1
    methods: tuple[Method, ...] = HEAD

    @property
    def eager(self) -> bool:
        """Fused attention above a layer has no second derivative."""
        return any(m.depth for m in self.methods)

    def columns(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "methods"}


def points(quick: bool, smollm2: str | None) -> Iterator[Point]:
    """All points; tiny ones with ``quick``."""
    base = Point("")
    blocks = tuple(Method(e, depth=d) for e in ("gauss_newton", "perturbation") for d in range(3))
    probes = tuple(Method("row_probes", probes=p) for p in (1, 4, 16, 64))
    probes += tuple(Method("gauss_newton", probes=p, depth=0) for p in (1, 2, 4))
    every = [
        *(replace(base, axis="batch", batch=b) for b in (1, 2, 4, 8, 16)),
        *(replace(base, axis="tokens", tokens=t) for t in (16, 32, 64, 128, 256)),
        *(replace(base, axis="width", width=m) for m in (128, 256, 512, 1024)),
        *(replace(base, axis="vocabulary", vocabulary=v) for v in (5_000, 16_384, 49_152, 150_000)),
        replace(base, axis="depth", methods=blocks),
        replace(base, axis="probes", methods=probes),
        *(replace(base, axis="processes", processes=n) for n in (1, 2)),
        *(
            Point("head", "head", batch=1, tokens=32, width=m, vocabulary=v, layers=1)
            for m, v in ((1024, 32_000), (4096, 32_000), (1024, 150_000), (4096, 150_000))
        ),
    ]
    if smollm2:
        last = (Method("gauss_newton", depth=0), Method("perturbation", depth=0))
        sizes = {"width": 576, "vocabulary": 49_152, "layers": 30}
        every += [Point("causal", "smollm2", 2, tokens, methods=HEAD + last, **sizes) for tokens in (64, 256)]
    if not quick:
        yield from every
        return
    small = {"batch": 2, "tokens": 8, "width": 32, "vocabulary": 5_000}
    seen = set()
    for point in every:
        if point.axis not in seen and point.model != "smollm2":
            yield replace(point, **small)
        seen.add(point.axis)
    yield replace(base, axis="processes", processes=2, **small)


class HeadAlone(nn.Module):
    """A linear trunk and a head, called like a language model."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, width)
        self.trunk = nn.Linear(width, width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.lm_head(self.trunk(self.embedding(input_ids % 64)).tanh())
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def make_model(point: Point, smollm2: str | None) -> nn.Module:
    """A fresh model; without weights of its own it is random."""
    set_seed(0)
    attention = "eager" if point.eager else "sdpa"
    if point.model == "smollm2":
        return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, attn_implementation=attention)
    if point.model == "head":
        return HeadAlone(point.width, point.vocabulary)
    config = LlamaConfig(
        vocab_size=point.vocabulary,
        hidden_size=point.width,
        intermediate_size=3 * point.width,
        num_hidden_layers=point.layers,
        num_attention_heads=4,
        max_position_embeddings=point.tokens,
        tie_word_embeddings=True,
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config)


def make_optimizer(point: Point, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; for a head alone SGD, whose state does not hide what a second gradient of W would take."""
    kind = torch.optim.SGD if point.model == "head" else torch.optim.AdamW
    return kind(model.parameters(), lr=1e-6)


def make_batches(point: Point, count: int) -> list[dict[str, Tensor]]:
    """Random tokens that are their own labels."""
    generator = torch.Generator().manual_seed(0)
    shape = (point.batch, point.tokens)
    ids = [torch.randint(point.vocabulary, shape, generator=generator) for _ in range(count)]
    return [{"input_ids": i, "labels": i.clone()} for i in ids]
