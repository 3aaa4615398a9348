"""The few functions through which llmxai accesses a transformers model, the same for every architecture."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.integrations import sdpa_attention

from llmxai.errors import LlmxaiError, UnsupportedModelError
from llmxai.models.embedding import replaced

PACKS_FOR_CPU = "support_avx512bf16_for_cpu"
"""Flag of bitsandbytes' 4-bit layers: pack the weights at the first inference. Packed weights give no gradient."""


@contextmanager
def casts_unsaid() -> Iterator[None]:
    """Inside, bitsandbytes does not say for every product in 8 bits that it casts its inputs."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")

    def other(record: logging.LogRecord) -> bool:
        return "inputs will be cast" not in record.msg

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Run with weights frozen and dropout off; restores every flag on exit, even after an exception."""
    trains = {module: module.training for module in model.modules()}
    grads = {parameter: parameter.requires_grad for parameter in model.parameters()}
    packing = [module for module in trains if getattr(module, PACKS_FOR_CPU, False)]
    try:
        for module in packing:
            setattr(module, PACKS_FOR_CPU, False)
            module.state_dict()  # makes bitsandbytes unpack weights that an earlier inference packed
        model.eval()
        model.requires_grad_(False)
        with casts_unsaid(), heads_repeated():
            yield
    finally:
        for module, flag in trains.items():
            module.training = flag
        for parameter, flag in grads.items():
            parameter.requires_grad_(flag)
        for module in packing:
            setattr(module, PACKS_FOR_CPU, True)


_shares_heads = sdpa_attention.use_gqa_in_sdpa
_repeating: list[bool] = []
"""One entry for every `heads_repeated` that runs."""


def _in_16_bits(attention_mask: Tensor | None, key: Tensor, *others: Any) -> bool:
    fits = key.device.type != "cuda" or key.dtype.itemsize == 2
    return fits and bool(_shares_heads(attention_mask, key, *others))


def _off_gpus(attention_mask: Tensor | None, key: Tensor, *others: Any) -> bool:
    return key.device.type != "cuda" and bool(_shares_heads(attention_mask, key, *others))


