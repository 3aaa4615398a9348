"""The embeddings of a sequence in place of what the model's own tables give, while the model reads ids.

A model takes more from ids than an embedding: where padding is, and so where a classifier's head reads; positions;
further embeddings for every layer (Gemma 3n); the experts that a table names (DeepSeek-V4). So it always runs from ids,
and only what its embedding tables give is replaced: embeddings are moved where the model would look them up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmxai.errors import UnsupportedModelError
from llmxai.models.families import ModelKind, family_of, kind_of


def embedding_module(model: nn.Module) -> nn.Module:
    """The input embedding; raises UnsupportedModelError if the model has none."""
    try:
        module = model.get_input_embeddings()  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        module = getattr(model, "embed_tokens", None)  # of a stack that is no model by itself (FSMT)
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
            return _device(place)
    return next((parameter.device for parameter in module.parameters()), None)


def _device(place: int | str | torch.device) -> torch.device:
    """As Accelerate names one: a number is that of a GPU."""
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def devices_of(model: PreTrainedModel) -> list[torch.device]:
    """All devices on which parts of the model run or are kept, each once."""
    places = getattr(model, "hf_device_map", {}).values()
    return list(dict.fromkeys([input_device(model), *(_device(place) for place in places if place != "disk")]))


def on_device(numbers: Sequence[Any] | Tensor, device: torch.device, *, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host as a tensor on a device, which goes on computing meanwhile.

    `torch.tensor(..., device=...)` would first wait for everything that the device was given before.
    """
    return torch.as_tensor(numbers, dtype=dtype).to(device, non_blocking=device.type != "cpu")


def kept_positions(model: PreTrainedModel, positions: Sequence[int]) -> Int[Tensor, " position"] | list[int]:
    """`positions` as transformers' `logits_to_keep`, which indexes the last layer's output.

    For a model on several devices they are plain numbers: Accelerate takes every tensor among a model's arguments to
    the device where it begins, and an index on one GPU does not fit what another has computed.
    """
    if len(devices_of(model)) > 1:
        return list(positions)
    return on_device(list(positions), input_device(model))


def tables(model: PreTrainedModel, *, decoder: bool = False) -> list[nn.Module]:
    """The modules that embed ids: the input embedding (of an encoder-decoder's side), then further ones of the family.

    Most models have one. What a further table gives is moved together with the embedding, on the same path.
    """
    first = embedding_module(model)
    if kind_of(model) is ModelKind.ENCODER_DECODER:
        with suppress(UnsupportedModelError):  # else its sides share the model's
            first = embedding_module(model.get_decoder() if decoder else model.get_encoder())
    names = family_of(model.config).tables
    return [first, *(part for name, part in model.named_modules() if name.rpartition(".")[2] in names)]


def embed(model: PreTrainedModel, ids: Sequence[int], *, source: int = 0) -> Float[Tensor, "seq width"]:
    """The embeddings of `ids` as the model computes them (through Accelerate's hooks, if any).

    For an encoder-decoder, the first `source` ids are the encoder's and the others the decoder's. `width` is the hidden
    size, or more where the family has further tables, whose rows follow.
    """
    sides = (ids[:source], ids[source:]) if source else (ids,)
    found = [looked_up(model, side, decoder=bool(k)) for k, side in enumerate(sides) if len(side)]
    return torch.cat([rows.to(found[0].device) for rows in found])  # each side may have a table on a device of its own


@torch.no_grad()
def looked_up(model: PreTrainedModel, ids: Sequence[int], *, decoder: bool = False) -> Float[Tensor, "seq width"]:
    """The same for one side."""
    first, *further = tables(model, decoder=decoder)
    row = torch.tensor([list(ids)], device=input_device(model))
    found = [_embeds(first(row))[0]]
    for table in further:
        known = int(getattr(table, "num_embeddings", 1 + max(ids)))
        found.append(_embeds(table(torch.where(row < known, row, 0)))[0].to(found[0].device))
    return torch.cat(found, dim=-1) if further else found[0]


