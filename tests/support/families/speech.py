"""Sound."""

from __future__ import annotations

import torch
from torch import nn

from .case import CLASSES, ITEMS, SOUND, VOCABULARY, WIDTH, Batch, Case, Refusal, Sizes, batch_of, classes, tokens
from .language import SEQ2SEQ
from .vision import CLASSIFIER


def waves() -> torch.Tensor:
    return torch.randn(ITEMS, SOUND)


WAV2VEC2: Sizes = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": WIDTH,
    "conv_dim": (WIDTH, WIDTH),
    "conv_kernel": (10, 8),
    "conv_stride": (5, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_labels": CLASSES,
    "classifier_proj_size": WIDTH,
    "apply_spec_augment": False,
    "layerdrop": 0.0,
}
CTC = {**WAV2VEC2, "pad_token_id": 0, "ctc_loss_reduction": "mean", "ctc_zero_infinity": True}
WHISPER = {
    **SEQ2SEQ,
    "num_mel_bins": 4,
    "max_source_positions": 6,
    "max_target_positions": 16,
    "classifier_proj_size": WIDTH,
}
AST = {**CLASSIFIER, "num_mel_bins": 16, "max_length": 24, "frequency_stride": 8, "time_stride": 8}

SOUNDS = batch_of(input_values=waves, labels=classes)


def spectrogram(model: nn.Module) -> torch.Tensor:
    return torch.randn(ITEMS, model.config.num_mel_bins, 2 * model.config.max_source_positions)


def transcription(model: nn.Module) -> Batch:
    return {"input_features": spectrogram(model), "labels": tokens(ITEMS, 4)}


def spoken_class(model: nn.Module) -> Batch:
    return {"input_features": spectrogram(model), "labels": classes()}


def classification(model: str) -> Case:
    """Speech classification by the mean of the frames."""
    return Case(model, "speech classification", WAV2VEC2, SOUNDS, "classifier", "projector")


NO_SECOND_DERIVATIVE = Refusal("CTC's loss has no second derivative", "_ctc_loss_backward is not implemented")

SPEECH = [
    classification("Wav2Vec2ForSequenceClassification"),
    Case(
        "Wav2Vec2ForCTC",
        "speech recognition (CTC)",
        CTC,
        batch_of(input_values=waves, labels=lambda: tokens(ITEMS, 3)),
        "lm_head",
        "wav2vec2.encoder.layers.0.feed_forward.output_dense",
        refused={"auto": NO_SECOND_DERIVATIVE, "representation": NO_SECOND_DERIVATIVE},
        note='"perturbation" works',
        instead={"fam_estimator": "perturbation"},
    ),
    classification("HubertForSequenceClassification"),
    classification("WavLMForSequenceClassification"),
    Case(
        "WhisperForConditionalGeneration",
        "speech recognition (seq2seq)",
        WHISPER,
        transcription,
        "proj_out",
        "model.decoder.layers.0.fc2",
    ),
    Case("WhisperForAudioClassification", "speech classification", WHISPER, spoken_class, "classifier", "projector"),
    Case(
        "ASTForAudioClassification",
        "audio classification",
        AST,
        batch_of(input_values=lambda: torch.randn(ITEMS, 24, 16), labels=classes),
        "classifier.dense",
        "audio_spectrogram_transformer.layers.0.mlp.fc2",
    ),
]
