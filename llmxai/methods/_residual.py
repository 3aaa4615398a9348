"""How much of each layer stays in the residual stream, measured from norms."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmxai.errors import UnsupportedModelError
from llmxai.methods._attention import run
from llmxai.methods._descent import first_of
from llmxai.models import LoadedModel, embed
from llmxai.models.seams import transformer_layers, undisturbed


class _Streams:
    """What one decoder layer was given, and what its attention adds to that."""

    stream: Tensor
    added: Tensor

    def __init__(self, layer: nn.Module, attention: nn.Module) -> None:
        self.handles = [
            layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            attention.register_forward_hook(self._attended, with_kwargs=True),
            *(child.register_forward_hook(self._followed) for child in layer.children() if child is not attention),
        ]

    def _enter(self, _layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.stream = arguments[0] if arguments else options["hidden_states"]
        self.added = torch.empty(0)

    def _attended(self, module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        self.added = first_of(output)
        if "residual" in inspect.signature(module.forward).parameters:  # BLOOM adds the stream inside
            self.added = self.added - (options["residual"] if "residual" in options else arguments[1])

    def _followed(self, _module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if arguments and arguments[0] is self.added:  # a norm between attention and the stream (Gemma 2, OLMo 2)
            self.added = first_of(output)


def measured_residual(loaded: LoadedModel, ids: Sequence[int]) -> list[Float[Tensor, " seq"]]:
    """||x|| / (||x|| + ||attention||) for every layer and position, float64 on the CPU; one forward pass."""
    model = loaded.model
    scale = float(getattr(model.config.get_text_config(), "residual_multiplier", 1.0))  # Granite
    streams: list[_Streams] = []
    try:
        for layer in transformer_layers(model):
            streams.append(_Streams(layer, _attention_of(layer)))
        with undisturbed(model), torch.no_grad():
            run(model, embed(model, ids)[None])
    finally:
        for stream in streams:
            for handle in stream.handles:
                handle.remove()
    shares = []
    for stream in streams:
        kept, added = (x[0].double().norm(dim=-1).cpu() for x in (stream.stream, scale * stream.added))
        shares.append(kept / (kept + added).clamp(min=1e-30))
    return shares


def _attention_of(layer: nn.Module) -> nn.Module:
    for child in layer.children():
        if "Attention" in type(child).__name__:
            return child
    raise UnsupportedModelError(
        f"{type(layer).__name__} has no attention module of its own, so its residual share cannot be measured. Choose "
        f"attention_rollout with a fixed residual."
    )
