"""What a notebook shows of a trainer, a callback, a flatness and a handle: layer, strength and estimator."""

from __future__ import annotations

from pathlib import Path

from hf_fam import FAMCallback, FAMTrainer, FlatnessCallback, RelativeFlatness, attach
from support.tiny import arguments, classified, tiny_bert


def test_flatness_and_handle() -> None:
    assert (
        repr(RelativeFlatness(tiny_bert())) == "RelativeFlatness(layer='classifier', 3 x 16, estimator='closed_form')"
    )
    smoothed = RelativeFlatness(tiny_bert(), smoothing=0.1, center=True)
    assert repr(smoothed).endswith("estimator='closed_form', smoothing=0.1, center=True)")
    handle = attach(tiny_bert(), strength=0.003)
    assert repr(handle) == "AttachedFlatness(layer='classifier', strength=0.003)"


def test_trainer(tmp_path: Path) -> None:
    model = tiny_bert()
    trainer = FAMTrainer(model=model, args=arguments(tmp_path, fam_lambda=0.01), train_dataset=classified())
    assert repr(trainer) == f"FAMTrainer(BertForSequenceClassification, {RelativeFlatness(model)!r}, fam_lambda=0.01)"
    plain = FAMTrainer(model=model, args=arguments(tmp_path, fam_lambda=0), train_dataset=classified())
    assert repr(plain) == "FAMTrainer(BertForSequenceClassification, without a flatness term)"
    assert "FAMTrainer" in repr(FAMTrainer.__new__(FAMTrainer))  # in a debugger, before it is made


def test_callbacks(tmp_path: Path) -> None:
    assert repr(FAMCallback()) == "FAMCallback(fam_layer='auto', fam_lambda=its default)"
    callback = FlatnessCallback(items=4)
    assert repr(callback) == "FlatnessCallback(layers='head', items=4, last kappa: none yet)"
    trainer = FAMTrainer(model=tiny_bert(), args=arguments(tmp_path), eval_dataset=classified(), callbacks=[callback])
    trainer.evaluate()
    assert callback.last is not None
    assert repr(callback).endswith(f"last kappa: classifier: {callback.last[0].kappa:.4g})")
