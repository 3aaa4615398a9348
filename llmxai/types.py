"""The data that flows through llmxai: frozen, with named axes.

Axes: batch, node, target, seq, query, key, head, layer, hidden, vocab.
Units: log-probs and attributions are in nats, rollout rows are shares of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from llmxai.names import Role as Role
from llmxai.names import Status as Status


def predicting_position(prompt_len: int, t: int) -> int:
    """The position whose logits predict generated token `t` (0-based), which itself sits at `prompt_len + t`.

    This is the position rule; nothing else in llmxai writes it down.
    """
    return prompt_len + t - 1


@dataclass(frozen=True)
class Generation:
    """A prompt and what the model said after it, as the exact ids that the model saw and chose."""

    ids: tuple[int, ...]
    """Prompt ids, then generated ids."""
    prompt_len: int
    roles: tuple[Role, ...]
    texts: tuple[str, ...]
    """What each token adds to the decoded text; `""` where a character is completed by a later token."""
    words: tuple[tuple[int, int], ...]
    """Half-open token ranges that cover the sequence, one a word."""
    logprobs: tuple[float, ...] | None
    """Log-prob (nats) of each generated id as recorded while generating; None where the response was given."""
    stop: str
    """Why the text ends: `eos`, `length` or `given`."""
    request: Mapping[str, Any]
    """What was asked, as it came: `prompt` or `messages`, and `response` where one was given."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Decoding settings and seed; empty where the response was given."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        if not (len(self.roles) == len(self.texts) == n):
            raise ValueError(f"{n} ids, {len(self.roles)} roles and {len(self.texts)} texts: one of each a token")
        if not 0 < self.prompt_len < n:
            raise ValueError(f"prompt_len {self.prompt_len} must lie inside the {n} tokens")

    @property
    def n_targets(self) -> int:
        return len(self.ids) - self.prompt_len

    @property
    def generated_ids(self) -> tuple[int, ...]:
        return self.ids[self.prompt_len :]


@dataclass(frozen=True)
class Attribution:
    """Signed contributions (nats) of features to targets, each with its certificate.

    Identity: `values[t].sum() == f_input[t] - f_baseline[t] + gap[t]`.
    """

    method: str
    values: Float[Tensor, "target seq"]
    """0 for every position that is not a feature of the target."""
    features: Bool[Tensor, "target seq"]
    f_input: Float[Tensor, " target"]
    f_baseline: Float[Tensor, " target"]
    gap: Float[Tensor, " target"]
    """Convergence (completeness) gap in nats: sum of the values minus (f_input - f_baseline)."""
    local_error: Float[Tensor, " target"]
    """Sum over the panels of the path of |panel error| (nats); at least |gap|, since errors cannot cancel in it."""
    tolerance: Float[Tensor, " target"]
    """What `local_error` may be for the target to count as converged."""
    nodes: tuple[int, ...]
    """Gradient nodes spent on each target."""
    converged: tuple[bool, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Rollout:
    """Attention rollout rows: row t is the row of target t's predicting position.

    Identity: each row is non-negative and sums to 1 minus `lost_mass` (attention sinks that are not tokens).
    """

    method: str
    rows: Float[Tensor, "target seq"]
    null_rows: Float[Tensor, "target seq"]
    """The same product for uniform attention under the same masks and depth: what says nothing about content."""
    lost_mass: Float[Tensor, " target"]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class CrossCheck:
    """One target: rollout against |integrated gradients| over the target's features, and what follows."""

    status: Status
    reason: str
    """One plain sentence: the rule and the figures that gave the status."""
    spearman: float | None
    spearman_p: float | None
    """One-sided permutation p-value of the Spearman correlation; None under three features or for a constant row."""
    top_k: int
    top_k_overlap: float | None
    """Share of the top-k features that the two methods have in common; None where there is no feature."""
    sink_mass: float
    """Share of the rollout row on position 0."""
    feature_mass: float
    """Share of the rollout row on the target's features."""
    entropy: float | None
    """Entropy of the row over the features, 0 (one feature) to 1 (uniform); None under two features."""
    null_divergence: float
    """Jensen-Shannon divergence (bits, 0 to 1) of the row from the uniform-causal null, over all positions."""


@dataclass(frozen=True)
class Replay:
    """The teacher-forced log-prob (nats) and rank (1 = arg-max) of each generated id."""

    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]
    tolerance: float | None
    """The largest difference from the recorded log-probs that was allowed; None where none were recorded."""


@dataclass(frozen=True)
class Explanation:
    """Everything that was measured for one generation."""

    generation: Generation
    replay: Replay
    attribution: Attribution
    rollout: Rollout
    checks: tuple[CrossCheck, ...]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]

    def _repr_html_(self) -> str:
        """The report, for a notebook. Types know nothing of pages: the maker is looked up by name when it is needed."""
        return str(import_module("llmxai.notebook").inline(self))
