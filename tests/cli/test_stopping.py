"""What ends a command early is one sentence: Ctrl-C, a lack of memory, a process that was not started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("peft")
pytest.importorskip("pytorch_optimizer")

from safetensors.torch import load_file

from hf_fam.cli import main as cli
from hf_fam.recipes.common.interruption import stopped
from hf_fam.recipes.common.launching import number_of_processes, refuse_lost_processes
from support.launch import ROOT
from support.tiny_recipes import encoder, text_files

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    model = encoder(tmp_path / "model")
    files = text_files(tmp_path, lambda n: ("yes", "no")[n * n % 3 == 1])
    return ["train", "text_classification", "--train_file", files["train_file"], "--model_name_or_path", model,
            "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), "--use_cpu",
            "--disable_tqdm", "True", "--logging_steps", "10"]  # fmt: skip


def heed_interrupts() -> None:
    """A process that a shell has started in the background passes on that it ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command that gets Ctrl-C when its training logs."""
    process = subprocess.Popen([sys.executable, "-u", "-m", "hf_fam", *words], cwd=folder, env=ENVIRONMENT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_interrupts)  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "fam_kappa" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(words, process.returncode, "".join(lines) + out, err)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole group")
def test_ctrl_c_saves_and_says_how_to_go_on(words: list[str], tmp_path: Path) -> None:
    """The stopped and resumed training is the uninterrupted one."""
    steps = ["--max_steps", "400", "--save_strategy", "no", "--learning_rate", "1e-3"]
    result = interrupted([*words, *steps], tmp_path)
    assert result.returncode == 130 and "Traceback" not in result.stderr
    first, command = result.stderr.rstrip().splitlines()[-2:]
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    step = int(checkpoint.name.partition("-")[2])
    assert first == f"Stopped at step {step}; resume with" and 0 < step < 400
    assert command.strip().startswith("hf-fam train text_classification") and command.endswith("from_checkpoint last")
    again = [sys.executable, "-m", "hf_fam", *words, *steps]
    subprocess.run([*again, "--resume_from_checkpoint", "last"], env=ENVIRONMENT, check=True, capture_output=True)
    whole = tmp_path / "whole"
    subprocess.run([*again, "--output_dir", str(whole)], env=ENVIRONMENT, check=True, capture_output=True)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("change", ["schedule", "model"])
def test_a_checkpoint_of_another_training(
    words: list[str], tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]
    first = ["--lr_milestones", ".5"] if change == "schedule" else []
    assert cli.main([*words, *steps, *first]) == 0
    other = [] if change == "schedule" else ["--model_name_or_path", encoder(tmp_path / "other", hidden_size=32)]
    capsys.readouterr()
    status = cli.main([*words, *steps, *other, "--max_steps", "4", "--resume_from_checkpoint", "last"])
    said = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert status == 1 and said.startswith("hf-fam train: --resume_from_checkpoint='"), said
    assert said.endswith("give the flags of the training that saved it, or another --output_dir.")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole group")
def test_ctrl_c_before_the_training(words: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "hf_fam", *words], cwd=tmp_path, env=ENVIRONMENT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_interrupts)  # fmt: skip
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    # A shell shows 130 for both. Python chooses the signal if it was in an exec().
    assert process.returncode in (130, -signal.SIGINT)
    assert err.rstrip().splitlines()[-1] == "hf-fam train: stopped."


def test_without_a_checkpoint(tmp_path: Path) -> None:
    assert stopped(7, str(tmp_path)) == "Stopped at step 7; no checkpoint was saved, so the same command starts again."


def test_several_processes_resume_by_their_launcher(tmp_path: Path) -> None:
    """They stop at once, and the process does not know the command of its launcher."""
    model = encoder(tmp_path / "out" / "checkpoint-4")
    (Path(model) / "trainer_state.json").write_text('{"global_step": 4}')
    torch.save({}, Path(model) / "optimizer.pt")
    torch.save({}, Path(model) / "scheduler.pt")
    argv = ["hf_fam/__main__.py", "train", "text_classification"]
    alone, several = (stopped(7, str(tmp_path / "out"), argv, processes=n) for n in (1, 2))
    assert alone.splitlines()[1].strip() == "hf-fam train text_classification --resume_from_checkpoint last"
    assert several == (
        "Stopped at step 7, at once, as several processes do. Resume from checkpoint-4 by the same launch with "
        "--resume_from_checkpoint last."
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "the GPU is out of memory: halve"),
     (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
      "this machine is out of memory: halve"),
     (MemoryError(), "this machine is out of memory: halve")],
)  # fmt: skip
def test_out_of_memory(
    error: BaseException,
    said: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("hf_fam.recipes.text_classification.finetune", fail)
    assert cli.main(words) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"hf-fam train: {said} --per_device_train_batch_size")


def test_other_errors_are_not_hidden(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("hf_fam.recipes.text_classification.finetune", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        cli.main(words)


def test_accelerate_launch_that_starts_one_process_of_two(words: list[str], tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"]
    result = subprocess.run([*launch, "-m", "hf_fam", *words, "--max_steps", "1"], env=ENVIRONMENT, text=True,
                            capture_output=True, cwd=tmp_path)  # fmt: skip
    if torch.cuda.is_available():
        pytest.skip("with GPUs it starts two")
    assert result.returncode != 0 and not (tmp_path / "out").exists()
    said = next(line for line in result.stderr.splitlines() if line.startswith("hf-fam train:"))
    assert "was asked for 2 processes and started one" in said and "torchrun --nproc_per_node 2" in said
    assert "hf_fam train" not in said  # the refusal is that of `hf-fam compare`, too


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_what_it_says_instead_starts_two(words: list[str], tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "hf_fam"]
    result = subprocess.run([*launch, *words, "--max_steps", "1"], env=ENVIRONMENT, text=True, capture_output=True,
                            cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert "2 processes" in result.stdout


def test_launchers_that_are_no_problem(tmp_path: Path) -> None:
    refuse_lost_processes(["bash"], {})
    refuse_lost_processes(["accelerate", "launch", "--num_processes", "1", "x.py"], {})
    refuse_lost_processes(["accelerate", "launch", "--num_processes", "2", "x.py"], {"WORLD_SIZE": "2"})
    refuse_lost_processes(["accelerate", "test", "--num_processes", "2"], {})
    file = tmp_path / "two.yaml"
    file.write_text("num_processes: 2\n")
    assert number_of_processes(["accelerate", "launch", "--config-file", str(file), "x.py"]) == 2
    with pytest.raises(ValueError, match="asked for 2 processes"):
        refuse_lost_processes(["python", "/usr/bin/accelerate", "launch", f"--config_file={file}", "x.py"], {})
