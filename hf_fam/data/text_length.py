"""How many tokens a model takes."""

from __future__ import annotations

from typing import Any

from torch import nn


def longest_text(model: nn.Module, tokenizer: Any) -> int | None:
    """Return the number of tokens that a model has positions for, or None if it is not known.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.

    Examples:
        >>> from types import SimpleNamespace
        >>> from transformers import RobertaConfig, RobertaModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> model = RobertaModel(RobertaConfig(vocab_size=50, max_position_embeddings=34, pad_token_id=1, **sizes))
        >>> longest_text(model, SimpleNamespace(model_max_length=10**30))
        32
    """
    config: Any = getattr(model, "config", None)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    if not isinstance(positions, int) or positions < 1:
        positions = None
    else:
        positions -= _reserved_positions(model)
    # Tokenizers without a limit have a huge one.
    limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < 10**9]
    return min(limits) if limits else None


def _reserved_positions(model: nn.Module) -> int:
    """Return the number of positions before the first token's; RoBERTa counts from behind the padding."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0
