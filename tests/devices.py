"""Two devices that are none: tensors that live on the CPU and claim another device, and fail where devices are mixed.

No machine of the tests has two GPUs. Inside `fake_devices()`, "lazy:0" and "lazy:1" are devices as PyTorch knows them:
factories make tensors there, `.to` moves them, gradients flow back, and an operation on tensors of two devices raises
as CUDA's would. (The name is one that PyTorch reserves for a backend that is not loaded; of all such, autograd runs
those of this one on the CPU's thread.)
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from llmxai.models import LoadedModel, embedding_module, layer_stacks

KIND = "lazy"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Tensor}
"""Operations that take a tensor of one device to another."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Operations whose index may be on the CPU."""
NO_SCALARS = {
    *(aten.gather.default, aten.index_select.default, aten.embedding.default, aten.cat.default, aten.stack.default),
    *(aten.scatter.src, aten.scatter_add.default, aten.mm.default, aten.bmm.default, aten.addmm.default),
}
"""Operations that do not even take a single number from the CPU."""


WAITS = {
    *(aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.is_nonzero.default),
    *(aten.masked_select.default, aten.repeat_interleave.Tensor),
}
"""Operations whose result the host waits for, besides copies (to the device, unless they need not be done when the host
goes on) and indexing by booleans."""


class Seen:
    """What ran on the devices so far: operations, and those for which the host had to wait, by name."""

    def __init__(self) -> None:
        self.kernels, self.waits, self.wide = Counter[str](), Counter[str](), Counter[str]()
        """The last: matrix products in float64."""

    def note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], place: torch.device) -> None:
        asked = kwargs.get("device")
        tensors = [each for each in tree_iter(args) if isinstance(each, OnDevice)]
        goes_there = func in COPIES and place.type == KIND and isinstance(args[0], Tensor)
        if goes_there and not tensors and not kwargs.get("non_blocking"):
            self.waits["copy to the device"] += 1  # CUDA waits for all that it was given before
        if not tensors:
            return
        name = str(func.overloadpacket).removeprefix("aten.")
        self.kernels[name] += 1
        by_booleans = func in INDEXING and any(each.dtype == torch.bool for each in tensors[1:])
        comes_back = func in COPIES and (asked is not None or not isinstance(args[0], OnDevice)) and place.type == "cpu"
        if func in WAITS or by_booleans or comes_back:
            self.waits[name] += 1
        if func in NO_SCALARS and "mm" in name and any(each.dtype == torch.float64 for each in tensors):
            self.wide[name] += 1


class MixedDevicesError(BaseException):
    """An operation on tensors of two devices; no code that turns errors of a model into refusals catches it."""


class OnDevice(Tensor):
    """A tensor that claims a device; its numbers are in `held`, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device | None = None, *, requires_grad: bool = False) -> Tensor:
        if device is None:  # Accelerate makes a parameter by the class of the one that it replaces
            return nn.Parameter(held, requires_grad=requires_grad)
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=device,
            requires_grad=False,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.held!r}, device={str(self.device)!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return computed(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


def computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The operation on the numbers, its results on the device where it must have run."""
    place = _place(func, args, kwargs)
    asked = kwargs.get("device")
    if asked is not None:
        place = torch.device(asked)
        kwargs = {**kwargs, "device": "cpu" if place.type == KIND else place}
    for seen in _watching:
        seen.note(func, args, kwargs, place)
    given = {id(each.held): each for each in tree_iter((args, kwargs)) if isinstance(each, OnDevice)}
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or place.type != KIND:
            return value
        return given[id(value)] if id(value) in given else OnDevice(value, place)

    return tree_map(placed, found)


_watching: list[Seen] = []


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def _place(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """The only device of an operation's tensors. Raises MixedDevicesError if there are two."""
    if func in COPIES:
        return args[0].device  # type: ignore[no-any-return]
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    if func in INDEXING:
        tensors = [each for each in tensors if each.device.type != "cpu" or each is args[0]]
    found = {each.device for each in tensors if each.device.type != "cpu" or each.dim() or func in NO_SCALARS}
    if len(found) > 1:
        shapes = ", ".join(f"{tuple(each.shape)} on {each.device}" for each in tensors)
        raise MixedDevicesError(f"{func}: expected all tensors to be on the same device, found {shapes}")
    return found.pop() if found else torch.device("cpu")


class _FakeDevices(TorchDispatchMode):
    """Factories and moves from the CPU, which see no `OnDevice`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return computed(func, args, kwargs or {})


@contextmanager
def fake_devices() -> Iterator[None]:
    """Inside, "lazy:0" and "lazy:1" are devices."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    setattr(torch, KIND, SimpleNamespace())  # where checkpointing looks for the device's own functions
    try:
        with _FakeDevices():
            yield
    finally:
        delattr(torch, KIND)
        torch._C._set_only_lift_cpu_tensors(before)


@contextmanager
def watched() -> Iterator[Seen]:
    """What runs inside. Call inside `fake_devices()`."""
    seen = Seen()
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


def device_map(loaded: LoadedModel, *, early: str = "lazy:0", late: str = "lazy:1") -> dict[str, str]:
    """The embedding, what shares its weights, and the first layer of every stack on one device; the rest on another."""
    model, found = loaded.model, dict[str, str]()
    layers = {id(layer): number for stack in layer_stacks(model) for number, layer in enumerate(stack)}
    tied = {id(parameter) for parameter in embedding_module(model).parameters()}

    def place(name: str, module: nn.Module) -> None:
        inside = [layers[id(part)] for part in module.modules() if id(part) in layers]
        if inside and id(module) not in layers:
            for child, part in module.named_children():
                place(f"{name}.{child}" if name else child, part)
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            found.update({f"{name}.{tensor}" if name else tensor: late for tensor, _ in own})
            return
        is_early = inside == [0] or any(id(parameter) in tied for parameter in module.parameters())
        found[name] = early if is_early else late

    place("", model)
    return found


def spread(loaded: LoadedModel, **devices: str) -> LoadedModel:
    """A copy of the model on two devices. Call inside `fake_devices()`."""
    model = copy.deepcopy(loaded.model)
    places = device_map(loaded, **devices)
    first = next(place for place in places.values() if place != "cpu")
    return replace(loaded, model=dispatch_model(model, places, main_device=first, force_hooks=True))


def moved(loaded: LoadedModel, device: str = "lazy:0") -> LoadedModel:
    """A copy of the model on one device. Call inside `fake_devices()`."""
    return replace(loaded, model=copy.deepcopy(loaded.model).to(device))
