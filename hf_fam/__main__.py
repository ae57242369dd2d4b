"""``python -m hf_fam`` is ``hf-fam``; ``accelerate launch -m hf_fam`` is hf-fam in several processes."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
