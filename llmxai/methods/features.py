"""Which tokens a method may score, and the neutral embedding that replaces a token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmxai.errors import OptionError
from llmxai.methods.targets import Target, seen_by
from llmxai.models import LoadedModel, embed
from llmxai.models.embedding import input_device, looked_up, n_embeddings
from llmxai.settings import FEATURES, require_baseline, require_known
from llmxai.types import Generation, Role

CONTENT = frozenset(Role) - {Role.BOS, Role.TEMPLATE}


def require_path_options(loaded: LoadedModel, *, features: str, baseline: str | Tensor) -> None:
    """Raise OptionError for a `features` or `baseline` that does not exist, before anything is computed."""
    require_known("features", features, FEATURES)
    if isinstance(baseline, str) and baseline not in ("space", "zero", "mean"):
        baseline_token(loaded, baseline)


def moving_tokens(generation: Generation, *, features: str) -> Bool[Tensor, " seq"]:
    """Which tokens move along the path: the chosen ones (see `chosen_tokens`).

    With `content`, the first token of the sequence is held as well if another token of the prompt moves: it is the
    attention sink, and a path that moves it seldom converges (docs/convergence.md). An encoder's source has no sink.
    """
    moving = chosen_tokens(generation, features=features)
    if features == "content" and not generation.source_len and moving[1 : generation.prompt_len].any():
        moving[0] = False
    return moving


def chosen_tokens(generation: Generation, *, features: str) -> Bool[Tensor, " seq"]:
    """The tokens that a method may score.

    `content`: tokens written by people and the model, all but template and BOS. `prompt`: every prompt token and no
    generated one (Captum's convention). `all`: every token.
    """
    chosen: list[bool] = []
    if features == "content":
        chosen = [role in CONTENT for role in generation.roles]
    elif features == "prompt":
        chosen = [i < generation.prompt_len for i in range(len(generation.ids))]
    elif features == "all":
        chosen = [True] * len(generation.ids)
    else:
        require_known("features", features, FEATURES)
    if not any(chosen[: generation.prompt_len]):
        raise OptionError(
            f"With features={features!r} no token of the prompt may move: all of them are template or BOS. "
            f"Add some content to the prompt, or use --features all."
        )
    return torch.tensor(chosen)


def baseline_embedding(
    loaded: LoadedModel, baseline: str | Tensor, *, seq: int, source: int = 0
) -> Float[Tensor, "... width"]:
    """The embeddings where the path starts: [width], or [seq, width] for a tensor of that shape and for two sides.

    `width` is that of `embed`; for an encoder-decoder, the first `source` rows are the encoder's.

    `space`: a single space token, neutral and in distribution (where the tokenizer drops spaces, as BERT's does, the
    mask token; where it has neither, as one of DNA's letters, the mean over the vocabulary); `zero`; `eos`, `pad`,
    `mask`: that special token; `mean`: the mean over the vocabulary; `id:N`: token N; `token:TEXT`: the single token
    that TEXT encodes to. Raises OptionError for anything else.
    """
    width = int(embed(loaded.model, [0]).shape[-1])
    if isinstance(baseline, Tensor):
        if baseline.shape not in ((width,), (seq, width)):
            raise OptionError(
                f"The baseline has shape {tuple(baseline.shape)}; expected ({width},) or ({seq}, {width})."
            )
        return baseline
    if baseline == "zero":
        return torch.zeros(width, device=input_device(loaded.model))
    token = None if baseline in ("zero", "mean") else baseline_token(loaded, baseline)
    if token is None:
        rows = torch.stack([_mean_embedding(loaded, decoder=decoder) for decoder in (False, True)[: 1 + bool(source)]])
    else:
        rows = embed(loaded.model, [token] * (1 + bool(source)), source=int(bool(source)))
    return rows.repeat_interleave(torch.tensor([source, seq - source], device=rows.device), 0) if source else rows[0]


def baseline_token(loaded: LoadedModel, baseline: str) -> int | None:
    """The id of a baseline that is a single token; None for `space` where the tokenizer has neither it nor a mask."""
    require_baseline(baseline)
    tokenizer = loaded.tokenizer
    special = {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id, "mask": tokenizer.mask_token_id}
    vocabulary = n_embeddings(loaded.model) or len(tokenizer)
    kind, _, what = baseline.partition(":")
    if baseline == "space":
        return _space(tokenizer)
    if baseline in special:
        token = special[baseline]
        if token is None or token >= vocabulary:
            raise OptionError(f"{loaded.name} has no {baseline} token. Use baseline space, zero or mean.")
        return int(token)
    if kind == "id":
        if int(what) >= vocabulary:
            raise OptionError(f"Baseline {baseline!r}: the vocabulary ends at id {vocabulary - 1}.")
        return int(what)
    ids = tokenizer(what, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] >= vocabulary:
        raise OptionError(f"Baseline {baseline!r} encodes to {len(ids)} tokens; expected one. Use id:N instead.")
    if ids[0] == tokenizer.unk_token_id and what != tokenizer.unk_token:
        raise OptionError(f"Baseline {baseline!r}: {loaded.name} has no such token. Give one that it has, or id:N.")
    return int(ids[0])


SPACES = ("\u2581", "\u0120", " ")
"""How vocabularies write a space: of SentencePiece, byte-level, plain."""


def _space(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """A space as the tokenizer encodes it, else the mask token, else a space of its vocabulary."""
    unknown = tokenizer.unk_token_id
    ids = tokenizer(" ", add_special_tokens=False)["input_ids"]
    if ids and ids[-1] != unknown:
        return int(ids[-1])
    if tokenizer.mask_token_id is not None and not ids:
        return int(tokenizer.mask_token_id)
    vocabulary = tokenizer.get_vocab()
    return next((int(vocabulary[space]) for space in SPACES if vocabulary.get(space) not in (None, unknown)), None)


def _mean_embedding(loaded: LoadedModel, *, decoder: bool) -> Float[Tensor, " width"]:
    """Mean over the vocabulary, computed through the module, since its weights may be offloaded or scaled."""
    size = n_embeddings(loaded.model, decoder=decoder) or len(loaded.tokenizer)
    total: Tensor | None = None
    for first in range(0, size, 8192):
        part = looked_up(loaded.model, range(first, min(first + 8192, size)), decoder=decoder).double().sum(dim=0)
        total = part if total is None else total + part
    assert total is not None
    return total / size


def visible_features(generation: Generation, targets: Sequence[Target], *, features: str) -> Bool[Tensor, "target seq"]:
    """The chosen tokens (see `chosen_tokens`) up to each target's last predicting position."""
    chosen = chosen_tokens(generation, features=features)
    return chosen & seen_by(targets, len(chosen))
