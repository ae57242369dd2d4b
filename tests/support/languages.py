"""A tiny tokenizer and texts for it, for trainers that tokenize themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from support.tiny import VOCABULARY, tiny_bert

_SPECIAL = ["<pad>", "<eos>", "<unk>"]
WORDS = [f"w{k}" for k in range(VOCABULARY - len(_SPECIAL))]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, as many as the tiny models have."""
    numbers = {word: k for k, word in enumerate([*_SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=16
    )


def sentence(start: int, length: int) -> str:
    """Words that follow from a number, with a space in front, so that texts can be joined."""
    return "".join(f" {WORDS[(7 * start + 11 * k * k) % len(WORDS)]}" for k in range(length))


def sentences(count: int = 12) -> dict[str, list[Any]]:
    """Texts of several lengths, in a column."""
    return {"text": [sentence(n, 4 + n % 3) for n in range(count)]}


def completions(count: int = 12) -> dict[str, list[Any]]:
    """Prompts with completions, whose tokens alone count."""
    return {
        "prompt": [sentence(n, 3) for n in range(count)],
        "completion": [sentence(n + 5, 2 + n % 3) for n in range(count)],
    }


def preferences(count: int = 12) -> dict[str, list[Any]]:
    """Prompts with a chosen and a rejected answer."""
    rejected = [sentence(n + 9, 3 + n % 2) for n in range(count)]
    answered = completions(count)
    return {"prompt": answered["prompt"], "chosen": answered["completion"], "rejected": rejected}


def pairs(count: int = 12) -> dict[str, list[Any]]:
    """Texts that belong together."""
    anchors, positives = ([sentence(n + k, 3 + n % 2) for n in range(count)] for k in (0, 5))
    return {"anchor": anchors, "positive": positives}


def saved(path: Path, model: Any) -> str:
    """A folder with a model and the tokenizer, for libraries that load both themselves."""
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def tiny_embedder(path: Path) -> Any:
    """A SentenceTransformer of eight dimensions, with attention that has a second derivative."""
    from sentence_transformers import SentenceTransformer, models

    small = {"hidden_size": 8, "intermediate_size": 8, "initializer_range": 0.5, "attn_implementation": "eager"}
    words = models.Transformer(saved(path / "embedder", tiny_bert(dropout=0.0, **small).bert))
    return SentenceTransformer(modules=[words, models.Pooling(8)], device="cpu")
