"""Fine-tune a model that predicts a number for texts: STS-B, or your own files.

accelerate launch recipes/text_regression/run.py recipes/text_regression/fam.yaml
"""

import sys

from hf_fam.cli.main import main
from hf_fam.processes.leaving import run_and_leave

if __name__ == "__main__":
    run_and_leave(lambda: main(["train", "text_regression", *sys.argv[1:]]))
