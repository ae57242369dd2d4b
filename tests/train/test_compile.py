"""torch.compile: the injected term in compiled models, probes above a compiled trunk, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from hf_fam import FAMCallback, RelativeFlatness, attach
from support.tiny import (
    classified,
    fam_trainer,
    logged,
    plain_arguments,
    set_seeds,
    tiny_bert,
    weights,
)

BACKENDS = pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
STRENGTH = 0.3
INPUTS, LABELS = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def gradients(model: nn.Module, called: Any = None, rows: int = 6) -> list[Tensor]:
    model.zero_grad()
    F.cross_entropy((called or model)(INPUTS[:rows]), LABELS[:rows]).backward()
    return [p.grad.clone() for p in model.parameters()]


def expected(strength: float, rows: int = 6) -> list[Tensor]:
    model = network()
    attached = attach(model, strength)
    found = gradients(model, rows=rows)
    attached.detach()
    return found


def close(found: list[Tensor], true: list[Tensor]) -> bool:
    return all(torch.allclose(f, t, rtol=1e-9, atol=1e-11) for f, t in zip(found, true, strict=True))


@BACKENDS
@pytest.mark.parametrize("how", ["whole", "in place", "wrapper is attached", "head in place"])
def test_injected_term_in_compiled_models(backend: str, how: str) -> None:
    model = network()
    called: Any = model
    if how == "head in place":
        model[4].compile(backend=backend, fullgraph=True)
    elif how == "in place":
        model.compile(backend=backend, fullgraph=True)
    else:
        called = torch.compile(model, backend=backend, fullgraph=True)
    true = expected(STRENGTH)
    attached = attach(called if how == "wrapper is attached" else model, STRENGTH)
    assert close(gradients(model, called), true)
    assert attached.kappa() > 0


@BACKENDS
def test_attaching_and_detaching_after_the_first_compiled_call(backend: str) -> None:
    """torch does not look whether hooks changed: without a reset the term would never, or for ever, act."""
    plain, flat = expected(0.0), expected(STRENGTH)
    model = network()
    called = torch.compile(model, backend=backend)
    assert close(gradients(model, called), plain)
    attached = attach(model, STRENGTH)
    assert close(gradients(model, called), flat)
    attached.detach()
    assert close(gradients(model, called), plain)


@BACKENDS
def test_unequal_batches_and_another_strength(backend: str) -> None:
    """Recompilations, for dynamic shapes too, keep the hook."""
    steps = [(6, 0.1), (6, 0.2), (4, 0.2), (5, 0.3), (1, 0.3), (6, 0.0)]
    true = [expected(strength, rows) for rows, strength in steps]
    model = network()
    attached = attach(model, 0.0)
    called = torch.compile(model, backend=backend)
    for (rows, strength), gradient in zip(steps, true, strict=True):
        attached.strength = strength
        assert close(gradients(model, called, rows), gradient)


def test_evaluation_of_a_compiled_model_is_untouched() -> None:
    model = network()
    called = torch.compile(model, backend="aot_eager")
    attach(model, STRENGTH)
    gradients(model, called)
    assert torch.equal(called.eval()(INPUTS), network().eval()(INPUTS))


@BACKENDS
@pytest.mark.parametrize(("layer", "estimator"), [("4", "closed_form"), ("2", "gauss_newton"), ("2", "hessian")])
def test_probes_above_a_compiled_trunk(backend: str, layer: str, estimator: str) -> None:
    kappas, found = [], []
    for compiled in (False, True):
        model = network()
        if compiled:
            model[0].compile(backend=backend)
            model[1].compile(backend=backend)
        flatness = RelativeFlatness(model, layer, estimator)
        for rows in (6, 4):
            flatness.seed(rows)
            with flatness.capture():
                loss = F.cross_entropy(model(INPUTS[:rows]), LABELS[:rows])
            kappa = flatness(loss)
        kappas.append(kappa.item())
        found.append(torch.autograd.grad(loss + STRENGTH * kappa, list(model.parameters()), materialize_grads=True))
    assert kappas[1] == pytest.approx(kappas[0], rel=1e-9)
    assert close(list(found[1]), list(found[0]))


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("estimator", ["gauss_newton", "hessian", "dense"])
def test_a_hidden_layer_of_a_compiled_model_is_refused_with_a_remedy(wrapped: bool, estimator: str) -> None:
    model = network()
    called: Any = torch.compile(model, backend="aot_eager") if wrapped else model
    if not wrapped:
        model.compile(backend="aot_eager")
    flatness = RelativeFlatness(called, "2", estimator)
    with flatness.capture():
        loss = F.cross_entropy(called(INPUTS), LABELS)
    with pytest.raises((ValueError, RuntimeError), match=r"Compile only what lies below .* hf_fam\.attach"):
        flatness(loss)


@pytest.mark.parametrize("estimator", ["gauss_newton", "hessian", "dense"])
def test_compilation_of_a_part_around_the_layer_is_named(estimator: str) -> None:
    """And not the layer, as if the loss did not depend on it."""
    layers = network()
    model = nn.Sequential(Above(*layers[:3]), *layers[3:])
    model[0].compile(backend="aot_eager")
    flatness = RelativeFlatness(model, "0.2", estimator)
    with flatness.capture():
        loss = F.cross_entropy(model(INPUTS), LABELS)
    with pytest.raises(ValueError, match=r"'0.2' lies inside compiled code, .*. Compile only what lies below"):
        flatness(loss)


class Above(nn.Sequential):
    """Compiled in one piece, unlike torch's own modules."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_a_compiled_tail_is_refused_with_a_remedy() -> None:
    layers = network()
    model = nn.Sequential(*layers[:3], Above(layers[3]), layers[4])
    model[3].compile(backend="aot_eager")
    flatness = RelativeFlatness(model, "2", "hessian")
    with flatness.capture():
        loss = F.cross_entropy(model(INPUTS), LABELS)
    with pytest.raises((ValueError, RuntimeError), match="is compiled, which cannot be differentiated twice"):
        flatness(loss)


