"""Compute in another precision than the weights are stored in: in float32 what is stored in 16, 8 or 4 bits.

Storage and computing precision are two things. bfloat16's 8 bits of mantissa are too few for the errors of a path's
panels (measured: 0 of 12 targets converge), 11 bits suffice. So weights stored in bfloat16 or float16 are widened: as a
whole copy where one fits, else module by module while each runs. On GPUs, products of gradients are then TF32, which
holds bfloat16 weights exactly; F, which their sums are compared with, is computed in full float32.

Gradients may have a dtype of their own (`Compute.gradient_dtype`): on a copy of the weights, or, where the weights are
quantised or spread over devices, module by module as well.

LLM.int8 (8 bits) also rounds the activations of every layer, so F jumps by tenths of a nat between almost equal inputs,
and its gradients by more. Its weights are used as they are, and its activations are left unrounded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmxai.errors import OptionError
from llmxai.models.embedding import input_device
from llmxai.models.forward import configured
from llmxai.models.loading import LoadedModel
from llmxai.models.memory import free_memory

LOW = (torch.bfloat16, torch.float16)
"""Storage dtypes that are widened."""
COPY_SHARE = 0.5
"""Share of the free memory that a widened copy may take; above it, modules are widened one at a time."""
IN_CACHE = 2**21
"""Weights that are widened at once on a CPU, between two products."""
ON_DEVICE = 2**26
"""The same on a GPU: whole matrices of layers, but an output head in several parts."""
INT8 = 127
"""The largest whole number of 8 bits that LLM.int8 uses; a row's scale is its largest weight."""
BACKENDS: Any = torch.backends
MATMULS = (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul)
"""What holds the precision of float32 products on GPUs and on CPUs."""
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
    if not any(_low(module) for module in model.modules()):
        yield loaded
        return
    with tf32_products(), _attends_in_float32(model):
        free = free_memory(input_device(model))
        if loaded.quantization is None and not hasattr(model, "hf_device_map") and copy_fits(model, free=free):
            yield replace(loaded, model=copy.deepcopy(model).float(), stored=loaded.stored_dtype)
            return
        with computing(model, torch.float32):
            yield replace(loaded, computing=torch.float32)


