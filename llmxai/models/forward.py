"""The few functions through which llmxai accesses a transformers model, the same for every architecture."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llmxai.errors import UnsupportedModelError

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
        with casts_unsaid():
            yield
    finally:
        for module, flag in trains.items():
            module.training = flag
        for parameter, flag in grads.items():
            parameter.requires_grad_(flag)
        for module in packing:
            setattr(module, PACKS_FOR_CPU, True)


def embedding_module(model: PreTrainedModel) -> nn.Module:
    """The input embedding; raises UnsupportedModelError if the model has none."""
    module = model.get_input_embeddings()
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no input embedding that transformers can name; "
            f"layer-integrated gradients need one."
        )
    return module


def input_device(model: PreTrainedModel) -> torch.device:
    """The device for token ids: the one on which the embedding runs, even if its weights are offloaded."""
    return device_of(embedding_module(model)) or model.device


def device_of(module: nn.Module) -> torch.device | None:
    """Where a module computes: where Accelerate's hook brings its inputs, else where its weights are; None without."""
    for part in module.modules():
        place = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if place is not None:
            return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    return next((parameter.device for parameter in module.parameters()), None)


def indices(model: PreTrainedModel, positions: Sequence[int]) -> Int[Tensor, " position"]:
    """`positions` for indexing what the model computes.

    For a model on several devices they stay on the CPU: such indices fit a tensor on any device, those on a GPU only
    tensors on the same one.
    """
    spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    return torch.tensor(list(positions), device="cpu" if spread else input_device(model))


def embed(model: PreTrainedModel, ids: Sequence[int]) -> Float[Tensor, "seq hidden"]:
    """The embeddings of `ids` as the model computes them (through Accelerate's hooks, if any)."""
    with torch.no_grad():
        module = embedding_module(model)
        return torch.as_tensor(module(torch.tensor([list(ids)], device=input_device(model))))[0]


def keeps_logits(model: PreTrainedModel) -> bool:
    """Whether the output head can run at chosen positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def keys_and_values(model: PreTrainedModel, inputs_embeds: Float[Tensor, "1 seq hidden"]) -> DynamicCache:
    """Keys and values of a fixed prefix, for models that keep no other state (`Adapter.keeps_prefix`)."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(inputs_embeds=inputs_embeds, use_cache=True, **{cache_argument(model): cache})
    return cache


def repeated(prefix: DynamicCache, times: int) -> DynamicCache:
    """`prefix` for a batch: views of its keys and values, to which a forward pass appends copies of its own.

    `prefix` is not changed, since a layer of a cache replaces its tensors when it grows.
    """
    grown = copy.copy(prefix)
    grown.layers = [copy.copy(layer) for layer in prefix.layers]
    for layer in grown.layers:
        layer.keys, layer.values = (kept.expand(times, -1, -1, -1) for kept in (layer.keys, layer.values))
    return grown


def cache_argument(model: PreTrainedModel) -> str:
    """transformers renamed `past_key_values` to `cache` within version 5."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def transformer_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of layers, first layer first; raises UnsupportedModelError if no list has the model's depth."""
    depth = transformer_depth(model)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise UnsupportedModelError(
        f"{type(model).__name__} has no list of {depth} layers, so its layers cannot be identified."
    )


def transformer_depth(model: PreTrainedModel) -> int:
    """The number of transformer layers."""
    return int(model.config.get_text_config().num_hidden_layers)


@contextmanager
def seeded(seed: int, *, device: torch.device) -> Iterator[None]:
    """Seed torch and numpy inside this context (Captum uses both); restores the caller's states afterwards."""
    devices = [device.index or 0] if device.type == "cuda" else []
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(state)


def first_of(output: Any) -> Tensor:
    """A layer's hidden states, whether it returns them alone or first in a tuple."""
    return torch.as_tensor(output[0] if isinstance(output, tuple) else output)
