"""One table of facts about model families, and the kinds of models.

A new family usually needs no row: transformers provides most facts. A row holds what the configuration does not say.
docs/add-a-family.md shows an example.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)


class ModelKind(StrEnum):
    """`causal`: generates tokens one by one, each from all before it. `classifier`: assigns a text one of some classes.

    `encoder-decoder`: generates tokens one by one, each from a complete source and from all before it.
    """

    CAUSAL = "causal"
    CLASSIFIER = "classifier"
    ENCODER_DECODER = "encoder-decoder"


@dataclass(frozen=True)
class Family:
    """Facts that the configuration of a family does not provide. The defaults are right for Llama and most others."""

    norms: int = 2
    """Norms per layer: two, before or after its blocks; four if there are both."""
    experts_keep: int | None = None
    """Tensors of the width of the experts' inner layer kept for the backward pass; None: as for the activation."""
    own_maps: int = 0
    """Maps of all heads that a layer keeps for the backward pass if it has its own attention code."""
    attention_adds_residual: bool = False
    """Whether the attention module returns its output with the residual stream added to it."""
    recurrent: bool = False
    """Whether every layer keeps a recurrent state, in a configuration without `layer_types`."""
    tables: tuple[str, ...] = ()
    """Names of modules that embed token ids a second time, after the input embedding; at most one per model."""


PER_LAYER = ("embed_tokens_per_layer",)

FAMILIES: dict[str, Family] = {
    "bloom": Family(own_maps=1, attention_adds_residual=True),
    "falcon": Family(own_maps=1),
    "gemma2": Family(norms=4),
    "gemma3_text": Family(norms=4),
    "gemma3n_text": Family(tables=PER_LAYER),
    "gemma4_text": Family(tables=PER_LAYER),
    "glm4": Family(norms=4),
    "gpt_oss": Family(experts_keep=6),
    "rwkv": Family(recurrent=True),
}
"""By the `model_type` of a configuration, or of its text part in a multimodal one."""


def in_windows(text: PreTrainedConfig) -> bool:
    """Whether layers attend within a window, by the fields of configurations that do not say it layer by layer."""
    return bool(getattr(text, "sliding_window", None)) and bool(getattr(text, "use_sliding_window", True))


SOFTMAX_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Entries of a configuration's `layer_types` for layers that mix tokens by softmax attention alone."""
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "Wo")
"""Names of the linear map that follows attention."""
SCORE_BIAS = "position_bias"
"""The attention argument with one number per query and key (T5 and its relatives)."""
KEPT_BY_ACTIVATION = {
    **dict.fromkeys(("silu", "swish", "gelu_pytorch_tanh"), 3),  # used with a gate, which is kept as well
    **dict.fromkeys(("gelu_new", "gelu_accurate", "gelu_python_tanh"), 4),
    **{"gelu_fast": 7, "gelu_python": 3, "quick_gelu": 2},
}
"""Tensors of the width of the inner layer kept for the backward pass, if more than one: an activation function that is
written in elementary operations keeps the input of each."""
AUTO_CLASSES: dict[ModelKind, Any] = {
    ModelKind.CAUSAL: AutoModelForCausalLM,
    ModelKind.CLASSIFIER: AutoModelForSequenceClassification,
    ModelKind.ENCODER_DECODER: AutoModelForSeq2SeqLM,
}
"""The Auto class of each kind."""
GENERATING = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM)
"""Those that load a causal model: one that also takes pictures or sound may be known to the others alone."""


def family_of(config: PreTrainedConfig) -> Family:
    """The row of a model's (text) configuration."""
    return FAMILIES.get(config.get_text_config().model_type, Family())


def field_of(config: PreTrainedConfig, name: str, default: Any = None) -> Any:
    """A field of a configuration; of one whose layers differ in it, the largest layer's."""
    try:
        return getattr(config, name, default)
    except RuntimeError:  # transformers' AmbiguousGlobalPerLayerAttributeError
        values = [getattr(layer, name, None) for layer in config.per_layer_config]
        return max((value for value in values if isinstance(value, int)), default=default)


def residual_multiplier(config: PreTrainedConfig) -> float:
    """The factor on a block's output before it is added to the residual stream (Granite); else 1."""
    return float(getattr(config.get_text_config(), "residual_multiplier", 1.0))


def kind_of(model: PreTrainedModel) -> ModelKind:
    """The kind of a model in memory, from its class."""
    if type(model).__name__ in classes_for(AUTO_CLASSES[ModelKind.CLASSIFIER], model.config):
        return ModelKind.CLASSIFIER
    if getattr(model.config, "is_encoder_decoder", False):
        return ModelKind.ENCODER_DECODER
    return ModelKind.CAUSAL


def classes_for(auto: Any, config: PreTrainedConfig) -> frozenset[str]:
    """The names of the classes that an Auto class makes from a configuration; none where it makes none."""
    found = auto._model_mapping.get(type(config), ())
    return frozenset(each.__name__ for each in (found if isinstance(found, tuple) else (found,)))


def auto_class(kind: ModelKind, config: PreTrainedConfig) -> Any:
    """The Auto class that loads a configuration's models of a kind."""
    if kind is not ModelKind.CAUSAL:
        return AUTO_CLASSES[kind]
    return next((auto for auto in GENERATING if type(config) in auto._model_mapping), AutoModelForCausalLM)


def layers_without_softmax(config: PreTrainedConfig) -> Counter[str]:
    """The number of layers of each type that mix tokens by something other than softmax attention alone."""
    text = config.get_text_config()
    if (types := getattr(text, "layer_types", None)) is not None:
        return Counter(kind for kind in types if kind not in SOFTMAX_LAYERS)
    if family_of(config).recurrent or field_of(text, "num_attention_heads") is None:  # Mamba, FNet
        return Counter(
            {"linear_attention" if family_of(config).recurrent else "attention-free": text.num_hidden_layers}
        )
    return Counter()


def rollout_refusal(config: PreTrainedConfig) -> str | None:
    """Why attention rollout is not defined for a model; None if it is."""
    return softmax_refusal(config, what="attention rollout")


def softmax_refusal(config: PreTrainedConfig, *, what: str) -> str | None:
    """Why a method based on softmax attention is not defined for a model; None if it is."""
    others = layers_without_softmax(config)
    if not others:
        return None
    kinds = " and ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    return (
        f"{others.total()} of its {config.get_text_config().num_hidden_layers} layers have no softmax attention or mix "
        f"tokens by something else as well ({kinds}), so {what} is not defined for it; integrated gradients "
        f"are."
    )
