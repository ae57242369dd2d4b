"""Find a setting of `interpolate` that an independent judge prefers to the straight line.

    python recipes/gan_interpolation/choose.py --data_dir fashion_mnist --seed 0 \
        --output recipes/gan_interpolation/results --strips docs/img/gan_interpolation_choice.png
    python recipes/gan_interpolation/choose.py --data_dir fashion_mnist --seed 0 --decoder convolutional \
        --output recipes/gan_interpolation/results --strips docs/img/gan_interpolation_strong.png
    python recipes/gan_interpolation/choice_report.py

The first 28,000 training images train the autoencoder and the scorers. The next 2,000 are the ends of the paths. The
other 30,000 train the judge's networks, and the test images are the judge's real samples. For each scorer, the energy
and h are those whose smallest gain, of the judge's six scores, is largest on 30 pairs. The table is that of 100 other
pairs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from experiment.convolutional import train_convolutional_vae
from experiment.data import fashion_mnist
from experiment.scorers import Scorer, on_lines, scorers
from experiment.strips import draw
from experiment.training import train_judge
from experiment.vae import LATENT, Autoencoder, train_autoencoder, train_vae
from torch import Tensor

from hf_fam.gan import Interpolation, PathComparison, RealismJudge, SamplePath, frechet_distance, interpolate

ENERGIES = (("disc", 0.0), ("critic", 0.2), ("critic", 1.0), ("conformal", 4.0))
SEARCH: dict[str, Any] = {"points": 10, "degree": 4, "learning_rate": 0.03}
DECODERS = {"perceptron": train_vae, "convolutional": train_convolutional_vae}
# The rest is the default of `interpolate`.
DEFAULT: dict[str, Any] = {"energy": "critic"}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    (images, labels), (test_images, _) = fashion_mnist(options.data_dir)
    share = len(images) * 28 // 60, len(images) // 2
    seed, random = options.seed, torch.Generator().manual_seed(options.seed)
    judge_images = images[share[1] :]
    network = train_judge(judge_images, labels[share[1] :], options.judge_epochs, seed)
    rebuild = train_autoencoder(judge_images, options.epochs, 2000 + seed)
    vae = DECODERS[options.decoder](images[: share[0]], options.epochs, seed)
    codes = vae.codes(images[: share[0]])
    with torch.no_grad():
        reference = torch.cat([vae.decoder(part) for part in codes.split(1000)])
        generated = vae.decoder(torch.randn(options.samples, LATENT, generator=random))
        lines = vae.decoder(on_lines(codes, options.samples, random))
    judge = RealismJudge(
        test_images, features=network.features, classifier=network, generated=generated, autoencoder=rebuild
    )
    quality = strength(vae, network.features, images[share[0] : share[1]], test_images, generated)
    print(f"networks are trained: {quality}", flush=True)
    guides = scorers(
        images[: share[0]], labels[: share[0]], reference, generated, lines, options.steps, options.epochs // 2, seed
    )
    ends = vae.codes(images[share[0] : share[1]])[torch.randperm(share[1] - share[0], generator=random)]
    starts, goals = ends[0::2], ends[1::2]
    fresh = slice(options.pairs_to_choose, options.pairs_to_choose + options.pairs)
    calibration = on_lines(codes, 2048, random)
    walk = Walk(vae, judge, calibration, options.search_steps)
    content: dict[str, Any] = {
        "seed": seed,
        "versions": {"torch": torch.__version__},
        "generator": quality,
        "known": known_samples(vae, judge, images[share[0] : share[1]], ends, generated, random),
        "chosen": {},
        "methods": {},
    }
    pictures: dict[str, SamplePath] = {}
    default = walk.compare(starts[fresh], goals[fresh], guides["critic"], DEFAULT, as_default=True)
    found, compared = default
    for name, path in (("linear in sample", found.linear_in_sample), ("slerp", found.slerp)):
        content["methods"][name] = summary(judge.compare(path, found.linear))
    content["methods"]["pullback"] = summary(walk.compare(starts[fresh], goals[fresh], None, {"energy": "pullback"})[1])
    content["methods"]["critic, default settings"] = summary(compared)
    pictures |= {"linear": found.linear, "default": found}
    for name, scorer in guides.items():
        tried = {}
        for energy, h in ENERGIES:
            _, compared = walk.compare(starts[: fresh.start], goals[: fresh.start], scorer, {"energy": energy, "h": h})
            tried[energy, h] = min(difference.mean for difference in compared.mean.values())
        energy, h = max(tried, key=lambda setting: tried[setting])
        found, compared = walk.compare(starts[fresh], goals[fresh], scorer, {"energy": energy, "h": h})
        content["chosen"][name] = {"energy": energy, "h": h, "smallest_gain": round(tried[energy, h], 4)}
        content["methods"][name] = summary(compared)
        print(f"{name}: {energy}, h = {h:g}\n{compared}", flush=True)
    pictures["RealismScorer"] = found
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"choice-{options.decoder}-seed-{seed}.json").write_text(json.dumps(content, indent=1) + "\n")
    if options.strips:
        draw(pictures, options.strips)


class Walk:
    """Finds paths between codes, and compares them with straight lines."""

    def __init__(self, vae: Autoencoder, judge: RealismJudge, calibration: Tensor, steps: int) -> None:
        self.vae, self.judge, self.calibration, self.steps = vae, judge, calibration, steps

    def compare(
        self, starts: Tensor, goals: Tensor, scorer: Scorer | None, setting: dict[str, Any], as_default: bool = False
    ) -> tuple[Interpolation, PathComparison]:
        """Paths between codes, and what the judge says of them."""
        search = {} if as_default else {**SEARCH, "steps": self.steps, "calibration": self.calibration}
        found = interpolate(self.vae.decoder, starts, goals, scorer=scorer, **search, **setting)
        return found, self.judge.compare(found)


@torch.no_grad()
def strength(
    vae: Autoencoder, features: Callable[[Tensor], Tensor], images: Tensor, test_images: Tensor, generated: Tensor
) -> dict[str, float]:
    """How good the generator is: smaller is better. Distances are between features, from test images."""

    def rows(samples: Tensor) -> Tensor:
        return torch.cat([features(part) for part in samples.split(500)])

    codes = vae.codes(images)
    middles = (codes[0 : len(codes) // 2] + codes[len(codes) // 2 :]) / 2
    made = torch.cat([vae.decoder(part) for part in codes.split(500)])
    real = rows(test_images)
    distances = {
        "reconstructions": frechet_distance(real, rows(made)),
        "random codes": frechet_distance(real, rows(generated)),
        "middles of straight lines": frechet_distance(real, rows(vae.decoder(middles))),
        "real images": frechet_distance(real, rows(images)),
    }
    error = float((made - images).square().mean().sqrt())
    return {"error of reconstructions": round(error, 4)} | {name: round(value, 2) for name, value in distances.items()}


def known_samples(
    vae: Autoencoder, judge: RealismJudge, images: Tensor, codes: Tensor, generated: Tensor, random: torch.Generator
) -> dict[str, dict[str, float]]:
    """What the judge says of images of which it is known how good they are: the mean of each score."""
    count = min(500, len(images) // 2)
    with torch.no_grad():
        kinds = {
            "real images": images[:count],
            "their reconstructions": vae.decoder(vae.codes(images[:count])),
            "random codes": generated[:count],
            "middles of straight lines": vae.decoder(on_lines(codes, count, random, 0.5, 0.5)),
            "middles of cross-fades": (images[:count] + images[count : 2 * count]) / 2,
            "real images with noise": images[:count] + 0.3 * torch.randn(images[:count].shape, generator=random),
        }
    return {
        kind: {name: round(float(values.mean()), 3) for name, values in judge(samples).items()}
        for kind, samples in kinds.items()
    }


def summary(compared: PathComparison) -> dict[str, dict[str, list[float]]]:
    """Mean, lower and upper end of the interval, for each score."""
    return {
        kind: {name: [round(value, 4) for value in (each.mean, each.low, each.high)] for name, each in part.items()}
        for kind, part in (("mean", compared.mean), ("worst", compared.worst))
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("out/gan_interpolation"))
    parser.add_argument("--strips", type=Path, help="draw the paths between the first pairs into this file")
    parser.add_argument("--decoder", choices=DECODERS, default="perceptron")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=100, help="that are compared (default: %(default)s)")
    parser.add_argument("--pairs_to_choose", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=12, help="of the autoencoders (default: %(default)s)")
    parser.add_argument("--judge_epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600, help="of a discriminator (default: %(default)s)")
    parser.add_argument("--search_steps", type=int, default=80, help="of Adam on a path (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=4000, help="generated for discriminators")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
