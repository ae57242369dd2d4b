"""Rescalings leave the function as it is, and kappa; Tr H and the like they do not. What is impossible is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_fam import measure_relative_flatness
from hf_fam.landscape.reparametrization import (
    NotInvariantError,
    find_pairs,
    fold_feature_deviations,
    rescale_between,
    rescale_randomly,
    scale_before_norm,
)
from hf_fam.layer.feature_layer import FeatureLayer
from hf_fam.measure.normalization import FeatureDeviation
from support.tiny import random_states, tiny_bert, tiny_llama


class LeNet(nn.Module):
    """Functional pooling and activations, a flattened image, batch normalization if asked for."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.fc1, self.fc2, self.head = nn.Linear(16, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = torch.flatten(self.norm(self.conv2(x)).relu(), 1)
        return self.head(F.relu(self.fc2(F.dropout(F.relu(self.fc1(x)), 0.1, self.training))))


def lenet(norm: bool = False) -> LeNet:
    torch.manual_seed(0)
    model = LeNet(norm).double()
    if norm:
        model.train()
        for _ in range(5):
            model(torch.randn(20, 1, 10, 10, dtype=torch.float64) * 3 + 1)
    return model.eval()


def images() -> TensorDataset:
    torch.manual_seed(1)
    return TensorDataset(torch.randn(20, 1, 10, 10, dtype=torch.float64), torch.randint(0, 3, (20,)))


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("neuron_wise", [False, True])
def test_rescaling_moves_the_hessian_and_not_kappa(norm: bool, neuron_wise: bool) -> None:
    model, data = lenet(norm), images()
    pairs = find_pairs(model, data.tensors[0])
    assert [(p.first, p.readers) for p in pairs] == [
        ("conv1", ("conv2",)), ("norm" if norm else "conv2", ("fc1",)), ("fc1", ("fc2",)), ("fc2", ("head",))
    ]  # fmt: skip
    before_outputs, measured = model(data.tensors[0]), []
    names = ["fc1", "fc2", "head"]
    for step in range(2):
        measured.append(
            measure_relative_flatness(
                model, data, names, loss_fn=loss_fn, normalize_features=neuron_wise, batch_size=20, probes=4
            )
        )
        if step == 0:
            rescale_randomly(model, data.tensors[0], spread=2.0, neuron_wise=neuron_wise, seed=3)
    torch.testing.assert_close(model(data.tensors[0]), before_outputs, rtol=1e-9, atol=1e-9)
    for before, after in zip(*measured, strict=True):
        assert after.kappa == pytest.approx(before.kappa, rel=1e-8)
        assert after.kappa_max == pytest.approx(before.kappa_max, rel=1e-7)
    moved = [after.hessian_trace / before.hessian_trace for before, after in zip(*measured, strict=True)]
    if not neuron_wise:  # the trace scales by 1 / c^2
        assert max(max(r, 1 / r) for r in moved) > 10


def test_single_features_need_normalization() -> None:
    model, data = lenet(), images()
    options = {"loss_fn": loss_fn, "layers": "head"}
    (before,) = measure_relative_flatness(model, data, **options)
    rescale_between(model, "fc2", "head", torch.logspace(-1, 1, 6), data.tensors[0])
    (after,) = measure_relative_flatness(model, data, **options)
    assert after.kappa != pytest.approx(before.kappa, rel=0.05)


def test_folded_deviations_equal_normalised_measuring() -> None:
    for second, first in (("head", "fc2"), ("conv2", "conv1")):
        model, data = lenet(), images()
        nn.init.ones_(model.fc2.bias)  # no dead units, which normalized measuring leaves out
        (normalized,) = measure_relative_flatness(
            model, data, second, loss_fn=loss_fn, normalize_features=True, batch_size=20
        )
        layer = FeatureLayer(model, second)
        with layer.capture() as captured:
            model(data.tensors[0])
        deviation = FeatureDeviation(layer.linear_map)
        deviation.add(captured[0].features)
        layer.detach()
        fold_feature_deviations(model, first, second, deviation.result(lambda t: t), data.tensors[0])
        (folded,) = measure_relative_flatness(model, data, second, loss_fn=loss_fn, batch_size=20)
        assert folded.kappa == pytest.approx(normalized.kappa, rel=1e-8)
        assert folded.kappa_max == pytest.approx(normalized.kappa_max, rel=1e-6)


