"""The table of supported models, made by running the cases that tests/families proves.

PYTHONPATH=tests python -m support.support_table docs/generated/support.md
"""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import torch
import transformers
from torch import nn

from hf_fam import RelativeFlatness
from support.families import CASES, Case, without_dropout
from support.families.case import Batch

HEADER = (
    "| model class | task | head (`auto`) | estimator | `representation` | estimator | notes |\n"
    "| --- | --- | --- | --- | --- | --- | --- |\n"
)


def support_table() -> str:
    """All cases as a Markdown table."""
    lines = "".join(f"| {' | '.join(row(case))} |\n" for case in CASES)
    return f"{HEADER}{lines}\ntorch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}\n"


def row(case: Case) -> list[str]:
    """What hf_fam does with one case, found out by doing it."""
    model = without_dropout(case.build())
    batch = case.inputs(model)
    head, representation = (cells(case, layer, model, batch) for layer in ("auto", "representation"))
    return [f"`{case.model}`", case.task, *head, *representation, case.note]


def cells(case: Case, layer: str, model: nn.Module, batch: Batch) -> tuple[str, str]:
    """Name of the layer and the estimator that ran; or the reason why none did."""
    name = f"`{re.sub(r'[.][0-9]+(?=[.])', '.N', case.name_of(layer))}`"
    try:
        flatness = RelativeFlatness(model, layer)
        assert flatness.layer.name == case.name_of(layer)
        with flatness.capture(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = model(**batch).loss
            flatness(loss)
        flatness.detach()
        return name, flatness.estimator
    except (ValueError, TypeError, RuntimeError) as error:
        refusal = case.refused.get(layer)
        if refusal is None or refusal.message not in str(error):
            raise
        return name, f"refused: {refusal.reason}"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(support_table(), encoding="utf-8")
