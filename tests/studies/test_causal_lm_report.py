"""The table of the causal language model: paired differences of the final runs alone."""

from __future__ import annotations

import importlib.util

import pytest

from support.launch import ROOT

pandas = pytest.importorskip("pandas")

FILE = ROOT / "recipes" / "causal_lm" / "report.py"


def test_differences_are_paired_and_of_final_runs() -> None:
    spec = importlib.util.spec_from_file_location("causal_lm_report", FILE)
    assert spec is not None and spec.loader is not None
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    rows = [{"phase": "tuning", "seed": 9, "method": "fam", "nll": 99.0, "learning_rate": 1e-3}]
    rows += [
        {"phase": "final", "seed": seed, "method": method, "nll": 3.0 + seed + shift, "learning_rate": 1e-3}
        for seed in (2, 0, 1)
        for method, shift in (("plain", 0.0), ("fam", -0.25))
    ]
    lines = report.table(pandas.DataFrame(rows)).splitlines()
    assert lines[2] == "| plain training | 4.000 |  | 0.001 |"
    assert lines[3] == "| FAM, default strength | 3.750 | -0.2500 (-0.2500 to -0.2500) | 0.001 |"
