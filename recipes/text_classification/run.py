"""Fine-tune a text classifier on a GLUE task, or on your own files.

accelerate launch recipes/text_classification/run.py recipes/text_classification/fam.yaml --task_name rte
"""

from hf_fam.recipes.text_classification import main

if __name__ == "__main__":
    main()
