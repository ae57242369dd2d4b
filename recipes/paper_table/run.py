"""The image rows of the FAM paper's table: the image recipe, with the networks that transformers does not have.

accelerate launch recipes/paper_table/run.py recipes/paper_table/cifar10/fam.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import networks

from hf_fam.recipes.image_classification import main as train_image_classifier

MODELS = Path("recipes", "paper_table", "models")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the recipe; the metrics."""
    if not MODELS.is_dir():
        raise ValueError(f"start this from the root of the repository: its configurations name folders in '{MODELS}'.")
    networks.register()
    return train_image_classifier(argv)


if __name__ == "__main__":
    main()
