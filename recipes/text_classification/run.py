"""Fine-tune a text classifier on a GLUE task, or on your own files.

accelerate launch recipes/text_classification/run.py recipes/text_classification/fam.yaml --task_name rte
"""

import sys

from hf_fam.cli.main import main
from hf_fam.processes.leaving import run_and_leave

if __name__ == "__main__":
    run_and_leave(lambda: main(["train", "text_classification", *sys.argv[1:]]))