@cache
def _has_flash_kernels() -> bool:
    """Whether all GPUs have PyTorch's kernels of flash attention: from Ampere on."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return all(torch.cuda.get_device_capability(gpu) >= (8, 0) for gpu in gpus)


@contextmanager
def heads_repeated() -> Iterator[None]:
    """Inside, a GPU's attention gets the keys and values that heads share once for every head, where it needs them so.

    transformers passes them shared. Only kernels of flash attention take them so, which exist for 16 bits and from
    Ampere on; otherwise PyTorch takes the plain one, which holds the scores of all queries and keys
    (https://github.com/pytorch/pytorch/issues/181528). Repeated, they go through the memory-efficient one.
    """
    _repeating.append(True)
    sdpa_attention.use_gqa_in_sdpa = _in_16_bits if _has_flash_kernels() else _off_gpus
    try:
        yield
    finally:
        _repeating.pop()
        if not _repeating:
            sdpa_attention.use_gqa_in_sdpa = _shares_heads


@contextmanager
def configured(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Inside this context, every configuration of the model and its parts names `attention` as its implementation.

    Written into the configurations, since some models refuse `set_attn_implementation`.
    """
    with own_configurations(model) as configs:
        for config in configs:
            config._attn_implementation_internal = attention
        yield


@contextmanager
def own_configurations(model: PreTrainedModel) -> Iterator[list[PreTrainedConfig]]:
    """The configurations of the model and its parts; each names its own implementation again afterwards."""
    configs = list({id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values())
    before = [config._attn_implementation_internal for config in configs]
    try:
        yield configs
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name


OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: not enough memory")
"""Messages that Accelerate's test misses: from CUDA's own calls, from a library that finds no room for its handle, and
from PyTorch's CPU allocator on Windows."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error means that memory of a device or of the machine ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return bool(should_reduce_batch_size(error)) or any(sign in str(error) for sign in OUT_OF_MEMORY)


@contextmanager
def own_errors(model: nn.Module, *, what: str) -> Iterator[None]:
    """The one guard around transformers' and torch's work on a model: what fails there becomes one paragraph.

    Raises UnsupportedModelError from any error but our own and those that mean that memory ran out.
    """
    try:
        yield
    except LlmxaiError:
        raise
    except Exception as error:  # a model's code raises all kinds of errors
        if is_out_of_memory(error):
            raise
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot {what}: transformers raised {type(error).__name__} ({line[:300]}). If this "
            f"model works with transformers' own forward and generate on the same input, it is a fault of llmxai."
        ) from error


def run(model: PreTrainedModel, **arguments: Any) -> Any:
    """The model's output for those of the arguments that its forward takes."""
    known = inspect.signature(model.forward).parameters
    with own_errors(model, what="be run on these tokens"):
        return model(**{name: value for name, value in arguments.items() if name in known})


def keeps_logits(model: PreTrainedModel) -> bool:
    """Whether the output head can run at chosen positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


ROWS = 32
"""Rows of logits whose log-probs are computed together: 64 MiB in float64 for a vocabulary of 262,144 tokens."""


def log_probs(logits: Float[Tensor, "row vocab"], ids: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """The log-prob of one id in each row, in float64, `ROWS` rows at a time."""
    parts = zip(torch.split(logits, ROWS), torch.split(ids, ROWS), strict=True)
    return torch.cat([torch.log_softmax(rows.double(), dim=-1).gather(1, own[:, None])[:, 0] for rows, own in parts])


def keys_and_values(
    model: PreTrainedModel, inputs_embeds: Float[Tensor, "1 seq width"], ids: Int[Tensor, "1 seq"]
) -> DynamicCache:
    """Keys and values of a fixed prefix, for models that keep no other state (`Adapter.keeps_prefix`)."""
    named = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    # a decoder alone may have other layers than its configuration counts for the encoder it does not have
    cache = DynamicCache(config=model.config) if named == transformer_depth(model) else DynamicCache()
    with torch.no_grad(), replaced(model, ids, inputs_embeds):
        seen, kept = torch.ones_like(ids), {cache_argument(model): cache}
        run(model, input_ids=ids, attention_mask=seen, use_cache=True, logits_to_keep=1, **kept)
    return cache


def repeated(prefix: DynamicCache, times: int) -> DynamicCache:
    """`prefix` for a batch: views of its keys and values, to which a forward pass appends copies of its own.

    `prefix` is not changed, since a layer of a cache replaces its tensors when it grows. A layer that has read nothing
    (for a picture, say) has none.
    """
    grown = copy.copy(prefix)
    grown.layers = [copy.copy(layer) for layer in prefix.layers]
    for layer in grown.layers:
        if layer.keys is None:
            continue
        layer.keys, layer.values = (kept.expand(times, -1, -1, -1) for kept in (layer.keys, layer.values))
    return grown


def shortened(prefix: DynamicCache, length: int) -> DynamicCache | None:
    """Views of the keys and values of the first `length` tokens; None if a layer has dropped some (sliding windows)."""
    if any(getattr(layer, "is_sliding", False) for layer in prefix.layers):
        return None
    cut = copy.copy(prefix)
    cut.layers = [copy.copy(layer) for layer in prefix.layers]
    for layer in cut.layers:
        layer.keys, layer.values = (kept[..., :length, :] for kept in (layer.keys, layer.values))
    return cut


def cache_argument(model: PreTrainedModel) -> str:
    """transformers renamed `past_key_values` to `cache` within version 5."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def transformer_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of layers, first layer first; raises UnsupportedModelError if no list has the model's depth.

    Of a model that also reads pictures or sound, the stack that reads text.
    """
    depth, text = transformer_depth(model), type(model.config.get_text_config())
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel) and type(part.config) is text]
    for part in (*parts, model):
        for module in part.modules():
            if isinstance(module, nn.ModuleList) and len(module) == depth:
                return module
    raise UnsupportedModelError(
        f"{type(model).__name__} has no list of {depth} layers, so its layers cannot be identified."
    )


def transformer_depth(model: PreTrainedModel) -> int:
    """The number of transformer layers."""
    config = model.config.get_text_config()
    own = getattr(config, "decoder_layers", None)  # of BART's decoder as a causal model
    return int(own if own and not getattr(config, "is_encoder_decoder", False) else config.num_hidden_layers)


LIMITS = ("max_position_embeddings", "max_seq_len")
"""Fields of a configuration that count positions; others are theirs under another name, or no limit (T5)."""


def context_limit(model: PreTrainedModel, *, side: str = "encoder") -> int | None:
    """The most tokens that the model reads; of an encoder-decoder, on one `side`. None: there is no limit.

    RoBERTa and its relatives count positions from the padding id on, and lose as many rows of their table.
    """
    config = model.config.get_text_config()
    names = (f"max_{side}_position_embeddings", *LIMITS)
    found = [value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0]
    return found[0] - lost_positions(model) if found else None


def lost_positions(model: PreTrainedModel) -> int:
    """How many rows of the table of positions no token gets: those up to the padding id, where it names one."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return 1 + int(module.padding_idx)
    return 0


@contextmanager
def seeded(seed: int, *, device: torch.device) -> Iterator[None]:
    """Seed torch and numpy inside this context (Captum uses both); restores the caller's states afterwards."""
    state = np.random.get_state()
    try:
        with torch_seeded(seed, devices=[device]):
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(state)


@contextmanager
def torch_seeded(seed: int, *, devices: Sequence[torch.device]) -> Iterator[None]:
    """Seed torch on the CPU and on these devices; restores the caller's states afterwards.

    `torch.manual_seed` would seed every GPU, also those whose state is not restored, and those not used yet.
    """
    gpus = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus):
        if any(device.type not in ("cpu", "cuda") for device in devices):
            torch.manual_seed(seed)
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


def first_of(output: Any) -> Tensor:
    """A layer's hidden states, whether it returns them alone or first in a tuple or list."""
    return torch.as_tensor(output[0] if isinstance(output, tuple | list) else output)


def with_first(output: Any, hidden: Tensor) -> Any:
    """The same output of a layer with other hidden states."""
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden
