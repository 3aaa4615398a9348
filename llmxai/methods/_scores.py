"""What a method gives that makes no completeness claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class TokenScores:
    """One score a token for every target; only their order, or also their sign and size, means something."""

    method: str
    values: Float[Tensor, "target seq"]
    """float64; 0 for every position that is not a feature of the target."""
    features: Bool[Tensor, "target seq"]
    signed: bool
    """Whether a negative score says that the token speaks against the target."""
    settings: Mapping[str, Any]
