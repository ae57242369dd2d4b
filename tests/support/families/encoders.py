"""BERT and what came after it."""

from __future__ import annotations

import torch

from .case import (
    CLASSES,
    ITEMS,
    TOKENS,
    VOCABULARY,
    WIDTH,
    Case,
    Refusal,
    Sizes,
    batch_of,
    classes,
    masked_language_model,
    positions,
    tokens,
)

SEQUENCE = batch_of(input_ids=tokens, labels=classes)
TOKEN = batch_of(input_ids=tokens, labels=lambda: classes(ITEMS, TOKENS))
ANSWER = batch_of(input_ids=tokens, start_positions=positions, end_positions=positions)
CHOICE = batch_of(input_ids=lambda: tokens(ITEMS, 2, TOKENS), labels=lambda: torch.randint(0, 2, (ITEMS,)))
SEVERAL = batch_of(input_ids=tokens, labels=lambda: torch.rand(ITEMS, CLASSES).round())
NUMBER = batch_of(input_ids=tokens, labels=lambda: torch.rand(ITEMS))
REPLACED = batch_of(input_ids=tokens, labels=lambda: torch.randint(0, 2, (ITEMS, TOKENS)))


def pretraining(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**masked_language_model(model), "next_sentence_label": torch.randint(0, 2, (ITEMS,))}


COUPLED = {"head_estimator": "hessian"}
SPANS = {**COUPLED, "note": "softmax over positions: no closed form"}
CHOICES = {**COUPLED, "note": "softmax over the choices: no closed form"}

