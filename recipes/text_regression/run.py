"""Fine-tune a model that gives texts or pairs of texts a number: STS-B, or files of one's own.

accelerate launch recipes/text_regression/run.py recipes/text_regression/fam.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

# do_regression in the configurations makes it one, as labels of type float do.
from recipes.text_classification.run import main

if __name__ == "__main__":
    main()
