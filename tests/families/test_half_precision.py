"""Rows that a loss couples are found to be coupled in half precision too: a missed one would make kappa wrong."""

from __future__ import annotations

import warnings

import pytest
import torch

from hf_fam import RelativeFlatness
from support.families import CASES, in_dtype, without_dropout
from support.tails import TAILS, make

COUPLINGS = {
    ("BertForTokenClassification", "representation"): "rows",
    ("BertForQuestionAnswering", "auto"): "items",
    ("BertForQuestionAnswering", "representation"): "items",
    ("BertForMultipleChoice", "auto"): "batch",
    ("BertForMultipleChoice", "representation"): "batch",
    ("LlamaForCausalLM", "representation"): "rows",
    ("SwinForImageClassification", "representation"): "items",
    ("SegformerForImageClassification", "representation"): "items",
    ("Wav2Vec2ForSequenceClassification", "representation"): "items",
}


@pytest.mark.parametrize("precision", ["float64", "bfloat16", "float16", "autocast"])
@pytest.mark.parametrize(("model", "layer"), COUPLINGS, ids=["-".join(pair) for pair in COUPLINGS])
def test_coupling_of_models(model: str, layer: str, precision: str) -> None:
    case = next(case for case in CASES if case.model == model)
    dtype = torch.float32 if precision == "autocast" else getattr(torch, precision)
    built = without_dropout(case.build(attn_implementation="eager")).to(dtype)
    flatness = RelativeFlatness(built, layer, "hessian")
    with flatness.capture(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        loss = built(**in_dtype(case.inputs(built), dtype)).loss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flatness(loss)
    assert flatness.method.coupling_finder.coupling == COUPLINGS[model, layer]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tail", TAILS)
def test_coupling_of_tails(tail: str, dtype: torch.dtype) -> None:
    case = make(tail, 0)
    case.model.to(dtype)
    case.inputs = case.inputs.to(dtype)
    flatness = RelativeFlatness(case.model, case.layer, "hessian")
    with flatness.capture():
        loss = case.run()
    flatness(loss)
    assert flatness.method.coupling_finder.coupling == case.coupling
