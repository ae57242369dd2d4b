"""FAMTrainer on a frozen backbone, trained long enough, ends where FlatLogisticRegression does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hf_fam import FAMTrainer, FlatLogisticRegression
from support.tiny import arguments

ITEMS, FEATURES, CLASSES = 40, 6, 3


class FrozenBackbone(nn.Module):
    """A frozen layer below a classification head, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, FEATURES).requires_grad_(False)
        self.classifier = nn.Linear(FEATURES, CLASSES)
        self.double()

    def features(self, inputs: Tensor) -> Tensor:
        return self.backbone(inputs.double()).tanh()

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(self.features(inputs))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_the_same_optimum(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(ITEMS, 4), torch.randint(CLASSES, (ITEMS,))
    model = FrozenBackbone()
    features = model.features(inputs).detach()
    classifier = FlatLogisticRegression(delta=0.5, tol=1e-9).fit(features.numpy(), labels.numpy())
    settings = {
        "fam_lambda": classifier.strength_,
        "fam_smoothing": classifier.smoothing,
        "fam_center": True,
        "per_device_train_batch_size": ITEMS,
        "max_steps": 600,
        "learning_rate": 0.05,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "logging_steps": 500,
    }
    data = [{"inputs": x, "labels": int(y)} for x, y in zip(inputs, labels, strict=True)]
    FAMTrainer(model=model, args=arguments(tmp_path, **settings), train_dataset=data).train()
    weight, bias = model.classifier.weight.detach(), model.classifier.bias.detach()
    plain = FlatLogisticRegression(delta=0.0, tol=1e-9).fit(features.numpy(), labels.numpy())
    expected = torch.from_numpy(classifier.coef_)
    assert torch.linalg.vector_norm(torch.from_numpy(plain.coef_) - expected) > 0.5
    torch.testing.assert_close(weight - weight.mean(0), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(bias - bias.mean(), torch.from_numpy(classifier.intercept_), rtol=0, atol=1e-4)
    written = nn.Linear(FEATURES, CLASSES).double()
    classifier.write_to(written)
    torch.testing.assert_close(written(features).softmax(-1), model.classifier(features).softmax(-1), rtol=0, atol=1e-4)
