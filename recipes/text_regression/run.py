"""Fine-tune a model that predicts a number for texts: STS-B, or your own files.

accelerate launch recipes/text_regression/run.py recipes/text_regression/fam.yaml
"""

from hf_fam.recipes.text_regression import main

if __name__ == "__main__":
    main()
