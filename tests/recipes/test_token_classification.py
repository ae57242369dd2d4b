"""The loss of the token classification recipe is the mean over the labeled words of a step."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers.trainer_pt_utils import LabelSmoother

pytest.importorskip("datasets")

from hf_fam.recipes.token_classification import mean_over_words, token_labels

ITEMS, LENGTH, CLASSES = 6, 5, 4


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float32, as the recipe takes them, and labels of which every row has another number."""
    labels = torch.randint(CLASSES, (ITEMS, LENGTH))
    for k in range(ITEMS):
        labels[k, : k % LENGTH] = -100
    return torch.randn(ITEMS, LENGTH, CLASSES), labels


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_of_one_batch(smoothing: float) -> None:
    logits, labels = drawn()
    found = mean_over_words({"logits": logits}, labels, smoothing=smoothing)
    torch.testing.assert_close(found, LabelSmoother(smoothing)({"logits": logits}, labels))
    if not smoothing:
        torch.testing.assert_close(found, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_of_a_batch_in_parts() -> None:
    """Unequal parts, one of them without a label, add up to the whole, gradients too."""
    logits, labels = drawn()
    labels[-1] = -100
    logits.requires_grad_()
    number = (labels != -100).sum()
    whole = mean_over_words({"logits": logits}, labels, number)
    parts = [mean_over_words({"logits": logits[a:b]}, labels[a:b], number) for a, b in ((0, 1), (1, 5), (5, 6))]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (sum(parts), whole)))


def test_labels_of_a_text_without_tokens() -> None:
    assert token_labels([], [], label_all=False) == []
    assert token_labels([None, 0, 0, 1, None], [5, 6], label_all=False) == [-100, 5, -100, 6, -100]
