"""Walk between random codes of a small WGAN-LP on FashionMNIST by every method, and judge the walks.

    python recipes/gan_interpolation/run.py --data_dir fashion_mnist --seed 0 --output recipes/gan_interpolation/results
    python recipes/gan_interpolation/report.py

``--data_dir`` holds the four files of FashionMNIST (train-images-idx3-ubyte.gz ...). One run trains the GAN and the
judge, walks between 50 pairs of codes and writes seed-0.json; ``--strips`` also draws the first pairs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from experiment.data import fashion_mnist
from experiment.judging import Jury
from experiment.networks import codes
from experiment.paths import METHODS, Settings, measured, walk
from experiment.strips import draw
from experiment.training import train_gan, train_judge


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    settings = Settings(**{name: getattr(options, name) for name in vars(Settings())})
    (images, labels), (test_images, test_labels) = fashion_mnist(options.data_dir)
    jury = Jury(train_judge(images, labels, options.judge_epochs, options.seed), test_images, test_labels)
    print(f"judge: accuracy {jury.accuracy:.3f}", flush=True)
    gan = train_gan(images, options.gan_steps, options.seed)
    random = torch.Generator().manual_seed(2000 + options.seed)
    z0, z1 = codes(options.pairs, random), codes(options.pairs, random)
    with torch.no_grad():
        made = gan.generator(codes(1000, random))
    paths = walk(gan.generator, gan.critic, z0, z1, settings)
    content = {
        "seed": options.seed,
        "settings": vars(settings) | {"gan_steps": options.gan_steps, "judge_epochs": options.judge_epochs},
        "versions": {"torch": torch.__version__},
        "estimate": gan.estimate,
        "violation": gan.violation,
        "judge_accuracy": jury.accuracy,
        "generated": {
            "mean_distance": float(jury.distance(made).mean()),
            "mean_confidence": float(jury.confidence(made).mean()),
        },
        "measures": {method: rounded(measured(paths[method], gan.critic, jury)) for method in METHODS},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"seed-{options.seed}.json").write_text(one_line_a_measure(content))
    if options.strips:
        draw(paths, options.strips)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("out/gan_interpolation"))
    parser.add_argument("--strips", type=Path, help="draw the walks between the first pairs into this file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--gan_steps", type=int, default=1500, help="of the generator (default: %(default)s)")
    parser.add_argument("--judge_epochs", type=int, default=2)
    for name, value in vars(Settings()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args(arguments)


def rounded(measures: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {name: [float(f"{value:.6g}") for value in values.tolist()] for name, values in measures.items()}


def one_line_a_measure(content: dict[str, Any]) -> str:
    rows = [
        f'  "{method}": {{\n' + ",\n".join(f'   "{name}": {values}' for name, values in measures.items()) + "\n  }"
        for method, measures in content["measures"].items()
    ]
    head = json.dumps({key: value for key, value in content.items() if key != "measures"}, indent=1)
    return head.removesuffix("\n}") + ',\n "measures": {\n' + ",\n".join(rows) + "\n }\n}\n"


if __name__ == "__main__":
    main()