class Words(nn.Module):
    """A classifier that compiles in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.trunk, self.classifier = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(self.trunk(self.embeddings(input_ids).mean(1)).tanh())
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def trained(path: Path, **given: Any) -> Trainer:
    set_seeds(1)
    data = classified(10)  # two batches of four and one of two
    arguments = plain_arguments(path, max_steps=3, **given)
    trainer = Trainer(model=Words(), args=arguments, train_dataset=data, callbacks=[FAMCallback(0.5)])
    trainer.train()
    return trainer


@BACKENDS
def test_callback_with_torch_compile(tmp_path: Path, backend: str) -> None:
    eager, compiled = trained(tmp_path), trained(tmp_path, torch_compile=True, torch_compile_backend=backend)
    assert logged(compiled, "fam_kappa") == pytest.approx(logged(eager, "fam_kappa"), rel=1e-3)
    for name, weight in weights(eager.model).items():
        torch.testing.assert_close(weights(compiled.model)[name], weight, rtol=1e-3, atol=1e-4)
    for trainer in (eager, compiled):  # the hook is another one now
        set_seeds(1)
        trainer.train()
    assert logged(compiled, "fam_kappa") == pytest.approx(logged(eager, "fam_kappa"), rel=1e-3)


@BACKENDS
@pytest.mark.parametrize("layer", [pytest.param("head", marks=pytest.mark.slow), "representation"])
def test_fam_trainer_with_a_compiled_trunk(tmp_path: Path, backend: str, layer: str) -> None:
    logs = []
    for compiled in (False, True):
        model = tiny_bert(dropout=0.0)
        if compiled:
            model.bert.encoder.layer[0].compile(backend=backend)
        given = {"max_steps": 3, "train_dataset": classified(10), "seed": 3}
        trainer = fam_trainer(tmp_path, model, fam_lambda=0.1, fam_layer=layer, **given)
        trainer.train()
        logs.append(logged(trainer, "fam_kappa"))
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)


def test_fam_trainer_names_what_works_in_a_compiled_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"callbacks=\[FAMCallback\(fam_lambda=\.\.\.\)\] \(or hf_fam\.attach\)"):
        fam_trainer(tmp_path, torch_compile=True)


@pytest.mark.slow
def test_whole_bert_in_one_graph() -> None:
    model = tiny_bert(dropout=0.0)
    other = copy.deepcopy(model)
    batch = {"input_ids": torch.randint(3, 50, (4, 5)), "labels": torch.tensor([0, 1, 2, 0])}
    for m in (model, other):
        attach(m, STRENGTH)
    torch.compile(model, fullgraph=True)(**batch).loss.backward()
    other(**batch).loss.backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", ["head", "0"])
@BACKENDS
def test_a_compiled_loss_is_refused(backend: str, layer: str) -> None:
    """Some backends answer its second derivative with none, and kappa would be zero."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    compiled = torch.compile(nn.functional.cross_entropy, backend=backend)
    flatness = RelativeFlatness(model, layer)
    with flatness.capture():
        z = model(torch.randn(6, 4))
    with pytest.raises(RuntimeError, match="something there is compiled"):
        flatness(compiled(z, torch.tensor([0, 1, 2, 0, 1, 2])))
