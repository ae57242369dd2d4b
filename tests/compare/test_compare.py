"""The harness of a comparison: paired, tuned fairly, kept, carried on, and refused in one sentence."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer

pytest.importorskip("scipy")

from hf_fam.compare import compare
from hf_fam.compare import training as training_module
from hf_fam.compare.budget import parse_budget
from hf_fam.compare.gathering import readable
from hf_fam.compare.journal import RUNS, Journal
from hf_fam.compare.metric import Metric
from hf_fam.compare.runs import FINAL, TUNING, Run, Settings, grid
from hf_fam.compare.splits import Splits
from hf_fam.compare.statistics import Comparison, Verdict
from hf_fam.compare.training import Task, execute
from hf_fam.methods import METHODS, Method, method_called
from support.comparisons import make_trainer, point_trainer, points
from support.tiny import tiny_bert

QUICK: dict[str, Any] = {"seeds": 3, "grid_size": 2}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RUNS).read_text().splitlines()]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that were really made."""
    made: list[Run] = []
    own = training_module.execute

    def noted(task: Task, run: Run) -> Any:
        made.append(run)
        return own(task, run)

    monkeypatch.setattr("hf_fam.compare.workers.execute", noted)
    return made


def test_every_method_has_a_grid_of_the_same_size_and_range() -> None:
    for size in (1, 2, 6):
        grids = {name: grid(kind(0.1 if name == "fam" else None), 1e-3, size) for name, kind in METHODS.items()}
        assert grids.pop("flat_logistic_regression") == [Settings(None, None)]  # it needs no tuning
        assert {len({*settings}) for settings in grids.values()} == {size}
        if size == 2:  # a method with a strength must not be left with one learning rate
            assert len({tuple(s.learning_rate for s in kind) for kind in grids.values() if kind[0].learning_rate}) == 1
        ranges = {
            (min(rates), max(rates)) if size == 6 else None
            for settings in grids.values()
            if (rates := [s.learning_rate for s in settings if s.learning_rate is not None])
        }
        assert len(ranges) == 1


def test_whole_comparison_with_a_test_set(tmp_path: Path, executed: list[Run]) -> None:
    result = compare(make_trainer(), ["fam", "sam"], test_dataset=points(90, seed=2), output_dir=tmp_path, **QUICK)
    assert [m.name for m in result.methods] == ["plain", "fam", "sam"]
    assert result.seeds == 3 and result.runs == len(executed) == 3 * 2 + 3 * 3
    tuning = [run for run in executed if run.phase == TUNING]
    final = [run for run in executed if run.phase == FINAL]
    assert not {run.seed for run in tuning} & {run.seed for run in final}
    assert {(run.method, run.seed) for run in final} == {(m.name, s) for m in result.methods for s in range(3)}
    for method in result.methods:
        assert len(method.scores) == 3 and 0 <= method.scores.mean() <= 100
        assert {run.settings for run in final if run.method == method.name} == {*method.chosen}
        best = max(method.tried, key=lambda pair: pair[1])
        assert dict(method.tried)[method.chosen[0]] == best[1]
    printed = str(result)
    assert "minus plain (95 % interval)" in printed and "3 seeds, 15 runs" in printed


def test_scores_are_those_of_the_trained_model() -> None:
    """Trained by hand with the Trainer alone."""
    test = points(90, seed=2)
    result = compare(make_trainer(), ["weight_decay"], test_dataset=test, seeds=2, grid_size=1)
    for seed, score in enumerate(result.baseline.scores):
        torch.manual_seed(seed)
        trainer = point_trainer(seed)
        trainer.args.disable_tqdm = True
        trainer.train()
        with torch.no_grad():
            logits = trainer.model.eval()(torch.stack([row["x"] for row in test]))["logits"]
        hits = logits.argmax(-1) == torch.tensor([row["labels"] for row in test])
        assert score == pytest.approx(100 * hits.double().mean().item())


# Initial weights and batches of each run, in the order in which the runs are made.
RECORDED: list[list[Any]] = []


class RecordingTrainer(Trainer):
    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 0:
            RECORDED.append([p.detach().clone() for p in model.parameters()])
        RECORDED[-1].append(inputs["x"].clone())
        return super().training_step(model, inputs, *args, **kwargs)


def recorded_trainer(seed: int) -> Trainer:
    own = point_trainer(seed)
    return RecordingTrainer(model=own.model, args=own.args, train_dataset=own.train_dataset)


