"""Measures of an explanation: known sources, effect of removal, dependence on the weights, stability under noise.

Every measure names its source; the caller chooses the removal operator. Probabilities: p = exp(F) for a log-prob (for a
whole answer: the product over its tokens), sigmoid(F) for a contrast (the share of the answer against its foil), F
itself for a plain logit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor, nn

from llmxai.methods.perturbation.removal import SetFunction, half_subsets, prompt_units, removal_forward
from llmxai.methods.perturbation.surrogates import random_masks
from llmxai.models import LoadedModel, embed, embedding_module
from llmxai.models.embedding import tables
from llmxai.models.forward import frozen_eval, torch_seeded
from llmxai.types import Generation, Part

Scores = Float[Tensor, " feature"]
BINS = 20


def randomised(loaded: LoadedModel, *, seed: int) -> LoadedModel:
    """A copy with all weights except the embeddings redrawn at random, with each tensor's own mean and spread.

    The end of the cascade of Adebayo et al. 2018 (https://arxiv.org/abs/1810.03292, section 3.1). The embeddings (and a
    head tied to them) stay, so inputs and baselines are the same.
    """
    model = copy.deepcopy(loaded.model)
    kept = {id(parameter) for parameter in embedding_module(model).parameters()}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) not in kept and parameter.numel() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.copy_(parameter.mean() + parameter.std() * noise)
    return replace(
        loaded,
        model=model,
        name=f"{loaded.name} with random weights",
        weight_digest=None,
        weight_files=(),
        adapter_files=(),
        read=(),
    )


def randomisation(scores: Scores, scores_of_random: Scores) -> dict[str, float]:
    """How similar the explanations of the model and of its randomised copy are, and how much simpler the first is.

    `randomised_spearman`: Spearman correlation of the absolute scores (Adebayo et al. 2018); it should be near 0, and
    near 1 means that the method ignores the weights. `emprt`: relative rise of the explanation's histogram entropy with
    random weights (Hedstrom et al. 2024, https://arxiv.org/abs/2401.06465, eq. 7); it should be above 0. Absent if
    undefined.
    """
    a, b = scores.abs().numpy(), scores_of_random.abs().numpy()
    found = {}
    if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0:
        found["randomised_spearman"] = float(stats.spearmanr(a, b).statistic)
    complexity = histogram_entropy(a)
    if complexity > 0:
        found["emprt"] = (histogram_entropy(b) - complexity) / complexity
    return found


def histogram_entropy(values: Float[np.ndarray, " feature"]) -> float:
    """Shannon entropy (nats) of the histogram of absolute scores, `BINS` equal bins from 0 to the largest."""
    if values.max() == 0:
        return 0.0
    counts, _ = np.histogram(values / values.max(), bins=BINS, range=(0, 1))
    return float(stats.entropy(counts))


def max_sensitivity(
    loaded: LoadedModel,
    generation: Generation,
    explain: Callable[[], Scores],
    *,
    radius: float = 0.02,
    samples: int,
    seed: int,
) -> dict[str, float]:
    """Largest relative change of the scores under noise on the embeddings (Yeh et al. 2019, eq. 3), by Captum.

    Noise is uniform within `radius` times the spread of the embeddings. `explain` runs again for every sample. A method
    that only removes or keeps ids also sees the noise, in the embeddings of the kept ids.
    """
    with frozen_eval(loaded.model):
        x = embed(loaded.model, generation.ids)[None]

    def scores_at(points: tuple[Tensor, ...]) -> tuple[Tensor]:
        rows = []
        for point in points[0]:
            with shifted(loaded, generation, point - x[0]):
                rows.append(explain())
        return (torch.stack(rows),)

    with torch_seeded(seed, devices=[x.device]):
        value: Tensor = sensitivity_max(
            scores_at,
            x,
            perturb_radius=radius * float(x.std()),
            n_perturb_samples=samples,
            max_examples_per_batch=1,
        )
    return {"max_sensitivity": float(value[0])} if torch.isfinite(value).all() else {}


@contextmanager
def shifted(loaded: LoadedModel, generation: Generation, noise: Float[Tensor, "seq hidden"]) -> Iterator[None]:
    """Shift the embeddings of this sequence, and of its beginnings that hold the prompt, by `noise`.

    Methods read it up to the token that predicts a target, an encoder-decoder's sides one after the other. Other
    lookups (baselines) are unchanged.
    """
    ids, source = torch.tensor(generation.ids), generation.source_len
    sides = [(source, generation.prompt_len, len(ids)), *([(0, source, source)] if source else [])]

    def move(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        read = inputs[0].cpu()
        for start, least, most in sides:
            end = start + read.shape[-1]
            if least <= end <= most and bool((read == ids[start:end]).all()):
                return output + noise[start:end, : output.shape[-1]].to(output)
        return output

    found = [tables(loaded.model, decoder=decoder)[0] for decoder in (False, True)]
    handles = [table.register_forward_hook(move) for table in dict.fromkeys(found)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def planted_truth(scores: Float[Tensor, " feature"], truth: Bool[Tensor, " feature"]) -> dict[str, float]:
    """Reciprocal rank of the highest-ranked source, and precision among the top k features, for k sources.

    Precision at k as in Bastings et al. 2022 (https://arxiv.org/abs/2111.07367), section 4; the mean of reciprocal
    ranks over questions is the MRR. Ties share their mean rank and the remaining places. `_abs`: the same with absolute
    scores.
    """
    found = {}
    for suffix, values in (("", scores), ("_abs", scores.abs())):
        ranks = torch.from_numpy(stats.rankdata(-values.numpy(), method="average"))
        found[f"mrr{suffix}"] = float(1 / ranks[truth].min())
        found[f"precision{suffix}"] = _precision(values, truth)
    return found


def _precision(values: Float[Tensor, " feature"], truth: Bool[Tensor, " feature"]) -> float:
    k = int(truth.sum())
    least = values.sort(descending=True).values[k - 1]
    above, tied = values > least, values == least
    share = (k - int(above.sum())) / int(tied.sum())
    return float((truth & above).sum() + share * (truth & tied).sum()) / k


def source_ranks(
    scores: Float[Tensor, " feature"], truth: Bool[Tensor, " feature"], features: Sequence[int], generation: Generation
) -> dict[str, float]:
    """Reciprocal ranks of the sentence and of the document that hold a known source, by the sums of their scores.

    `mrr_sentence`: among the sentences of all parts of the source's kind (documents, tools' results, a user's turns);
    `mrr_document`: among these parts. Absent where there is only one. `features`: the tokens of the scores.
    """
    places = dict(zip(features, range(len(features)), strict=True))
    sources = [token for token, known in zip(features, truth.tolist(), strict=True) if known]

    def kind_of(part: Part) -> tuple[str, str]:
        return part.kind, "" if part.kind == "document" else part.title

    def own(part: Part) -> set[int]:
        return {token for token, _, _ in part.spans if token in places}

    kinds = {kind_of(part) for part in generation.parts if own(part) & set(sources)}
    documents = [tokens for part in generation.parts if kind_of(part) in kinds and (tokens := own(part))]
    inside = set().union(*documents)
    sentences = [set(range(*unit)) & inside for unit in prompt_units(generation, units="sentence")[0]]
    found = {}
    for name, pieces in (("sentence", [piece for piece in sentences if piece]), ("document", documents)):
        if len(pieces) > 1:
            sums = torch.stack([scores[[places[token] for token in sorted(piece)]].sum() for piece in pieces])
            holds = torch.tensor([bool(piece & set(sources)) for piece in pieces])
            found[f"mrr_{name}"] = planted_truth(sums, holds)["mrr"]
    return found


ERASER_BINS = (0.01, 0.05, 0.10, 0.20, 0.50)
TOP_K = (1, 3, 5)


def order_of(scores: Scores) -> list[int]:
    """Features from the largest score down; the earlier one wins a tie."""
    return [int(i) for i in torch.argsort(-scores, stable=True)]


def probability(removal: SetFunction, f: Float[Tensor, " mask"]) -> Float[Tensor, " mask"]:
    """F as a probability (see the module)."""
    kind = removal.target.kind
    if kind == "logprob":
        return f.exp()
    return torch.sigmoid(f) if kind == "contrast" else f


def aopc(removal: SetFunction, scores: Scores) -> dict[str, float]:
    """Comprehensiveness and sufficiency (DeYoung et al. 2020, ERASER, eqs. 1 and 2), averaged over 1, 5, 10, 20, 50 %.

    Comprehensiveness: p minus p without the top k % of features (larger is better). Sufficiency: p minus p with only
    those (smaller is better). The number of features is rounded up, so it is at least one.
    """
    order = order_of(scores)
    without, alone = [], []
    for share in ERASER_BINS:
        top = _mask(len(order), order[: math.ceil(share * len(order))])
        without.append(~top)
        alone.append(top)
    p = probability(removal, removal.values(torch.stack(without + alone)))
    full = probability(removal, torch.tensor([removal.full()], dtype=torch.float64))[0]
    bins = len(ERASER_BINS)
    return {
        "comprehensiveness": float((full - p[:bins]).mean()),
        "sufficiency": float((full - p[bins:]).mean()),
    }


def top_k_drop(removal: SetFunction, scores: Scores) -> dict[str, float]:
    """The drop in F (nats) without the top 1, 3 and 5 features (Cohen-Wang et al. 2024, ContextCite, eq. 4)."""
    order = order_of(scores)
    masks = torch.stack([~_mask(len(order), order[:k]) for k in TOP_K])
    return {f"top_{k}_drop": removal.full() - float(f) for k, f in zip(TOP_K, removal.values(masks), strict=True)}


def curves(removal: SetFunction, scores: Scores, *, points: int) -> dict[str, float]:
    """Area under p while features are deleted, or inserted, from the top down (Petsiuk et al. 2018, RISE, section 3.3).

    Deletion: smaller is better; insertion: larger is better. Trapezoid over the share of features, `points` steps.
    """
    order = order_of(scores)
    counts = sorted({round(i * len(order) / points) for i in range(points + 1)})
    tops = torch.stack([_mask(len(order), order[:k]) for k in counts])
    p = probability(removal, removal.values(torch.cat([~tops, tops]))).numpy()
    x = np.array(counts) / len(order)
    return {
        "deletion_auc": float(np.trapezoid(p[: len(x)], x)),
        "insertion_auc": float(np.trapezoid(p[len(x) :], x)),
    }


def lds(removal: SetFunction, scores: Scores, *, masks: int, seed: int) -> dict[str, float]:
    """Linear datamodelling score: Spearman of F on random halves with the sum of the kept scores (ContextCite, eq. 5).

    Absent if either side is constant.
    """
    subsets = half_subsets(len(scores), masks, seed=seed)
    return lds_on(subsets, removal.values(subsets), scores)


def lds_on(subsets: Bool[Tensor, "mask feature"], values: Float[Tensor, " mask"], scores: Scores) -> dict[str, float]:
    """The same on subsets whose F is known."""
    f, predicted = values.numpy(), (subsets.double() @ scores).numpy()
    if not len(f) or np.ptp(f) == 0 or np.ptp(predicted) <= 1e-12 * np.abs(predicted).max():
        return {}
    return {"lds": float(stats.spearmanr(f, predicted).statistic)}


OWN_STREAM = 2**31
"""Added to a seed: surrogates draw in the same way, and must not be judged on the subsets that they were fitted on."""


def infidelity(removal: SetFunction, scores: Scores, *, masks: int, seed: int) -> dict[str, float]:
    """E[(<z, scores> - (F(x) - F(x without z)))^2], nats^2 (Yeh et al. 2019, eq. 2), z a random subset; by Captum.

    Scores are scaled by the best-fitting factor (Captum's `normalize`), so their unit does not matter.
    """
    taken = (~random_masks(masks, len(scores), seed=seed + OWN_STREAM)).double()
    if not bool((taken @ scores).any()):
        return {}

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        return taken.to(inputs), inputs - taken.to(inputs)

    value: Tensor = captum_infidelity(
        removal_forward(removal),
        perturb,
        torch.ones(1, len(scores), dtype=torch.float64),
        scores[None],
        n_perturb_samples=masks,
        normalize=True,
    )
    return {"infidelity": float(value[0])}


def soft_faithfulness(removal: SetFunction, scores: Scores, *, samples: int, seed: int) -> dict[str, float]:
    """Soft normalised comprehensiveness and sufficiency (Zhao & Aletras 2023, eqs. 4 to 7); larger is better for both.

    Each element of a feature's embedding is kept with a probability equal to its share (sufficiency) or to 1 minus it
    (comprehensiveness); the mean over `samples` draws. Shares are scores shifted and scaled to [0, 1] and to a mean of
    one half: otherwise methods that give large scores to many features keep more, and are rewarded for that (Huang &
    Chan 2026, https://arxiv.org/abs/2601.03089). This removal belongs to the metric, whatever the removal operator.
    Absent if p without any feature is no lower than p.
    """
    shares = as_shares(scores)
    generator = torch.Generator().manual_seed(seed)
    width = removal.real.shape[-1]
    places = [place - removal.first for place in removal.features]

    def p_of(keep: Float[Tensor, "sample feature hidden"]) -> float:
        x = removal.real.repeat(len(keep), 1, 1)
        x[:, places] = x[:, places] * keep.to(x)
        return float(probability(removal, removal.compute(x)).mean())

    def drawn(shares: Scores) -> Float[Tensor, "sample feature hidden"]:
        return (torch.rand(samples, len(scores), width, generator=generator) < shares[:, None]).double()

    full = p_of(torch.ones(1, len(scores), width))
    zero = 1 - max(0.0, full - p_of(torch.zeros(1, len(scores), width)))
    if 1 - zero < 1e-9:
        return {}
    soft_sufficiency = 1 - max(0.0, full - p_of(drawn(shares)))
    soft_comprehensiveness = max(0.0, full - p_of(drawn(1 - shares)))
    return {
        "soft_nc": soft_comprehensiveness / (1 - zero),
        "soft_ns": (soft_sufficiency - zero) / (1 - zero),
    }


def as_shares(scores: Float[Tensor, " feature"]) -> Float[Tensor, " feature"]:
    """A linear function of the scores in [0, 1] with the mean 1/2; all 1/2 if they are equal.

    The smallest is 0 if the shares would otherwise be more than 1/2 on average, and the largest is 1 if they would be
    less.
    """
    low, high = scores.min(), scores.max()
    if high == low:
        return torch.full_like(scores, 0.5)
    shares = (scores - low) / (high - low)
    mean = shares.mean()
    return shares / (2 * mean) if mean > 0.5 else 1 - (1 - shares) / (2 * (1 - mean))


def _mask(n: int, chosen: list[int]) -> Bool[Tensor, " feature"]:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[chosen] = True
    return mask
