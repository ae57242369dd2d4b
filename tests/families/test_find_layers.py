"""Finding head and representation where a model defines its layers in another order than it calls them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipForImageClassification, SiglipTextConfig, SiglipVisionConfig

from hf_fam import RelativeFlatness
from hf_fam.layer.finding import find_head, find_representation
from support.families import CASES


def tree(**layers: nn.Module) -> nn.Module:
    """Modules in the order given; a double underscore stands for the dot."""
    root = nn.Module()
    for path, layer in layers.items():
        *parents, name = path.split("__")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.add_module(name, layer)
    return root


def layer(reads: int = 4, makes: int = 4) -> nn.Linear:
    return nn.Linear(reads, makes)


ORDERS = {
    "the head's own layer is defined before the body": (
        tree(classifier__dense=layer(), classifier__out_proj=layer(4, 2), body__dense=layer()),
        "classifier.dense",
    ),
    "a second head is defined after the first": (
        tree(body__dense=layer(), classifier=layer(4, 2), bbox_predictor__0=layer()),
        "body.dense",
    ),
    "a head is defined first": (tree(classifier=layer(4, 2), first=layer(), second=layer()), "second"),
    "a gate is defined last": (
        tree(layers__0__down_proj=layer(8, 4), layers__0__gate=layer(4, 1), score=layer(4, 2)),
        "layers.0.down_proj",
    ),
    "attention is defined after the feed-forward layer": (
        tree(layers__0__mlp__down_proj=layer(8, 4), layers__0__self_attn__o_proj=layer(), score=layer(4, 2)),
        "layers.0.mlp.down_proj",
    ),
    "a block with attention alone": (
        tree(layers__0__mlp__down_proj=layer(8, 4), layers__1__self_attn__o_proj=layer(), score=layer(4, 2)),
        "layers.1.self_attn.o_proj",
    ),
    "nothing fits, as the head reads two features of every channel": (
        tree(layers__0__fc1=layer(4, 8), layers__0__fc2=layer(8, 4), classifier=layer(16, 2)),
        "layers.0.fc2",
    ),
    "a second head helps the first": (
        tree(body__0=layer(), decode_head__classifier=layer(4, 2), auxiliary_head__classifier=layer(4, 2)),
        "body.0",
    ),
    "a convolution makes what the head reads": (
        tree(encoder__conv=nn.Conv2d(3, 4, 1), encoder__squeeze=nn.Conv2d(4, 2, 1), classifier=layer(4, 2)),
        "encoder.conv",
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_representation(order: str) -> None:
    model, expected = ORDERS[order]
    assert find_representation(model)[0] == expected


def test_a_projector_beside_the_language_model_is_not_the_representation() -> None:
    model = tree(model__language_model__0=layer(), model__projector=layer(), lm_head=layer(4, 9))
    assert find_representation(model)[0] == "model.projector"
    model.get_decoder = lambda: model.get_submodule("model.language_model")
    assert find_representation(model)[0] == "model.language_model.0"


def test_a_pooling_head_of_the_trunk_is_not_the_representation() -> None:
    """SigLIP's classifier reads the patches, and its trunk pools them for a loss that is not there."""
    trunk = {"vision_model__encoder__layers__0__mlp__fc2": layer(), "vision_model__head__mlp__fc2": layer()}
    assert find_representation(tree(**trunk, classifier=layer(4, 2)))[0] == "vision_model.encoder.layers.0.mlp.fc2"
    assert find_representation(tree(**trunk, head__dense=layer(), classifier=layer(4, 2)))[0] == "head.dense"


def test_siglip_trains_its_representation() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = SiglipVisionConfig(image_size=8, patch_size=4, **sizes)
    text = SiglipTextConfig(vocab_size=50, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, **sizes)
    model = SiglipForImageClassification(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.set_attn_implementation("eager")
    flatness = RelativeFlatness(model, "representation")
    with flatness.capture():
        loss = model(pixel_values=torch.randn(3, 3, 8, 8), labels=torch.tensor([0, 1, 1])).loss
    assert flatness(loss) > 0


def test_a_pooler_above_the_decoder_is_the_representation() -> None:
    model = tree(model__decoder__0=layer(), projector=layer(), classifier=layer(4, 2))
    model.get_decoder = lambda: model.get_submodule("model.decoder")
    assert find_representation(model)[0] == "projector"


def test_names_in_a_peft_model_are_those_of_the_model_inside() -> None:
    peft = pytest.importorskip("peft")
    for model in (
        "DistilBertForSequenceClassification",
        "NomicBertForTokenClassification",
        "T5ForConditionalGeneration",
    ):
        case = next(case for case in CASES if case.model == model)
        queries = peft.LoraConfig(target_modules=r".*(q_lin|q_proj|[.]q)")
        found = find_representation(peft.get_peft_model(case.build(), queries))
        assert found[0] == f"base_model.model.{case.representation}"


@pytest.mark.parametrize("error", [NotImplementedError, AttributeError])
def test_a_model_that_has_no_output_embeddings_may_say_so_by_raising(error: type[Exception]) -> None:
    class Silent(nn.Sequential):
        def get_output_embeddings(self) -> nn.Module:
            raise error

    assert find_head(Silent(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))[0] == "2"


class TwoTowers(nn.Module):
    """A contrastive loss: no layer makes logits."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self.left(x).tanh() @ self.right(y).tanh().T
        return F.cross_entropy(logits, torch.arange(len(x)))


def test_a_contrastive_loss_has_no_head_but_named_layers() -> None:
    torch.manual_seed(0)
    model, batch = TwoTowers(), torch.randn(2, 5, 3)
    assert find_head(model)[0] == "right"
    flatness = RelativeFlatness(model)
    with flatness.capture():
        loss = model(*batch)
    with pytest.raises(ValueError, match="no layer into the logits was found: 'right'.*layer=\"right\" is possible"):
        flatness(loss)
    named = RelativeFlatness(model, "right")  # what the message proposes
    with named.capture():
        loss = model(*batch)
    with pytest.warns(UserWarning, match="The closed form does not hold"):
        assert named(loss) != 0
    assert named.estimator == "hessian"


@pytest.mark.parametrize(
    "loss",
    [lambda z: z.softmax(-1) @ torch.tensor([[0.0, 1.0], [5.0, 0.0]]), lambda z: z.T @ z],
    ids=["costs of mistakes", "covariance"],
)
def test_a_product_that_belongs_to_the_loss_leaves_the_head_a_head(loss: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    flatness = RelativeFlatness(model)
    with flatness.capture():
        value = loss(model(torch.randn(5, 3))).square().sum()
    with pytest.warns(UserWarning, match="The closed form does not hold"):
        flatness(value)


class Routed(nn.Module):
    """A loss on the logits, and one on what a router says."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.router, self.classifier = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor, auxiliary: float) -> Tensor:
        h = self.dense(x).tanh()
        loss = F.cross_entropy(self.classifier(h), torch.zeros(len(x), dtype=torch.long))
        return loss + auxiliary * self.router(h).softmax(-1).square().mean() if auxiliary else loss


def test_gauss_newton_says_when_a_part_of_the_loss_passes_the_logits_by() -> None:
    model, x = Routed(), torch.randn(5, 3)
    for auxiliary, expected in ((0.0, 0), (0.1, 1)):
        flatness = RelativeFlatness(model, "representation")
        with flatness.capture():
            loss = model(x, auxiliary)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            flatness(loss)
        messages = [str(w.message) for w in caught]
        assert len(messages) == expected
        assert all(
            "'dense' without passing through 'classifier'" in m and 'use "hessian" to include it' in m for m in messages
        )
