"""The WGAN recipe runs from each of its configurations; the sweep goes on where it stopped; docs show its results."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "wgan"
sys.path.append(str(ROOT))

pytest.importorskip("yaml")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from recipes.wgan import paper, paper_report, report, run, sweep  # noqa: E402
from recipes.wgan.data import TOYS, fashion_mnist, toy  # noqa: E402

SMALL = [
    "--max_generator_steps=2", "--n_critic=2", "--width=8", "--per_device_train_batch_size=16", "--eval_samples=32",
    "--eval_steps=4", "--sample_steps=4", "--sample_count=9", "--save_steps=2", "--logging_steps=2",
    "--train_samples=64", "--use_cpu", "--disable_tqdm=True", "--per_device_eval_batch_size=16",
]  # fmt: skip


def made_up_images(folder: Path, count: int = 40) -> Path:
    """In the format of FashionMNIST's files."""
    folder.mkdir()
    for name in ("train", "t10k"):
        pixels = torch.randint(256, (count * 784,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        content = bytes(16) + pixels.numpy().tobytes()
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.mark.parametrize("name", [*TOYS, "fashion_mnist"])
def test_configurations(tmp_path: Path, name: str) -> None:
    given = [str(FOLDER / f"{name}.yaml"), *SMALL, f"--output_dir={tmp_path / 'out'}"]
    if name == "fashion_mnist":
        given.append(f"--data_dir={made_up_images(tmp_path / 'data')}")
    metrics = run.main(given)
    distance = "eval_frechet_distance" if name == "fashion_mnist" else "eval_emd"
    assert metrics[distance] > 0
    assert {"model.safetensors", "generator.safetensors", "critic.safetensors", "eval_results.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert (tmp_path / "out" / "samples" / "step-000004.png").stat().st_size > 0


def test_a_recipe_is_resumed(tmp_path: Path) -> None:
    given = [str(FOLDER / "swiss_roll.yaml"), *SMALL, f"--output_dir={tmp_path}"]
    given.append("--save_total_limit=5")
    first = run.main(given)
    resumed = run.main([*given, f"--resume_from_checkpoint={tmp_path / 'checkpoint-2'}"])
    assert resumed["eval_emd"] == first["eval_emd"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data=fashion_mnist"], "needs --data_dir"),
        (["--data=moons"], "data='moons': choose one of eight_gaussians"),
        (["--data=fashion_mnist", "--data_dir=nowhere", "--do_train"], "there is no train-images-idx3-ubyte.gz"),
    ],
)
def test_refusals(tmp_path: Path, given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.main([*SMALL, f"--output_dir={tmp_path}", "--report_to=none", *given])


@pytest.mark.parametrize(("name", "centers"), [("eight_gaussians", 8), ("twentyfive_gaussians", 25)])
def test_gaussians(name: str, centers: int) -> None:
    """So many well separated clumps, equally large within their error."""
    points, _ = toy(name, 5000, 0, 1)
    clumps = [points[:1]]
    for point in points[:500]:
        if min((c[0] - point).norm() for c in clumps) > 0.2:
            clumps.append(point[None])
    counts = torch.cdist(points, torch.cat(clumps)).argmin(1).bincount(minlength=centers)
    assert len(clumps) == centers
    assert (counts - 5000 / centers).abs().max() < 4.5 * (5000 / centers) ** 0.5


def test_swiss_roll() -> None:
    """Its radius grows with its angle: 1.5 turns."""
    points, held_out = toy("swiss_roll", 2000, 100, 1)
    radius = points.norm(dim=1) * 7.5
    turns: Tensor = (radius - torch.atan2(points[:, 1], points[:, 0])) / (2 * torch.pi)
    away = (turns - turns.round()).abs() * 2 * torch.pi
    assert away.quantile(0.95) < 0.7 and 4 < radius.min() < radius.max() < 15.5
    assert len(held_out) == 100 and not torch.isin(held_out, points).all()


def test_sweep_goes_on_and_report_reads_it(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**sweep.SETTINGS, "width": 8, "train_samples": 200, "batch_size": 16, "eval_samples": 50, "n_critic": 2}
    monkeypatch.setattr(sweep, "SETTINGS", small)
    for module in (sweep, report):
        monkeypatch.setattr(module, "STRENGTHS", {"one": (0.1, 10.0), "two": (0.1, 10.0), "clipping": (0.01, 0.1)})
    results = tmp_path / "sweep.jsonl"
    given = ["--output", str(results), "--generator_steps", "6"]
    sweep.main([*given, "--seeds", "1"])
    first = results.read_text()
    assert len(first.splitlines()) == 6
    capsys.readouterr()
    results.write_text("".join(first.splitlines(keepends=True)[:-1]))  # one run was broken off
    sweep.main([*given, "--seeds", "2"])
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(records) == 12 and capsys.readouterr().out.count("seed 0") == 1
    again, once = (
        {k: v for k, v in json.loads(line).items() if k != "seconds"}
        for line in (first.splitlines()[5], results.read_text().splitlines()[5])
    )
    assert again == once, "a run that is repeated is another one"
    report.main(["--results", str(results), "--docs", str(tmp_path / "docs")])
    assert (tmp_path / "docs/generated/wgan/sweep.md").read_text().count("| one-sided |") == 2
    assert (tmp_path / "docs/generated/wgan/verdicts.md").read_text().count("show") == 4
    assert "p, paired t" in (tmp_path / "docs/generated/wgan/claims.md").read_text()
    assert {path.name for path in (tmp_path / "docs/img").iterdir()} == {"wgan-sweep.png", "wgan-levels.png"}
    with pytest.raises(SystemExit, match="runs of other settings"):
        sweep.main(["--output", str(results), "--generator_steps", "7"])


def test_the_released_settings_are_run_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small; the settings of the released code are in the arguments of each run."""
    trainer = paper.trainer_of("one", 10.0, 0, str(tmp_path), paper.SETTINGS)
    args, schedule = trainer.args, trainer.args.critic_schedule
    assert (args.per_device_train_batch_size, args.learning_rate, args.optim) == (256, 5e-5, "rmsprop")
    assert (args.penalty_points, args.penalty_radius, args.latent_size) == ("local", 1.0, 2)
    assert [schedule.critic_steps(n) for n in (1, 25, 26, 501)] == [100, 2500, 2510, 7350]
    shapes = [(layer.in_features, layer.out_features) for layer in trainer.critic if isinstance(layer, torch.nn.Linear)]
    assert shapes == [(2, 512), (512, 512), (512, 512), (512, 1)]
    assert [layer.negative_slope for layer in trainer.critic if isinstance(layer, torch.nn.LeakyReLU)] == [0.01] * 3

    small = {
        "width": 8,
        "train_samples": 200,
        "batch_size": 16,
        "eval_samples": 50,
        "n_critic": 1,
        "n_critic_warmup": 2,
    }
    monkeypatch.setattr(paper, "SETTINGS", {**paper.SETTINGS, **small, "n_critic_warmup": 2, "drawn_after": [100]})
    monkeypatch.setattr(paper, "STEPS", {10.0: 110, 1.0: 100})
    results = tmp_path / "paper.jsonl"
    paper.main(["--output", str(results)])
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(r["strength"], r["side"], r["steps"][-1]) for r in records] == [
        (10.0, "one", 110), (10.0, "two", 110), (1.0, "one", 100), (1.0, "two", 100)
    ]  # fmt: skip
    paper.main(["--output", str(results)])
    assert len(results.read_text().splitlines()) == 4, "a run was repeated"
    paper_report.main(["--results", str(results), "--docs", str(tmp_path / "docs")])
    lines = (tmp_path / "docs/generated/wgan/paper.md").read_text().splitlines()
    assert [line.split(" | ")[:2] for line in lines[-4:]] == [
        ["| one-sided", "1"], ["| one-sided", "10"], ["| two-sided", "1"], ["| two-sided", "10"]
    ]  # fmt: skip
    assert f"| {records[2]['emd'][4]:.3f} |" in lines[-4]
    assert (tmp_path / "docs/img/wgan-paper.png").stat().st_size > 0


def test_what_is_in_the_docs_comes_from_the_results(tmp_path: Path) -> None:
    report.main(["--docs", str(tmp_path)])
    paper_report.main(["--docs", str(tmp_path)])
    for made in (tmp_path / "generated" / "wgan").iterdir():
        published = ROOT / "docs" / "generated" / "wgan" / made.name
        assert made.read_text() == published.read_text(), f"run recipes/wgan/report.py: {made.name}"


@pytest.mark.skipif("HF_FAM_DATA" not in os.environ, reason="HF_FAM_DATA is not set: no FashionMNIST")
def test_the_real_files_of_fashion_mnist() -> None:
    train, held_out = fashion_mnist(Path(os.environ["HF_FAM_DATA"]) / "fashion_mnist")
    assert (train.shape, held_out.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert (train.min(), train.max()) == (-1, 1)
    assert ((train + 1) / 2).mean() == pytest.approx(0.2860, abs=1e-4)
