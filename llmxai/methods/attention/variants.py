"""The rollout variants by name: what stands beside the plain rollout."""

from __future__ import annotations

from llmxai.errors import OptionError
from llmxai.methods.attention.attention_gradients import Progress, gradient_weighted_rollout
from llmxai.methods.registry import METHODS
from llmxai.models import LoadedModel
from llmxai.types import Generation, Rollout

BEST_EVIDENCED = "gradient_weighted_rollout"
"""By the leads on planted questions; `make bench-rollout` measures every variant again."""


def variant_names() -> list[str]:
    """Every method of the table that reads attention, but the plain rollout."""
    return [name for name, entry in METHODS.items() if "attentions" in entry.needs and name != "attention_rollout"]


def require_variant(name: str) -> None:
    """Raise OptionError for a name that no variant has."""
    if name not in variant_names():
        raise OptionError(f"variant {name!r} is unknown. Known: {', '.join(variant_names())}.")


def roll_variant(loaded: LoadedModel, generation: Generation, *, name: str, progress: Progress) -> Rollout:
    """The variant at its defaults; only the gradient-weighted one takes long enough to report progress.

    Raises OptionError for an unknown name and what the variant raises.
    """
    require_variant(name)
    if name == "gradient_weighted_rollout":
        return gradient_weighted_rollout(loaded, generation, progress=progress)
    rollout: Rollout = METHODS[name].function(loaded, generation)
    return rollout
