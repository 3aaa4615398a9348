"""The few places where llmxai touches a transformers model, the same for every architecture."""

from __future__ import annotations

import copy
import ctypes
import inspect
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from llmxai.errors import UnsupportedModelError
from llmxai.models.families import ModelKind, kind_of

SOFTMAX_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Entries of a configuration's `layer_types` for layers that mix tokens by softmax attention and nothing else."""

PACKS_FOR_CPU = "support_avx512bf16_for_cpu"
"""Flag of bitsandbytes' 4-bit layers: pack the weights at the first inference. Packed weights give no gradient."""


@contextmanager
def frozen_eval(model: PreTrainedModel) -> Iterator[None]:
    """Run with weights frozen and dropout off; every flag is put back on the way out, also after an exception."""
    trains = {module: module.training for module in model.modules()}
    grads = {parameter: parameter.requires_grad for parameter in model.parameters()}
    packing = [module for module in trains if getattr(module, PACKS_FOR_CPU, False)]
    try:
        for module in packing:
            setattr(module, PACKS_FOR_CPU, False)
            module.state_dict()  # makes bitsandbytes unpack what an earlier inference packed
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, flag in trains.items():
            module.training = flag
        for parameter, flag in grads.items():
            parameter.requires_grad_(flag)
        for module in packing:
            setattr(module, PACKS_FOR_CPU, True)


M_MMAP_THRESHOLD = -3
"""Of mallopt(3): blocks of at least so many bytes are taken from the kernel one by one, and given back when freed."""
AT_FIRST = 128 * 2**10
"""The threshold that a process starts with, and that does not rise any more inside."""
AT_MOST = 32 * 2**20
"""What glibc raises it to by itself when large blocks are freed."""


@contextmanager
def freed_blocks_go_back() -> Iterator[None]:
    """Inside, glibc keeps no freed block of 128 KiB or more for itself.

    It would keep those of up to 32 MiB in its heap, small objects would settle between them, and the next large block
    would find no room: gradient checkpointing, which takes and frees the same blocks layer by layer, then grew the
    process to four times what was in use at once (docs/models.md). Elsewhere than on glibc nothing is done. Afterwards
    the threshold is 32 MiB, where glibc's own rule ends.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_THRESHOLD, AT_FIRST)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, AT_MOST)


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Inside, layers keep their input only and compute their activations again, one at a time, in the backward pass.

    Chen et al. 2016 (https://arxiv.org/abs/1604.06174). Layers whose weights Accelerate loads for a moment load them
    again, so that the graph does not keep them alive. No key-value cache may be passed in: it would grow twice.
    """
    layers = [layer for stack in layer_stacks(model) for layer in stack]
    own = [layer.__dict__.get("forward") for layer in layers]  # Accelerate's hooks put one there
    try:
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        # to stop early would skip the hook that forgets an offloaded weight: one matrix a layer would stay in memory
        offloaded = any(parameter.device.type == "meta" for parameter in model.parameters())
        with freed_blocks_go_back(), set_checkpoint_early_stop(not offloaded):
            yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward


