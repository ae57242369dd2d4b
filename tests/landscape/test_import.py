"""hf_fam.landscape is imported on demand, and brings only torch."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"scipy", "matplotlib", "transformers", "sklearn", "pandas", "evaluate", "peft"}


PROGRAM = """
import sys, torch, torch.nn.attention
import hf_fam
assert not {name for name in sys.modules if name.startswith("hf_fam.landscape")}
before = set(sys.modules)  # what torch itself loads does not count
import hf_fam.landscape
print(*set(sys.modules) - before)
"""


def test_it_stays_light() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "hf_fam.landscape" in loaded and not HEAVY & loaded
