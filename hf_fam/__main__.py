"""``python -m hf_fam`` is ``hf-fam``; ``accelerate launch -m hf_fam`` is hf-fam in several processes."""

from .cli.main import main
from .processes.leaving import run_and_leave


def run() -> None:
    """Run the command, and end this process with its status."""
    run_and_leave(main)


if __name__ == "__main__":
    run()
