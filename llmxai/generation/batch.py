"""Several prompts in one pass: answers, and their log-probs once more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from llmxai.errors import OptionError
from llmxai.generation.decode import Decoding, generate, generate_together, room_for
from llmxai.generation.prompt import PromptTokens
from llmxai.models import LoadedModel
from llmxai.models.seams import pads_well
from llmxai.types import Generation


def generate_many(
    loaded: LoadedModel, prompts: Sequence[PromptTokens], *, decoding: Decoding = Decoding(), batch_size: int = 8
) -> tuple[Generation, ...]:
    """The answers to all prompts, `batch_size` of them in one pass a step; the same as `generate` one by one.

    Rows are padded on the left and the padding is masked, so log-probs differ by rounding only (1e-4 nats in float32).
    Prompts of about the same length go together. One by one go: sampled answers, since each has its own random stream,
    prompts for which the context leaves another room than for the rest, encoder-decoders, and models that keep a
    state which padding would enter (`pads_well`).
    """
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}; expected at least 1.")
    if decoding.temperature > 0 or not pads_well(loaded.model):
        return tuple(generate(loaded, prompt, decoding=decoding) for prompt in prompts)
    found: dict[int, Generation] = {}
    rooms = {i: room_for(loaded, prompt, decoding) for i, prompt in enumerate(prompts)}
    order = sorted(range(len(prompts)), key=lambda i: (rooms[i], len(prompts[i].ids)))
    for _, alike in groupby(order, key=rooms.__getitem__):
        chosen = list(alike)
        for first in range(0, len(chosen), batch_size):
            part = chosen[first : first + batch_size]
            answers = generate_together(loaded, [prompts[i] for i in part], decoding=decoding)
            found.update(zip(part, answers, strict=True))
    return tuple(found[i] for i in range(len(prompts)))