def test_before_a_batch_normalization() -> None:
    model, data = lenet(norm=True), images()
    before, norm = model(data.tensors[0]), model.conv2.weight.norm().item()
    scale_before_norm(model, "conv2", "norm", 50.0, data.tensors[0])
    assert model.conv2.weight.norm().item() == pytest.approx(50 * norm)
    torch.testing.assert_close(model(data.tensors[0]), before, rtol=1e-9, atol=1e-9)
    with pytest.raises(NotInvariantError, match="smaller than its eps"):
        scale_before_norm(model, "conv2", "norm", 1e-6, data.tensors[0])
    with pytest.raises(ValueError, match="'fc1' is a Linear"):
        scale_before_norm(model, "conv2", "fc1", 2.0, data.tensors[0])


def test_what_transformers_allow() -> None:
    """Llama: a normalization against all of its readers, up against down, values against outputs."""
    model = tiny_llama().double().eval()
    example = {"input_ids": torch.randint(3, 50, (2, 6))}
    before, block = model(**example).logits, "model.layers.0"
    readers = [f"{block}.self_attn.{name}_proj" for name in "qkv"]
    factors = torch.rand(16, dtype=torch.float64) * 9 + 0.1
    rescale_between(model, f"{block}.input_layernorm", readers, factors, example)
    rescale_between(model, f"{block}.mlp.up_proj", f"{block}.mlp.down_proj", factors, example)
    rescale_between(model, f"{block}.self_attn.v_proj", f"{block}.self_attn.o_proj", factors, example)
    torch.testing.assert_close(model(**example).logits, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense"),  # GELU
        ("bert.embeddings.LayerNorm", "bert.encoder.layer.0.attention.self.query"),  # residual, other readers
        ("bert.encoder.layer.0.output.dense", "bert.encoder.layer.1.attention.self.query"),  # LayerNorm from below
        ("bert.pooler.dense", "classifier"),  # tanh
    ],
)
def test_what_transformers_do_not_allow(first: str, second: str) -> None:
    model = tiny_bert(initializer_range=0.5).double()
    example = {"input_ids": torch.randint(3, 50, (2, 6))}
    model.train()
    model.bert.encoder.layer[1].eval()
    before, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    with pytest.raises(NotInvariantError, match=r"changes the function.*nothing was changed.*GELU"):
        rescale_between(model, first, second, 3.0, example)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes


def test_modes_of_single_modules_stay() -> None:
    """A model in training with a frozen part is compared in evaluation mode and given back as it was."""
    model, x = lenet(norm=True), images().tensors[0]
    model.train()
    model.norm.eval()
    modes = [m.training for m in model.modules()]
    assert set(modes) == {True, False}
    rescale_randomly(model, x)
    assert [m.training for m in model.modules()] == modes
    rescale_between(model, "fc1", "fc2", 2.0, x, forward=lambda model, example: model(example))
    assert [m.training for m in model.modules()] == modes
    scale_before_norm(model, "conv2", "norm", 3.0, x)
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(NotInvariantError):
        rescale_between(model, "conv2", "fc1", 2.0, x)
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(RuntimeError):
        rescale_randomly(model, x[:, :, :2])  # the forward pass fails
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("neuron_wise", [False, True])
def test_factors_are_a_function_of_the_seed(neuron_wise: bool) -> None:
    x = images().tensors[0]

    def factors(seed: int) -> dict[str, torch.Tensor]:
        model = lenet()
        states = random_states()
        result = rescale_randomly(model, x, seed=seed, neuron_wise=neuron_wise)
        assert random_states() == states
        return result

    one, same, other = factors(3), factors(3), factors(4)
    assert set(one) == set(same) == set(other) == {"conv1", "conv2", "fc1", "fc2"}
    for name, of_pair in one.items():
        assert torch.equal(of_pair, same[name]) and not torch.isclose(of_pair, other[name]).any(), name


