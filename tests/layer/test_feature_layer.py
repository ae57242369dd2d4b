"""Which layer a name or a module stands for, what is refused, and what a capture notices."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness, attach
from hf_fam.layer.feature_layer import FeatureLayer
from hf_fam.layer.finding import weighted_layers
from hf_fam.layer.kinds import linear_map_of
from support.tiny import tiny_bert, tiny_llama


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.ConvTranspose2d(3, 4, 2), "ConvTranspose2d"),
        (nn.Embedding(5, 3), "Embedding"),
        (nn.Bilinear(3, 4, 2), "Bilinear"),
        (nn.LSTM(3, 4), "LSTM"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (nn.LayerNorm(4), "LayerNorm"),
    ],
)
def test_other_kinds_are_refused_by_name(layer: nn.Module, name: str) -> None:
    article = "an" if name[0] in "AEIO" else "a"
    with pytest.raises(
        TypeError, match=f"layer '0' is {article} {name}, which is no kind.*Supported: torch.nn.Linear, Conv1d"
    ):
        RelativeFlatness(nn.Sequential(layer), "0")


def test_unreadable_weights_are_refused() -> None:
    linear = nn.Linear(3, 2)
    linear.weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"'0' has a quantized weight \(torch.int8\) that hf_fam cannot read"):
        FeatureLayer(nn.Sequential(linear), "0")


class Doubled(nn.Linear):
    """Not W phi + b."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Same(nn.Linear):
    """W phi + b, written in another way (Falcon's linear layer does)."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forward_pass_of_its_own_has_to_be_that_of_a_linear_layer(dtype: torch.dtype) -> None:
    inputs = torch.randn(8, 16, dtype=dtype)
    for kind in (Same, Doubled):
        model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), kind(16, 3)).to(dtype)
        flatness = RelativeFlatness(model)
        if kind is Same:
            with flatness.capture():
                loss = F.cross_entropy(model(inputs).float(), torch.zeros(8, dtype=torch.long))
            assert flatness(loss) > 0
        else:
            with pytest.raises(TypeError, match="'2' is a Doubled, whose forward pass is not"), flatness.capture():
                model(inputs)
            flatness.detach()
            adapted = get_peft_model(model, LoraConfig(target_modules=["2"]))
            flatness = RelativeFlatness(adapted)
            with pytest.raises(TypeError, match="is a Doubled, whose forward pass is not"), flatness.capture():
                adapted(inputs)


class InPlace(nn.Module):
    """Overwrites the layer's output, by a module or by a function."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv1d(2, 3, 3), nn.Linear(3, 3)
        self.how, self.activation = how, nn.ReLU(inplace=how == "module")

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        if self.how == "function":
            z += 1
        else:
            z = z + 1
        return self.head(self.activation(z).mean(-1))


def test_an_operation_that_overwrites_its_input_does_not_overwrite_z() -> None:
    inputs, values = torch.randn(4, 2, 6), []
    plain = InPlace("by a copy")
    for how in ("by a copy", "module", "function"):
        model = InPlace(how)
        model.load_state_dict(plain.state_dict())
        flatness = RelativeFlatness(model, "layer", "hessian")
        with flatness.capture():
            loss = F.cross_entropy(model(inputs), torch.arange(4) % 3)
        kappa = flatness(loss)
        values.append((kappa, *torch.autograd.grad(kappa, list(model.parameters()), materialize_grads=True)))
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(values[2], values[0])


def test_logits_that_are_overwritten_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    for layer in ("head", "0"):
        flatness = RelativeFlatness(model, layer)
        with flatness.capture():
            logits = model(torch.randn(4, 3))
            logits *= 2
        with pytest.raises(ValueError, match="what layer .*'2'.* gets or returns is changed in place.*x = x \\+ y"):
            flatness(F.cross_entropy(logits, torch.arange(4) % 3))


def test_features_given_by_keyword() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=x)

    model = ByKeyword()
    flatness = RelativeFlatness(model)
    with flatness.capture():
        loss = F.cross_entropy(model(torch.randn(4, 3)), torch.zeros(4, dtype=torch.long))
    assert flatness(loss) > 0


