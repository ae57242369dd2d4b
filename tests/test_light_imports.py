"""hf_fam.gan and hf_fam.landscape are imported on demand, and bring only torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"scipy", "matplotlib", "transformers", "accelerate", "sklearn", "pandas", "evaluate", "peft"}

PROGRAM = """
import sys, torch, torch.nn.attention
import hf_fam
assert not {{name for name in sys.modules if name.startswith("{package}")}}
before = set(sys.modules)  # what torch itself loads does not count
import {package}
print(*set(sys.modules) - before)
"""


@pytest.mark.parametrize("package", ["hf_fam.gan", "hf_fam.landscape"])
def test_it_stays_light(package: str) -> None:
    program = PROGRAM.format(package=package)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert package in loaded and not HEAVY & loaded
