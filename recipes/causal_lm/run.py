"""Fine-tune a language model, with LoRA adapters or as a whole.

accelerate launch recipes/causal_lm/run.py recipes/causal_lm/fam.yaml --train_file mine.jsonl
"""

import sys

from hf_fam.cli.main import main
from hf_fam.processes.leaving import run_and_leave

if __name__ == "__main__":
    run_and_leave(lambda: main(["train", "causal_lm", *sys.argv[1:]]))
