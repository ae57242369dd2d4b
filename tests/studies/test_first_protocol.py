"""The study's first protocol: its records are read as they are, and its tables come out the same."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

FOLDER = Path(__file__).parents[2] / "recipes" / "comparison"
sys.path.insert(0, str(FOLDER))

pa = pytest.importorskip("pyarrow")
pytest.importorskip("yaml")

import report  # noqa: E402
import show  # noqa: E402
from first_protocol import tables  # noqa: E402
from first_protocol.carrying import carry, compared, places  # noqa: E402
from first_protocol.confirmation import by_task, duels, title  # noqa: E402
from first_protocol.paired import compare  # noqa: E402
from first_protocol.questions import answers, read_questions  # noqa: E402
from first_protocol.records import JSON_COLUMNS, read_results  # noqa: E402
from first_protocol.summary import Choice, choose, one_for_all, rows  # noqa: E402
from first_protocol.verdict import judge  # noqa: E402

Record = dict[str, Any]
FAM = {"layer": "representation", "estimator": "hessian"}
has_results = pytest.mark.skipif(not (FOLDER / "results").exists(), reason="a source distribution has no results")


def write(folder: Path, records: list[Record]) -> None:
    """Write records as the first protocol did."""
    from pyarrow import parquet

    folder.mkdir(exist_ok=True)
    rows = [{k: json.dumps(v) if k in JSON_COLUMNS else v for k, v in record.items()} for record in records]
    columns = dict.fromkeys(name for row in rows for name in row)
    parquet.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns}), folder / "some.parquet")


def sample(
    configurations: dict[str, list[Record]],
    plan: str = "small",
    epochs: tuple[int, ...] = (3,),
    exploratory: bool = True,
) -> list[Record]:
    """Return records of two tasks and three seeds with random scores."""
    random = np.random.default_rng(0)

    def scores(metric: str) -> Record:
        return {name: float(random.random()) for name in (metric, "nll", "nll_scaled", "ece")}

    return [
        {
            "plan": plan, "task": task, "metric": metric, "regime": "frozen_mlp", "method": method, "seed": seed,
            "settings": {"learning_rate": 0.001, "epochs": number, "width": 8}, "configuration": configuration,
            "exploratory": exploratory, "validation": scores(metric), "test": scores(metric), "train_loss": 0.1,
            "cpu_seconds": 1.0, "revision": "ab", "versions": {"torch": "2.13.0"},
        }
        for task, metric in (("banking77-5-shot", "accuracy"), ("cola-40", "mcc"))
        for number in epochs
        for seed in range(3)
        for method, several in configurations.items()
        for configuration in several
    ]  # fmt: skip


EXPLORED = {"plain": [{}], "fam": [{**FAM, "strength": s} for s in (0.001, 0.01)]}


@has_results
def test_the_results_of_the_study_are_complete() -> None:
    assert len(read_results(FOLDER / "results")) == 14_387


@has_results
def test_the_page_has_every_plan() -> None:
    """Without the slow tables of the first protocol."""
    page = report.PAGE.read_text(encoding="utf-8")
    assert all(table in page for table in report.comparison_tables(FOLDER / "results"))


@pytest.mark.slow
@has_results
def test_page_and_tables_are_made_from_the_records(tmp_path: Path) -> None:
    """Every number of the committed page and tables comes out again."""
    page = tmp_path / "results.md"
    report.main(["--output", str(page), "--tables", str(tmp_path / "tables")])
    assert page.read_text(encoding="utf-8") == report.PAGE.read_text(encoding="utf-8")
    made = {file.name: file.read_text(encoding="utf-8") for file in (tmp_path / "tables").iterdir()}
    assert made == {file.name: file.read_text(encoding="utf-8") for file in (FOLDER / "tables").iterdir()}


def test_where_a_run_was_made_twice_the_first_plan_counts(tmp_path: Path) -> None:
    records = sample(EXPLORED)
    write(tmp_path, [*({**r, "plan": "zeta", "train_loss": 9.0} for r in records[:4]), *records])
    found = read_results(tmp_path)
    assert len(found) == len(records) and {r["train_loss"] for r in found} == {0.1}
    assert found[0]["settings"] == records[0]["settings"] and "diverged" not in found[0]
    assert len(read_results(tmp_path, ["zeta"])) == 4


def test_report_renders(tmp_path: Path) -> None:
    records = sample(EXPLORED)
    write(tmp_path / "results", [*records, {**records[1], "seed": 7, "diverged": "loss is nan"}])
    page, folder = tmp_path / "docs" / "results.md", tmp_path / "tables"
    report.main(["--results", str(tmp_path / "results"), "--output", str(page), "--tables", str(folder)])
    assert {file.name for file in folder.iterdir()} == {"README.md", "frozen_mlp.md"}
    assert "[frozen_mlp.md](frozen_mlp.md) | 19 |" in (folder / "README.md").read_text(encoding="utf-8")
    assert "## The full tables" in page.read_text(encoding="utf-8")
    text = (folder / "frozen_mlp.md").read_text(encoding="utf-8")
    assert "### frozen_mlp epochs-3-width-8: banking77-5-shot" in text and "one configuration for all tasks" in text
    assert "(1 runs diverged)" in text and "| mcc |" in text and "Exploratory" in text
    assert str(tmp_path) not in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {17, 10}


def test_report_prints_the_results_of_one_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = sample(EXPLORED)
    write(tmp_path, [*records, *({**r, "plan": "other", "seed": 9} for r in records[:2])])
    report.main(["--results", str(tmp_path), "--plans", "other"])
    text = capsys.readouterr().out
    assert "2 runs; revisions" in text and "### frozen_mlp epochs-3-width-8: banking77-5-shot" in text
    assert [file.name for file in tmp_path.iterdir()] == ["some.parquet"]
    with pytest.raises(SystemExit):
        report.main(["--results", str(tmp_path), "--plans", "nothing"])


def test_show_lists_every_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain training with another learning rate is listed beside the plan's own."""
    records = sample({**EXPLORED, "tuned": [{"learning_rate": 0.01}]})
    write(tmp_path, records)
    show.main(["small", "--results", str(tmp_path), "--seeds", "0", "2"])
    text = capsys.readouterr().out
    assert text.count("\nplain learning_rate 0.01") == 2 and text.count("\nfam") == 4
    runs = [r for r in records if r["method"] == "tuned" and r["task"] == "cola-40" and r["seed"] != 1]
    likelihoods = [r["validation"]["nll"] for r in runs]
    assert f"{np.mean(likelihoods):.3f} ± {np.std(likelihoods, ddof=1):.3f}" in text
    for wrong in (["nothing"], ["small", "--seeds", "7"]):
        with pytest.raises(SystemExit):
            show.main([*wrong, "--results", str(tmp_path)])


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
    text = "\n".join(tables.carried_over(records))
    assert "| everywhere | 2 | 2 | +20.00 |" in text and "| t | 2 | 10 | 10 | 0.1 | 1.4 |" in text
    assert not list(tables.carried_over([r for r in records if r["settings"]["width"] == 10]))


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
    assert "**strength 5** †" in tables.one_table(one_for_all(harmful), taken)


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
    assert tables.comparison_name({"regime": regime, "task": task, "settings": settings}) == name


