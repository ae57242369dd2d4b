"""The image rows of the FAM paper's table: the image recipe, with the networks that transformers does not have.

accelerate launch recipes/paper_table/run.py recipes/paper_table/cifar10/fam.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

from recipes.image_classification import run as images
from recipes.paper_table import networks

MODELS = Path("recipes", "paper_table", "models")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the recipe; the metrics."""
    if not MODELS.is_dir():
        raise ValueError(f"start this from the root of the repository: its configurations name folders in '{MODELS}'.")
    networks.register()
    return images.main(argv)


if __name__ == "__main__":
    main()
