"""A step that does not call the layer trains on the loss alone; a layer that is never called is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForSequenceClassification

from hf_fam import FAMTrainer, RelativeFlatness
from hf_fam.flatness.feature_mean import FeatureMean
from support.skipping import Skipping, examples
from support.tiny import arguments, classified

LAMBDA, RATE = 0.3, 0.1
SGD = {"optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}


def test_a_step_without_the_layer_has_kappa_0_in_parameters_and_log(tmp_path: Path) -> None:
    pattern = (True, False, True, False, False, True)
    model, reference = Skipping(*pattern), Skipping(*pattern)
    args = arguments(
        tmp_path, fam_layer="experts.0", fam_estimator="dense", fam_lambda=LAMBDA, max_steps=6, logging_steps=3, **SGD
    )
    trainer = FAMTrainer(model=model, args=args, train_dataset=examples(24))
    trainer.train()
    kappas = []
    for (x, labels), is_called in zip(model.inputs, pattern, strict=True):
        if is_called:
            flatness = RelativeFlatness(reference, "experts.0", "dense")
            with flatness.capture():
                loss = reference(x, labels)["loss"]
            kappa = flatness(loss)
            flatness.detach()
        else:
            loss = reference(x, labels)["loss"]
            kappa = torch.zeros((), dtype=torch.float64)
        kappas.append(kappa.item())
        reference.zero_grad()
        (loss + LAMBDA * kappa).backward()
        with torch.no_grad():
            for parameter in reference.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], parameter, rtol=1e-9, atol=1e-12)
    logged = [entry["fam_kappa"] for entry in trainer.state.log_history if "fam_kappa" in entry]
    assert logged == pytest.approx([sum(kappas[:3]) / 3, sum(kappas[3:]) / 3], rel=1e-6)
    assert kappas[0] != 0 and kappas[5] != 0


@pytest.mark.parametrize("estimator", ["hessian", "gauss_newton", "perturbation"])
@pytest.mark.parametrize("center", [False, True])
def test_every_estimator_of_a_hidden_layer_skips(tmp_path: Path, estimator: str, center: bool) -> None:
    model = Skipping(False, True, False, True)
    args = arguments(tmp_path, fam_layer="experts.0", fam_estimator=estimator, fam_center=center, max_steps=8)
    trainer = FAMTrainer(model=model, args=args, train_dataset=examples(32))
    trainer.train()
    logged = [entry["fam_kappa"] for entry in trainer.state.log_history if "fam_kappa" in entry]
    assert 0.0 in logged and any(value != 0 for value in logged)


def test_layerdrop_may_leave_out_the_first_step(tmp_path: Path) -> None:
    sizes = {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(
        vocab_size=50, d_model=8, encoder_layers=1, decoder_layers=1, num_labels=3, decoder_layerdrop=0.5,
        eos_token_id=2, max_position_embeddings=16, attn_implementation="eager", **sizes,
    )  # fmt: skip
    data = [{**item, "input_ids": [*item["input_ids"], 2]} for item in classified(32)]
    skipped = []
    for seed in range(3):
        model = BartForSequenceClassification(config)
        args = arguments(
            tmp_path, fam_layer="model.decoder.layers.0.fc2", fam_estimator="hessian", max_steps=6, seed=seed
        )
        trainer = FAMTrainer(model=model, args=args, train_dataset=data)
        trainer.train()
        skipped += [entry["fam_kappa"] == 0 for entry in trainer.state.log_history if "fam_kappa" in entry]
    assert any(skipped) and not all(skipped)


class NeverCalled(nn.Module):
    def __init__(self, **config: float) -> None:
        super().__init__()
        self.config = type("Config", (), {})()
        vars(self.config).update(config)
        self.blocks, self.head = nn.ModuleList([nn.Linear(4, 4)]), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


@pytest.mark.parametrize(("config", "batches"), [({}, 1), ({"layerdrop": 0.0}, 1), ({"layerdrop": 0.1}, 21)])
def test_a_layer_that_is_never_called_is_refused(config: dict[str, float], batches: int) -> None:
    model = NeverCalled(**config)
    flatness = RelativeFlatness(model, "blocks.0", "hessian")

    def step() -> float:
        with flatness.capture():
            loss = model(torch.randn(5, 4)).square().mean()
        return float(flatness(loss))

    assert [step() for _ in range(batches - 1)] == [0.0] * (batches - 1)
    with pytest.raises(ValueError, match="layer 'blocks.0' was not called in the forward pass"):
        step()


def test_a_mean_without_rows_stays_what_it_was() -> None:
    mean, like = FeatureMean(), torch.zeros((), dtype=torch.float64)
    mean.add_no_rows(2, like)
    mean.end_step()
    assert mean.value is None
    mean.add([torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)])
    mean.add_no_rows(2, like)
    mean.end_step(lambda total: total)
    assert mean.value is not None and mean.value.tolist() == [2.0, 3.0]
    mean.add_no_rows(2, like)
    mean.end_step(lambda total: total)
    assert mean.value.tolist() == [2.0, 3.0]
