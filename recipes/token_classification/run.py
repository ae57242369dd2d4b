"""Fine-tune a classifier of words, on a data set of the Hub or on your own files.

accelerate launch recipes/token_classification/run.py recipes/token_classification/fam.yaml
"""

from hf_fam.recipes.token_classification import main

if __name__ == "__main__":
    main()
