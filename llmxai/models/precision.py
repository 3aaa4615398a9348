"""Compute in float32 what is stored in 16, 8 or 4 bits.

Storage and computing precision are two things. bfloat16's 8 bits of mantissa are too few for the errors of a path's
panels (measured: 0 of 12 targets converge), 11 bits suffice. So weights stored in bfloat16 or float16 are widened: as a
whole copy where one fits, else module by module while each runs. On GPUs, products of gradients are then TF32, which
holds bfloat16 weights exactly; F, which their sums are compared with, is computed in full float32.

LLM.int8 (8 bits) also rounds the activations of every layer, so F jumps by tenths of a nat between almost equal inputs,
and its gradients by more. Its weights are used as they are, and its activations are left unrounded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llmxai.models.embedding import input_device
from llmxai.models.loading import LoadedModel
from llmxai.models.memory import free_memory

LOW = (torch.bfloat16, torch.float16)
"""Storage dtypes that are widened."""
COPY_SHARE = 0.5
"""Share of the free memory that a widened copy may take; above it, modules are widened one at a time."""
INT8 = 127
"""The largest whole number of 8 bits that LLM.int8 uses; a row's scale is its largest weight."""
UNPACKED = frozenset({"Params4bit", "Int8Params"})
"""Parameters that bitsandbytes unpacks by itself."""


def in_precision(loaded: LoadedModel, precision: str) -> AbstractContextManager[LoadedModel]:
    """The model as `Compute.precision` asks: computing in float32, or in its storage dtype."""
    return full_precision(loaded) if precision == "float32" else nullcontext(loaded)


@contextmanager
def full_precision(loaded: LoadedModel) -> Iterator[LoadedModel]:
    """The same model computing in float32, where it is stored in less; afterwards everything is as before.

    A model stored in float32 or float64 is given back unchanged.
    """
    model = loaded.model
    if not any(p.dtype in LOW for p in model.parameters()) and not _low_compute(model) and not _in_8_bits(model):
        yield loaded
        return
    with tf32_products():
        if loaded.quantization is None and not hasattr(model, "hf_device_map") and copy_fits(loaded):
            yield replace(loaded, model=copy.deepcopy(model).float(), stored=loaded.stored_dtype)
            return
        with widened(model):
            yield replace(loaded, computing=torch.float32)


def rounds_activations(loaded: LoadedModel) -> bool:
    """Whether F jumps between neighbouring inputs: activations are rounded to 16 bits, or to 8 (LLM.int8)."""
    return loaded.dtype in LOW or (loaded.computing is None and bool(_in_8_bits(loaded.model)))


def copy_fits(loaded: LoadedModel) -> bool:
    """Whether a float32 copy of the weights takes at most `COPY_SHARE` of the free memory of their device."""
    needed = 4 * sum(p.numel() for p in loaded.model.parameters())
    return bool(needed <= COPY_SHARE * free_memory(input_device(loaded.model)))


def rounds_products(loaded: LoadedModel) -> bool:
    """Whether float32 products are computed in TF32 now."""
    wide = loaded.dtype == torch.float32 and input_device(loaded.model).type == "cuda"
    return wide and torch.get_float32_matmul_precision() != "highest"


def tf32_products() -> AbstractContextManager[None]:
    """Inside, float32 products may use TF32 where the GPU has it; the caller's setting comes back."""
    return _products("high")


def exact_products() -> AbstractContextManager[None]:
    """Inside, float32 products are computed in float32; the caller's setting comes back.

    For values of F that a path's sums are compared with: their errors would count as errors of the sums.
    """
    return _products("highest")


@contextmanager
def _products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Inside, every module with 16-bit parameters of its own computes in float32, and widens them while it runs.

    Accelerate's hooks stay outside: they bring the weights first. bitsandbytes' 4-bit layers get another compute dtype,
    its 8-bit layers leave their inputs unrounded. With gradient checkpointing, the widened weights of one layer exist
    at a time.
    """
    patched: list[tuple[nn.Module, str, Any]] = []
    computing = _low_compute(model)
    try:
        for layer, _ in computing:
            layer.compute_dtype = torch.float32
        in_8_bits = _in_8_bits(model)
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            low = any(p.dtype in LOW for p in own) and not {type(p).__name__ for p in own} & UNPACKED
            if low or module in in_8_bits:
                place = "_old_forward" if "_old_forward" in module.__dict__ else "forward"
                patched.append((module, place, module.__dict__.get(place)))
                wide = _wide(module, getattr(module, place)) if low else partial(_unrounded, module)
                setattr(module, place, wide)
        yield
    finally:
        for module, place, before in patched:
            if before is None:
                module.__dict__.pop(place, None)
            else:
                setattr(module, place, before)
        for layer, dtype in computing:
            layer.compute_dtype = dtype


def _low_compute(model: nn.Module) -> list[tuple[Any, torch.dtype]]:
    """bitsandbytes' 4-bit layers that compute in 16 bits, with that dtype."""
    found = [(module, getattr(module, "compute_dtype", None)) for module in model.modules()]
    return [(module, dtype) for module, dtype in found if dtype in LOW]


def _in_8_bits(model: nn.Module) -> set[nn.Module]:
    """bitsandbytes' layers of LLM.int8."""
    return {module for module in model.modules() if type(module).__name__ == "Linear8bitLt"}


class _Unpacked(torch.autograd.Function):
    """x W', with the 8-bit weights unpacked in each pass, so that no graph keeps them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return x @ _unpacked(layer).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ _unpacked(ctx.layer), None


def _unpacked(layer: Any) -> Tensor:
    """The float32 weights that a layer of LLM.int8 stands for: whole numbers times the scale of their row."""
    scale = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB  # moved there by the first pass
    weights: Tensor = layer.weight.data.float() * (scale.float() / INT8)[:, None]
    return weights


def _unrounded(layer: Any, x: Tensor) -> Tensor:
    """What a layer of LLM.int8 computes, without rounding its inputs to 8 bits."""
    found: Tensor = _Unpacked.apply(x.float(), layer)  # type: ignore[no-untyped-call]
    return found if layer.bias is None else found + layer.bias.float()


def _wide(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        stored = dict(module._parameters)
        try:
            for name, parameter in stored.items():
                if parameter is not None and parameter.dtype in LOW:
                    module._parameters[name] = parameter.float()  # type: ignore[assignment]
            return _float(forward(*map(_float, arguments), **{key: _float(value) for key, value in options.items()}))
        finally:
            module._parameters.update(stored)

    return run


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in LOW else value
