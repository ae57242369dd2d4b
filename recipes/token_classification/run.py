"""Fine-tune a classifier of words, on a data set of the Hub or on your own files.

accelerate launch recipes/token_classification/run.py recipes/token_classification/fam.yaml
"""

import sys

from hf_fam.cli.main import main
from hf_fam.processes.leaving import run_and_leave

if __name__ == "__main__":
    run_and_leave(lambda: main(["train", "token_classification", *sys.argv[1:]]))
