"""Estimates of representativeness from training items, beside a test set, scipy's density and the released code.

    git clone https://github.com/kampmichael/RelativeFlatnessAndGeneralization
    pip install KDEpy
    python recipes/digits/representativeness.py --output docs/generated/representativeness.md \\
        --released RelativeFlatnessAndGeneralization/SyntheticExperiments

Every estimate uses the same features, folds, predictor and loss. Features are those of a network that was trained on
the same items, of one that was trained on other items, and of an untrained one. Without ``--released``, the column of
the released code is computed by its formula; with it, the code itself runs, and must agree with the formula.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from network import digits, network, trained
from scipy.stats import gaussian_kde
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torch.utils.data import TensorDataset

from hf_fam.measure.feature_density import log_kernel_density
from hf_fam.measure.representativeness import gap_of_features

DELTAS = (0.1, 0.3, 1.0)
SAMPLES = 20


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/representativeness.md"))
    parser.add_argument("--released", type=Path, help="folder with the released interpolatingness.py")
    parser.add_argument("--items", type=int, default=300, help="how many digits to train on (default: 300)")
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args(arguments)
    data = digits()
    # The file is sorted by writer, so its parts differ; a random order makes them samples of one distribution.
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    middle = (options.items + len(data)) // 2
    part, others, test = (
        TensorDataset(*(t[order[k]] for t in data.tensors))
        for k in (slice(options.items), slice(options.items, middle), slice(middle, None))
    )
    networks = {
        "trained on the same items": trained(part, nn.Tanh),
        "trained on other items": trained(others, nn.Tanh),
        "untrained": network(nn.Tanh),
    }
    losses, densities = [], []
    for name, model in networks.items():
        with torch.no_grad():
            x, test_x = (model[:4](d.tensors[0]).numpy() for d in (part, test))
        y, test_y = (d.tensors[1].numpy() for d in (part, test))
        losses += [[name, *row] for row in compared(x, y, test_x, test_y, options)]
        densities.append([name, *density_row(x, y, options.folds)])
    text = f"{options.items} training items, {len(test)} test items, {options.folds} folds, 32 features.\n\n"
    text += table(
        ["features", "δ", "with a test set", "hf_fam, training items", "± s.e.", "kernels of scipy", "released code"],
        losses,
    )
    text += "\n\nMean log density of held-out items:\n\n"
    text += table(["features", *(f"hf_fam, δ = {d:g}" for d in DELTAS), "scipy"], densities)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head)]
    lines += [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def compared(
    x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, options: argparse.Namespace
) -> list[list[Any]]:
    """Return delta and the estimates, for every delta."""
    result = gap_of_features(x, y, DELTAS, folds=options.folds, samples=SAMPLES)
    whole = Predictor(x, y)
    held_out_loss = whole.losses(test_x, test_y).mean()
    rows = []
    for k, delta in enumerate(DELTAS):
        widths = delta * np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(x.shape[1])
        with_test = held_out_loss - whole.losses_around(x, y, lambda noise, w=widths: w * noise)
        by_scipy, by_release = [], []
        for train, held_out in splits(x, y, options.folds):
            psi = Predictor(x[train], y[train])
            loss = psi.losses(x[held_out], y[held_out]).mean()
            # scipy's kernels have the covariance of all features, and its own bandwidth; delta does not enter.
            root = np.linalg.cholesky(gaussian_kde(x[train].T).covariance)
            by_scipy.append(loss - psi.losses_around(x[train], y[train], lambda noise, r=root: noise @ r.T))
            by_release.append(released(x, y, train, held_out, psi, delta, options.released))
        ours, error = result.representativeness[k], result.standard_errors[k]
        rows.append([f"{delta:g}", with_test, ours, error, float(np.mean(by_scipy)), float(np.mean(by_release))])
    return rows


def density_row(x: np.ndarray, y: np.ndarray, folds: int) -> list[float]:
    """Return the mean log density of held-out items: with a bandwidth for each item, and scipy's."""
    found: list[list[float]] = []
    for train, held_out in splits(x, y, folds):
        widths = torch.from_numpy(np.linalg.norm(x[train], axis=1) / np.sqrt(x.shape[1]))
        points, centers = torch.from_numpy(x[held_out]), torch.from_numpy(x[train])
        ours = [log_kernel_density(points, centers, delta * widths).mean().item() for delta in DELTAS]
        found.append([*ours, float(gaussian_kde(x[train].T).logpdf(x[held_out].T).mean())])
    return np.mean(found, axis=0).tolist()


def splits(x: np.ndarray, y: np.ndarray, folds: int) -> Any:
    """Return the folds of `gap_of_features`."""
    return StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y)


class Predictor:
    """Logistic regression that the released code can call for one item at a time."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        fitted = LogisticRegression(max_iter=1000).fit(x, y)
        self.weight, self.bias = fitted.coef_, fitted.intercept_

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return log-probabilities, shape ``(items, classes)``."""
        z = x @ self.weight.T + self.bias
        z = z - z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    def losses(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return -self.predict(x)[np.arange(len(x)), y]

    def losses_around(self, x: np.ndarray, y: np.ndarray, change: Any) -> float:
        """Return the mean loss under random changes of the features, each with both signs."""
        generator = np.random.default_rng(0)
        noise = [change(generator.standard_normal(x.shape)) for _ in range(SAMPLES)]
        return float(np.mean([self.losses(x + sign * n, y).mean() for n in noise for sign in (1, -1)]))


def released(
    x: np.ndarray,
    y: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    psi: Predictor,
    delta: float,
    folder: Path | None,
) -> float:
    """Return the released estimate of one fold.

    delta ||phi_i|| is a weight there, and weights are divided by their sum, so delta cancels. The kernel has the
    bandwidth 1 and takes the square root of the distance. The sum over the items is divided by their number.
    """
    weights = np.linalg.norm(x[train], axis=1)
    distances = np.sqrt(np.linalg.norm(x[held_out, None] - x[None, train], axis=2))
    kernels = weights / weights.sum() * np.exp(-(distances**2) / 2) / np.sqrt(2 * np.pi)
    predictions = psi.predict(x[train])
    under_kernels = (kernels * -predictions[:, y[held_out]].T).sum(1) / len(train)
    estimate = float((psi.losses(x[held_out], y[held_out]) - under_kernels).mean())
    if folder is not None:
        sys.path.insert(0, str(folder))
        from interpolatingness import approximateIntViaVKDE_singleRound

        def loss(label: int, prediction: np.ndarray) -> np.ndarray:
            return -prediction[:, label]

        theirs = approximateIntViaVKDE_singleRound(x[train], y[train], x[held_out], y[held_out], psi, delta, loss)
        if not np.isclose(theirs, estimate, rtol=1e-8):
            raise SystemExit(f"the released code returns {theirs}, its formula {estimate}")
    return estimate


if __name__ == "__main__":
    main()
