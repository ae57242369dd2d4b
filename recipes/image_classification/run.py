"""Fine-tune an image classifier, on a data set by name or on a folder of images.

accelerate launch recipes/image_classification/run.py recipes/image_classification/fam.yaml --train_dir my_images
"""

import sys

from hf_fam.cli.main import main
from hf_fam.processes.leaving import run_and_leave

if __name__ == "__main__":
    run_and_leave(lambda: main(["train", "image_classification", *sys.argv[1:]]))
