"""Nothing in the tests reaches for the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

# The networks are tiny, and threads that wait for each other on a busy machine cost far more than they give.
torch.set_num_threads(1)


# What `make check` runs: the tests of the rooms, one training, and one family of models for each kind of input.
ROOMS = {
    *("calculus", "layer", "flatness", "processes", "measure", "methods", "frozen", "compare", "landscape", "gan"),
    *("classifier", "cli"),
}
# Whole comparisons and commands in processes of their own take too long for it.
LONG = (
    "tests/cli/test_compare_command.py", "tests/cli/test_remote_code.py", "tests/cli/test_stopping.py",
    "tests/cli/test_train_command.py",
    "tests/compare/test_compare.py", "tests/compare/test_equal_methods.py",
)  # fmt: skip
TRAINING = "tests/train/test_lifecycle.py::test_best_model_is_loaded_at_the_end"
FAMILIES = tuple(
    f"[{model}"
    for model in (
        "BertForSequenceClassification-sequence", "LlamaForCausalLM", "T5ForConditionalGeneration",
        "ViTForImageClassification", "ResNetForImageClassification", "Wav2Vec2ForSequenceClassification",
    )
)  # fmt: skip


def is_unit_test(item: pytest.Item) -> bool:
    """Whether `make check` runs a test."""
    folder, path = item.path.parent.name, item.nodeid.split("::")[0]
    of_family = path == "tests/families/test_training.py" and item.nodeid.endswith("-auto]")
    return (
        (folder in {*ROOMS, "tests"} and path not in LONG)
        or path.startswith("hf_fam/")
        or item.nodeid == TRAINING
        or (of_family and any(name in item.nodeid for name in FAMILIES))
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_unit_test(item) and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.unit)


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps the mixed precision of the first Accelerator for the whole process."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()