def adapted_bert(**config: object) -> PeftModel:
    torch.manual_seed(0)
    options = {"r": 2, "lora_alpha": 4, "target_modules": ["query", "pooler.dense"], **config}
    return get_peft_model(tiny_bert(), LoraConfig(task_type=TaskType.SEQ_CLS, **options))


def called_layers(model: nn.Module) -> Iterator[str]:
    names = {module: name for name, module in model.named_modules()}
    called: list[str] = []
    handles = [
        m.register_forward_hook(lambda module, args, output: called.append(names[module])) for m in model.modules()
    ]
    model(input_ids=torch.arange(5).view(1, 5))
    for handle in handles:
        handle.remove()
    return iter(called)


def test_names_in_a_peft_model() -> None:
    model = adapted_bert()
    head = "base_model.model.classifier.modules_to_save.default"
    pooler = "base_model.model.bert.pooler.dense"
    for name_or_module, expected in [
        ("auto", head),
        ("classifier", head),
        ("base_model.model.classifier", head),
        ("base_model.model.classifier.original_module", head),
        (model.base_model.model.classifier, head),
        (model.base_model.model.classifier.original_module, head),
        ("representation", pooler),
        ("bert.pooler.dense", pooler),
        ("bert.pooler.dense.base_layer", pooler),
        (model.get_submodule(pooler), pooler),
        (model.get_submodule(pooler).base_layer, pooler),
    ]:
        layer = FeatureLayer(model, name_or_module)
        assert layer.name == expected
        assert layer.module is model.get_submodule(expected)
    called = set(called_layers(model))
    listed = [name for name, _ in weighted_layers(model)]
    assert called.issuperset(listed)
    assert not any(".lora_" in name or "base_layer" in name or "original" in name for name in listed)
    assert len(listed) == len(weighted_layers(tiny_bert()))
    assert FeatureLayer(model.merge_and_unload(), pooler).name == "bert.pooler.dense"


def test_a_head_inside_a_module_to_save() -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}
    model = RobertaForSequenceClassification(RobertaConfig(vocab_size=50, num_labels=3, **sizes))
    model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"]))
    inside = "base_model.model.classifier.modules_to_save.default."
    assert FeatureLayer(model, "classifier.out_proj").name == inside + "out_proj"
    assert FeatureLayer(model).name == inside + "out_proj"
    assert FeatureLayer(model, "representation").name == inside + "dense"
    with pytest.raises(TypeError, match="is a RobertaClassificationHead"):
        FeatureLayer(model, "classifier")


@pytest.mark.parametrize("change", [{"use_dora": True}, {"use_rslora": True}])
def test_the_weight_is_that_of_the_forward_pass(change: dict[str, bool]) -> None:
    """Whatever is active, disabled or merged: the layer's outputs differ by W times the difference of their inputs."""
    model = adapted_bert(lora_dropout=0.5, **change).double().eval()
    layer = FeatureLayer(model, "representation")
    adapted = layer.module
    for factor in adapted.lora_B.values():
        nn.init.normal_(factor.weight)

    def agrees() -> bool:
        x, y = torch.randn(2, 5, 16, dtype=torch.float64)
        return torch.allclose(adapted(x) - adapted(y), (x - y) @ layer.weight.T)

    assert agrees()
    merged = layer.weight.detach().clone()
    with model.disable_adapter():
        assert agrees()
        assert not torch.allclose(layer.weight, merged)
    model.merge_adapter()
    assert agrees()
    torch.testing.assert_close(layer.weight, merged)
    model.unmerge_adapter()
    model.add_adapter("other", LoraConfig(task_type=TaskType.SEQ_CLS, r=1, target_modules=["pooler.dense"]))
    model.set_adapter("other")
    nn.init.normal_(adapted.lora_B["other"].weight.data)
    model.double().eval()
    assert agrees()