def test_methods_are_paired() -> None:
    """The same seed: the same initial weights and the same batches in every step, also for methods that draw noise."""
    names = ["plain", "fam", "dropout", "mixup", "feature_noise", "bi_tempered", "ema"]
    methods = {name: METHODS[name]() for name in names}
    task = Task(recorded_trainer, points(9, seed=2), None, Splits(None, 60, True, False), Metric(), methods)
    for seed in (0, 1):
        RECORDED.clear()
        for name, method in methods.items():
            strength = method.resolve(recorded_trainer(seed)).strength
            execute(task, Run(FINAL, name, Settings(1e-2, strength), seed, 0))
        assert len(RECORDED) == len(names) and len(RECORDED[0]) == 2 + 6
        for other in RECORDED[1:]:
            assert all(torch.equal(a, b) for a, b in zip(RECORDED[0], other, strict=True))


def test_splits_are_stratified_and_never_leak() -> None:
    labels = [0] * 20 + [1] * 9 + [2] * 3
    splits = Splits(labels, 32, has_test=False, has_validation=False)
    splits.check()
    tests = []
    for split in range(20):
        train, test = splits.rows(Run(FINAL, "plain", Settings(1.0, None), split, split))
        assert test is not None
        assert sorted([*train, *test]) == [*range(32)]
        assert {labels[k] for k in test} == {labels[k] for k in train} == {0, 1, 2}
        tests.append(tuple(test))
        for seed in (5, 6):
            tuned, scored = splits.rows(Run(TUNING, "plain", Settings(1.0, None), seed, split))
            assert scored is not None
            assert sorted([*tuned, *scored]) == sorted(train)
            assert {labels[k] for k in scored} == {labels[k] for k in tuned} == {0, 1, 2}
    assert len({*tests}) == 20
    assert splits.test_to_train_ratio == pytest.approx(8 / 24)


def test_without_a_test_set_each_split_is_tuned_for_itself(tmp_path: Path, executed: list[Run]) -> None:
    result = compare(make_trainer(), ["fam"], output_dir=tmp_path, **QUICK)
    assert not result.has_test and len(result.baseline.chosen) == 3
    assert {run.split for run in executed if run.phase == TUNING} == {0, 1, 2}
    assert len(executed) == 3 * (2 * 2 + 2) and "3 splits" in str(result)


def test_the_test_set_is_read_after_the_choice_and_once_a_run() -> None:
    reads: list[str] = []
    test = points(9, seed=2)

    class Watched(list):  # type: ignore[type-arg]
        def __getitem__(self, k: Any) -> Any:
            reads.append(phase[0])
            return super().__getitem__(k)

    phase = ["before"]

    def progress(progress: Any) -> None:
        phase[0] = progress.run.phase

    compare(make_trainer(), ["fam"], test_dataset=Watched(test), on_progress=progress, **QUICK)
    assert TUNING not in reads[:-9] or reads.index(TUNING) >= 0
    assert "before" not in reads
    assert len(reads) == 9 * 2 * 3


def test_finished_runs_are_kept_and_carried_on(tmp_path: Path, executed: list[Run]) -> None:
    """Interrupted after any run, the same call makes the others and comes to the same end."""
    given: dict[str, Any] = {"test_dataset": points(30, seed=2), **QUICK}
    whole = compare(make_trainer(), ["fam"], output_dir=tmp_path / "whole", **given)
    executed.clear()

    class Interrupted(Exception):
        pass

    for stop in (1, 4, 7):

        def interrupt(progress: Any, stop: int = stop) -> None:
            if progress.done == stop:
                raise Interrupted

        with pytest.raises(Interrupted):
            compare(make_trainer(), ["fam"], output_dir=tmp_path / "halves", on_progress=interrupt, **given)
        assert len(records(tmp_path / "halves")) == stop
    with open(tmp_path / "halves" / RUNS, "a") as file:
        file.write('{"key": "cut sh')
    last = compare(make_trainer(), ["fam"], output_dir=tmp_path / "halves", **given)
    assert len(executed) == whole.runs == len({*executed})
    for one, other in zip(whole.methods, last.methods, strict=True):
        assert np.array_equal(one.scores, other.scores) and one.chosen == other.chosen
    assert len(Journal(tmp_path / "halves")) == whole.runs


@pytest.mark.parametrize(
    "change",
    [
        {"num_train_epochs": 3},
        {"train": 57},
        {"per_device_train_batch_size": 10},
        {"weight_decay": 0.1},
        {"validation": 9},
    ],
)
def test_changed_settings_do_not_mix(tmp_path: Path, executed: list[Run], change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"test_dataset": points(9, seed=2), "seeds": 2, "grid_size": 1, "output_dir": tmp_path}
    compare(make_trainer(), ["fam"], **given)
    made = len(executed)
    compare(make_trainer(logging_steps=7, output_dir=str(tmp_path / "x")), ["fam"], **given)  # nothing that counts
    assert len(executed) == made
    compare(make_trainer(**change), ["fam"], **given)
    assert len(executed) == 2 * made