ENCODER: Sizes = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 16,
    "num_labels": CLASSES,
}
SPAN = {**ENCODER, "num_labels": 2}
ROBERTA = {**ENCODER, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
DEBERTA = {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": WIDTH}
MODERN = {**ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
DISTIL: Sizes = {
    "vocab_size": VOCABULARY,
    "dim": WIDTH,
    "n_layers": 1,
    "n_heads": 2,
    "hidden_dim": WIDTH,
    "max_position_embeddings": 16,
    "num_labels": CLASSES,
}
ELECTRA = {**ENCODER, "embedding_size": WIDTH}
ALBERT = {**ELECTRA, "num_hidden_layers": 2}
MOBILE = {**ELECTRA, "hidden_size": 2 * WIDTH, "intra_bottleneck_size": 2 * WIDTH, "num_feedforward_networks": 1}
LONGFORMER = {**ROBERTA, "attention_window": 4, "max_position_embeddings": 20}

NOT_CALLED = Refusal("the head's layer is never called, its weight is used elsewhere", "was not called in the forward")

OUTPUT = "encoder.layer.0.output.dense"

ENCODERS = [
    Case(
        "BertForSequenceClassification", "sequence classification", ENCODER, SEQUENCE, "classifier", "bert.pooler.dense"
    ),
    Case(
        "BertForSequenceClassification",
        "multi-label classification",
        {**ENCODER, "problem_type": "multi_label_classification"},
        SEVERAL,
        "classifier",
        "bert.pooler.dense",
    ),
    Case(
        "BertForSequenceClassification",
        "regression",
        {**ENCODER, "num_labels": 1},
        NUMBER,
        "classifier",
        "bert.pooler.dense",
    ),
    Case("BertForTokenClassification", "token classification", ENCODER, TOKEN, "classifier", f"bert.{OUTPUT}"),
    Case("BertForQuestionAnswering", "question answering", SPAN, ANSWER, "qa_outputs", f"bert.{OUTPUT}", **SPANS),
    Case("BertForMultipleChoice", "multiple choice", ENCODER, CHOICE, "classifier", "bert.pooler.dense", **CHOICES),
    Case(
        "BertForMaskedLM",
        "masked LM",
        ENCODER,
        masked_language_model,
        "cls.predictions.decoder",
        "cls.predictions.transform.dense",
    ),
    Case(
        "BertForPreTraining",
        "masked LM and next sentence",
        ENCODER,
        pretraining,
        "cls.predictions.decoder",
        "cls.predictions.transform.dense",
        note="of the two heads, the language model's",
    ),
    Case(
        "RobertaForSequenceClassification",
        "sequence classification",
        ROBERTA,
        SEQUENCE,
        "classifier.out_proj",
        "classifier.dense",
    ),
    Case(
        "XLMRobertaForSequenceClassification",
        "sequence classification",
        ROBERTA,
        SEQUENCE,
        "classifier.out_proj",
        "classifier.dense",
    ),
    Case("XLMRobertaForTokenClassification", "token classification", ROBERTA, TOKEN, "classifier", f"roberta.{OUTPUT}"),
    Case(
        "DebertaV2ForSequenceClassification",
        "sequence classification",
        DEBERTA,
        SEQUENCE,
        "classifier",
        "pooler.dense",
    ),
    Case("DebertaV2ForMultipleChoice", "multiple choice", DEBERTA, CHOICE, "classifier", "pooler.dense", **CHOICES),
    Case("DebertaV2ForTokenClassification", "token classification", DEBERTA, TOKEN, "classifier", f"deberta.{OUTPUT}"),
    Case(
        "ModernBertForSequenceClassification", "sequence classification", MODERN, SEQUENCE, "classifier", "head.dense"
    ),
    Case("ModernBertForMaskedLM", "masked LM", MODERN, masked_language_model, "decoder", "head.dense"),
    Case(
        "NomicBertForTokenClassification",
        "token classification",
        {**MODERN, "num_key_value_heads": 2},
        TOKEN,
        "classifier",
        "nomic_bert.layers.0.mlp.down_proj",
    ),
    Case(
        "DistilBertForSequenceClassification",
        "sequence classification",
        DISTIL,
        SEQUENCE,
        "classifier",
        "pre_classifier",
    ),
    Case(
        "DistilBertForQuestionAnswering",
        "question answering",
        {**DISTIL, "num_labels": 2},
        ANSWER,
        "qa_outputs",
        "distilbert.transformer.layer.0.ffn.lin2",
        **SPANS,
    ),
    Case(
        "ElectraForSequenceClassification",
        "sequence classification",
        ELECTRA,
        SEQUENCE,
        "classifier.out_proj",
        "classifier.dense",
    ),
    Case(
        "ElectraForMaskedLM",
        "masked LM",
        ELECTRA,
        masked_language_model,
        "generator_lm_head",
        "generator_predictions.dense",
    ),
    Case(
        "ElectraForPreTraining",
        "replaced token detection",
        ELECTRA,
        REPLACED,
        "discriminator_predictions.dense_prediction",
        "discriminator_predictions.dense",
    ),
    Case("AlbertForSequenceClassification", "sequence classification", ALBERT, SEQUENCE, "classifier", "albert.pooler"),
    Case(
        "AlbertForTokenClassification",
        "token classification",
        {**ALBERT, "attn_implementation": "eager"},
        TOKEN,
        "classifier",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output",
        note="one block for all layers, so that the representation lies below attention: eager",
    ),
    Case(
        "MPNetForSequenceClassification",
        "sequence classification",
        ROBERTA,
        SEQUENCE,
        "classifier.out_proj",
        "classifier.dense",
    ),
    Case("MPNetForMaskedLM", "masked LM", ROBERTA, masked_language_model, "lm_head.decoder", "lm_head.dense"),
    Case(
        "LongformerForSequenceClassification",
        "sequence classification",
        LONGFORMER,
        SEQUENCE,
        "classifier.out_proj",
        "classifier.dense",
    ),
    Case(
        "MobileBertForMaskedLM",
        "masked LM",
        MOBILE,
        masked_language_model,
        "cls.predictions.decoder",
        "cls.predictions.dense",
        refused={"auto": NOT_CALLED, "representation": NOT_CALLED},
        note='cls.predictions.transform.dense, with "hessian"',
        instead={"fam_layer": "cls.predictions.transform.dense", "fam_estimator": "hessian"},
    ),
]
