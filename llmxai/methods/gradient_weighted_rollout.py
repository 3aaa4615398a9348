"""Gradient-weighted attention rollout for decoders, one layer and one target at a time.

R <- R + A_bar R with A_bar = mean over heads of max(0, dF/dA x A), R beginning as the identity (Chefer, Gur & Wolf
2021, https://arxiv.org/abs/2103.15679, eq. 5 and 6 for self-attention). Here F is the log-prob of the generated token
and the row is that of its predicting position, where the paper reads a class token's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import NonFiniteError
from llmxai.methods._curve import CurveRecorder, shares
from llmxai.methods._descent import Descent, descending
from llmxai.methods._product import padded, starts, target_positions
from llmxai.methods._registry import method
from llmxai.methods._targets import kinds, token_targets
from llmxai.methods._two_sides import weighted_two_sides
from llmxai.models import Kind, LoadedModel
from llmxai.types import Generation, Rollout

GROUP_NUMBERS = 2**27
"""Numbers in the cotangents (target x seq x hidden) that go down together; more targets go in several groups."""

Progress = Callable[[int, int], None]
"""Called with (layers x targets that are done, all of them)."""


@method(
    "gradient_weighted_rollout",
    needs={"attentions", "gradients"},
    source="Chefer, Gur & Wolf 2021, https://arxiv.org/abs/2103.15679, eq. 5 and 6",
)
def gradient_weighted_rollout(
    loaded: LoadedModel, generation: Generation, *, progress: Progress = lambda _done, _all: None
) -> Rollout:
    """Rollout of attention weighted by its own positive gradient: what raised this token's log-prob (or its lead).

    The identity that R begins as is taken off (it says only that the predicting position is itself) and each row is
    scaled to sum 1, so `lost_mass` is 0; a row without any positive weight is 1 at the predicting position. The null is
    the same recursion for uniform attention. Costs one forward pass, one more of each layer, and one backward a target.

    Of an encoder-decoder, the recursion runs over source and answer together, cross-attention being a block of the
    joined map (the paper's eq. 10 also mixes in the encoder's own R; this does not), and all maps exist at once.

    Raises UnsupportedModelError for layers without softmax attention or that cannot be run one by one, NonFiniteError
    where a gradient is NaN or infinite.
    """
    positions, start = target_positions(generation), starts(loaded, generation)
    if loaded.kind is Kind.ENCODER_DECODER:
        steps = list(weighted_two_sides(loaded, generation))
        return _rollout(loaded, generation, start, [steps])
    with descending(loaded, generation) as descent:
        depth, size = len(descent.calls), max(1, GROUP_NUMBERS // descent.calls[-1].hidden.numel())
        downs: list[list[tuple[Tensor, Tensor]]] = []
        for first in range(0, len(positions), size):
            group, done = range(first, min(first + size, len(positions))), first * depth
            downs.append([])
            for rows, null in _down(descent, start[group.start : group.stop], group):
                downs[-1].append((rows, null))
                done += len(group)
                progress(done, depth * len(positions))
    return _rollout(loaded, generation, start, downs)


def _rollout(
    loaded: LoadedModel,
    generation: Generation,
    start: Float[Tensor, "target seq"],
    downs: Sequence[Sequence[tuple[Tensor, Tensor]]],
) -> Rollout:
    """From the rows and the null's after every layer, of every group of targets."""
    if not all(torch.isfinite(down[-1][0]).all() for down in downs):
        raise NonFiniteError(
            f"{loaded.name}: NaN or infinity in the gradients of attention, computed in {loaded.dtype}. Load the model "
            f"with --dtype float32 or bfloat16."
        )
    recorder = CurveRecorder.of(target_positions(generation))
    for parts in zip(*downs, strict=True):  # one layer of every group
        rows, null = (_as_shares(torch.cat(side), start) for side in zip(*parts, strict=True))
        recorder.add(rows, null)
    return Rollout(
        method="gradient_weighted_rollout",
        rows=padded(rows, generation),
        null_rows=padded(null, generation),
        lost_mass=torch.zeros(len(rows), dtype=rows.dtype),
        curve=recorder.curve(),
        settings={"target": kinds(token_targets(generation)), "head_fusion": "mean", "layers": len(recorder.steps)},
    )


def _down(descent: Descent, start: Float[Tensor, "target seq"], targets: range) -> Iterator[tuple[Tensor, Tensor]]:
    """R's rows and the null's after every layer, top layer first, with what they began as still in them."""
    rows, null, cotangents = start, start, descent.cotangents(targets)
    for layer in reversed(range(len(descent.calls))):
        moved, visible = descent.carry(layer, rows, cotangents)
        rows, null = rows + moved, null + visible.spread(null)
        yield rows, null


def _as_shares(rows: Float[Tensor, "target seq"], identity: Float[Tensor, "target seq"]) -> Float[Tensor, "target seq"]:
    moved = (rows - identity).clamp(min=0)
    return torch.where(moved.sum(dim=1, keepdim=True) > 0, shares(moved), identity)