def test_other_adapters_are_refused_by_name() -> None:
    from peft import IA3Config, LoHaConfig

    for config, name in (
        (LoHaConfig(r=2, target_modules=["pooler.dense"]), "loha.Linear"),
        (IA3Config(target_modules=["pooler.dense"], feedforward_modules=[]), "ia3.Linear"),
    ):
        with pytest.raises(TypeError, match=f"PEFT adapter of kind {name}, whose weight .*use LoRA or DoRA.*Supported"):
            FeatureLayer(get_peft_model(tiny_bert(), config), "bert.pooler.dense")
    convolution = nn.Sequential(nn.Conv1d(2, 4, 3, groups=2))
    with pytest.warns(UserWarning, match="groups > 1"):
        adapted = get_peft_model(convolution, LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(TypeError, match="'base_model.model.0' has LoRA on a convolution with groups"):
        FeatureLayer(adapted, "0")


def test_dense_needs_a_weight_of_its_own() -> None:
    with pytest.raises(ValueError, match='"dense" differentiates by the weight itself.*made of other parameters'):
        RelativeFlatness(adapted_bert(), "representation", "dense")
    with pytest.raises(ValueError, match='"dense".*lm_head.*shares its weight with.*embed_tokens'):
        RelativeFlatness(tiny_llama(tie_word_embeddings=True), "head", "dense")


def test_tied_head_learns_through_both_uses() -> None:
    """The gradient of a tied weight is that of head and embeddings together, as if they were two."""
    tied, apart = tiny_llama(tie_word_embeddings=True).double(), tiny_llama(tie_word_embeddings=False).double()
    apart.load_state_dict(tied.state_dict())
    ids, gradients = torch.randint(0, 50, (2, 7)), []
    for model in (tied, apart):
        flatness = RelativeFlatness(model)
        with flatness.capture():
            loss = F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.flatten())
        flatness(loss).backward()
        gradients.append(model.model.embed_tokens.weight.grad)
    both = gradients[1] + apart.lm_head.weight.grad
    torch.testing.assert_close(gradients[0], both, rtol=1e-9, atol=1e-12 * float(both.abs().max()))
    assert gradients[1].abs().max() > 0


