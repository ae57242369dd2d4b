"""The configurations of accelerate: all are understood, those for the CPU start as many processes as they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from support.launch import CONFIGS, ROOT, launch

LAUNCHER = {  # what accelerate has to make of each: started processes, and which launcher starts them
    "single_cpu.yaml": (1, None),
    "single_gpu.yaml": (1, None),
    "ddp.yaml": (2, "multi_gpu"),
    "ddp_cpu.yaml": (2, "multi_gpu"),
    "fsdp2.yaml": (2, "use_fsdp"),
    "deepspeed_zero2.yaml": (2, "use_deepspeed"),
    "deepspeed_zero3.yaml": (2, "use_deepspeed"),
}


def test_every_configuration_is_listed_here() -> None:
    assert {path.name for path in CONFIGS.glob("*.yaml")} == set(LAUNCHER)
    documented = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    assert [name for name in LAUNCHER if f"| `{name}` |" not in documented] == []


@pytest.mark.parametrize("name", LAUNCHER)
def test_accelerate_understands_the_configuration(name: str) -> None:
    processes, launcher = LAUNCHER[name]
    path = CONFIGS / name
    config = load_config_from_file(str(path))  # refuses unknown keys
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(path), "train.py"]))
    assert args.num_processes == config.num_processes == processes
    chosen = [key for key in ("multi_gpu", "use_fsdp", "use_deepspeed", "tpu") if getattr(args, key)]
    assert chosen == ([launcher] if launcher else [])
    assert args.use_cpu == ("cpu" in name)
    # Nobody ran it on a GPU, and the file says so.
    assert ("not tested" in path.read_text(encoding="utf-8").lower()) == ("cpu" not in name)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("name", ["single_cpu.yaml", "ddp_cpu.yaml"])
def test_as_many_processes_start_as_the_file_says(tmp_path: Path, name: str) -> None:
    script = tmp_path / "count.py"
    script.write_text(
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator(cpu=True)\n"
        "print(f'[{accelerator.process_index} of {accelerator.num_processes} on {accelerator.device.type}]')\n"
        "accelerator.end_training()\n"
    )
    count = LAUNCHER[name][0]
    said = re.findall(r"\[(\d) of (\d) on (\w+)\]", launch(script, config=name))
    assert sorted(said) == [(str(k), str(count), "cpu") for k in range(count)]
