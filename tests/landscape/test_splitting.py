"""Splitting, merging and widening keep the function, and the configuration keeps describing the model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_fam.landscape import merge_duplicates, split_neuron, widen
from support.tiny import tiny_bert, tiny_llama

TOKENS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
SIZES = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=2, n_positions=16, **SIZES))


def vit() -> PreTrainedModel:
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, **sizes))


def t5(gated: bool) -> PreTrainedModel:
    kind = "gated-gelu" if gated else "relu"
    return T5EncoderModel(
        T5Config(d_model=8, d_ff=12, num_layers=2, num_heads=2, d_kv=4, feed_forward_proj=kind, vocab_size=50)
    )


def bart() -> PreTrainedModel:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers = {"encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12}
    return BartModel(BartConfig(d_model=8, max_position_embeddings=16, **heads, **layers, **SIZES))


def distilbert() -> PreTrainedModel:
    return DistilBertModel(DistilBertConfig(dim=8, hidden_dim=12, n_layers=2, n_heads=2, vocab_size=50))


def neox() -> PreTrainedModel:
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, **SIZES))


# The model, a layer of it, the pattern of all such layers, and what the configuration calls their width.
TRANSFORMERS = {
    "bert": (tiny_bert, "bert.encoder.layer.1.intermediate.dense", "*.intermediate.dense", "intermediate_size"),
    "gpt2": (gpt2, "transformer.h.0.mlp.c_fc", "*.mlp.c_fc", "n_inner"),
    "vit": (vit, "vit.layers.1.mlp.fc1", "*.fc1", "intermediate_size"),
    "llama": (lambda: tiny_llama(num_hidden_layers=2), "model.layers.0.mlp.up_proj", "*.up_proj", "intermediate_size"),
    "t5": (lambda: t5(False), "encoder.block.0.layer.1.DenseReluDense.wi", "*.wi", "d_ff"),
    "t5_gated": (lambda: t5(True), "encoder.block.0.layer.1.DenseReluDense.wi_0", "*.wi_0", "d_ff"),
    "bart": (bart, "encoder.layers.1.fc1", "encoder.*.fc1", "encoder_ffn_dim"),
    "distilbert": (distilbert, "transformer.layer.0.ffn.lin1", "*.lin1", "hidden_dim"),
    "neox": (neox, "gpt_neox.layers.0.mlp.dense_h_to_4h", "*.dense_h_to_4h", "intermediate_size"),
}


def run(model: PreTrainedModel) -> Tensor:
    """Some output, in float64 so that only an exact change passes."""
    model = copy.deepcopy(model).double().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        if isinstance(model, ViTForImageClassification):
            return model(torch.randn(2, 1, 8, 8, dtype=torch.float64))[0]
        return model(input_ids=TOKENS)[0]


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("ratio", [0.5, 1.5, -0.3, 0.0])
def test_function_is_kept_and_merging_undoes(kind: str, ratio: float) -> None:
    build, layer, _, _ = TRANSFORMERS[kind]
    torch.manual_seed(1)
    model = build().double()
    before, weights, count = run(model), copy.deepcopy(model.state_dict()), model.num_parameters()
    with pytest.warns(UserWarning, match="from_pretrained cannot load"):
        new = split_neuron(model, layer, 2, ratio)
    assert new == model.get_submodule(layer).weight.shape[-1 if kind == "gpt2" else 0] - 1
    torch.testing.assert_close(run(model), before, rtol=0, atol=1e-12)
    assert model.num_parameters() > count
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert merge_duplicates(model, layer) == 1
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_widened_alike_it_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    build, _, pattern, size = TRANSFORMERS[kind]
    model = build()
    before, width = run(model), getattr(model.config, size) or 4 * model.config.n_embd
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        widen(model, pattern, by=5)
    assert getattr(model.config, size) == width + 5
    torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(run(loaded), run(model), rtol=0, atol=0)


def test_only_the_side_that_was_widened_changes_its_number() -> None:
    model = bart()
    widen(model, "encoder.layers.*.fc1", by=3)
    assert (model.config.encoder_ffn_dim, model.config.decoder_ffn_dim) == (15, 12)


def test_layers_that_differ_are_warned_about_until_they_are_alike_again() -> None:
    model = tiny_bert()
    with pytest.warns(UserWarning, match="one number for 2 layers, which now differ"):
        widen(model, "bert.encoder.layer.0.intermediate.dense", by=4)
    assert model.config.intermediate_size == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        widen(model, "bert.encoder.layer.1.intermediate.dense", by=4)
    assert model.config.intermediate_size == 20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_in_every_precision(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=bias), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2, bias=bias))
    model = model.to(dtype).eval()
    x = torch.randn(6, 3, dtype=dtype)
    before = model(x)
    split_neuron(model, "0", 1, 0.3)
    widen(model, model[0], by=7, ratio=-0.5)
    assert model[0].weight.shape == (12, 3) and model[0].out_features == model[3].in_features == 12
    assert all(p.dtype == dtype for p in model.parameters())
    torch.testing.assert_close(model(x), before, rtol=0, atol=20 * torch.finfo(dtype).eps)
    assert merge_duplicates(model) == 8
    torch.testing.assert_close(model(x), before, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_nested_sequential_and_frozen_weights() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.GELU()), nn.Sequential(nn.Identity(), nn.Linear(4, 2)))
    model[0][0].weight.requires_grad_(False)
    x = torch.randn(6, 3)
    before = model(x)
    split_neuron(model, "0.0", 3, 2.0)
    torch.testing.assert_close(model(x), before)
    required = [parameter.requires_grad for parameter in model.parameters()]
    assert required == [False, True, True, True]


def test_a_neuron_can_be_split_again() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    before = model(x)
    widen(model, "0", by=3, neurons=[1, 1, 0], ratio=1.5)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert torch.equal(model[0].weight[2], model[0].weight[3])
    widen(model, "0", by=20)
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)


def test_default_choice_is_the_largest_outgoing_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[0.1, -3.0, 1.0]]))
    rows = model[0].weight.clone()
    widen(model, "0", by=2)
    assert torch.equal(model[0].weight[3:], rows[[1, 2]])
    torch.testing.assert_close(model[2].weight, torch.tensor([[0.1, -4.5, 1.5, 1.5, -0.5]]))


def test_merging_with_a_tolerance() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0001], [-0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.5, 0.0, 0.5, 0.0]))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    exact = copy.deepcopy(model)
    assert merge_duplicates(exact) == 1
    assert merge_duplicates(model, "0", tolerance=1e-3) == 2
    assert torch.equal(model[2].weight, torch.tensor([[4.0, 6.0]]))
    with pytest.raises(ValueError, match="tolerance=-1"):
        merge_duplicates(model, tolerance=-1)


class Custom(nn.Module):
    """Its structure does not say that a tanh lies between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(3, 4), nn.Linear(4, 2), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