def test_linear_maps_of_bitsandbytes() -> None:
    """What the layer really does on a CPU, to the rounding of 8-bit activations and 4-bit blocks."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    for kind, options in (
        (bitsandbytes.nn.Linear8bitLt, {"has_fp16_weights": False}),
        (bitsandbytes.nn.Linear4bit, {"compute_dtype": torch.float32, "quant_type": "nf4"}),
    ):
        layer = kind(64, 32, **options)
        layer.load_state_dict(linear.state_dict())
        layer = layer.to("cpu")
        linear_map = linear_map_of(layer)
        x = torch.randn(5, 64)
        for _ in range(2):  # before and after the first call, which moves the scales
            weight = linear_map.weight
            assert (tuple(weight.shape), weight.requires_grad) == ((32, 64), False)
            difference = (F.linear(x, weight.float(), layer.bias) - layer(x)).abs().max()
            assert difference < 0.02 * layer(x).abs().max()
            assert (weight.float() - linear.weight).abs().max() < 0.02


def test_parametrized_weights_are_those_of_the_forward_pass() -> None:
    """Spectral normalization takes a step of its power iteration whenever its weight is read in training."""
    for parametrize in (nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm):
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), parametrize(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2))
        flatness = RelativeFlatness(model, "2", "hessian")
        layer, inputs = FeatureLayer(model, "2"), torch.randn(6, 3)
        with flatness.capture(), layer.capture() as captures:
            loss = F.cross_entropy(model(inputs), torch.arange(6) % 2)
        buffers = [b.clone() for b in model.buffers()]
        weight = flatness.layer.weight
        torch.testing.assert_close(captures[0].features @ weight.T + model[2].bias, captures[0].pre_activations)
        flatness(loss).backward()
        torch.testing.assert_close(list(model.buffers()), buffers, rtol=0, atol=0)
        assert all(part.training for part in model.modules())


def test_neither_peft_nor_bitsandbytes_nor_transformers_is_imported() -> None:
    program = (
        "import sys, torch, hf_fam\n"
        "model = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3), torch.nn.Flatten(), torch.nn.Linear(6, 2))\n"
        "flatness = hf_fam.RelativeFlatness(model, '0')\n"
        "with flatness.capture():\n"
        "    loss = model(torch.randn(3, 2, 4)).square().sum()\n"
        "assert flatness(loss) > 0\n"
        "print(sorted({'peft', 'bitsandbytes', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_second_head_that_helps_the_first_is_not_the_head() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "main_head": nn.Linear(4, 3), "aux_head": nn.Linear(4, 3)})
    assert FeatureLayer(model).name == "main_head"


def halved_by_its_instance(layer: nn.Linear) -> None:
    layer.forward = lambda phi: 0.5 * F.linear(phi, layer.weight, layer.bias)  # type: ignore[method-assign]


def halved_by_a_hook(layer: nn.Linear) -> None:
    layer.register_forward_hook(lambda module, inputs, output: 0.5 * output)


@pytest.mark.parametrize("halve", [halved_by_its_instance, halved_by_a_hook])
def test_an_output_that_is_not_the_layers_own_is_refused(halve: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    halve(model[2])
    flatness = RelativeFlatness(model, "2")
    message = r"layer '2' is a Linear, whose forward pass is not W phi \+ b"
    with pytest.raises(TypeError, match=message), flatness.capture():
        model(torch.randn(8, 4))


@pytest.mark.parametrize("change", ["none", "after ours", "same output", "accelerate"])
def test_an_output_that_is_the_layers_own_is_taken(change: str) -> None:
    """Also where a hook comes later: what it does belongs to the tail."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    if change == "same output":
        model[2].register_forward_hook(lambda module, inputs, output: None)
    if change == "accelerate":
        model[2].forward = functools.partial(nn.Linear.forward, model[2])  # type: ignore[method-assign]
    flatness = RelativeFlatness(model, "2", "dense")
    inputs, labels = torch.randn(8, 4).double(), torch.arange(8) % 3
    factor = 0.5 if change == "after ours" else 1.0
    if change == "after ours":
        with flatness.capture():
            model(inputs)
        model[2].register_forward_hook(lambda module, inputs, output: 0.5 * output)
    with flatness.capture():
        logits = model(inputs)
    kappa = flatness(F.cross_entropy(logits, labels))

    def loss_of(weight: Tensor) -> Tensor:
        z = F.linear(torch.tanh(model[0](inputs)), weight, model[2].bias)
        return F.cross_entropy(factor * z, labels)

    w = model[2].weight.detach()
    hessian = torch.autograd.functional.hessian(loss_of, w)
    torch.testing.assert_close(kappa.detach(), torch.einsum("si,ti,sjtj->", w, w, hessian))


def test_what_becomes_something_else_later_is_refused_at_the_next_check() -> None:
    """A soft cap is W phi + b as long as the outputs are small; a patch may come between two batches."""
    model, inputs = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), torch.randn(8, 4).double()
    layer = model[2]
    layer.forward = lambda phi: 30 * torch.tanh(F.linear(phi, layer.weight, layer.bias) / 30)  # type: ignore[method-assign]
    flatness = RelativeFlatness(model, "2")
    with flatness.capture():
        model(inputs)
    layer.weight.data.mul_(100)
    with pytest.raises(TypeError, match=r"is not W phi \+ b"), flatness.capture():
        model(inputs)


@pytest.mark.parametrize("halve", [halved_by_its_instance, halved_by_a_hook])
def test_attach_refuses_it_too(halve: Any) -> None:
    """A hook that comes after the term belongs to the tail, and is noticed from the gradient."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    halve(model[2])
    attached = attach(model, 0.1)
    if halve is halved_by_its_instance:
        with pytest.raises(TypeError, match=r"is not W phi \+ b"):
            model(torch.randn(8, 4))
    else:
        with pytest.warns(UserWarning, match="is not that of softmax cross-entropy with hard labels"):
            F.cross_entropy(model(torch.randn(8, 4)), torch.arange(8) % 3).backward()
    attached.detach()
