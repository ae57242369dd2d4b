"""What a comparison says of its methods."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hf_fam.compare.figures import forest_plot
from hf_fam.compare.gathering import Gathered
from hf_fam.compare.journal import pack
from hf_fam.compare.metric import Metric
from hf_fam.compare.outcome import MethodResult, Outcome
from hf_fam.compare.result import ComparisonResult
from hf_fam.compare.runs import FINAL, Run, Settings, edges
from hf_fam.compare.sentence import conclusion, method_sentence
from hf_fam.compare.table import format_difference, format_table


def outcome(name: str = "fam", scores: tuple[float, float] = (80.0, 81.0), **changes: Any) -> Outcome:
    """Plain training and one other method."""
    settings = {"verdict": SimpleNamespace(value="undecided"), "difference": 0.2, "probability_of_gain": 0.4,
                "low": -30.0, "high": 31.0, "degrees_of_freedom": 4.0}  # fmt: skip
    comparison: Any = SimpleNamespace(**{**settings, "more_seeds": None, "more_items": None, **changes})
    chosen, base = [Settings(1e-3, None)], np.array([80.0, 81.0])
    methods = [
        MethodResult(m, chosen, values, None, 1.0, c)
        for m, values, c in (("plain", base, None), (name, np.array(scores), comparison))
    ]
    return Outcome(methods, Metric(), 0.5, 0.95, 2, 4, 1.0, False, True)


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"more_seeds": 4}, "undecided; about 4 more seeds may decide it."),
        ({"more_seeds": 1}, "undecided; about 1 more seed may decide it."),
        ({"more_items": 1500}, "undecided; about 1,500 more test examples may decide it."),
        (
            {"more_seeds": 4, "more_items": 500},
            "undecided; about 4 more seeds and 500 more test examples may decide it.",
        ),
        ({"scores": (60.0, 99.0)}, "undecided; even 200 more seeds would probably not decide it."),
    ],
)
def test_an_undecided_method_says_all_that_it_needs(changes: dict[str, Any], end: str) -> None:
    result = outcome(**changes)
    assert method_sentence(result, result.methods[1]) == f"FAM: {end}"


@pytest.mark.parametrize(
    ("freedom", "high", "verdict", "cell"),
    [
        (1.0, 31.0, "undecided", "+0.2 (too few runs for an interval)"),
        (2.0, 31.0, "undecided", "+0.2 (-30.0 to +31.0)"),
        (1.0, 31.0, "worse", "+0.2 (-30.0 to +31.0)"),
        (9.0, 70.0, "undecided", "+0.2 (too few runs for an interval)"),
    ],
)
def test_an_interval_that_says_nothing_is_not_shown(freedom: float, high: float, verdict: str, cell: str) -> None:
    """Of two splits alone, or as wide as all accuracies."""
    result = outcome(degrees_of_freedom=freedom, high=high, verdict=SimpleNamespace(value=verdict))
    assert format_difference(result, result.methods[1]) == cell
    line = forest_plot(result).axes[0].lines[1]
    assert [*line.get_xdata()] == ([0.2, 0.2] if "few" in cell else [-30.0, 31.0])


def test_methods_are_in_the_order_of_the_table_and_the_spread_is_named() -> None:
    verdicts = {"fam": "undecided", "sam": "worse", "ema": "better"}
    methods = [outcome().methods[0]]
    methods += [outcome(n, verdict=SimpleNamespace(value=v)).methods[1] for n, v in verdicts.items()]
    result = dataclasses.replace(outcome(), methods=methods)
    assert [line.partition(" ")[0].rstrip(":") for line in conclusion(result).splitlines()[:3]] == ["FAM", "SAM", "EMA"]
    assert format_table(result).splitlines()[0].split()[:3] == ["accuracy", "±", "s.d."]


def test_what_to_train_the_final_model_by() -> None:
    said = "Nothing was shown to be better than plain training, so a final model is best trained by that."
    assert said in conclusion(outcome(verdict=SimpleNamespace(value="same")))
    assert said not in conclusion(outcome(verdict=SimpleNamespace(value="better")))
    result = outcome("flat_logistic_regression")
    said = (
        "Nothing was shown to be better than plain training. Flat logistic regression is undecided, so it may be better"
    )
    assert said in conclusion(result)
    result = dataclasses.replace(result, methods=[*result.methods, outcome().methods[1]])
    assert ". Flat logistic regression and FAM are undecided, so each may be better or worse." in conclusion(result)


def test_runs_without_randomness_are_undecided_for_want_of_test_examples() -> None:
    """Twelve equal runs on 200 test items: the sentence is about items, and not about runs that vary."""
    hits = {name: np.zeros(200) for name in ("plain", "logistic_regression")}
    hits["plain"][:180] = 100.0
    hits["logistic_regression"][5:187] = 100.0
    gathered = Gathered([*hits], Metric())
    for name, values in hits.items():
        for seed in range(12):
            run = Run(FINAL, name, Settings(None, None), seed, 0)
            record = {"score": values.mean(), "items": pack(values), "nll": 1.0, "seconds": 1.0, "all_seconds": 1.0}
            gathered.add(run, {**record, "curve": [], "diverged": False})
    result = gathered.result(
        margin=0.5, confidence=0.95, look=2, looks=[3, 6, 12], ratio=None, examples=None,
        grids={name: [] for name in hits}, seconds=1.0, is_budget_used=False, has_test=True,
    )  # fmt: skip
    one = result.methods[1]
    assert one.scores.std() == 0 and one.comparison is not None
    sentence = method_sentence(result, one)
    found = re.search(r"undecided; the test examples are too few, .* About (\d+) times as many would narrow", sentence)
    assert found and sentence.endswith(" to ± 0.5 points."), sentence
    # The half-width falls with the root of the number of items.
    half = (one.comparison.high - one.comparison.low) / 2
    assert half / int(found[1]) ** 0.5 == pytest.approx(0.5, rel=0.05)


def test_no_probability_is_one() -> None:
    result = outcome("bi_tempered", verdict=SimpleNamespace(value="better"), probability_of_gain=0.9999)
    sentence = method_sentence(result, result.methods[1])
    assert sentence.startswith("Bi-tempered loss is better than plain training here: more than 99 % probability")


def test_a_choice_at_the_edge_of_its_grid_is_said() -> None:
    rates = [Settings(rate, strength) for rate in (1e-3, 1e-2, 1e-1) for strength in (1.0, 2.0)]
    strengths = [Settings(None, strength) for strength in (0.1, 1.0, 10.0)]
    assert edges([rates[0]], rates) == edges([rates[0], rates[-1]], rates) == ["learning rate"]
    assert edges([rates[0], rates[2]], rates) == edges([rates[2]], rates) == [], "two strengths have no inside"
    assert edges([strengths[2]], strengths) == ["strength"] and edges([strengths[1]], strengths) == []
    assert edges([], rates) == edges([rates[0]], rates[:1]) == []
    result = outcome()
    result.methods[1] = MethodResult("fam", [], result.methods[0].scores, None, 1.0, None, edges=["strength"])  # type: ignore[index]
    assert "The best strength of FAM is at the edge of its grid" in conclusion(result)


def test_a_notebook_shows_the_table_and_the_sentences() -> None:
    fields = {f.name: getattr(outcome(), f.name) for f in dataclasses.fields(Outcome)}
    shown = ComparisonResult(**fields)._repr_html_()
    assert shown.startswith('<div class="scroll"><table>') and "80.5 ± 0.7" in shown and "<p>FAM: undecided; " in shown
