"""F of one target with sets of features removed: what perturbation methods and faithfulness metrics ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.methods._ablation import CHUNK_TOKENS, OPERATORS
from llmxai.methods._path import baseline_embedding
from llmxai.methods._targets import Target, TargetRows
from llmxai.models import LoadedModel, embed, forward_logits, prefix_cache
from llmxai.models.seams import undisturbed
from llmxai.types import Generation


def require_operator(operator: str) -> None:
    """Raise OptionError for an operator that does not exist."""
    if operator not in OPERATORS:
        raise OptionError(f"removal operator {operator!r} is unknown. Known: {', '.join(OPERATORS)}.")


@dataclass
class Removal:
    """F (nats or logits) of `target` for any set of kept features; every distinct set is computed once.

    `delete` takes tokens out, `baseline` puts the neutral token's embedding in their place, `mean` the mean embedding
    of the vocabulary. Features stand at or before the target's first predicting position, so deleting moves all of
    its positions alike; where nothing at all would be left before the target, the neutral token stands there. What is
    before the first feature is computed once.
    """

    loaded: LoadedModel
    generation: Generation
    target: Target
    features: tuple[int, ...]
    operator: str = "delete"
    forwards: int = 0
    """Sequences that went through the model."""
    known: dict[bytes, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_operator(self.operator)
        if self.generation.source_len and self.operator == "delete":
            raise OptionError(
                f"{self.loaded.name}: an encoder-decoder has two sides, and this method does not take tokens out of "
                f"both. Choose the operator baseline or mean."
            )
        if not self.features or self.features[-1] > min(self.target.positions):
            raise OptionError(
                f"{len(self.features)} features, the last at {self.features[-1:]}: expected at least one, none after "
                f"the first predicting position {min(self.target.positions)}."
            )
        with undisturbed(self.loaded.model):
            self.x = embed(self.loaded.model, self.generation.ids)[: self.target.last + 1]
            self.prefix = prefix_cache(self.loaded.model, self.x[None, : self._first])
            if self.operator != "delete" or self._emptied(0):
                named = "mean" if self.operator == "mean" else "space"
                self.replacement = baseline_embedding(self.loaded, named, seq=len(self.x)).to(self.x)

    @property
    def _first(self) -> int:
        """The last token before the features: it is computed every time, so that no sequence is ever empty."""
        return max(0, self.features[0] - 1)

    @property
    def live(self) -> int:
        """Where the part that is computed each time begins."""
        return self._first if self.prefix is not None else 0

    def _emptied(self, kept: int) -> bool:
        """Whether deletion leaves nothing to predict from: a raw prompt without BOS."""
        return self.operator == "delete" and kept == 0 and len(self.features) == min(self.target.positions) + 1

    def values(self, kept: Bool[Tensor, "mask feature"]) -> Float[Tensor, " mask"]:
        """F with only `kept` features left, float64."""
        wanted = {row.numpy().tobytes(): row for row in kept.cpu()}
        missing = [row for key, row in wanted.items() if key not in self.known]
        for group in self._groups(missing):
            masks = torch.stack(group)
            for row, value in zip(group, self.compute(self._inputs(masks), masks), strict=True):
                self.known[row.numpy().tobytes()] = float(value)
        return torch.tensor([self.known[row.numpy().tobytes()] for row in kept.cpu()], dtype=torch.float64)

    def full(self) -> float:
        """F with every feature in place."""
        return float(self.values(torch.ones(1, len(self.features), dtype=torch.bool))[0])

    def compute(
        self, inputs: Float[Tensor, "mask live hidden"], kept: Bool[Tensor, "mask feature"]
    ) -> Float[Tensor, " mask"]:
        """F of embeddings that stand from `live` on; `kept` says how far deletion moved the target."""
        removed = int((~kept[0]).sum()) if self.operator == "delete" else 0
        removed -= self._emptied(int(kept[0].sum()))
        rows = TargetRows.of([self.target])
        positions = [position - self.live - removed for position in rows.positions]
        with undisturbed(self.loaded.model), torch.no_grad():
            logits = forward_logits(
                self.loaded.model,
                inputs.to(self.loaded.dtype),
                positions=positions,
                prefix=self.prefix,
                source=self.generation.source_len,
            )
        self.forwards += len(inputs)
        return rows.values(logits)[:, 0].double().cpu()

    def _groups(self, masks: list[Tensor]) -> list[list[Tensor]]:
        """Masks that go through together: of the same length after deletion, and within the memory."""
        groups: dict[int, list[Tensor]] = {}
        for mask in masks:
            groups.setdefault(int(mask.sum()) if self.operator == "delete" else -1, []).append(mask)
        size = max(1, CHUNK_TOKENS // max(1, len(self.x) - self.live))
        return [group[i : i + size] for _, group in sorted(groups.items()) for i in range(0, len(group), size)]

    def _inputs(self, kept: Bool[Tensor, "mask feature"]) -> Float[Tensor, "mask live hidden"]:
        stays = torch.ones(len(kept), len(self.x), dtype=torch.bool, device=self.x.device)
        stays[:, list(self.features)] = kept.to(self.x.device)
        stays = stays[:, self.live :]
        x = self.x[self.live :]
        if self._emptied(int(kept[0].sum())):
            return torch.cat([self.replacement[None], x[stays[0]]])[None]
        if self.operator == "delete":
            return torch.stack([x[row] for row in stays])
        return torch.where(stays[..., None], x, self.replacement)


def removal_forward(removal: Removal) -> Callable[[Float[Tensor, "batch feature"]], Float[Tensor, " batch"]]:
    """F over vectors that are 1 where a feature is kept and 0 where it is removed, for Captum."""
    return lambda z: removal.values(z > 0.5)