def embedding_module(model: PreTrainedModel) -> nn.Module:
    """The input embedding; raises UnsupportedModelError where the model has none."""
    module = model.get_input_embeddings()
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no input embedding that transformers can name; "
            f"layer-integrated gradients need one."
        )
    return module


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids go: the device that the embedding runs on, also when its weights are offloaded."""
    hook = getattr(embedding_module(model), "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else model.device


def embed(model: PreTrainedModel, ids: Sequence[int]) -> Float[Tensor, "seq hidden"]:
    """The embeddings of `ids` as the model itself makes them (through Accelerate's hooks, if any)."""
    with torch.no_grad():
        module = embedding_module(model)
        return torch.as_tensor(module(torch.tensor([list(ids)], device=input_device(model))))[0]


def forward_logits(
    model: PreTrainedModel,
    inputs_embeds: Float[Tensor, "batch seq hidden"],
    *,
    positions: Sequence[int],
    prefix: DynamicCache | None = None,
    source: int = 0,
) -> Float[Tensor, "batch position vocab"]:
    """Logits at `positions` (indices into seq) only; differentiable in `inputs_embeds`.

    A classifier has one row of logits for the whole of seq, which stands for any position. Of an encoder-decoder, the
    first `source` embeddings go into the encoder and the rest into the decoder.

    `prefix` holds the keys and values of what comes before seq, for a batch of one; it is left as it is.
    Raises UnsupportedModelError for a model that cannot start from embeddings.
    """
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModelError(
            f"{type(model).__name__} takes no inputs_embeds, so its embeddings cannot be moved along a path."
        )
    past: dict[str, object] = {"use_cache": False}
    if prefix is not None:
        grown = copy.deepcopy(prefix)
        grown.batch_repeat_interleave(len(inputs_embeds))
        past = {"use_cache": True, _cache_argument(model): grown}
    if kind_of(model) is ModelKind.CLASSIFIER:
        return torch.as_tensor(model(inputs_embeds=inputs_embeds).logits)[:, None].expand(-1, len(positions), -1)
    keep = torch.tensor(list(positions), device=inputs_embeds.device)
    if kind_of(model) is ModelKind.ENCODER_DECODER:
        logits = torch.as_tensor(model(**two_sided(inputs_embeds, source)).logits)
        return logits[:, (keep - source).to(logits.device)]
    if keeps_logits(model):
        return torch.as_tensor(model(inputs_embeds=inputs_embeds, logits_to_keep=keep, **past).logits)
    output = model(inputs_embeds=inputs_embeds, **past)
    return torch.as_tensor(output.logits[:, keep.to(output.logits.device)])


def pads_well(model: PreTrainedModel) -> bool:
    """Whether padded rows can go through together: one causal stack without a state that padding would enter."""
    return kind_of(model) is ModelKind.CAUSAL and keeps_keys_and_values(model)


def two_sided(inputs_embeds: Float[Tensor, "batch seq hidden"], source: int) -> dict[str, Any]:
    """What an encoder-decoder is called with for one sequence: its first `source` embeddings and the decoder's."""
    return {
        "inputs_embeds": inputs_embeds[:, :source],
        "decoder_inputs_embeds": inputs_embeds[:, source:],
        "use_cache": False,
    }


def keeps_logits(model: PreTrainedModel) -> bool:
    """Whether the output head can be run at chosen positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def prefix_cache(model: PreTrainedModel, inputs_embeds: Float[Tensor, "1 seq hidden"]) -> DynamicCache | None:
    """Keys and values of a prefix that never changes; None where the model keeps another kind of state."""
    if not inputs_embeds.shape[1] or not keeps_keys_and_values(model):
        return None
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(inputs_embeds=inputs_embeds, use_cache=True, **{_cache_argument(model): cache})
    return cache


def keeps_keys_and_values(model: PreTrainedModel) -> bool:
    """Whether all that the model remembers of earlier tokens is keys and values, which later ones leave as they are."""
    if kind_of(model) is not ModelKind.CAUSAL:
        return False
    return not getattr(model, "_is_stateful", False) and not layers_without_softmax(model.config)


def layers_without_softmax(config: PreTrainedConfig) -> Counter[str]:
    """The layers that mix tokens otherwise than by softmax attention alone: how many of each type."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return Counter(kind for kind in kinds if kind not in SOFTMAX_LAYERS)
    if text.model_type == "rwkv":  # no layer_types in its configuration
        return Counter({"linear_attention": int(text.num_hidden_layers)})
    return Counter()


def rollout_refusal(config: PreTrainedConfig) -> str | None:
    """Why attention rollout is not defined for a model; None where it is."""
    others = layers_without_softmax(config)
    if not others:
        return None
    kinds = " and ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    return (
        f"{others.total()} of its {config.get_text_config().num_hidden_layers} layers have no softmax attention or mix "
        f"tokens by something else as well ({kinds}), so attention rollout is not defined for it; integrated gradients "
        f"are."
    )


def positions_read(model: PreTrainedModel, ids: Sequence[int]) -> tuple[int, ...]:
    """The positions of the last layer's output that a classifier's logits depend on, from their gradient.

    Raises UnsupportedModelError where the layers cannot be told apart. Call inside `undisturbed(model)`.
    """
    leaves: list[Tensor] = []

    def cut(_layer: nn.Module, _arguments: object, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        leaves.append(tensor.detach().requires_grad_())
        return (leaves[0], *output[1:]) if isinstance(output, tuple) else leaves[0]

    handle = transformer_layers(model)[-1].register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = model(inputs_embeds=embed(model, ids)[None]).logits
            (gradient,) = torch.autograd.grad(logits.float().square().sum(), leaves[0])
    finally:
        handle.remove()
    return tuple(gradient[0].abs().amax(dim=-1).nonzero()[:, 0].tolist())


def _cache_argument(model: PreTrainedModel) -> str:
    """transformers renamed `past_key_values` to `cache` within version 5."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def transformer_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The stack of layers, first layer first; raises UnsupportedModelError where no list has the depth of the model."""
    depth = transformer_depth(model)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise UnsupportedModelError(
        f"{type(model).__name__} holds no list of {depth} layers, so its layers cannot be told apart."
    )


def layer_stacks(model: PreTrainedModel) -> list[nn.ModuleList]:
    """The one stack of layers, or the encoder's and the decoder's."""
    if kind_of(model) is not ModelKind.ENCODER_DECODER:
        return [transformer_layers(model)]
    found = []
    for side, module in (("encoder", model.get_encoder()), ("decoder", model.get_decoder())):
        stack = next((part for part in module.modules() if isinstance(part, nn.ModuleList)), None)
        if stack is None:
            raise UnsupportedModelError(f"The {side} of {type(model).__name__} holds no list of layers.")
        found.append(stack)
    return found


def transformer_depth(model: PreTrainedModel) -> int:
    """The number of transformer layers."""
    return int(model.config.get_text_config().num_hidden_layers)


@contextmanager
def seeded(seed: int, *, device: torch.device) -> Iterator[None]:
    """Draw from `seed` inside, in torch and numpy (Captum uses both); afterwards both states are the caller's again."""
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
    return torch.as_tensor(output[0] if isinstance(output, tuple) else output)
