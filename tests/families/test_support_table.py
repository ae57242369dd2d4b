"""docs/generated/support.md says what hf_fam does."""

from __future__ import annotations

from pathlib import Path

from support.families import CASES
from support.support_table import support_table

TABLE = Path(__file__).parents[2] / "docs" / "generated" / "support.md"


def test_table_is_what_the_cases_generate() -> None:
    assert TABLE.read_text(encoding="utf-8") == support_table(), "run `make tables`"


def test_every_family_that_was_promised_is_there() -> None:
    """Those that issue 3 lists."""
    promised = """
        Bert Roberta DebertaV2 ModernBert DistilBert Electra Albert T5 Bart GPT2 Llama Qwen2 Gemma Mixtral Mamba
        ViT DeiT Swin ConvNext ResNet Dinov2 Beit Segformer Wav2Vec2 Whisper CLIP
    """
    models = [case.model for case in CASES]
    assert [name for name in promised.split() if not any(model.startswith(name) for model in models)] == []
