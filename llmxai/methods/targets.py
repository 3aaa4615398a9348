"""What is explained: a scalar F of the logits at one or several positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.types import Generation, predicting_position

TargetKind = Literal["logprob", "logit", "contrast"]


@dataclass(frozen=True)
class Target:
    """F = sum over (position, id) of the log-prob (nats) or logit of `id`, or of its logit minus the foil's."""

    kind: TargetKind
    positions: tuple[int, ...]
    """Predicting positions: the logits there are about the next token."""
    ids: tuple[int, ...]
    foils: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.positions or len(self.positions) != len(self.ids):
            raise OptionError(
                f"A target has {len(self.positions)} positions and {len(self.ids)} ids; expected one id per position."
            )
        if self.kind == "contrast" and len(self.foils) != len(self.ids):
            raise OptionError(
                f"A contrast of {len(self.ids)} tokens has {len(self.foils)} foils; expected one per token."
            )

    @property
    def last(self) -> int:
        """Its last predicting position; later tokens have no influence."""
        return max(self.positions)


def token_targets(generation: Generation, *, kind: TargetKind = "logprob") -> tuple[Target, ...]:
    """One target per generated token; the token that has a foil gets the contrast with it."""
    return tuple(
        contrast_target(generation, t=t, foil=foil.id)
        if (foil := generation.foil_of(t)) is not None
        else Target(kind=kind, positions=(predicting_position(generation.prompt_len, t),), ids=(token,))
        for t, token in enumerate(generation.generated_ids)
    )


def targets_of(generation: Generation, targets: Sequence[Target] | None) -> tuple[Target, ...]:
    """`targets`, or one for every generated token if None."""
    return token_targets(generation) if targets is None else tuple(targets)


def seen_by(targets: Sequence[Target], n: int) -> Bool[Tensor, "target seq"]:
    """Which of `n` tokens each target sees: all up to its last predicting position."""
    return torch.arange(n) <= torch.tensor([target.last for target in targets])[:, None]


def kinds(targets: Sequence[Target]) -> str:
    """The kinds of the targets, for the settings of a method: `logprob`, or `logprob, contrast`."""
    return ", ".join(dict.fromkeys(target.kind for target in targets))


def span_target(generation: Generation, *, first: int = 0, end: int | None = None) -> Target:
    """Joint log-prob of the generated tokens [first, end); by default of the whole answer."""
    chosen = range(*slice(first, end).indices(generation.n_targets))
    return Target(
        kind="logprob",
        positions=tuple(predicting_position(generation.prompt_len, t) for t in chosen),
        ids=tuple(generation.generated_ids[t] for t in chosen),
    )


def contrast_target(generation: Generation, *, t: int, foil: int) -> Target:
    """Logit of generated token `t` minus the logit of `foil` (equal to the difference of their log-probs)."""
    position = predicting_position(generation.prompt_len, t)
    return Target(kind="contrast", positions=(position,), ids=(generation.generated_ids[t],), foils=(foil,))


@dataclass(frozen=True)
class TargetRows:
    """All targets flattened to rows of logits: row r belongs to target `owner[r]`."""

    targets: tuple[Target, ...]
    positions: tuple[int, ...]
    owner: tuple[int, ...]

    @classmethod
    def of(cls, targets: Sequence[Target]) -> TargetRows:
        pairs = [(p, i) for i, target in enumerate(targets) for p in target.positions]
        return cls(targets=tuple(targets), positions=tuple(p for p, _ in pairs), owner=tuple(i for _, i in pairs))

    def values(self, logits: Float[Tensor, "node row vocab"]) -> Float[Tensor, "node target"]:
        """F of every target, in float32 or wider."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        device = logits.device
        ids = torch.tensor([i for target in self.targets for i in target.ids], device=device)
        chosen = logits.gather(2, ids.expand(len(logits), -1)[..., None])[..., 0]  # [node, row]
        minus = torch.zeros_like(chosen)
        kinds = [target.kind for target in self.targets for _ in target.ids]
        if "logprob" in kinds:
            rows = torch.tensor([kind == "logprob" for kind in kinds], device=device)
            minus = torch.where(rows, torch.logsumexp(logits, dim=-1), minus)
        if "contrast" in kinds:
            rows = torch.tensor([kind == "contrast" for kind in kinds], device=device)
            foils = torch.tensor([i for t in self.targets for i in (t.foils or t.ids)], device=device)
            foil = logits.gather(2, foils.expand(len(logits), -1)[..., None])[..., 0]
            minus = torch.where(rows, foil, minus)
        owner = torch.tensor(self.owner, device=device).expand(len(logits), -1)
        totals = torch.zeros(len(logits), len(self.targets), dtype=chosen.dtype, device=device)
        return totals.scatter_add(1, owner, chosen - minus)