def test_confirmation_pairs_runs_of_the_same_task_settings_and_seed(tmp_path: Path) -> None:
    """Two tasks, each with two settings."""
    decided = {"plain": [{}], "fam": [{**FAM, "strength": 0.3}], "dropout": [{"rate": 0.5}]}
    records = sample(decided, epochs=(3, 4), exploratory=False)
    write(tmp_path / "results", records)
    fam = "fam representation hessian strength 0.3"
    found = {d.rival: d for d in duels(records, fam)}
    assert set(found) == {"plain", "dropout rate 0.5"}
    runs = {(title(r), r["task"], r["settings"]["epochs"], r["seed"]): r for r in records}
    pairs = [(runs[(fam, *k[1:])], r) for k, r in runs.items() if k[0] == "plain"]
    by_hand = compare([a["test"]["nll"] for a, _ in pairs], [b["test"]["nll"] for _, b in pairs])
    assert found["plain"].nll == by_hand and by_hand.pairs == 12 and by_hand.mean != 0
    assert {k: d.pairs for k, d in by_task(records, fam, "plain").items()} == {r["task"]: 6 for r in records}
    page, table = tmp_path / "results.md", tmp_path / "tables" / "frozen_mlp.md"
    report.main(["--results", str(tmp_path / "results"), "--output", str(page), "--tables", str(table.parent)])
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
    text = tables.question_tables(records, questions)
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
    write(tmp_path / "results", [*records, {**records[0], "seed": 7, "diverged": "loss is nan"}])
    report.main(["--results", str(tmp_path / "results"), "--output", str(page), "--tables", str(table.parent)])
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
    assert judged is not None and tables.brief(judged)[-3:] == [verdict, "", "sam strength 1"]
    assert verdict in tables.in_brief(records)
    alone = [r for r in records if r["seed"] == 0]
    lonely = judge(alone, "fam strength 1")
    assert lonely is not None and not lonely.harmless and tables.brief(lonely)[-4].startswith("none; a: one seed")
    assert judge([r for r in records if r["method"] != "plain"], "fam strength 1") is None


def test_paired_tests_are_scipys_and_those_by_hand() -> None:
    rng = np.random.default_rng()
    a, b = rng.normal(size=9), rng.normal(size=9) + 0.3
    found = compare(a, b)
    assert found.t == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(a, b).pvalue)
    assert found.mean == pytest.approx((a - b).mean())
    low = stats.ttest_1samp(a - b, 0, alternative="greater").confidence_interval(0.95).low
    assert found.low == pytest.approx(low)
    # By hand: differences 1, 2, 3 have mean 2, deviation 1 and t = 2 sqrt 3 with two degrees of freedom.
    by_hand = compare([2, 3, 4], [1, 1, 1])
    t = 2 * math.sqrt(3)
    assert by_hand.t == pytest.approx(1 - t / math.sqrt(2 + t**2)) and by_hand.wilcoxon == pytest.approx(2 / 2**3)
    assert compare([1, 2], [1, 2]).t == 1 and math.isnan(compare([1], [0]).t)
