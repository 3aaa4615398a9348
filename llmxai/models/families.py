"""What kind of model it is: what it reads, and what it answers with."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)


class ModelKind(StrEnum):
    """`causal`: tokens, one after the other, each from all before it. `classifier`: one of a few classes for a text.

    `encoder-decoder`: tokens, one after the other, each from a source that is read whole and from all before it.
    """

    CAUSAL = "causal"
    CLASSIFIER = "classifier"
    ENCODER_DECODER = "encoder-decoder"


AUTO: dict[ModelKind, Any] = {
    ModelKind.CAUSAL: AutoModelForCausalLM,
    ModelKind.CLASSIFIER: AutoModelForSequenceClassification,
    ModelKind.ENCODER_DECODER: AutoModelForSeq2SeqLM,
}
"""What transformers loads a kind with."""


def kind_of(model: PreTrainedModel) -> ModelKind:
    """The kind of a model in memory, from its class."""
    if type(model).__name__ == class_for(ModelKind.CLASSIFIER, model.config):
        return ModelKind.CLASSIFIER
    if getattr(model.config, "is_encoder_decoder", False):
        return ModelKind.ENCODER_DECODER
    return ModelKind.CAUSAL


def class_for(kind: ModelKind, config: PreTrainedConfig) -> str | None:
    """The name of the class that a configuration's models of this kind have; None where there is none."""
    found = AUTO[kind]._model_mapping.get(type(config), None)
    return None if found is None else str((found[0] if isinstance(found, tuple) else found).__name__)
