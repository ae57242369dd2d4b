"""In a Trainer, a large head's term acts in the backward pass: the same training as with the term in the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from support.tiny import fam_trainer, largest_difference, logged, texts, tiny_llama, weights


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_fam.flatness.vocabulary.LARGE_VOCABULARY", 1)
    monkeypatch.setattr("hf_fam.flatness.chunks.CHUNK_ELEMENTS", 350)  # seven rows


def llama(tied: bool = True) -> nn.Module:
    """In float64 throughout: transformers computes the loss of language models in float32."""
    model = tiny_llama(tie_word_embeddings=tied).double()
    model.loss_function = next_token_loss
    return model


def next_token_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Any = None, **kwargs: Any) -> Tensor:
    total = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return total / ((labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def trained(
    path: Path, cut: tuple[int, int] = (4, 2), tied: bool = True, **given: Any
) -> tuple[dict[str, Tensor], Any]:
    sizes = {"per_device_train_batch_size": cut[0], "gradient_accumulation_steps": cut[1]}
    settings = {"fam_lambda": 20.0, "max_grad_norm": 0, "max_steps": 4, "fam_estimator": "closed_form", **sizes}
    trainer = fam_trainer(path, llama(tied), train_dataset=texts(), **{**settings, **given})
    trainer.train()
    return weights(trainer.model), trainer


@pytest.mark.parametrize(("tied", "smoothing"), [(True, 0.0), (False, 0.0), (True, 0.1)])
def test_it_is_the_training_with_the_term_in_the_loss(
    tied: bool, smoothing: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    expected, in_loss = trained(tmp_path / "loss", tied=tied, fam_smoothing=smoothing)
    plain, _ = trained(tmp_path / "plain", tied=tied, fam_lambda=0.0)
    request.getfixturevalue("large")
    found, injected = trained(tmp_path / "backward", tied=tied, fam_smoothing=smoothing)
    assert largest_difference(expected, plain) > 1e-3
    assert largest_difference(found, expected) < 1e-9
    for name in ("loss", "fam_kappa", "fam_term", "fam_lambda"):
        assert logged(injected, name) == pytest.approx(logged(in_loss, name), rel=1e-5)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("estimator", ["closed_form", "row_probes"])
def test_a_batch_is_the_sum_of_its_micro_batches(estimator: str, tmp_path: Path) -> None:
    """Row probes share their signs over the micro-batches of a step."""
    whole, one = trained(tmp_path / "one", (8, 1), fam_estimator=estimator)
    for cut in ((4, 2), (1, 8)):
        parts, other = trained(tmp_path / str(cut), cut, fam_estimator=estimator)
        assert largest_difference(parts, whole) < 1e-9
        assert logged(other, "fam_kappa") == pytest.approx(logged(one, "fam_kappa"), rel=1e-5)


@pytest.mark.usefixtures("large")
def test_auto_takes_row_probes_and_the_number_that_is_given(tmp_path: Path) -> None:
    _, trainer = trained(tmp_path, fam_estimator="auto", max_steps=1)
    assert (trainer.relative_flatness.estimator, trainer.relative_flatness.probes) == ("row_probes", 16)
    _, trainer = trained(tmp_path, fam_estimator="auto", fam_probes=3, max_steps=1)
    assert trainer.relative_flatness.probes == 3


@pytest.mark.usefixtures("large")
def test_the_ratio_is_logged(tmp_path: Path) -> None:
    _, trainer = trained(tmp_path, max_steps=1)
    assert logged(trainer, "fam_grad_ratio")[0] > 0.05
