"""Recompute the answer in one teacher-forced pass and compare with the recorded log-probs."""

from __future__ import annotations

import torch
from torch import Tensor

from llmxai.errors import NonFiniteError, ReplayError, UnsupportedModelError
from llmxai.models import LoadedModel, embed, forward_logits, frozen_eval
from llmxai.models.forward import log_probs
from llmxai.models.precision import exact_products
from llmxai.types import Generation, Replay, predicting_position

TOLERANCE = {
    torch.float64: 1e-4,  # generate() rounds logits to float32 before it returns them
    torch.float32: 2e-3,
    torch.bfloat16: 0.35,
    torch.float16: 0.05,
}
"""Largest allowed difference (nats) between a log-prob recorded with a key-value cache and one replayed without."""
SAME = 1e-4
"""Largest relative difference between log-probs of the same pass, from ids and with their embeddings put in by hand."""
QUANTISED_TOLERANCE = 0.35
INT8_TOLERANCE = 1.5
"""LLM.int8 rounds the activations while it generates: log-probs jump by up to 0.5 nats (standard deviation)."""


def replay(loaded: LoadedModel, generation: Generation) -> Replay:
    """Log-prob (nats) and rank of every generated id from one forward pass, its embeddings put in by hand.

    Raises UnsupportedModelError if the model's own pass over the same ids gives other log-probs, ReplayError if one
    differs from the recorded log-prob by more than the dtype explains, and NonFiniteError if one is NaN.
    """
    n = generation.n_targets
    positions = [predicting_position(generation.prompt_len, t) for t in range(n)]
    with frozen_eval(loaded.model), torch.no_grad(), exact_products():
        ids, source = generation.ids[: positions[-1] + 1], generation.source_len
        embeds = embed(loaded.model, ids, source=source)[None]
        own, logits = (
            forward_logits(loaded.model, given, ids=ids, positions=positions, source=source)[0]
            for given in (None, embeds)
        )
    chosen = torch.tensor(generation.generated_ids, device=logits.device)
    wanted, logprobs = log_probs(own, chosen), log_probs(logits, chosen)
    if not torch.isfinite(logprobs).all():
        t = int((~torch.isfinite(logprobs)).nonzero()[0])
        raise NonFiniteError(
            f"{loaded.name}: the log-prob of generated token {t} ({generation.texts[generation.prompt_len + t]!r}) "
            f"is {float(logprobs[t])} in {loaded.dtype}. Load it with --dtype float32, or check the weights."
        )
    _require_same_model(loaded, wanted, logprobs)
    ranks = 1 + (logits > logits.gather(1, chosen[:, None])).sum(dim=1)
    f = logprobs.clone()
    if (foil := generation.foil) is not None:
        f[foil.t] = logits[foil.t, generation.generated_ids[foil.t]].double() - logits[foil.t, foil.id].double()
    result = Replay(
        logprobs=tuple(logprobs.tolist()),
        f=tuple(f.tolist()),
        ranks=tuple(ranks.tolist()),
        tolerance=None if generation.logprobs is None else _tolerance(loaded),
    )
    _require_match(loaded, generation, result)
    return result


def _require_same_model(loaded: LoadedModel, own: Tensor, replaced: Tensor) -> None:
    """Raise UnsupportedModelError if embeddings put in by hand are another model than the ids (log-probs, nats)."""
    allowed = SAME * (1 if loaded.dtype in (torch.float32, torch.float64) else 100)
    difference = (own - replaced).abs() / own.abs().clamp(min=1)
    if not (difference <= allowed).all():
        t = int(difference.nan_to_num(torch.inf).argmax())
        raise UnsupportedModelError(
            f"{loaded.name}: from its ids, {type(loaded.model).__name__} gives generated token {t} the log-prob "
            f"{float(own[t]):.4f}, and {float(replaced[t]):.4f} with the same embeddings put in by hand. It computes "
            f"something from ids that does not go through its embedding table, so a path over embeddings would explain "
            f"another model."
        )


def _tolerance(loaded: LoadedModel) -> float:
    if loaded.quantization == "bitsandbytes 8bit":
        return INT8_TOLERANCE
    tolerance = TOLERANCE.get(loaded.stored_dtype, QUANTISED_TOLERANCE)
    return max(tolerance, QUANTISED_TOLERANCE) if loaded.quantization else tolerance


def _require_match(loaded: LoadedModel, generation: Generation, result: Replay) -> None:
    if generation.logprobs is None or result.tolerance is None:
        return
    pairs = zip(generation.logprobs, result.logprobs, strict=True)
    for t, (recorded, replayed) in enumerate(pairs):
        # unlikely tokens carry the absolute error of their logits, so the tolerance is also relative
        if abs(recorded - replayed) > result.tolerance * max(1.0, abs(recorded) / 10):
            raise ReplayError(
                f"Generated token {t} ({generation.texts[generation.prompt_len + t]!r}) had log-prob {recorded:.4f} "
                f"when generated and {replayed:.4f} when replayed; {result.tolerance} is allowed "
                f"for {loaded.stored_dtype}. "
                f"So the explained model is not the one that answered: its weights or settings changed in between, "
                f"or it is not deterministic (a dropped expert, a different kernel). Generate again with "
                f"--dtype float32."
            )
