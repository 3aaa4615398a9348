"""From a name to the folder that transformers reads, its kind of model and its quantisation; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from llmxai.errors import ModelLoadError, OptionError, UnsupportedModelError
from llmxai.models.embedded import EMBEDDED, dequantised_folder, embedded_gguf, file_digest
from llmxai.models.families import ModelKind, class_for


def not_found(name: str, error: Exception) -> ModelLoadError:
    if name and Path(name).is_dir():
        return ModelLoadError(
            f"{name}: this folder is no model that transformers can read ({first_line(error)}). "
            f"Expected config.json, weights and a tokenizer, as save_pretrained writes them."
        )
    causes = _chain(error)
    if any(type(c).__name__ in ("RepositoryNotFoundError", "GatedRepoError", "HFValidationError") for c in causes):
        return ModelLoadError(
            f"{name}: no model of that name could be read from the hub ({first_line(error)}). Check the spelling, "
            f"log in with `hf auth login` if it is private or gated, or give a local folder or `{EMBEDDED}`."
        )
    return ModelLoadError(
        f"{name}: there is no such folder here, and the model hub could not be reached or does not have it "
        f"({first_line(error)}). Check the name and the network, or give a local folder, a .gguf file, or "
        f"`{EMBEDDED}`, which needs no network."
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


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
    kind: ModelKind


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


def _kind(config: PreTrainedConfig, *, name: str) -> ModelKind:
    """Raises UnsupportedModelError where it is none."""
    architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    if architecture == class_for(ModelKind.CLASSIFIER, config) and not getattr(config, "is_encoder_decoder", False):
        require_one_class(config, name=name)
        return ModelKind.CLASSIFIER
    if getattr(config, "is_encoder_decoder", False) and architecture == class_for(ModelKind.ENCODER_DECODER, config):
        return ModelKind.ENCODER_DECODER
    _require_causal(config, architecture, name=name)
    return ModelKind.CAUSAL


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


def quantization_config(quantize: str | None, *, dtype: torch.dtype | str) -> BitsAndBytesConfig | None:
    if quantize is None:
        return None
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if quantize == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32,
        )
    raise OptionError(f"quantize {quantize!r} is unknown. Known: 4bit, 8bit.")


def quantization_argument(
    found: FoundModel, quantize: str | None, *, dtype: torch.dtype | str
) -> dict[str, BitsAndBytesConfig]:
    """The argument for transformers: none (not None) where the weights are stored quantised, or shall not be."""
    config, stored = quantization_config(quantize, dtype=dtype), quantization_of(found.config)
    if quantize and stored not in (None, f"bitsandbytes {quantize}"):
        raise OptionError(f"{found.name}: its weights are stored quantised already ({stored}); leave --quantize out.")
    return {} if config is None or stored else {"quantization_config": config}


def quantization_of(config: PreTrainedConfig) -> str | None:
    """How the weights are quantised, as the configuration says it (`bitsandbytes 4bit`); None at full precision.

    Those that came from a GGUF file are floating-point numbers by the time they are computed with.
    """
    told = getattr(config, "quantization_config", None)
    if told is None:
        return None
    told = told if isinstance(told, dict) else told.to_dict()
    method = str(getattr(told.get("quant_method"), "value", told.get("quant_method")))
    if method == "gguf":
        return None
    bits = 4 if told.get("load_in_4bit") else 8 if told.get("load_in_8bit") else told.get("bits")
    return f"{method} {bits}bit" if bits else method