def test_refusals() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), torch.randn(5, 3)
    with pytest.raises(NotInvariantError, match="GELU.*not homogeneous"):
        rescale_randomly(model, x)
    with pytest.raises(ValueError, match="positive"):
        rescale_between(model, "0", "2", -1.0, x)
    with pytest.raises(ValueError, match="4 positive"):
        rescale_between(model, "0", "2", torch.ones(3), x)
    with pytest.raises(ValueError, match="4 positive"):
        rescale_between(model, "0", "2", [1.0, 2.0], x)
    with pytest.raises(ValueError, match="'7' is not a module"):
        rescale_between(model, "0", "7", 1.0, x)
    with pytest.raises(ValueError, match="'1' is a GELU"):
        rescale_between(model, "1", "2", 1.0, x)


@pytest.mark.parametrize(
    ("layer", "norm", "factors", "message"),
    [
        ("nope", "1", 2.0, "'nope' is not a module"),
        ("0", "nope", 2.0, "'nope' is not a module"),
        ("2", "1", 2.0, "'2' is a ReLU"),
        ("3", "1", 2.0, "'3' has 2 outputs and '1' 4 features"),
        ("0", "1", torch.ones(3), "factors must be 4 positive finite numbers"),
        ("0", "1", -2.0, "factors must be 4 positive"),
        ("0", "1", float("nan"), "factors must be 4 positive"),
    ],
)
def test_refusals_before_a_normalization(layer: str, norm: str, factors: object, message: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match=message):
        scale_before_norm(model, layer, norm, factors, torch.randn(5, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_allowed_its_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype)
    x = torch.randn(16, 8, dtype=dtype)
    rescale_randomly(model, x, spread=1.0)
    rescale_between(model, "0", "2", [1.5] * 32, x)
    model[1] = nn.GELU()
    with pytest.raises(NotInvariantError, match="GELU"):
        rescale_between(model, "0", "2", 3.0, x)


def test_residual_connections_are_no_pairs() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x).relu()
            return self.c(x + self.b(x).relu())

    assert find_pairs(Block(), torch.randn(7, 3)) == []


def vision_models() -> dict[str, tuple[nn.Module, list[tuple[str, tuple[str, ...]]]]]:
    """transformers' own models, and pairs that are known from their code."""
    vit = {"image_size": 16, "num_channels": 3, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1}
    vit |= {"num_attention_heads": 2, "intermediate_size": 24}
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="bottleneck")
    convnext = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, layer_scale_init_value=0.5)
    layer = "vit.layers.0"
    mixer = nn.Sequential(Mixer(), Mixer(), nn.LayerNorm(6), nn.Linear(6, 2))
    return {
        "resnet": (
            ResNetForImageClassification(resnet),
            [
                (
                    "resnet.encoder.stages.1.layers.0.layer.0.normalization",
                    ("resnet.encoder.stages.1.layers.0.layer.1.convolution",),
                ),
                (
                    "resnet.encoder.stages.1.layers.0.layer.1.normalization",
                    ("resnet.encoder.stages.1.layers.0.layer.2.convolution",),
                ),
            ],
        ),
        "convnext": (
            ConvNextForImageClassification(convnext),
            [
                (
                    "convnext.encoder.stages.0.layers.0.layernorm",
                    ("convnext.encoder.stages.0.layers.0.pwconv1",),
                ),
                ("convnext.layernorm", ("classifier",)),
            ],
        ),
        "vit_gelu": (
            ViTForImageClassification(ViTConfig(**vit)),
            [(f"{layer}.layernorm_after", (f"{layer}.mlp.fc1",))],
        ),
        "vit_relu": (
            ViTForImageClassification(ViTConfig(hidden_act="relu", **vit)),
            [(f"{layer}.mlp.fc1", (f"{layer}.mlp.fc2",)), ("vit.layernorm", ("classifier",))],
        ),
        "mixer": (
            mixer,
            [
                ("0.tokens1", ("0.tokens2",)),
                ("0.norm2", ("0.channels1",)),
                ("0.channels1", ("0.channels2",)),
                ("2", ("3",)),
            ],
        ),
    }


