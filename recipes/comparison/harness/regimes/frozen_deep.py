"""A head of three layers on frozen sentence embeddings: layers of different numbers of features in one network."""

from __future__ import annotations

from pathlib import Path

from ..methods import Method
from ..tasks import Split
from . import frozen_mlp
from .frozen_mlp import Settings
from .outcome import Outcome

__all__ = ["Settings", "run"]


def run(split: Split, settings: Settings, method: Method, seed: int, cache: Path) -> Outcome:
    """384-width-width-classes with tanh on the embeddings of `frozen_mlp`."""
    return frozen_mlp.fit(split, settings, method, seed, cache, hidden=2)
