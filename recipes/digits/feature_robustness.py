"""The loss rises under feature perturbations as kappa predicts, until higher orders matter.

    python recipes/digits/feature_robustness.py --output docs/img/feature-robustness.png

Trains a small tanh network on scikit-learn's digits for a few seconds and perturbs the features of its second layer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from network import digits, loss_fn, trained
from torch import nn

from hf_fam.measure.robustness import feature_robustness

DELTAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/feature-robustness.png"))
    parser.add_argument("--items", type=int, default=1797, help="how many digits to use (default: all)")
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    data = digits(options.items)
    curve = feature_robustness(trained(data, nn.Tanh), data, "second", DELTAS, loss_fn=loss_fn, batch_size=500)
    print(curve)
    curve.plot(options.output)


if __name__ == "__main__":
    main()
