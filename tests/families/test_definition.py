"""For every architecture: hf_fam finds the layer, and the term is relative flatness as defined, gradient included.

The definition is computed from full Hessians of the whole model (tests/support/definition.py). Random probes are run
through a complete basis, so that nothing here is compared up to noise.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_fam import RelativeFlatness
from hf_fam.calculus.derivatives import SecondDerivativeError
from hf_fam.layer.finding import resolve_layer
from support import definition
from support.families import CASES, Case, in_dtype, without_dropout

LAYERS = ("auto", "representation")
TERMS = [(case, layer) for case in CASES for layer in LAYERS if layer not in case.refused]

# Layers with attention, routers, scans or a whole decoder above them.
DEEP = {
    "BertForTokenClassification": "bert.encoder.layer.0.attention.self.value",
    "DebertaV2ForTokenClassification": "deberta.encoder.layer.0.attention.self.query_proj",
    "ModernBertForMaskedLM": "model.layers.0.attn.Wqkv",
    "LlamaForCausalLM": "model.layers.0.self_attn.k_proj",
    "MixtralForCausalLM": "model.layers.0.self_attn.v_proj",
    "MambaForCausalLM": "backbone.layers.0.mixer.in_proj",
    "T5ForConditionalGeneration": "encoder.block.0.layer.1.DenseReluDense.wo",
    "BartForConditionalGeneration": "model.encoder.layers.0.fc2",
    "ViTForImageClassification": "vit.layers.0.attention.v_proj",
    "SwinForImageClassification": "swin.encoder.layers.1.blocks.0.attention.q_proj",
    "Wav2Vec2ForSequenceClassification": "wav2vec2.feature_projection.projection",
    "DetrForObjectDetection": "model.encoder.layers.0.mlp.fc2",
    "CLIPModel": "text_projection",
    "MobileBertForMaskedLM": "cls.predictions.transform.dense",
}
FUSED = {
    "BertForTokenClassification": "bert.encoder.layer.0.attention.self.value",
    "DistilBertForSequenceClassification": "distilbert.transformer.layer.0.attention.v_lin",
    "ModernBertForMaskedLM": "model.layers.0.attn.Wqkv",
    "LlamaForCausalLM": "model.layers.0.self_attn.v_proj",
    "BartForConditionalGeneration": "model.encoder.layers.0.fc2",
    "ViTForImageClassification": "vit.layers.0.attention.v_proj",
    "WhisperForConditionalGeneration": "model.encoder.layers.0.fc2",
    "Wav2Vec2ForSequenceClassification": "wav2vec2.feature_projection.projection",
    "CLIPForImageClassification": "vision_model.encoder.layers.0.self_attn.v_proj",
}
DEEP_TERMS = [
    (case, estimator)
    for case in CASES
    for estimator in ("hessian", "gauss_newton")
    if case.model in DEEP and (estimator == "hessian" or "auto" not in case.refused)
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_layers_are_found(case: Case) -> None:
    model = case.build()
    for layer in LAYERS:
        assert resolve_layer(model, layer)[0] == case.name_of(layer)


@pytest.mark.parametrize(("case", "layer"), TERMS, ids=[f"{case.id}-{layer}" for case, layer in TERMS])
def test_term_is_what_is_defined(case: Case, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = case.head_estimator if layer == "auto" else "gauss_newton"
    assert_term_is_what_is_defined(case, layer, "auto", estimator, monkeypatch)


@pytest.mark.parametrize(
    ("case", "estimator"), DEEP_TERMS, ids=[f"{c.model}-{estimator}" for c, estimator in DEEP_TERMS]
)
def test_term_of_a_deep_layer_is_what_is_defined(case: Case, estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_term_is_what_is_defined(case, DEEP[case.model], estimator, estimator, monkeypatch)


def assert_term_is_what_is_defined(
    case: Case, layer: str, asked_for: str, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value, and derivative along a random direction of all weights."""
    with definition.in_double(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, batch = prepared(case)
        flatness = RelativeFlatness(model, layer, asked_for)
        name, m = flatness.layer.name, flatness.layer.in_features

        def found() -> Tensor:
            with flatness.capture():
                loss = model(**batch).loss
            return flatness(loss)

        def true() -> Tensor:
            if estimator == "gauss_newton":
                return definition.gauss_newton_kappa(model, name, case.head, batch)
            return definition.kappa(model, name, batch)

        found()  # after which it is known what serves the loss, and which rows it couples
        assert flatness.estimator == estimator
        if estimator != "closed_form":
            definition.complete_basis(monkeypatch, m)
            flatness.method.probes = m if flatness.method.coupling_finder.coupling == "rows" else m * m
        value = found()
        flatness.detach()
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
        direction = definition.unit_direction(parameters)
        slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        torch.testing.assert_close(value.detach(), true(), rtol=1e-9, atol=0)
        expected = definition.directional_derivative(true, parameters, direction)
        length = float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
        assert length > 0
        torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-8 * length)


def prepared(case: Case) -> tuple[nn.Module, dict[str, Any]]:
    """Model and batch in float64, with kernels that know it (grouped_mm does not) and have all derivatives."""
    model = without_dropout(case.build(attn_implementation="eager", experts_implementation="eager")).double()
    return model, in_dtype(case.inputs(model), torch.float64)


@pytest.mark.parametrize("model", FUSED)
def test_fused_attention_above_the_layer_is_refused_with_its_remedy(model: str) -> None:
    case = next(case for case in CASES if case.model == model)
    built = without_dropout(case.build())  # with dropout a CPU does not use the fused kernel
    batch = case.inputs(built)

    def kappa() -> Tensor:
        flatness = RelativeFlatness(built, FUSED[model])
        with flatness.capture():
            loss = built(**batch).loss
        return flatness(loss)

    with pytest.raises(SecondDerivativeError, match=r'attention, call model.set_attn_implementation\("eager"\)'):
        kappa()
    built.set_attn_implementation("eager")
    assert kappa() > 0


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton"])
def test_grouped_experts_have_the_derivatives_of_plain_ones(estimator: str) -> None:
    """The default kernel of mixtures knows no float64, so it is compared with the one that the definition is for."""
    case = next(case for case in CASES if case.model == "MixtralForCausalLM")

    def kappa_and_gradient(experts: str) -> list[Tensor]:
        model = without_dropout(case.build(attn_implementation="eager", experts_implementation=experts))
        flatness = RelativeFlatness(model, DEEP[case.model], estimator, probes=4)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Part of the loss")
            with flatness.capture():
                loss = model(**case.inputs(model)).loss
            kappa = flatness(loss)
        return [kappa.detach(), *torch.autograd.grad(kappa, list(model.parameters()), materialize_grads=True)]

    grouped, plain = kappa_and_gradient("grouped_mm"), kappa_and_gradient("eager")
    scale = max(float(g.abs().max()) for g in plain)
    for found, expected in zip(grouped, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * scale)
