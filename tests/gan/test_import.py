"""hf_fam.gan is imported on demand, and brings only torch."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"scipy", "matplotlib", "transformers", "accelerate", "sklearn", "pandas", "evaluate", "peft"}

PROGRAM = """
import sys, torch, torch.nn.attention
import hf_fam
assert not {name for name in sys.modules if name.startswith("hf_fam.gan")}
before = set(sys.modules)  # what torch itself loads does not count
import hf_fam.gan
print(*set(sys.modules) - before)
"""


def test_it_stays_light() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "hf_fam.gan" in loaded and not HEAVY & loaded
