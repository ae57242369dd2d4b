"""hf-fam compare: from files to a table, a sentence, a report and the command of the final model."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from hf_fam.cli import main as cli
from hf_fam.cli.live_table import LiveTable
from hf_fam.compare.journal import RUNS
from hf_fam.compare.plan import Plan
from hf_fam.compare.progress import Progress
from hf_fam.compare.runs import FINAL, Run, Settings
from support.languages import sentence, tiny_tokenizer
from support.launch import environment, launch
from support.tiny_recipes import SIZES, image_folders, made, vision_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    BertModel(BertConfig(vocab_size=50, max_position_embeddings=32, **SIZES)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def csv_file(path: Path, count: int, classes: int = 2, start: int = 0) -> str:
    rows = [f"{sentence(n, 4 + n % 3).strip()},c{n % classes}" for n in range(start, start + count)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


def flags(model: str, folder: Path, **given: Any) -> list[str]:
    known = {
        "model_name_or_path": model, "cache_dir": folder / "cache", "output_dir": folder / "runs", "use_cpu": True,
        "num_train_epochs": 1, "per_device_train_batch_size": 8, "seeds": 2, "grid_size": 1, **given,
    }  # fmt: skip
    words = []
    for name, value in known.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


class Tags(HTMLParser):
    """Counts the elements of a page, and keeps what they load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_from_a_file_to_a_report_and_the_final_model(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = csv_file(tmp_path / "<b>reviews.csv", 40)
    test = csv_file(tmp_path / "test.csv", 20, start=50)
    report, numbers = tmp_path / "r.html", tmp_path / "r.json"
    given = flags(
        model, tmp_path, train_file=file, test_file=test, methods=["plain", "fam", "mixup"], grid_size=2,
        report=report, json=numbers, token="hf_secret",
    )  # fmt: skip
    assert cli.main(["compare", "text_classification", *given]) == 0
    printed = capsys.readouterr().out
    assert "run 12 of at most 12: final mixup" in printed
    before = printed.partition("run 1 of")[0].splitlines()
    assert [line.split()[0] for line in before] == [
        *("data", "columns", "rows", "classes", "model", "methods", "split", "runs", "time")
    ]
    lines = dict(line.split(maxsplit=1) for line in before)
    assert lines["rows"] == "40 to train, 20 to predict" and lines["classes"] == "c0 20, c1 20"
    assert lines["methods"] == "plain, fam (layer classifier, lambda 0.003), mixup (strength 0.2)"
    assert lines["split"].startswith(
        "40 rows to train, 20 to test, the same in every seed; settings are chosen by 10 of"
    )
    assert lines["runs"].startswith("at most 12: 6 to choose the settings, 6 for 2 seeds; fewer if it is decided")
    assert re.match(r"on cpu; a run of plain training takes about .* seconds, and all of them about ", lines["time"])
    assert re.search(r"^plain \(lr .*\)", printed, re.M) and "minus plain (95 % interval)" in printed
    command = shlex.split(printed.split("To train the final model by ")[1].splitlines()[0].partition(": ")[2])
    assert command[:3] == ["hf-fam", "train", "text_classification"] and "hf_secret" not in printed
    # The command trains a model.
    assert cli.main([*command[1:], "--output_dir", str(tmp_path / "final"), "--save_strategy", "no"]) == 0
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    saved = json.loads(numbers.read_text())
    assert [m["method"] for m in saved["methods"]] == ["plain", "fam", "mixup"] and saved["seeds"] == 2
    page, tags = report.read_text(encoding="utf-8"), Tags()
    tags.feed(page)
    assert "&lt;b&gt;reviews.csv" in page and "b" not in tags.tags and "hf_secret" not in page
    assert page.count('class="tile"') == 3 and "Not tuned here" not in page
    assert "script" not in tags.tags and tags.sources == [] and tags.tags.count("svg") == 3
    # The same command again makes no run.
    capsys.readouterr()
    assert cli.main(["compare", "text_classification", *given]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^found +12 finished runs in .*, which count and are not made again$", printed, re.M)
    assert "run 1" not in printed and re.search(r"^time +on cpu$", printed, re.M)


def test_images_on_a_frozen_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From folders alone, by the defaults of the task, with test parts from repeated splits."""
    folders = image_folders(tmp_path / "photos")
    given = flags(
        vision_model(tmp_path / "model"), tmp_path, train_dir=folders["train_dir"], freeze_backbone=True, grid_size=2
    )
    assert cli.main(["compare", "image_classification", *given]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^flat_logistic_regression +\d", printed, re.M) and "2 splits, " in printed
    assert len([*(tmp_path / "cache" / "features").iterdir()]) == 1


@pytest.mark.parametrize("task", ["text_regression", "token_classification", "causal_lm"])
def test_other_tasks(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {k: v for k, v in made(task, tmp_path).items() if k not in ("do_predict", "output_dir")}
    words = flags("", tmp_path, **{**known, "max_steps": 2, "methods": ["plain", "fam", "ema"]})
    assert cli.main(["compare", task, *words]) == 0
    printed = capsys.readouterr().out
    assert "2 seeds, 6 runs" in printed and "ema (lr 0.01, 0.99)" in printed
    assert ("pearson" if task == "text_regression" else "accuracy") in printed


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_two_launched_processes_make_every_run_together(model: str, tmp_path: Path) -> None:
    files = {"train_file": csv_file(tmp_path / "a.csv", 40), "test_file": csv_file(tmp_path / "b.csv", 20, start=50)}
    script = tmp_path / "start.py"
    script.write_text("from hf_fam.cli.main import main\nraise SystemExit(main())\n")
    words = flags(model, tmp_path, methods=["plain", "fam"], per_device_train_batch_size=4, **files)
    printed = launch(script, "compare", "text_classification", *words)
    assert printed.count("2 seeds, 4 runs") == 1
    records = [json.loads(line) for line in (tmp_path / "runs" / RUNS).read_text().splitlines()]
    assert len({record["key"] for record in records}) == len(records) == 4
    # One process with the batches of two finds the same scores.
    alone = flags(model, tmp_path / "alone", methods=["plain", "fam"], per_device_train_batch_size=8, **files)
    assert cli.main(["compare", "text_classification", *alone]) == 0
    others = [json.loads(line) for line in (tmp_path / "alone" / "runs" / RUNS).read_text().splitlines()]
    assert [r["steps"] for r in records] == [r["steps"] for r in others]
    assert [r["nll"] for r in records] == pytest.approx([r["nll"] for r in others], abs=0.05)


def test_a_killed_comparison_loses_one_run_at_most_and_leaves_no_process(model: str, tmp_path: Path) -> None:
    script = tmp_path / "start.py"
    script.write_text("from hf_fam.cli.main import main\nif __name__ == '__main__':\n    raise SystemExit(main())\n")
    words = flags(model, tmp_path, train_file=csv_file(tmp_path / "a.csv", 40), seeds=60, jobs=2)
    process = subprocess.Popen(
        [sys.executable, str(script), "compare", "text_classification", *words],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert any(line.startswith("run 4 of") for line in process.stdout)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.wait()
    assert len((tmp_path / "runs" / RUNS).read_text().splitlines()) >= 4
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < end:
        time.sleep(0.2)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_interrupted_and_carried_on(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = flags(model, tmp_path, train_file=csv_file(tmp_path / "a.csv", 40))
    own = LiveTable.update
    done: list[int] = []

    def interrupt(self: LiveTable, progress: Progress) -> None:
        own(self, progress)
        done.append(progress.done)
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(LiveTable, "update", interrupt)
    assert cli.main(["compare", "text_classification", *given]) == 130
    assert re.search(r"^hf-fam compare: stopped. Finished runs are in .*; the same command carries on\.$",
                     capsys.readouterr().err, re.M)  # fmt: skip
    assert len((tmp_path / "runs" / RUNS).read_text().splitlines()) == 2
    capsys.readouterr()
    assert cli.main(["compare", "text_classification", *given]) == 0
    printed = capsys.readouterr().out
    assert done == [1, 2, 3, 4] and "2 splits, 4 runs" in printed
    assert re.search(r"^found +2 finished runs in ", printed, re.M) and printed.index("found ") < printed.index(
        "run 3 of"
    )
    assert re.search(
        r"^split +30 rows to train, 10 to test, another stratified choice for each of the splits$", printed, re.M
    )
    assert "Nothing was shown to be better than plain training" in printed


@pytest.mark.parametrize(
    ("count", "classes", "given", "message"),
    [
        (40, 1, {}, "at least two are needed"),
        (7, 3, {}, "classes c1, c2: fewer than 3 examples"),
        (40, 2, {"metric": "acuracy", "margin": 0.5}, "metric='acuracy' is not computed: did you mean 'accuracy'?"),
        (40, 2, {"methods": ["plain", "fma"]}, "--methods='fma': did you mean fam or ema? Choose one of"),
        (40, 2, {"budget": "0.01s"}, "budget='0.01s' is below one run, which takes about"),
        (40, 2, {"report": "no/such/r.html"}, "there is no folder 'no/such'"),
        (40, 2, {"methods": ["plain", "fam"], "sam_rho": 0.1}, "makes no use of --sam_rho"),
        (40, 2, {"methods": ["plain", "logistic_regression"]}, "set --freeze_backbone"),
        (40, 2, {"jobs": 0}, "jobs=0"),
    ],
)
def test_bad_input_is_one_sentence_before_the_first_run(
    count: int, classes: int, given: dict[str, Any], message: str, model: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = flags(model, tmp_path, train_file=csv_file(tmp_path / "a.csv", count, classes), **given)
    assert cli.main(["compare", "text_classification", *words]) == 1
    said = capsys.readouterr()
    assert message in said.err.splitlines()[-1] and said.err.splitlines()[-1].startswith("hf-fam compare: ")
    assert "run 1 of" not in said.out and not (tmp_path / "runs").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_table_is_redrawn_in_place_on_a_terminal() -> None:
    plan = Plan(["plain", "fam"], {"plain": [Settings(1.0, None)], "fam": [Settings(1.0, 0.1)]}, True, 3, 1)
    run = Run(FINAL, "fam", Settings(1.0, 0.1), 0, 0)
    progress = Progress([("plain", 1, 81.25, 0.5), ("fam", 0, None, None)], run, 2, plan, 3.0, 1)
    stream = Terminal()
    table = LiveTable(stream)
    table.update(progress)
    table.update(progress)
    table.close()
    assert stream.getvalue().count("\x1b[4F\x1b[J") == 2
    assert "plain  1           81.25" in stream.getvalue()
    assert "run 2 of at most 6: final fam (lr 1, 0.1), at most 2.0 seconds left" in stream.getvalue()


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", "text_classification", "--help"])
    printed = capsys.readouterr().out
    assert "--methods" in printed and "--budget" in printed and "hf-fam train text_classification" in printed
