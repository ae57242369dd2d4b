"""Equal methods are called different in at most 5 % of comparisons, over all looks and all methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy import stats

from hf_fam.compare.statistics import Scores, compare_methods, looks

COMPARISONS = 400
# 5 % of 400, and 2.5 standard deviations of its scatter.
MOST = 31
LOOKS = looks(12)


@pytest.fixture(autouse=True)
def without_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Advice to the undecided changes no interval, and takes most of the time."""
    monkeypatch.setattr("hf_fam.compare.statistics.comparison.advise", lambda *_: (None, None))


def is_called_different(scores: dict[str, np.ndarray], ratio: float | None = None) -> bool:
    """Whether the interval of any method leaves zero out at any look; no verdict but BETTER and WORSE needs more."""
    for index, seeds in enumerate(LOOKS):
        seen = {name: Scores(values[:seeds]) for name, values in scores.items()}
        compared = compare_methods(
            seen, baseline="plain", margin=0.0, look=index, looks=LOOKS, test_to_train_ratio=ratio
        )
        if any(result.low > 0 or result.high < 0 for result in compared.values()):
            return True
    return False


def names(methods: int) -> list[str]:
    return ["plain", *(f"method {i}" for i in range(methods))]


def crossed(
    methods: int, items: int, deviations: tuple[float, float, float], draw: Callable[..., np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """Scores of methods that differ by chance alone: of seeds, of items, and of both."""
    of_seeds, of_items, of_both = deviations
    for _ in range(COMPARISONS):
        yield {
            name: of_seeds * draw((LOOKS[-1], 1)) + of_items * draw((1, items)) + of_both * draw((LOOKS[-1], items))
            for name in names(methods)
        }


@pytest.mark.parametrize("methods", [1, 3, 12])
@pytest.mark.parametrize(
    ("of_seeds", "of_items", "of_both"),
    [(0.0, 0.0, 1.0), (0.02, 0.3, 0.3), (0.1, 1.0, 0.1), (0.3, 1.0, 0.1), (1.0, 0.1, 0.1)],
    ids=["noise", "small seeds", "half seeds", "mostly seeds", "seeds"],
)
def test_one_test_file(methods: int, of_seeds: float, of_items: float, of_both: float) -> None:
    rng = np.random.default_rng(methods)
    simulated = crossed(methods, 100, (of_seeds, of_items, of_both), rng.standard_normal)
    assert sum(is_called_different(scores) for scores in simulated) <= MOST


@pytest.mark.parametrize("methods", [1, 3, 12])
def test_accuracy_on_one_test_file(methods: int) -> None:
    """Right and wrong predictions: an easy or hard item is so for all methods and all seeds."""
    rng = np.random.default_rng(methods)
    count = 0
    for _ in range(COMPARISONS):
        ease = rng.normal(1.5, 2.0, 200)
        right = {
            name: ease + rng.normal(0, 0.5, 200) + rng.normal(0, 0.2, (LOOKS[-1], 1)) + rng.logistic(0, 1, (12, 200))
            > 0
            for name in names(methods)
        }
        count += is_called_different({name: values.astype(float) for name, values in right.items()})
    assert count <= MOST


@pytest.mark.parametrize("methods", [1, 4, 12])
@pytest.mark.parametrize("df", [1, 2, 3])
def test_heavy_tails(df: int, methods: int) -> None:
    """One score for each seed, and now and then a run that fails; df 1 has neither mean nor variance."""
    rng = np.random.default_rng([df, methods])
    count = sum(
        is_called_different({name: rng.standard_t(df, LOOKS[-1]) for name in names(methods)})
        for _ in range(COMPARISONS)
    )
    assert count <= MOST


def test_heavy_tails_of_seeds_and_items() -> None:
    rng = np.random.default_rng(2)
    simulated = crossed(3, 100, (0.1, 1.0, 1.0), lambda shape: rng.standard_t(2, shape))
    assert sum(is_called_different(scores) for scores in simulated) <= MOST


def nearest_mean_accuracy(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Accuracy of the classifier that compares distances to the two class means."""
    low, high = x[train[y[train] == 0]].mean(0), x[train[y[train] == 1]].mean(0)
    weight = high - low
    return float(((x[test] - (low + high) / 2) @ weight > 0).astype(int).__eq__(y[test]).mean())


def stratified_split(y: np.ndarray, part: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training part and of the test part, as many of each class."""
    by_class = [rng.permutation(np.flatnonzero(y == label)) for label in (0, 1)]
    cut = int(len(by_class[0]) * part)
    return np.concatenate([rows[cut:] for rows in by_class]), np.concatenate([rows[:cut] for rows in by_class])


@pytest.mark.parametrize("method", ["own features", "own noise"])
@pytest.mark.parametrize(("rows", "part"), [(60, 0.2), (120, 0.1), (120, 0.5)])
def test_repeated_splits_that_overlap(rows: int, part: float, method: str) -> None:
    """Learners on splits of the same rows: equal over all data sets, or equal on each of them.

    With features of its own, a method is better on one data set and worse on another, and all repeats share that.
    """
    rng = np.random.default_rng([rows, int(100 * part)])
    y = np.arange(rows) % 2
    count = 0
    for _ in range(COMPARISONS):
        data = {name: rng.standard_normal((rows, 4)) + 0.6 * (y[:, None] - 0.5) for name in names(2)}
        accuracies: dict[str, list[float]] = {name: [] for name in data}
        for _ in range(LOOKS[-1]):
            train, test = stratified_split(y, part, rng)
            for name in data:
                x = data[name] if method == "own features" else data["plain"].copy()
                if method == "own noise":
                    x[train] += rng.standard_normal((len(train), 4))
                accuracies[name].append(nearest_mean_accuracy(x, y, train, test))
        ratio = len(test) / len(train)
        count += is_called_different({name: np.array(values) for name, values in accuracies.items()}, ratio)
    assert count <= MOST


def test_the_uncorrected_t_test_fails_on_splits_that_overlap() -> None:
    """What the correction is for; the simulation above has the power to see its absence."""
    rng = np.random.default_rng(0)
    y, count = np.arange(60) % 2, 0
    for _ in range(100):
        x = rng.standard_normal((2, 60, 4)) + 0.6 * (y[:, None] - 0.5)
        splits = [stratified_split(y, 0.5, rng) for _ in range(LOOKS[-1])]
        both = [[nearest_mean_accuracy(one, y, *split) for split in splits] for one in x]
        count += bool(stats.ttest_rel(*both).pvalue < 0.05)
    assert count > 25


def test_an_equal_method_among_different_ones() -> None:
    """Holm's levels grow when other methods are set aside, and that costs the equal one nothing."""
    rng = np.random.default_rng(3)
    count = 0
    for _ in range(COMPARISONS):
        scores = {name: rng.standard_normal(LOOKS[-1]) for name in names(3)}
        scores["method 1"] += 30.0
        scores["method 2"] -= 30.0
        for index, seeds in enumerate(LOOKS):
            seen = {name: Scores(values[:seeds]) for name, values in scores.items()}
            equal = compare_methods(seen, baseline="plain", margin=0.0, look=index, looks=LOOKS)["method 0"]
            if equal.low > 0 or equal.high < 0:
                count += 1
                break
    assert count <= MOST


def test_the_percentile_bootstrap_fails_with_few_seeds() -> None:
    """Why it is not used: at one look, for one method, it calls equal methods different in more than 10 %."""
    rng = np.random.default_rng(4)
    for seeds in (3, 5):
        differences = rng.standard_normal((COMPARISONS, seeds))
        means = differences[:, rng.integers(0, seeds, (1000, seeds))].mean(2)
        low, high = np.quantile(means, [0.025, 0.975], axis=1)
        assert np.count_nonzero((low > 0) | (high < 0)) > 0.1 * COMPARISONS
