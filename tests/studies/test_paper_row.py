"""The small row of the FAM paper's table: data, augmentation, resuming and table."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.launch import ROOT

pandas = pytest.importorskip("pandas")
pytest.importorskip("pytorch_optimizer")

sys.path.append(str(ROOT / "recipes" / "paper_table"))
small: Any = importlib.import_module("small")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files as CIFAR-10's, with a color for each label."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train-15k", 128), ("test", 40)):
        labels = np.arange(count) % 10
        images = []
        for label in labels:
            pixels = (random.integers(0, 30, (32, 32, 3)) + 22 * label).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            images.append({"bytes": stream.getvalue(), "path": None})
        pandas.DataFrame({"image": images, "label": labels}).to_parquet(folder / f"{name}.parquet")
    return tmp_path


def test_all_methods_train_and_a_second_call_carries_on(data: Path, tmp_path: Path) -> None:
    results, output = tmp_path / "results.jsonl", tmp_path / "row.md"
    call = ["--results", str(results), "--output", str(output), "--epochs", "1"]
    small.main(["--data", str(data), *call])
    lines = results.read_text().splitlines()
    assert [(r["method"], r["seed"]) for r in map(json.loads, lines)] == [
        (name, seed) for seed in small.SEEDS for name in small.METHODS
    ]
    results.write_text("\n".join(lines[:-1]) + "\n")
    small.main(["--data", str(data), *call])
    again = [json.loads(line) for line in results.read_text().splitlines()]
    last = json.loads(lines[-1])
    assert len(again) == len(lines) and again[-1]["nll"] == pytest.approx(last["nll"], rel=1e-4)
    rows = output.read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows[2 : 2 + len(small.METHODS)]] == list(small.METHODS)


def test_the_table_has_paired_differences() -> None:
    records = [
        {
            "method": name,
            "seed": seed,
            "accuracy": 70 + seed + shift,
            "nll": 1.0 + shift,
            "cpu_seconds": 10 + 10 * shift,
        }
        for seed in (2, 0, 1)
        for shift, name in enumerate(small.METHODS)
    ]
    rows = small.table(records).splitlines()
    assert rows[2] == "| plain | 71.0 |  | 1.000 |  | 1.00 |"
    assert rows[3] == "| FAM | 72.0 | +1.0 (+1.0 to +1.0) | 2.000 | +1.000 (+1.000 to +1.000) | 2.00 |"


def test_images_are_moved_and_mirrored() -> None:
    image = torch.arange(3 * 32 * 32, dtype=torch.float32).view(3, 32, 32) + 1
    batch = small.moved_and_mirrored([{"pixel_values": image, "labels": 3}] * 64)
    assert batch["labels"].tolist() == [3] * 64 and batch["pixel_values"].shape == (64, 3, 32, 32)
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    candidates = {
        (flip, i, j): (padded.flip(-1) if flip else padded)[:, i : i + 32, j : j + 32]
        for flip in (False, True) for i in range(9) for j in range(9)
    }  # fmt: skip
    found = [next(key for key, c in candidates.items() if torch.equal(c, x)) for x in batch["pixel_values"]]
    assert {flip for flip, _, _ in found} == {False, True} and len({*found}) > 20
