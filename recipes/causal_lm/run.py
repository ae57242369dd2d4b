"""Fine-tune a language model, with LoRA adapters or as a whole.

accelerate launch recipes/causal_lm/run.py recipes/causal_lm/fam.yaml --train_file mine.jsonl
"""

from hf_fam.recipes.causal_lm import main

if __name__ == "__main__":
    main()
