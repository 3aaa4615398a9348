"""From a name to the folder that transformers reads, and the kind of model that it holds; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from llmxai.errors import ModelLoadError, UnsupportedModelError
from llmxai.models._reasons import not_found
from llmxai.models.embedded import EMBEDDED, dequantised_folder, embedded_gguf, file_digest
from llmxai.models.kinds import Kind, class_for


@dataclass(frozen=True)
class FoundModel:
    """Where a model is and what kind it is."""

    name: str
    """As it was asked for."""
    place: str
    """What transformers shall read from."""
    digest: str | None
    """SHA-256 of the file behind it, where it is one file."""
    config: PreTrainedConfig
    kind: Kind


def find_model(name_or_path: str | Path, *, revision: str | None = None) -> FoundModel:
    """Raises ModelLoadError where there is no such model, UnsupportedModelError where it is of no known kind."""
    name = str(name_or_path)
    place, digest = _resolve(name)
    config = _config(place, name=name, revision=revision)
    return FoundModel(name=name, place=place, digest=digest, config=config, kind=_kind(config, name=name))


def _resolve(name: str) -> tuple[str, str | None]:
    if name == EMBEDDED:
        gguf = embedded_gguf()
    elif name.endswith(".gguf"):
        gguf = Path(name)
        if not gguf.is_file():
            raise ModelLoadError(f"{name}: no such file. Give the path of a .gguf file, or `{EMBEDDED}`.")
    else:
        return name, None
    digest = file_digest(gguf)
    return str(dequantised_folder(gguf, digest=digest)), digest


def _config(place: str, *, name: str, revision: str | None) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(place, revision=revision)
    except (OSError, ValueError) as error:
        raise not_found(name, error) from error


def _kind(config: PreTrainedConfig, *, name: str) -> Kind:
    """Raises UnsupportedModelError where it is none."""
    architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    if architecture == class_for(Kind.CLASSIFIER, config) and not getattr(config, "is_encoder_decoder", False):
        require_one_class(config, name=name)
        return Kind.CLASSIFIER
    if getattr(config, "is_encoder_decoder", False) and architecture == class_for(Kind.ENCODER_DECODER, config):
        return Kind.ENCODER_DECODER
    _require_causal(config, architecture, name=name)
    return Kind.CAUSAL


def require_one_class(config: PreTrainedConfig, *, name: str) -> None:
    """Raise UnsupportedModelError where the logits of a classifier are no distribution over its classes."""
    kind = getattr(config, "problem_type", None)
    if config.num_labels < 2 or kind not in (None, "single_label_classification"):
        raise UnsupportedModelError(
            f"{name}: its {config.num_labels} outputs are no classes that exclude each other "
            f"({kind or 'a single number'}). llmxai explains the log-probability of one class among two or more."
        )


def _require_causal(config: PreTrainedConfig, architecture: str, *, name: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name}: {architecture} is an encoder-decoder model without a language-modelling head. llmxai explains "
            f"those that write text (...ForConditionalGeneration); give one of those."
        )
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UnsupportedModelError(encoder_message(name, architecture))
    # BERT and its kin can be decoders, and seldom are; GPT-NeoX says it is none, and has no other form
    reads_both_ways = type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", True)
    if reads_both_ways or "MaskedLM" in architecture or "Classification" in architecture:
        raise UnsupportedModelError(encoder_message(name, architecture))


def encoder_message(name: str, architecture: str) -> str:
    return (
        f"{name}: {architecture} is not a causal language model: it does not generate text from left to right, so "
        f"there is no generated token to explain. Give a causal model (for example `{EMBEDDED}`), or a fine-tuned "
        f"classifier (...ForSequenceClassification)."
    )


def knows_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it encodes plain text: transformers makes some tokenizers up where a folder holds no vocabulary."""
    ids = tokenizer("Hello", add_special_tokens=False)["input_ids"]
    return any(token != tokenizer.unk_token_id for token in ids)