def test_next_layer_is_asked_for_and_believed() -> None:
    model, x = Custom(), torch.randn(5, 3)
    before = model(x)
    with pytest.raises(ValueError, match=r"layer 'fc1'.*Custom.*next_layer=\.\.\."):
        split_neuron(model, "fc1", 0)
    split_neuron(model, "fc1", 0, next_layer="fc2")
    torch.testing.assert_close(model(x), before)


def test_per_neuron_activation_is_not_passed_over() -> None:
    for between in (nn.PReLU(4), nn.LayerNorm(4), nn.Softmax(-1)):
        with pytest.raises(ValueError, match="cannot be found in Sequential"):
            split_neuron(nn.Sequential(nn.Linear(3, 4), between, nn.Linear(4, 2)), "0", 0)
    split_neuron(nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2)), "0", 0)


def test_a_module_that_is_used_again_is_not_passed_over() -> None:
    """named_children() would show it at its first place only."""
    for again in (nn.Softmax(-1), nn.LayerNorm(6)):
        model = nn.Sequential(nn.Linear(3, 6), again, nn.Linear(6, 6), again, nn.Linear(6, 2))
        with pytest.raises(ValueError, match="cannot be found in Sequential"):
            split_neuron(model, "2", 0)
    linear, act = nn.Linear(6, 6), nn.Tanh()
    model = nn.Sequential(
        nn.Linear(3, 6), act, linear, act, nn.Sequential(linear, act), nn.Linear(6, 6), act, nn.Linear(6, 2)
    )
    x = torch.randn(5, 3)
    before = model(x)
    with pytest.raises(ValueError, match=r"layer '2' is called 2 times by its nn.Sequential"):
        split_neuron(model, "2", 0)
    with pytest.raises(ValueError, match=r"layer '2' is called 2 times|cannot be found in Sequential"):
        split_neuron(model, "0", 0)
    with pytest.raises(ValueError, match=r"layer '2' is called 2 times"):
        split_neuron(model, "0", 0, next_layer="2")
    widen(model, "5", by=2)  # an activation may come again
    torch.testing.assert_close(model(x), before)