class Mixer(nn.Module):
    """A block of an MLP-Mixer on pictures of 8 patches with 6 channels, with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.tokens1, self.tokens2 = nn.LayerNorm(6), nn.Linear(8, 5), nn.Linear(5, 8)
        self.norm2, self.channels1, self.channels2 = nn.LayerNorm(6), nn.Linear(6, 7), nn.Linear(7, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.tokens2(self.tokens1(self.norm1(x).transpose(1, 2)).relu()).transpose(1, 2)
        return x + self.channels2(self.channels1(self.norm2(x)).relu())


@pytest.mark.parametrize("kind", ["resnet", "convnext", "vit_gelu", "vit_relu", "mixer"])
def test_pairs_of_vision_models(kind: str) -> None:
    torch.manual_seed(0)
    model, known = vision_models()[kind]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.double().eval()
    torch.manual_seed(1)
    example = torch.randn(3, 8, 6).double() if kind == "mixer" else {"pixel_values": torch.randn(3, 3, 16, 16).double()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    pairs = find_pairs(model, example)
    assert {(pair.first, pair.readers) for pair in pairs} >= set(known)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    gelu_readers = [pair for pair in pairs if pair.readers[-1].endswith(("mlp.fc2", "pwconv2"))]
    assert bool(gelu_readers) == (kind == "vit_relu")
    before = model(example) if kind == "mixer" else model(**example).logits
    factors = rescale_randomly(model, example, spread=1.0, seed=2)
    assert set(factors) == {pair.first for pair in pairs}
    after = model(example) if kind == "mixer" else model(**example).logits
    torch.testing.assert_close(after, before, rtol=1e-7, atol=1e-9)


def test_attention_and_normalizations_are_found() -> None:
    """All readers of a normalization, values against outputs, up against down; never through the gate or GELU."""
    pairs = {p.first: p.readers for p in find_pairs(tiny_llama(), {"input_ids": torch.randint(3, 50, (2, 6))})}
    block = "model.layers.0"
    attention = f"{block}.self_attn"
    assert pairs[f"{block}.input_layernorm"] == tuple(f"{attention}.{name}_proj" for name in "qkv")
    assert pairs[f"{attention}.v_proj"] == (f"{attention}.o_proj",)
    assert pairs[f"{block}.mlp.up_proj"] == (f"{block}.mlp.down_proj",)
    assert f"{block}.mlp.gate_proj" not in pairs and f"{attention}.q_proj" not in pairs
    bert = {p.first: p.readers for p in find_pairs(tiny_bert(), {"input_ids": torch.randint(3, 50, (2, 6))})}
    assert not any("intermediate" in first for first in bert)
    # A residual connection reads every LayerNorm but the last, which only the pooler reads.
    assert {k: v for k, v in bert.items() if "LayerNorm" in k} == {
        "bert.encoder.layer.1.output.LayerNorm": ("bert.pooler.dense",)
    }


def test_float32_stays_within_a_millionth() -> None:
    model = lenet().float()
    x = images().tensors[0].float()
    before = model(x)
    rescale_randomly(model, x, spread=1.0)
    difference = (model(x) - before).abs().max() / before.abs().max()
    assert difference < 1e-6 * 5
