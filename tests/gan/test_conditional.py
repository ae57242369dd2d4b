"""Networks that take labels: training, samples and pictures of each class, and labels that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hf_fam.gan import ItemRandomNumbers, LinePoints, LocalPoints, WGANTrainer, collate_samples, gradient_norms
from support.gans import (
    InOrder,
    WithLabels,
    conditional_networks,
    everything,
    labeled_points,
    tiny_critic,
    tiny_generator,
    wgan_trainer,
)
from support.tiny import history, logged


def conditional_trainer(path: Path, **given: Any) -> WGANTrainer:
    networks = given.pop("networks", None) or conditional_networks()
    return wgan_trainer(path, *networks, **{"num_classes": 3, "train_dataset": labeled_points(48), **given})


def slopes(critic: nn.Module, where: Tensor, labels: Tensor) -> Tensor:
    """The norms of the gradient by the points, one point at a time."""
    norms = []
    for point, label in zip(where, labels, strict=True):
        x = point[None].clone().requires_grad_()
        norms.append(torch.autograd.grad(critic(x, label[None]).sum(), x, create_graph=True)[0].norm())
    return torch.stack(norms)


def written_out(generator: nn.Module, critic: nn.Module, around: str | None, steps: int) -> None:
    """The training of two conditional networks, with a label of the real item at every place."""
    of_critic = torch.optim.Adam(critic.parameters(), 1e-2, (0.5, 0.9))
    of_generator = torch.optim.Adam(generator.parameters(), 1e-2, (0.5, 0.9))
    points, labels = labeled_points(48).tensors
    for step in range(steps):
        rows = slice(8 * step, 8 * step + 8)
        real, own = points[rows].double(), labels[rows]

        def latents(purpose: str, step: int = step) -> Tensor:
            return ItemRandomNumbers((42, purpose, step), 0, 8).normal((8, 3))

        fake = generator(latents("critic"), own).detach()
        sampler = LinePoints() if around is None else LocalPoints(around)
        where = sampler(real, fake, generator=ItemRandomNumbers((42, "points", step), 0, 8))
        norms = slopes(critic, where, own if len(where) == 8 else torch.cat([own, own]))
        loss = critic(fake, own).mean() - critic(real, own).mean() + 10 * (norms - 0.01).relu().square().mean()
        of_critic.zero_grad()
        loss.backward()
        of_critic.step()
        if step % 2 == 1:
            of_generator.zero_grad()
            (-critic(generator(latents("generator"), own), own).mean()).backward()
            of_generator.step()


@pytest.mark.parametrize("where", ["line", "local_both"])
def test_training_is_the_written_out_loop(tmp_path: Path, where: str) -> None:
    own, reference = ([network.double() for network in conditional_networks()] for _ in range(2))
    written_out(*reference, None if where == "line" else "both", steps=6)
    trainer = conditional_trainer(tmp_path, networks=own, kind=InOrder, penalty_points=where)
    trainer.train()
    for network, expected in zip(own, reference, strict=True):
        for result, wanted in zip(network.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(result, wanted, rtol=1e-9, atol=1e-11)


def test_every_class_is_learned(tmp_path: Path) -> None:
    """Classes at four corners, which the label alone tells apart."""
    corners = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]])
    labels = torch.arange(512) % 4
    data = TensorDataset(corners[labels] + 0.1 * torch.randn(512, 2), labels)
    trainer = conditional_trainer(
        tmp_path, networks=conditional_networks(4), num_classes=4, train_dataset=data, n_critic=3, penalty_target=1.0,
        max_generator_steps=200, max_steps=-1, per_device_train_batch_size=64, logging_strategy="no",
    )  # fmt: skip
    trainer.train()
    for label, corner in enumerate(corners):
        samples = trainer.sample(200, labels=label)
        assert (samples.mean(0) - corner).norm() < 0.7, label


def test_norms_are_by_the_points_alone() -> None:
    _, critic = conditional_networks()
    where, labels = torch.randn(7, 2), torch.arange(7) % 3
    torch.testing.assert_close(gradient_norms(critic, where, labels=labels), slopes(critic, where, labels))
    with pytest.raises(ValueError, match=r"labels of shape \(6,\) for 7 points: give one label for each"):
        gradient_norms(critic, where, labels=labels[:6])


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    results = []
    for resume in (False, True):
        networks = conditional_networks(seed=int(resume))
        trainer = conditional_trainer(tmp_path, networks=networks, max_steps=7, save_strategy="steps", save_steps=3)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        results.append((everything(trainer), history(trainer)[:7]))
    assert results[0][1] == results[1][1]
    assert [name for name in results[0][0] if not torch.equal(results[0][0][name], results[1][0][name])] == []


def test_samples_of_a_class(tmp_path: Path) -> None:
    trainer = conditional_trainer(tmp_path, ema_decay=0.9)
    trainer.train()
    mixed, ones = trainer.sample(7), trainer.sample(7, labels=1)
    given = trainer.sample(7, labels=torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    assert torch.equal(mixed, given) and not torch.allclose(ones[0], mixed[0])
    close = torch.testing.assert_close  # networks round differently in batches of another size
    close(trainer.sample(3), mixed[:3])
    close(ones[1::3], mixed[1::3])
    close(trainer.sample(2, labels=[2, 1]), torch.stack([trainer.sample(1, labels=2)[0], ones[1]]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (3, "labels: label 3 with num_classes=3: give whole numbers from 0 to 2"),
        ([0, 1], "labels: 2 labels for 4 samples: give one for each, or one for all"),
        ("cat", "labels: label 'cat' with num_classes=3"),
        (1.5, "labels: label 1.5 with num_classes=3"),
    ],
)
def test_labels_of_samples_that_do_not_fit(tmp_path: Path, labels: Any, message: str) -> None:
    trainer = conditional_trainer(tmp_path)
    with pytest.raises(ValueError, match=message):
        trainer.sample(4, labels=labels)
    with pytest.raises(ValueError, match="labels: the networks were trained without num_classes: leave labels out"):
        wgan_trainer(tmp_path).sample(4, labels=labels)


def test_an_evaluation_compares_equal_labels(tmp_path: Path) -> None:
    seen: list[Any] = []

    def own(pair: Any) -> dict[str, float]:
        seen.append([torch.as_tensor(values) for values in (pair.predictions, pair.label_ids, pair.inputs)])
        return {}

    data = labeled_points(30)
    trainer = conditional_trainer(
        tmp_path, eval_dataset=data, eval_samples=25, compute_metrics=own, penalty_points="local_both"
    )
    metrics = trainer.evaluate()
    ((generated, real, labels),) = seen
    assert torch.equal(real, data.tensors[0][:25]) and torch.equal(labels, data.tensors[1][:25])
    latents = ItemRandomNumbers((42, "evaluation", 0), 0, 25).normal((25, 3)).float()
    torch.testing.assert_close(generated, trainer.generator(latents, labels).detach())
    estimate = trainer.critic(real, labels).mean() - trainer.critic(generated, labels).mean()
    assert metrics["eval_wasserstein_estimate"] == pytest.approx(estimate.item(), rel=1e-4)
    where = LocalPoints("both")(real, generated, generator=ItemRandomNumbers((42, "evaluation points"), 0, 25))
    largest = slopes(trainer.critic, where, torch.cat([labels, labels])).max().item()
    assert metrics["eval_gradient_violation"] == pytest.approx(largest - 0.01, rel=1e-4)


class Stripes(nn.Module):
    """Images of the gray level of their label."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor([-1.0, 0.0, 1.0]))

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return self.level[labels][:, None, None, None].expand(-1, 1, 8, 8) + 0 * latents[:, :1, None, None]


