"""Quantised weights: asked for, or stored so."""

from __future__ import annotations

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig

from llmxai.errors import OptionError
from llmxai.models.finding import FoundModel


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
