"""Cost of the head's term on paper, for models that were not run here.

    python recipes/benchmarks/extrapolate.py                 # prints the table of docs/large-vocabularies.md
    python recipes/benchmarks/extrapolate.py --processes 64  # prints the memory table of docs/processes.md

Per step of N labeled tokens, with n parameters in products (the head's V m among them, embeddings not), in FLOPs:

    plain        6 N n                          forward 2, backward 4 (attention's scores left out: they only help us)
    exact        6 N V m                        p W, means W^T, and the gradient of W
    row probes   4 V m P + 6 N V P              the sketch and the way back, and the same three products of width P

Memory beyond plain training's, in bytes at the time when the loss's own temporaries (two of 4 N V) are gone again:

    b N V  (the sum of both gradients of the logits)  +  3 x 4 x 2^23 (chunks)  +  4 V m if W is not in float32 (a copy)
    row probes: the copy is 4 x 3 V P instead

FLOPs say nothing about passes over memory; measured times are scaling.py's.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

CHUNKS = 3 * 4 * 2**23


@dataclass(frozen=True)
class Shape:
    """A language model: parameters in products, vocabulary V, width m, and bytes of a weight."""

    name: str
    parameters: float
    vocabulary: int
    width: int
    bytes: int = 2


MODELS = (
    Shape("SmolLM2-135M (49k x 576)", 134.5e6, 49_152, 576, 4),
    Shape("8B, 128k x 4,096", 7.5e9, 128_256, 4_096),
    Shape("70B, 128k x 8,192", 69.5e9, 128_256, 8_192),
)


def flops_ratio(shape: Shape, tokens: int, probes: int = 0) -> float:
    """FLOPs of a step with the term over those without.

    Examples:
        >>> eight = MODELS[1]
        >>> [round(flops_ratio(eight, 4096, probes), 4) for probes in (0, 16)]
        [1.07, 1.0005]
    """
    plain = 6 * tokens * shape.parameters
    head = shape.vocabulary * shape.width
    sketched = 4 * head * probes + 6 * tokens * shape.vocabulary * probes
    return 1 + (sketched or 6 * tokens * head) / plain


def extra_bytes(shape: Shape, tokens: int, probes: int = 0) -> float:
    """Temporaries of the term; the loss's own ones, which are gone by then, take ``8 N V``.

    Examples:
        >>> eight = MODELS[1]
        >>> (
        ...     [round(extra_bytes(eight, 4096, probes) / 2**30, 2) for probes in (0, 16)],
        ...     round(8 * 4096 * 128_256 / 2**30, 2),
        ... )
        ([3.03, 1.1], 3.91)
    """
    widened = 0 if shape.bytes == 4 else 4 * shape.vocabulary * shape.width
    copy = 12 * shape.vocabulary * probes if probes else widened
    return shape.bytes * tokens * shape.vocabulary + CHUNKS + copy


def table(tokens: int = 4096) -> str:
    """Markdown.

    Examples:
        >>> print(table().splitlines()[0])
        | model, 4096 tokens a step | exact | ... | loss's own |
    """
    lines = [
        f"| model, {tokens} tokens a step | exact | 16 row probes | temporaries, exact / row probes | loss's own |",
        "| --- | --- | --- | --- | --- |",
    ]
    for shape in MODELS:
        ratios = " | ".join(f"{flops_ratio(shape, tokens, probes):.4f}" for probes in (0, 16))
        gib = [x / 2**30 for x in (extra_bytes(shape, tokens), extra_bytes(shape, tokens, 16))]
        own = 8 * tokens * shape.vocabulary / 2**30
        lines.append(f"| {shape.name} | {ratios} | {gib[0]:.2f} / {gib[1]:.2f} GiB | {own:.2f} GiB |")
    return "\n".join(lines)


def sharded_table(processes: int, tokens: int = 4096) -> str:
    """Markdown: memory of one process of FSDP2 for the largest model; activations of the blocks are left out.

    Weights, gradients and both averages of AdamW are in float32, 16 bytes a parameter, the embedding among them.

    Examples:
        >>> print(sharded_table(64).splitlines()[2])
        | weights, gradients and AdamW's averages, 16 bytes a parameter, sharded | 16.4 |
    """
    shape = MODELS[-1]
    head = shape.vocabulary * shape.width
    logits = tokens * shape.vocabulary
    exact, sketched = extra_bytes(shape, tokens), extra_bytes(shape, tokens, 16)
    own = 8 * logits
    rows = {
        "weights, gradients and AdamW's averages, 16 bytes a parameter, sharded": 16
        * (shape.parameters + head)
        / processes,
        "head and its gradient, gathered, in bfloat16": 2 * shape.bytes * head,
        "logits in bfloat16": shape.bytes * logits,
        "the loss's own temporaries in float32": own,
        "the term's temporaries, exact": exact,
        "the term's temporaries, 16 row probes": sketched,
        "the term's more than the loss's, exact": max(0.0, exact - own),
        "the term's more than the loss's, 16 row probes": max(0.0, sketched - own),
    }
    lines = [f"| {shape.name}; {processes} processes, {tokens:,} tokens each | GiB |", "| --- | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {size / 2**30:.1f} |" for name, size in rows.items())])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, help="of FSDP2: print the memory of one of them")
    options = parser.parse_args()
    print(table() if options.processes is None else sharded_table(options.processes))