def test_grids_of_images_have_a_column_for_each_class(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return self.linear(x.flatten(1)).gather(1, labels[:, None])

    data = [{"image": torch.zeros(1, 8, 8), "label": k % 3} for k in range(12)]
    trainer = conditional_trainer(tmp_path, networks=(Stripes(), Critic()), train_dataset=data, sample_count=12)
    picture = np.array(image.open(trainer.save_samples()))
    assert picture.shape == (4 * 64 + 3, 3 * 64 + 2)
    for row in range(4):
        for column, level in enumerate((0, 128, 255)):
            tile = picture[65 * row : 65 * row + 64, 65 * column : 65 * column + 64]
            assert (tile == level).all(), (row, column)


def test_pictures_of_points_have_a_panel_for_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = pytest.importorskip("matplotlib.axes").Axes
    drawn: dict[Any, dict[str, Any]] = {}
    scatter, contourf = axes.scatter, axes.contourf

    def kept_scatter(self: Any, x: Any, y: Any, **options: Any) -> Any:
        drawn.setdefault(self, {})[options["label"]] = torch.tensor(np.stack([x, y], 1))
        return scatter(self, x, y, **options)

    def kept_contours(self: Any, x: Any, y: Any, values: Any, **options: Any) -> Any:
        drawn.setdefault(self, {})["levels"] = x, y, values
        return contourf(self, x, y, values, **options)

    monkeypatch.setattr(axes, "scatter", kept_scatter)
    monkeypatch.setattr(axes, "contourf", kept_contours)
    trainer = conditional_trainer(tmp_path, sample_steps=3, max_steps=3, kind=InOrder, sample_count=31)
    trainer.train()
    assert [panel.get_title() for panel in drawn] == ["class 0", "class 1", "class 2"]
    real, labels = (column[16:24] for column in labeled_points(48).tensors)
    for label, panel in enumerate(drawn.values()):
        assert torch.equal(panel["real"], real[labels == label].double())
        assert torch.equal(panel["generated"], trainer.sample(31)[label::3].double())
        x, y, values = panel["levels"]
        at = torch.tensor([[x[3], y[50]]]).float()
        assert values[50, 3] == pytest.approx(trainer.critic(at, torch.tensor([label])).item(), rel=1e-4)


@pytest.mark.parametrize("form", ["pairs", "dicts", "labels", "dataset"])
def test_forms_of_data(tmp_path: Path, form: str) -> None:
    """All are the same training."""
    points, labels = labeled_points(24).tensors
    forms: dict[str, Any] = {
        "pairs": [(x.numpy(), int(label)) for x, label in zip(points, labels, strict=True)],
        "dicts": [{"x": x, "label": label} for x, label in zip(points, labels, strict=True)],
        "labels": [{"pixel_values": x, "labels": label.numpy()} for x, label in zip(points, labels, strict=True)],
    }
    if form == "dataset":
        datasets = pytest.importorskip("datasets")
        features = datasets.Features(
            {"label": datasets.ClassLabel(names=["a", "b", "c"]), "x": datasets.Sequence(datasets.Value("float32"))}
        )
        table = {"label": labels.tolist(), "x": points.tolist()}
        forms["dataset"] = datasets.Dataset.from_dict(table, features=features).with_format("torch")
    one, other = (
        conditional_trainer(tmp_path, train_dataset=data, max_steps=2) for data in (labeled_points(24), forms[form])
    )
    one.train()
    other.train()
    expected = everything(one)
    assert all(torch.equal(t, expected[name]) for name, t in everything(other).items())


class Lazy(torch.utils.data.Dataset):
    """A data set whose labels cannot be known without its samples."""

    def __init__(self, labels: list[Any]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, Any]:
        return torch.zeros(2), self.labels[number]


def with_labels(*labels: Any) -> list[tuple[Tensor, Any]]:
    return [(torch.zeros(2), label) for label in labels]


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"train_dataset": torch.zeros(4, 2)},
        "train_dataset: an item of type Tensor has no label, and num_classes=3 needs one: give pairs",
    ),
    (
        {"train_dataset": [{"x": torch.zeros(2), "y": 1}] * 4},
        "train_dataset: items with the fields 'x', 'y' have none called 'labels' or 'label', and num_classes=3",
    ),
    # The item with the wrong label is not among those that are collated before the training.
    (
        {"train_dataset": with_labels(*[0, 1, 2] * 20, 3, *[0, 1, 2] * 20)},
        "train_dataset: label 3 with num_classes=3: give whole numbers from 0 to 2, or another num_classes",
    ),
    ({"train_dataset": with_labels(0, 1, 2, "cat")}, "label 'cat' with num_classes=3"),
    ({"train_dataset": with_labels(0, 1, 2, 1.0)}, "label 1.0 with num_classes=3"),
    ({"train_dataset": Lazy([0, 1, 2, -1])}, "label -1 with num_classes=3"),
    ({"train_dataset": with_labels(0, 1, 0, 1)}, "no sample has label 2, but num_classes=3: give num_classes=2"),
    ({"eval_dataset": with_labels(0, 7)}, "eval_dataset: label 7 with num_classes=3"),
    ({"eval_dataset": {"one": with_labels(0, 8)}}, "eval_dataset: label 8 with num_classes=3"),
    (
        {"networks": (tiny_generator(), conditional_networks()[1])},
        r"num_classes=3: the generator \(Sequential\) does not take labels: give it a forward\(latents, labels\), or",
    ),
    (
        {"networks": (conditional_networks()[0], tiny_critic())},
        r"num_classes=3: the critic \(Sequential\) does not take labels: give it a forward\(samples, labels\), or",
    ),
    (
        {"networks": (conditional_networks(2)[0], conditional_networks()[1])},
        "num_classes=3: the generator fails on label 2 .*: give it as many classes, or another num_classes",
    ),
    (
        {"networks": (conditional_networks()[0], conditional_networks(2)[1])},
        "num_classes=3: the critic fails on label 2 .*: give it as many classes",
    ),
    ({"num_classes": None}, r"the generator \(WithLabels\) takes labels: give num_classes in the arguments"),
    (
        {"networks": (WithLabels(tiny_generator(), 3), conditional_networks()[1])},
        r"latent_size=3: the generator fails on latent codes of shape \(2, 3\) with labels \[0, 2\]",
    ),
    ({"data_collator": collate_samples}, "data_collator must return {'samples': tensor, 'labels': tensor} with num_c"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=lambda x: "-".join(x) if isinstance(x, dict) else "")
def test_what_is_refused_before_the_training(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        conditional_trainer(tmp_path, **given)
    assert "\n" not in str(raised.value)


def test_a_label_that_is_seen_in_the_training_alone(tmp_path: Path) -> None:
    trainer = conditional_trainer(
        tmp_path, train_dataset=Lazy([*[0, 1, 2] * 20, 0, 0, 5, *[0, 1, 2] * 20]), max_steps=20
    )
    with pytest.raises(ValueError, match="train_dataset: label 5 with num_classes=3: give whole numbers from 0 to 2"):
        trainer.train()


def test_labels_are_dropped_without_classes(tmp_path: Path) -> None:
    """Whatever they are."""
    trainer = wgan_trainer(tmp_path, train_dataset=with_labels("a", None, 99) * 4, max_steps=1)
    trainer.train()
    assert len(logged(trainer, "loss")) == 1
