"""Leave-one-out: how much each target's log-prob falls when a unit of the prompt goes.

drop = F(prompt) - F(prompt without the unit)   (erasure of Li, Monroe & Jurafsky 2016, eq. 1, in nats and not
divided by F). It is a measurement and no estimate, but of a prompt that nobody gave.
"""

from __future__ import annotations

from llmxai.methods._ablation import Ablation, ablate
from llmxai.methods._registry import method
from llmxai.methods._removal import Progress
from llmxai.models import LoadedModel
from llmxai.types import Ablations, Generation


@method(
    "leave_one_out",
    needs={"forward"},
    source="Li, Monroe & Jurafsky 2016, https://arxiv.org/abs/1612.08220",
)
def leave_one_out(
    loaded: LoadedModel,
    generation: Generation,
    *,
    ablation: Ablation = Ablation(),
    progress: Progress = lambda _done, _all: None,
) -> Ablations:
    """Fall of every target's log-prob (nats) when a word of the prompt is left out.

    `drop` of the result is [target, unit]. One forward pass a unit serves all targets. Random subsets come along unless
    `ablation` says subsets=0.

    Raises OptionError for an option that does not exist and NonFiniteError where the model gives NaN.
    """
    return ablate(loaded, generation, ablation=ablation, progress=progress)
