"""Language models, with a decoder alone or with an encoder too."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import (
    CLASSES,
    ITEMS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    Case,
    Sizes,
    batch_of,
    classes,
    language_model,
    tokens,
)
from .encoders import ANSWER, ENCODER, SEQUENCE, SPANS, TOKEN

TRANSLATION = batch_of(input_ids=tokens, labels=lambda: tokens(ITEMS, 4))

DOWN = "model.layers.0.mlp.down_proj"
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

GPT2: Sizes = {
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": 1,
    "n_head": 2,
    "n_inner": WIDTH,
    "n_positions": 16,
    "num_labels": CLASSES,
    **SPECIAL,
}
DECODER = {**ENCODER, **SPECIAL, "num_key_value_heads": 1}
GEMMA = {**DECODER, "head_dim": 4}
MIXTRAL = {**DECODER, "num_local_experts": 2, "output_router_logits": True}
QWEN_MOE = {
    **DECODER,
    "num_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": WIDTH,
    "shared_expert_intermediate_size": WIDTH,
    "output_router_logits": True,
}
MAMBA: Sizes = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "state_size": 4,
    "expand": 1,
    "conv_kernel": 2,
    "time_step_rank": 2,
    **SPECIAL,
}
OPT: Sizes = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "max_position_embeddings": 16,
    **SPECIAL,
}
BLOOM: Sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 1, "n_head": 2, **SPECIAL}
T5: Sizes = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "d_ff": WIDTH,
    "d_kv": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "num_labels": CLASSES,
}
SEQ2SEQ: Sizes = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": WIDTH,
    "decoder_ffn_dim": WIDTH,
    "max_position_embeddings": 16,
    "num_labels": CLASSES,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **SPECIAL,
}


def ending_with(token: int) -> Tensor:
    """Texts whose last token, and no other, ends them."""
    return torch.cat([tokens(ITEMS, TOKENS - 1), torch.full((ITEMS, 1), token)], dim=1)


def causal(model: str, sizes: Sizes, representation: str = DOWN, **more: object) -> Case:
    """A causal language model whose head is called lm_head."""
    return Case(model, "causal LM", sizes, language_model, "lm_head", representation, **more)


AUXILIARY = "the router's loss is no part of Gauss-Newton"
CONV1D_LAYER = "transformer.h.0.mlp.c_proj"

LANGUAGE_MODELS = [
    causal("GPT2LMHeadModel", GPT2, CONV1D_LAYER),
    Case(
        "GPT2ForSequenceClassification",
        "sequence classification",
        GPT2,
        SEQUENCE,
        "score",
        CONV1D_LAYER,
    ),
    causal("LlamaForCausalLM", DECODER),
    Case("LlamaForSequenceClassification", "sequence classification", DECODER, SEQUENCE, "score", DOWN),
    Case(
        "LlamaForQuestionAnswering",
        "question answering",
        {**DECODER, "num_labels": 2},
        ANSWER,
        "qa_outputs",
        "transformer.layers.0.mlp.down_proj",
        **SPANS,
    ),
    causal("MistralForCausalLM", DECODER),
    causal("Qwen2ForCausalLM", {**DECODER, "tie_word_embeddings": True}, note="tied"),
    Case("Qwen3ForTokenClassification", "token classification", GEMMA, TOKEN, "score", DOWN),
    causal("GemmaForCausalLM", GEMMA, note="tied"),
    causal("Gemma2ForCausalLM", GEMMA, head_estimator="hessian", note="capped logits: no closed form"),
    causal("PhiForCausalLM", {**DECODER, "num_key_value_heads": 2}, "model.layers.0.mlp.fc2"),
    causal("OlmoForCausalLM", DECODER),
    causal("Olmo2ForCausalLM", DECODER),
    causal(
        "MixtralForCausalLM", MIXTRAL, "model.layers.0.self_attn.o_proj", note=f"experts are no layers; {AUXILIARY}"
    ),
    causal("Qwen2MoeForCausalLM", QWEN_MOE, "model.layers.0.mlp.shared_expert.down_proj"),
    causal("MambaForCausalLM", MAMBA, "backbone.layers.0.mixer.out_proj"),
    causal("OPTForCausalLM", OPT, "model.decoder.layers.0.fc2"),
    causal("BloomForCausalLM", BLOOM, "transformer.h.0.mlp.dense_4h_to_h"),
    Case(
        "T5ForConditionalGeneration",
        "seq2seq LM",
        T5,
        TRANSLATION,
        "lm_head",
        "decoder.block.0.layer.2.DenseReluDense.wo",
    ),
    Case(
        "T5ForSequenceClassification",
        "sequence classification",
        T5,
        batch_of(input_ids=lambda: ending_with(1), labels=classes),
        "classification_head.out_proj",
        "classification_head.dense",
    ),
    Case("BartForConditionalGeneration", "seq2seq LM", SEQ2SEQ, TRANSLATION, "lm_head", "model.decoder.layers.0.fc2"),
    Case(
        "BartForSequenceClassification",
        "sequence classification",
        SEQ2SEQ,
        batch_of(input_ids=lambda: ending_with(2), labels=classes),
        "classification_head.out_proj",
        "classification_head.dense",
    ),
]
