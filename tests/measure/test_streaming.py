"""One pass serves all layers, memory does not grow with the data, and what comes out can be shown and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from hf_fam import measure_relative_flatness
from support.measured import cross_entropy, mlp, points

# A random sample of the items' values for each of three layers, with keys: 16 bytes for every item of 20 more batches.
SAMPLES = 3 * 16 * 20 * 20


def peak(count: int, **given: Any) -> int:
    """Bytes that exist at most at one time, of all that torch allocates while so many batches of 20 are measured."""
    model, loader = mlp(), DataLoader(points(20 * count), batch_size=20)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        measure_relative_flatness(model, loader, "all", loss_fn=cross_entropy, **given)
    total = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            total += event.nbytes()
            most = max(most, total)
    return most


@pytest.mark.parametrize("given", [{}, {"normalize_features": True}, {"estimator": "gauss_newton"}])
def test_memory_does_not_grow_with_the_data(given: dict[str, Any]) -> None:
    few, many = (peak(count, measures=("trace", "layerwise"), **given) for count in (4, 24))
    assert many - few < 2 * SAMPLES


def test_what_is_kept_would_be_seen() -> None:
    """For eigenvalues features and curvatures are kept, up to a limit that is far away here."""
    few, many = (peak(count, measures=("max_eigenvalue",)) for count in (4, 24))
    assert many - few > 2 * SAMPLES


def test_all_layers_share_one_pass() -> None:
    calls = []

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(len(batch[0]))
        return cross_entropy(model, batch)

    model, data = mlp(), points(37)
    table = measure_relative_flatness(model, data, "all", ("trace", "layerwise"), loss_fn=loss_fn, batch_size=8)
    assert [r.layer for r in table] == ["0", "2", "4"]
    assert calls == [8, 8, 8, 8, 8, 5]  # the first is looked at once more
    for record in table:
        (alone,) = measure_relative_flatness(
            model, data, record.layer, ("trace", "layerwise"), loss_fn=cross_entropy, batch_size=8
        )
        assert (record.kappa, record.layerwise) == pytest.approx((alone.kappa, alone.layerwise), rel=1e-12)


def test_a_progress_bar_where_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    for progress, seen in ((True, True), (False, False), (None, False)):  # by default on a terminal, which this is not
        measure_relative_flatness(mlp(), points(9), "head", loss_fn=cross_entropy, batch_size=3, progress=progress)
        error = capsys.readouterr().err
        assert ("relative flatness" in error and "3" in error) is seen, progress


def test_table_frame_json_and_figure(tmp_path: Path) -> None:
    table = measure_relative_flatness(mlp(), points(9), "all", loss_fn=cross_entropy)
    frame = table.to_pandas()
    assert list(frame["layer"]) == ["0", "2", "4"] and list(frame["kappa"]) == [r.kappa for r in table]
    table.to_json(tmp_path / "found.json")
    read = json.loads((tmp_path / "found.json").read_text())
    assert [r["kappa_max"] for r in read["layers"]] == [r.kappa_max for r in table]
    table.plot(tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 10_000
    lines = str(table).splitlines()
    assert lines[0].startswith("9 items") and [line.split()[0] for line in lines[3:6]] == ["0", "2", "4"]
