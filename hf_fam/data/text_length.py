"""How many tokens a model takes."""

from __future__ import annotations

from typing import Any

from torch import nn

# Texts are cut here by default, if nothing says how long those of the training were.
USUAL_LENGTH = 512


def longest_text(model: nn.Module) -> int | None:
    """Return the number of tokens that a model has positions for, or None if it takes texts of any length.

    Args:
        model: a transformers model.

    Examples:
        >>> from transformers import RobertaConfig, RobertaModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> longest_text(
        ...     RobertaModel(RobertaConfig(vocab_size=50, max_position_embeddings=34, pad_token_id=1, **sizes))
        ... )
        32
    """
    config: Any = getattr(model, "config", None)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    return positions - _reserved_positions(model) if isinstance(positions, int) and positions > 0 else None


def usual_length(model: nn.Module, tokenizer: Any) -> int:
    """Return the number of tokens after which texts are cut by default.

    ``hf-fam train`` saves the number of the training as the tokenizer's ``model_max_length``.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.

    Examples:
        >>> from types import SimpleNamespace
        >>> usual_length(nn.Linear(1, 1), SimpleNamespace(model_max_length=128))
        128
    """
    return min(longest_text(model) or USUAL_LENGTH, tokenizer.model_max_length or USUAL_LENGTH, USUAL_LENGTH)


def _reserved_positions(model: nn.Module) -> int:
    """Return the number of positions before the first token's; RoBERTa counts from behind the padding."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0
