"""Which checkpoint to resume from: the newest one that is whole.

A process that is killed while it saves leaves a checkpoint without all its files. All processes see the same folder, so
they decide alike.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

_NAME = re.compile(r"checkpoint-(\d+)")

# The Trainer writes this file last.
_STATE = "trainer_state.json"

# Weights of a model, of an adapter, or of one part of them.
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")

# The first bytes of what torch.save writes: a zip archive, or the pickle of old versions.
_ARCHIVE, _PICKLE = b"PK", b"\x80"


def checkpoint_to_resume(trainer: Any, resume_from_checkpoint: Any) -> Any:
    """Return the checkpoint that ``Trainer.train(resume_from_checkpoint=...)`` should load, and warn of what it lacks.

    Args:
        trainer: a Trainer.
        resume_from_checkpoint: argument of ``Trainer.train``: True for the newest checkpoint, a folder, or None.

    Returns:
        A folder, or the argument itself if there is nothing to resolve.

    Raises:
        ValueError: the checkpoint is damaged; the message names the file.
    """
    if not resume_from_checkpoint:
        return resume_from_checkpoint
    trainer.accelerator.wait_for_everyone()  # one process may still be saving the newest checkpoint
    checkpoint = _resolve(resume_from_checkpoint, str(trainer.args.output_dir))
    if isinstance(checkpoint, (str, Path)) and not trainer.is_deepspeed_enabled:
        warn_of_missing_states(trainer, Path(checkpoint))
    return checkpoint


def _resolve(resume_from_checkpoint: Any, output_dir: str) -> Any:
    if resume_from_checkpoint is True:
        return newest_whole_checkpoint(output_dir) or resume_from_checkpoint
    if isinstance(resume_from_checkpoint, (str, Path)):
        problem = problem_of_checkpoint(Path(resume_from_checkpoint))
        if problem is not None:
            raise ValueError(
                f"resume_from_checkpoint='{resume_from_checkpoint}' {problem}: give another checkpoint, or True for "
                "the newest whole one."
            )
    return resume_from_checkpoint


def newest_whole_checkpoint(output_dir: str | Path, *, warn: bool = True) -> str | None:
    """Return the newest checkpoint that is whole, or None without any checkpoint.

    Args:
        output_dir: folder that contains ``checkpoint-...`` folders.
        warn: warn about newer checkpoints that are not whole.

    Raises:
        ValueError: none of the checkpoints is whole.
    """
    folder, damaged = Path(output_dir), list[str]()
    paths = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    for path in sorted(paths, key=lambda path: int(path.name.partition("-")[2]), reverse=True):
        problem = problem_of_checkpoint(path)
        if problem is None:
            if damaged and warn:
                warnings.warn(f"{'; '.join(damaged)}: resuming from {path.name} instead.", stacklevel=3)
            return str(path)
        damaged.append(f"{path.name} {problem}")
    if damaged:
        raise ValueError(f"output_dir='{folder}' contains no whole checkpoint: {'; '.join(damaged)}.")
    return None


def resume_hint(output_dir: str | Path) -> str:
    """Return the sentence that says how to resume; empty without a whole checkpoint."""
    try:
        checkpoint = newest_whole_checkpoint(output_dir, warn=False)
    except ValueError:
        checkpoint = None
    return f" {Path(checkpoint).name} is usable: resume with resume_from_checkpoint=True." if checkpoint else ""


def problem_of_checkpoint(folder: Path) -> str | None:
    """Return why training cannot be resumed from a checkpoint, or None if it can.

    The contents of the files are not read, only their sizes and structure.

    Args:
        folder: folder of the checkpoint.

    Examples:
        >>> problem_of_checkpoint(Path("nowhere"))
        'is no folder'
    """
    if not folder.is_dir():
        return "is no folder"
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"has no {_STATE}"
    except ValueError:
        state = None
    if not isinstance(state, dict):
        return f"has a damaged {_STATE}"
    for path in sorted(folder.glob("*")):
        if path.is_file() and _is_damaged(path):
            return f"has a damaged {path.name}"
    for index in folder.glob("*.index.json"):
        files = {str(name) for name in json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()}
        missing = sorted(name for name in files if not (folder / name).is_file())
        if missing:
            return f"has no {missing[0]}"
    has_weights = any(True for pattern in _WEIGHTS for _ in folder.glob(pattern))
    # Some arrangements write weights into folders: several adapters, sharded models.
    if not has_weights and not any(path.is_dir() for path in folder.iterdir()):
        return "has no weights"
    return None


def warn_of_missing_states(trainer: Any, folder: Path) -> None:
    """Warn if a resumed training will differ from an uninterrupted one, because a file is missing.

    The Trainer goes on without a word.

    Args:
        trainer: the ``Trainer`` that resumes.
        folder: folder of the checkpoint.
    """
    args = trainer.args
    has_optimizer = any(folder.glob("optimizer*"))  # FSDP writes a folder, or a file of another name
    names = ["scheduler.pt", f"rng_state_{args.process_index}.pth" if args.world_size > 1 else "rng_state.pth"]
    names += [] if trainer.accelerator.scaler is None else ["scaler.pt"]
    missing = [name for name in names if not (folder / name).is_file()]
    missing = missing if has_optimizer else ["optimizer.pt", *missing]
    if missing:
        warnings.warn(
            f"{folder.name} has no {', '.join(missing)}: what the missing files contain starts anew, so this training "
            "will differ from an uninterrupted one.",
            stacklevel=3,
        )


def _is_damaged(path: Path) -> bool:
    """Return True for a file of tensors, or an index of them, that cannot be read to its end."""
    if path.suffix == ".safetensors":
        return not _is_whole_safetensors(path)
    if path.name.endswith(".index.json"):
        try:
            return not isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        except ValueError:
            return True
    if path.suffix not in (".pt", ".pth", ".bin") or path.name == "training_args.bin":  # which is not resumed from
        return False
    with path.open("rb") as file:
        start = file.read(2)
    return not (zipfile.is_zipfile(path) if start == _ARCHIVE else start[:1] == _PICKLE)


def _is_whole_safetensors(path: Path) -> bool:
    """Return True if a file is as long as its header says."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= size - 8:
                return False
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, AttributeError, LookupError, TypeError):
        return False
    return size == 8 + length + max(ends, default=0)