def _embeds(output: Any) -> Tensor:
    """What a table gives, alone or first in a tuple (I-BERT)."""
    return torch.as_tensor(output[0] if isinstance(output, tuple) else output)


def n_embeddings(model: PreTrainedModel, *, decoder: bool = False) -> int | None:
    """The number of ids that have an embedding; None if the module does not say."""
    module = tables(model, decoder=decoder)[0]
    found = getattr(module, "num_embeddings", None)
    weight = getattr(module, "weight", None)
    return (
        int(found) if found is not None else len(weight) if isinstance(weight, Tensor) and weight.dim() == 2 else None
    )


@dataclass
class _Awaited:
    """A table that will be asked for `ids`, and what it gives then."""

    table: nn.Module
    ids: Int[Tensor, "batch seq"]
    embeds: Float[Tensor, "batch seq width"]
    further: bool
    given: bool = False

    def reads(self, module: nn.Module, called: Tensor) -> Tensor | None:
        """`called` as [batch, position] if these are its ids, else None.

        Some models pad them behind to the size of a block (Longformer, BigBird), or turn them (XLNet).
        """
        if module is not self.table or called.dim() != 2:
            return None
        return next((way for way in (called, called.T) if self._are_mine(way)), None)

    def _are_mine(self, called: Tensor) -> bool:
        n = self.ids.shape[1]
        if len(called) != len(self.ids) or called.shape[1] < n:
            return False
        if self.further or _same_memory(called, self.ids):
            return True
        return bool((called[:, :n] == self.ids.to(called.device)).all())

    def output(self, own: Tensor, *, turned: bool) -> Tensor:
        """The embeddings in the form of the table's own output."""
        if turned:
            return self.output(own.transpose(0, 1), turned=False).transpose(0, 1)
        width, n = own.shape[-1], self.ids.shape[-1]
        mine = self.embeds[..., -width:] if self.further else self.embeds[..., :width]
        mine = mine.to(own.device) if own.shape[1] == n else torch.cat([mine.to(own), own[:, n:]], dim=1)
        # some models write into their embeddings, which autograd refuses for a leaf and its views
        return mine.clone() if mine.requires_grad else mine


def _same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers of the same memory: on a GPU, comparing values waits for all before."""
    alike = one.shape == other.shape and one.stride() == other.stride() and one.dtype == other.dtype
    return alike and one.device == other.device and one.data_ptr() == other.data_ptr()


@contextmanager
def replaced(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch seq"],
    embeds: Float[Tensor, "batch seq width"] | None,
    *,
    source: int = 0,
) -> Iterator[None]:
    """Inside, the model's tables give `embeds` wherever it embeds `ids`; the hooks are removed afterwards.

    With None, nothing is replaced. For an encoder-decoder, the first `source` of them belong to the encoder. Raises
    UnsupportedModelError if the model ran and did not embed these ids with its tables.
    """
    if embeds is None:
        yield
        return
    cut = source or ids.shape[1]
    awaited = [
        _Awaited(table, ids[:, side], embeds[:, side], further=bool(number))
        for decoder, side in enumerate((slice(0, cut), slice(cut, None)))
        if ids[:, side].shape[1]
        for number, table in enumerate(tables(model, decoder=bool(decoder)))
    ]

    def put(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], own: Any) -> Any:
        called = next((each for each in (*arguments, *options.values()) if isinstance(each, Tensor)), None)
        if called is None:
            return None
        mine = [(one, way) for one in awaited if (way := one.reads(module, called)) is not None]
        if not mine:
            return None
        one, way = next((each for each in mine if not each[0].given), mine[-1])  # both sides may embed the same ids
        one.given = True
        given = one.output(_embeds(own), turned=way is not called)
        return (given, *own[1:]) if isinstance(own, tuple) else given

    handles = [
        table.register_forward_hook(put, with_kwargs=True) for table in {id(a.table): a.table for a in awaited}.values()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not all(one.given for one in awaited):
        raise UnsupportedModelError(
            f"{type(model).__name__} does not look its token ids up in its embedding table, so their embeddings "
            "cannot be moved along a path."
        )