def test_what_is_shown_is_possible() -> None:
    """An interval of accuracies has no difference above 100 points."""
    wide = Comparison(13.3, -80.7, 107.4, 0.5, Verdict.UNDECIDED, 3, 1001, 1.0)
    shown = readable(wide, Metric())
    assert (shown.low, shown.high, shown.more_seeds, shown.more_items) == (-80.7, 100.0, 3, 1001)
    assert readable(wide, Metric.of("pearson")) == wide
    assert readable(wide, Metric.of("eval_loss")) == wide


def test_changed_data_do_not_mix(tmp_path: Path, executed: list[Run]) -> None:
    given: dict[str, Any] = {"seeds": 2, "grid_size": 1, "output_dir": tmp_path}
    compare(make_trainer(), ["fam"], test_dataset=points(9, seed=2), **given)
    compare(make_trainer(), ["fam"], test_dataset=points(9, seed=3), **given)
    assert len(executed) == 2 * 4


def test_more_seeds_and_methods_use_what_is_there(tmp_path: Path, executed: list[Run]) -> None:
    given: dict[str, Any] = {"test_dataset": points(9, seed=2), "grid_size": 1, "output_dir": tmp_path}
    compare(make_trainer(), ["fam"], seeds=2, **given)
    compare(make_trainer(), ["fam", "sam"], seeds=4, **given)
    assert len(executed) == len({*executed}) and {run.seed for run in executed} <= {0, 1, 2, 3}


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_fam.compare.journal.os.fsync", full)
    with pytest.raises(ValueError, match="No space left on device.*start the same command again"):
        compare(make_trainer(), ["fam"], test_dataset=points(9, seed=2), output_dir=tmp_path, **QUICK)


def test_several_jobs_give_the_same(tmp_path: Path) -> None:
    given: dict[str, Any] = {"test_dataset": points(30, seed=2), **QUICK}
    one = compare(make_trainer(), ["fam"], **given)
    two = compare(make_trainer(), ["fam"], jobs=2, output_dir=tmp_path, **given)
    for a, b in zip(one.methods, two.methods, strict=True):
        assert a.scores == pytest.approx(b.scores) and a.chosen == b.chosen
    assert len(records(tmp_path)) == two.runs


def test_the_budget_ends_it(tmp_path: Path) -> None:
    result = compare(
        make_trainer(), ["fam"], test_dataset=points(9, seed=2), output_dir=tmp_path, seeds=1000, grid_size=1,
        budget=3.0, margin=0.001,
    )  # fmt: skip
    assert result.is_budget_used and result.seconds < 8 and result.seeds < 1000
    assert "budget is used" in str(result)


