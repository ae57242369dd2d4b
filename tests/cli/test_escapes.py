"""Escapes of terminals, from names in models and data, reach neither the terminal nor the report nor the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("datasets")

from hf_fam.cli import main as cli
from hf_fam.measure.findings import MeasuredModel
from hf_fam.measure.report import html_report
from hf_fam.train.model_card import FlatnessSummary, extend_model_card
from support.bad_input.models import make_models

RED = "\x1b[31mred\x07"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with a class whose name is an escape."""
    folder = Path(make_models(tmp_path_factory.mktemp("models"))["classifier"])
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"id2label": {"0": RED, "1": "b"}, "label2id": {RED: 0, "b": 1}}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    "rows",
    [
        f"text,label\nx,{RED}\ny,b\n",
        f"text,label\nx,{RED}more\ny,b\n",
        f"{RED},label\nx,b\ny,b\n",
        f"{RED},other{RED}\nx,b\ny,b\n",
        f"text,label\nx,{RED},b\n",
    ],
)
def test_names_in_data(model: Path, tmp_path: Path, rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, report = tmp_path / "a.csv", tmp_path / "report.html"
    data.write_text(rows)
    status = cli.main(["measure", str(model), "--dataset", str(data), "--report", str(report), "--no_robustness"])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\x07" not in out + err
    assert report.exists() == (status == 0)
    assert not report.exists() or "\x1b" not in report.read_text(encoding="utf-8")


def test_names_of_models_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["layers", RED],
        ["measure", RED, "--dataset", RED],
        ["train", "causal_lm", f"--train_file={RED}.csv"],
    ):
        assert cli.main(words) == 1
        err = capsys.readouterr().err
        assert "\x1b" not in err and "red" in err
    with pytest.raises(SystemExit):
        cli.main(["layers", "x", "--length", RED])
    assert "\x1b" not in capsys.readouterr().err


def test_pages_and_cards(tmp_path: Path, model: Path) -> None:
    from hf_fam.measure.measuring import measure_relative_flatness
    from hf_fam.measure.sources import load_source

    (tmp_path / "a.csv").write_text(f"text,label\nx,{RED}\ny,b\n")
    source = load_source(str(model), str(tmp_path / "a.csv"))
    table = measure_relative_flatness(source.model, source.items, "head", collate_fn=source.collate_fn)
    page = html_report(MeasuredModel(RED, table), None, data=RED, settings={RED: RED}, command=RED, notes=[RED])
    assert "\x1b" not in page and "\\x1b[31mred" in page
    card = tmp_path / "README.md"
    card.write_text("---\ntags:\n- a\n---\n# My model\n")
    extend_model_card(card, FlatnessSummary(RED, 4, RED, 0.1, None), command=f"hf-fam train {RED}")
    assert "\x1b" not in card.read_text(encoding="utf-8")
