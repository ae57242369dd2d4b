"""Importing hf_fam is quick, and brings nothing that plots, tabulates or scores."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"matplotlib", "scipy", "sklearn", "evaluate", "pandas", "peft", "datasets"}


def loaded(program: str) -> set[str]:
    """The packages that a program says it has loaded."""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_the_package_itself_loads_no_other() -> None:
    packages = loaded("import sys, hf_fam; print(*{name.partition('.')[0] for name in sys.modules})")
    assert "hf_fam" in packages
    assert not (HEAVY | {"torch", "transformers", "numpy"}) & packages


def test_its_names_load_what_the_trainer_loads() -> None:
    """transformers loads some of these itself where they are installed, which is not our business."""
    packages = loaded(
        "import sys, transformers, transformers.trainer, transformers.trainer_seq2seq, torch.nn.attention\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "from hf_fam import *\n"
        "assert 'hf_fam.train.trainer' in sys.modules and 'hf_fam.measure' in sys.modules\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - before)"
    )
    assert "hf_fam" in packages and not HEAVY & packages
