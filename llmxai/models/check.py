"""What works for a model, from its configuration and tokenizer alone, before any weights are read."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from llmxai.errors import OptionError
from llmxai.models.adapters import adapter_of
from llmxai.models.families import ModelKind, kind_of, rollout_refusal
from llmxai.models.finding import find_model, knows_text, quantization_config, quantization_of
from llmxai.models.forward import context_limit, keeps_logits, transformer_depth
from llmxai.models.loading import stored_dtype, without_weights
from llmxai.models.memory import MemoryPlan, free_memory, plan_memory, saved_by, weight_bytes
from llmxai.models.precision import LOW, copy_bytes, copy_fits, tf32_products
from llmxai.models.speed import in_words, predicted_seconds


@dataclass(frozen=True)
class Capability:
    """One feature of llmxai, and whether it works with this model."""

    name: str
    works: bool
    note: str
    """How it works, or why it does not."""


@dataclass(frozen=True)
class ModelCheck:
    """Everything known about a model without its weights."""

    name: str
    architecture: str
    parameters: int
    depth: int
    context_length: int | None
    capabilities: tuple[Capability, ...]
    plan: MemoryPlan
    seconds: float
    """About how long an explanation takes on this machine (`predicted_seconds`)."""


def check_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    tokens: int = 512,
    answer_tokens: int = 64,
) -> ModelCheck:
    """What works for a model, and memory and time for `tokens` in total, `answer_tokens` of which are the answer.

    Reads configuration and tokenizer only. Raises ModelLoadError, UnsupportedModelError or OptionError as `load` does.
    """
    if not 0 < answer_tokens < tokens:
        raise OptionError(
            f"answer_tokens is {answer_tokens} and tokens {tokens}; expected at least 1 token for the answer and 1 for "
            f"the prompt, since tokens counts both."
        )
    found = find_model(name, revision=revision)
    width = stored_dtype(found.config, dtype)
    quantization_config(quantize, dtype=width)
    with _quiet():
        model = without_weights(found)
    quantized = quantize or quantization_of(found.config)
    weights, share = weight_bytes(model, dtype=width, quantize=quantized)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan, held, seconds = _needed(
        model,
        tokens=tokens,
        targets=answer_tokens,
        device=device,
        width=width,
        weights=weights,
        quantized=quantized is not None,
    )
    return ModelCheck(
        name=found.name,
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        depth=transformer_depth(model),
        context_length=context_limit(model),
        capabilities=(
            _context(model, tokens=tokens, answer_tokens=answer_tokens),
            _chat(found.place, revision),
            _gradients(model),
            _prefix(model),
            _rollout(found.config),
            _quantisation(share, quantization_of(found.config)),
            _sharding(model),
            Capability("memory", plan.fits, plan.sentence(of=held)),
            Capability(
                "time", True, f"{in_words(seconds)} for {answer_tokens} of {tokens} tokens on this {_place(device)}"
            ),
        ),
        plan=plan,
        seconds=seconds,
    )


def _needed(
    model: PreTrainedModel,
    *,
    tokens: int,
    targets: int,
    device: torch.device,
    width: torch.dtype,
    weights: int,
    quantized: bool,
) -> tuple[MemoryPlan, str, float]:
    """The plan, what is in its weights, and seconds of an explanation, all in the default precision, "float32".

    `weights`: bytes of those that are stored, in `width` or `quantized`.
    """
    computing = torch.float32 if width in LOW else width
    free = free_memory(device)
    # without room for a copy, weights are widened while they are used, a few at a time
    copies = width in LOW and not quantized and copy_fits(model, free=free - weights)
    copied = copy_bytes(model) if copies else 0
    plan = plan_memory(
        model.config,
        tokens=tokens,
        targets=targets,
        dtype=computing,
        free=free,
        device=device,
        weights=weights + copied,
        saved=saved_by(model),
    )
    with tf32_products() if width in LOW else nullcontext():
        seconds = predicted_seconds(
            model,
            tokens=tokens,
            targets=targets,
            device=device,
            dtype=computing,
            checkpoint=plan.checkpoint,
            widened=computing != width and not copied,
        )
    return plan, "the weights and their float32 copy" if copied else "the weights", seconds


def _place(device: torch.device) -> str:
    return "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)


def _context(model: PreTrainedModel, *, tokens: int, answer_tokens: int) -> Capability:
    """Whether the model reads texts of this length; an encoder-decoder reads the prompt alone on its longer side."""
    limit = context_limit(model)
    read = tokens - answer_tokens if kind_of(model) is ModelKind.ENCODER_DECODER else tokens
    if limit is None:
        return Capability("length", True, f"{tokens} tokens; its configuration names no limit")
    over = "" if read <= limit else ", which explain refuses"
    return Capability("length", read <= limit, f"{read} of at most {limit} tokens{over}")


def _chat(place: str, revision: str | None) -> Capability:
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
        except Exception as error:  # the files are not ours, and their readers raise all kinds of errors
            return Capability("prompt and roles", False, f"its tokenizer cannot be read ({str(error)[:120]})")
    if not knows_text(tokenizer):
        return Capability("prompt and roles", False, "it has no tokenizer vocabulary, so it cannot encode plain text")
    bos = "with" if tokenizer.bos_token_id is not None else "without"
    if tokenizer.chat_template is None:
        return Capability("prompt and roles", True, f"raw prompts only ({bos} a BOS token): it has no chat template")
    return Capability("prompt and roles", True, f"raw prompts ({bos} a BOS token) and chats through its template")


def _gradients(model: PreTrainedModel) -> Capability:
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        return Capability("integrated gradients", False, f"{type(model).__name__} takes no inputs_embeds")
    if not isinstance(model.get_input_embeddings(), nn.Module):
        return Capability("integrated gradients", False, "transformers cannot name its input embedding")
    if kind_of(model) is ModelKind.CLASSIFIER:
        return Capability(
            "integrated gradients", True, f"for the log-prob of one of its {model.config.num_labels} classes"
        )
    if kind_of(model) is ModelKind.ENCODER_DECODER:
        return Capability("integrated gradients", True, "for source and earlier answer together, on one path")
    if keeps_logits(model):
        return Capability("integrated gradients", True, "the output head runs at the answer's positions only")
    return Capability("integrated gradients", True, "the output head runs at every position, which takes longer")


def _prefix(model: PreTrainedModel) -> Capability:
    if kind_of(model) is ModelKind.CLASSIFIER:
        return Capability(
            "cached prefix", False, "it reads in both directions, so all tokens are computed at every node"
        )
    if kind_of(model) is ModelKind.ENCODER_DECODER:
        return Capability(
            "cached prefix", False, "it reads the source in both directions, so all of it is computed at every node"
        )
    if not adapter_of(model).keeps_prefix(model):
        return Capability(
            "cached prefix", False, "it keeps a recurrent state, so held tokens are computed at every node"
        )
    return Capability("cached prefix", True, "tokens before the first one that moves are computed once")


def _rollout(config: PreTrainedConfig) -> Capability:
    refusal = rollout_refusal(config)
    if refusal is not None:
        return Capability("attention rollout", False, refusal)
    if getattr(config, "is_encoder_decoder", False):
        return Capability("attention rollout", True, "cross-attention and both self-attentions, down to the source")
    kinds = Counter(getattr(config.get_text_config(), "layer_types", None) or [])
    windows = kinds["sliding_attention"] + kinds["chunked_attention"]
    within = f", {windows} of them within a window" if windows else ""
    return Capability("attention rollout", True, f"all layers attend by softmax{within}")


def _quantisation(share: float, already: str | None) -> Capability:
    if already:
        return Capability("4-bit and 8-bit", True, f"its weights are already stored quantised ({already})")
    if importlib.util.find_spec("bitsandbytes") is None:
        return Capability("4-bit and 8-bit", False, "bitsandbytes is not installed: pip install bitsandbytes")
    if not share:
        return Capability("4-bit and 8-bit", False, "none of its weights are in layers that bitsandbytes replaces")
    return Capability("4-bit and 8-bit", True, f"{share:.0%} of its weights are in layers that bitsandbytes replaces")


def _sharding(model: PreTrainedModel) -> Capability:
    blocks = sorted(getattr(model, "_no_split_modules", None) or [])
    if not blocks:
        return Capability("device_map", False, "transformers does not say which of its blocks must stay on one device")
    return Capability("device_map", True, f"auto, balanced, or your own; {', '.join(blocks)} stays on one device")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' comments on configurations; the check reports what matters."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