def test_a_neuron_may_be_numpys() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    assert split_neuron(model, "0", torch.arange(4).numpy()[1]) == 4
    with pytest.raises(ValueError, match="neuron=1.5"):
        split_neuron(model, "0", 1.5)


def shared() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    return model


def normalized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("build", "given", "error", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
            {"layer": "1"},
            TypeError,
            "is a torch.Tanh",
        ),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh()), {"layer": "0"}, ValueError, "next_layer"),
        (Custom, {"layer": "fc2", "next_layer": "fc1"}, ValueError, "makes 2 values, but 'fc1' reads 3"),
        (lambda: nn.Linear(3, 3), {"layer": ""}, ValueError, "is not a module"),
        (Custom, {"layer": "nope"}, ValueError, "did you mean"),
        (shared, {"layer": "0"}, ValueError, "shares its weight"),
        (normalized, {"layer": "0"}, TypeError, "parametrization"),
        (lambda: nn.DataParallel(Custom()), {"layer": "fc1"}, ValueError, "model.module first"),
        (Custom, {"layer": "fc1", "next_layer": "fc2", "neuron": 4}, ValueError, "neurons 0 to 3"),
        (Custom, {"layer": "fc1", "next_layer": "fc2", "neuron": True}, ValueError, "neuron=True"),
        (Custom, {"layer": "fc1", "next_layer": "fc2", "ratio": float("nan")}, ValueError, "ratio=nan"),
    ],
)
def test_refusals(build: object, given: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        split_neuron(build(), **{"neuron": 0, **given})


def test_refusals_of_widen() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="by=0"):
        widen(model, "0", by=0)
    with pytest.raises(ValueError, match="neurons has 1 entries and by=2"):
        widen(model, "0", by=2, neurons=[1])
    with pytest.raises(ValueError, match="matches no linear layer"):
        widen(model, "*.fc1", by=2)
    with pytest.raises(ValueError, match="one layer only"):
        widen(model, ["0"], by=2, next_layer="2")
    assert model[0].out_features == 4, "nothing changed before the refusal"


def test_adapters_and_quantised_weights_are_refused() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_bert(), LoraConfig(target_modules=["intermediate.dense"], r=2))
    with pytest.raises(TypeError, match=r"is a peft\.Linear; .*merge adapters"):
        split_neuron(adapted, "base_model.model.bert.encoder.layer.0.intermediate.dense", 0)
    with pytest.warns(UserWarning, match="from_pretrained cannot load"):
        split_neuron(adapted.merge_and_unload(), "bert.encoder.layer.0.intermediate.dense", 0)

    class Quantized(nn.Parameter):
        pass

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[2].weight = Quantized(model[2].weight.detach())
    with pytest.raises(TypeError, match="weight of layer '2' is a Quantized of torch.float32"):
        split_neuron(model, "0", 0)


def test_fused_gate_is_refused() -> None:
    model = nn.ModuleDict({"Wi": nn.Linear(4, 8), "Wo": nn.Linear(4, 4)})
    with pytest.raises(ValueError, match="a gate in one matrix is not supported"):
        split_neuron(model, "Wi", 0, next_layer="Wo")


def test_training_goes_on_with_the_new_parameters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(32, 2)
    y = x.prod(1, keepdim=True)
    losses = []
    for widening in (False, True):
        if widening:
            widen(model, "0", by=4)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(20):
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[19] < losses[0]
    assert not torch.equal(model[0].weight[:4], model[0].weight[4:]), "the copies part"


@pytest.mark.parametrize(("ratio", "part"), [(0.5, False), (1.5, True)])
def test_copies_of_equal_shares_never_part(ratio: float, part: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    widen(model, "0", by=4, neurons=[0, 1, 2, 3], ratio=ratio)
    x = torch.randn(32, 2, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        (model(x) - x.prod(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    distance = (model[0].weight[:4] - model[0].weight[4:]).abs().max()
    assert distance > 0.1 if part else distance < 1e-10