def _attends_in_float32(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Inside, a model that was loaded with the kernels of flash-attn, which take 16 bits only, uses PyTorch's own."""
    return configured(model, "sdpa") if "flash" in model.config._attn_implementation else nullcontext()


def rounds_activations(loaded: LoadedModel) -> bool:
    """Whether F jumps between neighbouring inputs: activations are rounded to 16 bits, or to 8 (LLM.int8, fp8)."""
    modules = [*loaded.model.modules()]
    rounded = any(map(_in_fp8, modules)) or (loaded.computing is None and any(map(_is_8_bit, modules)))
    return loaded.dtype in LOW or rounded


def copy_fits(model: PreTrainedModel, *, free: int) -> bool:
    """Whether a float32 copy of the weights takes at most `COPY_SHARE` of the free memory of their device."""
    return copy_bytes(model) <= COPY_SHARE * free


def copy_bytes(model: PreTrainedModel) -> int:
    """Bytes of a float32 copy of the weights."""
    numbers: int = sum(parameter.numel() for parameter in model.parameters())
    return 4 * numbers


def rounds_products(loaded: LoadedModel) -> bool:
    """Whether float32 products are computed in TF32 now."""
    wide = loaded.dtype == torch.float32 and input_device(loaded.model).type == "cuda"
    return wide and MATMULS[0].fp32_precision == "tf32"


def products_allowed() -> str:
    """In what float32 products of this process may be computed, on GPUs and on CPUs: a key for what depends on it."""
    return " ".join(place.fp32_precision for place in MATMULS)


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
    before = [place.fp32_precision for place in MATMULS]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # the process has set it by the newer interface, and the older one no longer says
        older = "highest"
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for place, own in zip(MATMULS, before, strict=True):
            # one that says the same as the setting for everything follows it
            place.fp32_precision = "none" if own == BACKENDS.fp32_precision else own


def in_dtype(loaded: LoadedModel, dtype: torch.dtype) -> LoadedModel:
    """The model computing in `dtype`; the original is not changed.

    A copy of the weights; of a model that is quantised, spread over devices or had no room for a float32 copy the same
    weights, which compute in `dtype` inside `computing`. Raises OptionError for weights that only their own kernels can
    read.
    """
    if (loaded.quantization or "bitsandbytes").split()[0] != "bitsandbytes":
        raise OptionError(
            f"{loaded.name} is quantised ({loaded.quantization}), and its kernels compute in their own dtype. "
            f"Leave out gradient_dtype."
        )
    if loaded.quantization or loaded.computing is not None or hasattr(loaded.model, "hf_device_map"):
        return replace(loaded, computing=dtype)
    model = copy.deepcopy(loaded.model)
    computed = [(module, name) for module in model.modules() for name in module._non_persistent_buffers_set]
    exact = [module._buffers[name] for module, name in computed]
    model.to(dtype)
    for (module, name), buffer in zip(computed, exact, strict=True):
        # such as the angles of rotary positions: a model loaded in 16 bits has them in float32, and position 500 would
        # be turned by a whole radian otherwise
        module._buffers[name] = buffer
    if model.device.type == "cpu":
        # measured: on CPUs, the bfloat16 backward of SDPA is several times slower than that of plain products
        model.set_attn_implementation("eager")
    return replace(loaded, model=model)


@contextmanager
def computing(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, every module with floating-point parameters of its own computes in `dtype`, and casts them while it runs.

    Accelerate's hooks stay outside: they bring the weights first. bitsandbytes' 4-bit layers get another compute dtype,
    its 8-bit layers leave their inputs unrounded. Linear layers cast their weights once more for gradients, so that no
    graph keeps them; of layers that Accelerate brings for a pass, it does, unless they are checkpointed. Inside another
    of these contexts, only its modules change their dtype; None: they compute as stored.
    """
    patched: list[tuple[nn.Module, str, Any]] = []
    turned: list[tuple[_Cast, torch.dtype | None]] = []
    try:
        for module in model.modules():
            place = "_old_forward" if "_old_forward" in module.__dict__ else "forward"
            own = module.__dict__.get(place)
            if isinstance(own, _Cast):
                turned.append((own, own.dtype))
                own.turn(dtype)
            elif dtype is not None and _casts(module, dtype):
                patched.append((module, place, own))
                cast_forward = _Cast(module, getattr(module, place))
                setattr(module, place, cast_forward)
                cast_forward.turn(dtype)
        yield
    finally:
        for turned_one, before in turned:
            turned_one.turn(before)
        for module, place, before in patched:
            module.__dict__[place].turn(None)
            if before is None:
                module.__dict__.pop(place, None)
            else:
                setattr(module, place, before)


def computing_in(loaded: LoadedModel) -> AbstractContextManager[None]:
    """Inside, the model computes in `loaded.computing`, for a model whose weights serve two precisions."""
    return computing(loaded.model, loaded.computing)


def _low(module: nn.Module) -> bool:
    """Whether a module by itself computes, or stores weights, in 16 bits or less."""
    low = any(p.dtype in LOW for p in module.parameters(recurse=False))
    return low or _compute_dtype(module) in LOW or _is_8_bit(module)


def _compute_dtype(module: nn.Module) -> torch.dtype | None:
    """Of bitsandbytes' 4-bit layers."""
    found = getattr(module, "compute_dtype", None)
    return found if isinstance(found, torch.dtype) else None


def _is_8_bit(module: nn.Module) -> bool:
    """Whether it is bitsandbytes' layer of LLM.int8."""
    return type(module).__name__ == "Linear8bitLt"


def _in_fp8(module: nn.Module) -> bool:
    """Whether it has floating-point weights in 8 bits, which mean nothing without the scales that its kernels know."""
    return any(p.is_floating_point() and p.dtype.itemsize == 1 for p in module.parameters(recurse=False))


def _casts(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a module has weights of its own that are stored in, or unpacked to, another dtype."""
    if _is_8_bit(module):
        return True
    if _in_fp8(module):
        return False
    if _compute_dtype(module) is not None:
        return _compute_dtype(module) != dtype
    return any(p.is_floating_point() and p.dtype != dtype for p in module.parameters(recurse=False))


@dataclass(frozen=True)
class _Weights:
    """The matrix [output, input] of a linear layer, which is read some rows at a time."""

    outputs: int
    inputs: int
    rows: Callable[[slice], Tensor]
    """As they are stored, or unpacked."""

    def parts(self, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Some outputs and their weights, in the dtype of `like`; the next ones overwrite them.

        On a CPU as many as its cache holds: a whole matrix would be written to memory and read again, which takes as
        long as its product with 128 tokens.
        """
        as_stored = self.rows(slice(1)).dtype == like.dtype
        at_once = IN_CACHE if like.device.type == "cpu" else ON_DEVICE
        step = self.outputs if as_stored else max(1, at_once // self.inputs)
        memory: Tensor | None = None
        for start in range(0, self.outputs, step):
            some = slice(start, min(start + step, self.outputs))
            part = self.rows(some)
            if part.dtype != like.dtype:
                memory = like.new_empty(part.shape) if memory is None else memory
                part = memory[: len(part)].copy_(part)
            yield some, part


class _Product(torch.autograd.Function):
    """x W', with W made again in each pass, so that no graph keeps it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: _Weights) -> Tensor:
        ctx.weights = weights
        found = x.new_empty(*x.shape[:-1], weights.outputs)
        inputs, outputs = x.reshape(-1, weights.inputs), found.view(-1, weights.outputs)
        for some, part in weights.parts(x):
            torch.mm(inputs, part.T, out=outputs[:, some])
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weights = ctx.weights
        given = gradients[0].reshape(-1, weights.outputs)
        found: Tensor | None = None
        for some, part in weights.parts(given):
            if found is None:
                found = given[:, some] @ part
            elif given.dtype in LOW:  # a sum of many parts in 16 bits would lose what their products keep
                found = found.float().add_(given[:, some] @ part)
            else:
                found.addmm_(given[:, some], part)
        assert found is not None
        return found.to(given.dtype).view(*gradients[0].shape[:-1], weights.inputs), None


def _product(module: Any, weights: _Weights, x: Tensor) -> Tensor:
    found: Tensor = _Product.apply(x, weights)  # type: ignore[no-untyped-call]
    return found if module.bias is None else found + module.bias.to(x.dtype)


def _weights_of(module: Any, forward: Callable[..., Any]) -> _Weights | None:
    """The weights of a plain linear layer; None for all other modules.

    A layer of LLM.int8 so computes without rounding its inputs to 8 bits. Weights that Accelerate brings for a pass are
    gone when gradients are computed, unless the layer runs again by then.
    """
    if _is_8_bit(module):
        return _Weights(module.out_features, module.in_features, partial(_unpacked, module))
    hook, own = getattr(module, "_hf_hook", None), getattr(forward, "__func__", None)
    if any(getattr(each, "offload", False) for each in (hook, *getattr(hook, "hooks", ()))):
        return None
    if own is not nn.Linear.forward and own is not Conv1D.forward:
        return None

    def stored() -> Tensor:  # what is in the module when it runs
        weight: Tensor = module._parameters["weight"]
        return weight if own is nn.Linear.forward else weight.T

    outputs, inputs = stored().shape
    return _Weights(outputs, inputs, lambda rows: stored()[rows])


def _unpacked(layer: Any, rows: slice) -> Tensor:
    """The weights that a layer of LLM.int8 stands for: whole numbers times the scale of their row."""
    scale = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB  # moved there by the first pass
    weights: Tensor = layer.weight.data[rows].float() * (scale[rows].float() / INT8)[:, None]
    return weights


class _Cast:
    """The forward of a module whose weights and inputs are cast to `dtype` while it runs; None: as they are."""

    dtype: torch.dtype | None = None

    def __init__(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self.module, self.forward = module, forward
        self.weights = _weights_of(module, forward)

    def turn(self, dtype: torch.dtype | None) -> None:
        """Cast to another dtype from now on. Code that asks a linear layer for its dtype gets this one.

        T5 casts to it what it gives to the layer, and so would round to 16 bits.
        """
        self.dtype = dtype
        if self.weights is None or _is_8_bit(self.module):
            return
        if dtype is None:
            self.module.__dict__.pop("weight", None)
        else:
            self.module.__dict__["weight"] = _shape_of(cast(Tensor, self.module._parameters["weight"]), dtype)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        dtype = self.dtype
        if dtype is None:
            return self.forward(*arguments, **options)
        arguments = tuple(_to(value, dtype) for value in arguments)
        if self.weights is not None and len(arguments) == 1 and not options:
            return _product(self.module, self.weights, arguments[0])
        given = {name: _to(value, dtype) for name, value in options.items()}
        stored, module = dict(self.module._parameters), cast(Any, self.module)
        computed = _compute_dtype(module)
        table = module.weight if _is_large_table(module) else None
        try:
            if computed is not None:
                module.compute_dtype = dtype
            for name, parameter in stored.items():
                if parameter is not None and type(parameter).__name__ not in UNPACKED:
                    module._parameters[name] = (_shape_of if parameter is table else _to)(parameter, dtype)
            with nullcontext() if table is None else _LookedUp(table):
                found = self.forward(*arguments, **given)
            return _to(found, dtype) if getattr(found, "dtype", None) in LOW else found
        finally:
            module._parameters.update(stored)
            if computed is not None:
                module.compute_dtype = computed


def _is_large_table(module: nn.Module) -> bool:
    """Whether it is a table of embeddings that takes long to cast. Tables of positions are short; some are sliced."""
    if not isinstance(module, nn.Embedding):
        return False
    return module.weight.is_floating_point() and module.weight.numel() > IN_CACHE


class _LookedUp(TorchFunctionMode):
    """Inside, rows are looked up in `table`, whatever table is given, and then cast to the dtype of that one.

    A cast of a whole table of embeddings takes seconds, and memory for all tokens that are not in the text.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function is not nn.functional.embedding:
            return function(*arguments, **(options or {}))
        ids, given, *others = arguments
        return function(ids, self.table, *others, **(options or {})).to(given.dtype)


def _shape_of(table: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A table of the same shape for modules that ask what they compute in: a single NaN, to be looked up nowhere."""
    return nn.Parameter(table.new_full((1,), torch.nan, dtype=dtype).expand(table.shape), requires_grad=False)


def _to(value: Any, dtype: torch.dtype) -> Any:
    """A floating-point tensor in `dtype`; anything else unchanged."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