def test_a_budget_that_ends_in_the_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report says so, and the same call carries on."""
    given: dict[str, Any] = {"test_dataset": points(9, seed=2), "output_dir": tmp_path, **QUICK}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_fam.compare.budget.Clock.is_enough_for", lambda self, seconds: len(Journal(tmp_path)) < 3)
        result = compare(make_trainer(), ["fam"], budget="1h", **given)
    assert result.seeds == 0 and result.is_budget_used and result.runs == 3
    assert "Undecided: fewer than two seeds are complete" in str(result) and "seconds more." in str(result)
    # Of the 8 runs that two seeds need, 5 are missing.
    assert result.seconds_missing == pytest.approx(5 * np.mean([r["all_seconds"] for r in records(tmp_path)]))
    result.save_report(tmp_path / "r.html")
    result.save_json(tmp_path / "r.json")
    assert compare(make_trainer(), ["fam"], **given).seeds == 3


class BadLoss(Method):
    """Trains with the negative loss."""

    name = "bad_loss"
    description = "for tests"

    def apply(self, trainer: Any) -> None:
        trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: (
            -torch.nn.functional.cross_entropy(outputs["logits"], labels)
        )


def test_a_method_that_harms_is_found_and_ends_it_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "bad_loss", BadLoss)
    trainer = make_trainer(num_train_epochs=6, train=120)
    result = compare(trainer, ["bad_loss"], test_dataset=points(300, seed=2), seeds=12, grid_size=1)
    assert result.methods[1].verdict == "worse" and result.seeds < 12
    assert result.best.name == "plain" and "Bad loss is worse than plain training" in str(result)


def test_own_metrics(tmp_path: Path) -> None:
    def brier(predicted: Any) -> Any:
        p = torch.softmax(torch.tensor(predicted.predictions), -1).numpy()
        return ((p - np.eye(3)[predicted.label_ids]) ** 2).sum(-1)

    result = compare(
        make_trainer(),
        ["fam"],
        test_dataset=points(30, seed=2),
        metric=brier,
        higher_is_better=False,
        margin=0.01,
        **QUICK,
    )
    assert 0 < result.baseline.scores.mean() < 2
    best = min(result.baseline.tried, key=lambda pair: pair[1])
    assert result.baseline.chosen[0] == best[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ["mixpu"]}, "method='mixpu': did you mean mixup"),
        ({"methods": ["plain"]}, "give a method besides plain"),
        ({"methods": ["fam", "fam"]}, "'fam' occurs twice"),
        ({"metric": "acuracy"}, "metric='acuracy' is not computed"),
        ({"metric": "f1"}, "metric='f1' is not computed.*The Trainer computes.*loss"),
        ({"metric": "eval_loss_of_mine", "margin": None}, "margin: give the largest difference"),
        ({"seeds": 1}, "seeds=1: give a whole number from 2"),
        ({"grid_size": 3}, "grid_size=3: give 1, or an even number"),
        ({"budget": "soon"}, "budget='soon': give a time, such as 90s, 20m or 2h"),
        ({"budget": 0.001}, "budget=0.001 is below one run, which takes about .* seconds here; a first answer needs"),
        ({"jobs": 0}, "jobs=0"),
        ({"margin": -1.0}, "margin=-1.0"),
        ({"methods": ["neftune"]}, "'neftune' needs a model with word embeddings"),
        ({"methods": ["logistic_regression"]}, "set freeze_backbone"),
        ({"methods": [method_called("fam")(0.0)]}, "fam_lambda=0 is plain training, which is compared anyway"),
    ],
)
def test_bad_input_is_one_sentence_before_the_first_run(
    given: dict[str, Any], message: str, executed: list[Run]
) -> None:
    if "metric" in given:
        given = {"margin": 0.5, **given}
    with pytest.raises(ValueError, match=message):
        compare(make_trainer(), **{"methods": ["fam"], "test_dataset": points(9, seed=2), **QUICK, **given})
    assert not executed


def test_trainers_that_are_refused(executed: list[Run]) -> None:
    with pytest.raises(ValueError, match="load_best_model_at_end"):
        compare(
            make_trainer(load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch", validation=9),
            **QUICK,
        )
    with pytest.raises(ValueError, match="importable"):
        compare(lambda seed: point_trainer(seed), jobs=2, **QUICK)
    assert not executed


def few_rows(seed: int, rows: list[Any]) -> Trainer:
    trainer = point_trainer(seed)
    trainer.train_dataset = rows
    return trainer


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1] * 9, "has 1 class, and a comparison needs at least two"),
        ([0, 0, 0, 1, 1], "class 1: fewer than 3 examples"),
    ],
)
def test_data_that_cannot_be_split(labels: list[int], message: str, executed: list[Run]) -> None:
    rows = [{**row, "labels": label} for row, label in zip(points(len(labels)), labels, strict=True)]
    with pytest.raises(ValueError, match=message):
        compare(functools.partial(few_rows, rows=rows), **QUICK)
    assert not executed


def test_budgets() -> None:
    assert [parse_budget(b) for b in ("90s", "20m", "1.5h", "45", 7, None, "2 hours")] == [
        90,
        1200,
        5400,
        45,
        7,
        None,
        7200,
    ]
    for wrong in ("", "m", "-3m", 0, "0s", "3 months", "1h30"):
        with pytest.raises(ValueError, match="give a time"):
            parse_budget(wrong)


def test_no_run_warns_of_pinned_memory(recwarn: pytest.WarningsRecorder) -> None:
    """Each run makes data loaders on the CPU; the user's setting stays where there is something to copy to."""
    warnings.simplefilter("always")
    compare(
        make_trainer(dataloader_pin_memory=True, use_cpu=False),
        ["plain", "fam"],
        test_dataset=points(30),
        seeds=2,
        grid_size=1,
    )
    assert [str(w.message) for w in recwarn if "pin_memory" in str(w.message)] == []


def test_items_keep_their_order_if_batches_are_grouped_by_length() -> None:
    """The Trainer groups evaluation batches too, in another order for each seed."""
    test = [{"input_ids": [1 + k % 5] * (1 + k % 7), "labels": k // 5 % 2} for k in range(40)]
    labels = np.array([item["labels"] for item in test])

    def read(predicted: Any) -> Any:
        return predicted.label_ids == labels[: len(predicted.label_ids)]

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(i["input_ids"]) for i in items], batch_first=True)
        return {"input_ids": rows, "labels": torch.tensor([i["labels"] for i in items])}

    def grouped(seed: int) -> Trainer:
        args = point_trainer(seed, train_sampling_strategy="group_by_length", max_steps=1).args
        return Trainer(model=tiny_bert(), args=args, train_dataset=test, data_collator=collate)

    result = compare(grouped, ["fam"], test_dataset=test, metric=read, margin=0.1, seeds=2, grid_size=1)
    assert result.baseline.scores.tolist() == [1.0, 1.0]
