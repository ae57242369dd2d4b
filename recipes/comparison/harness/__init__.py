"""One protocol for every method: tasks, regimes (how a model is trained) and methods, each in a place of its own."""

import sys
from pathlib import Path

# The SAM that is compared is the one of the recipes.
sys.path.append(str(Path(__file__).parents[3]))
