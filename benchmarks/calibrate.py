"""Where the thresholds of the status rule come from: rollout against planted truth, fitted on one half, checked on another.

Every sample is a generated token whose source in the prompt is known. It is positive where plain rollout misses the
source in its top 5 features and negative where it finds it. The real model answers questions whose answer stands in the
prompt among others of its kind (checked: the answer's log-prob falls when the source is ablated); small models are
trained here to look items up. Prints tables in Markdown.

Usage: python benchmarks/calibrate.py [--questions 12] [--samples FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the planted task is also what the tests train on

from planted import lookups, trained_lookup  # noqa: E402
from questions import FAMILIES, Question, make_question  # noqa: E402

from llmxai import LoadedModel, attention_rollout, load  # noqa: E402
from llmxai.crosscheck import RULE, dilutions, why_diluted  # noqa: E402
from llmxai.generation import encode_messages, given  # noqa: E402
from llmxai.methods._ablation import CHUNK_TOKENS, f_of_masks  # noqa: E402
from llmxai.methods._path import moving_tokens  # noqa: E402
from llmxai.methods._vjp import ChunkSize  # noqa: E402
from llmxai.types import Dilution, Generation, predicting_position  # noqa: E402

TOP = 5
LEAST_PROBABILITY = 0.5
LEAST_FALL = 1.0
"""Nats by which an answer's log-prob falls without its source, for the token to count as answered from it."""
FIT, CHECK = "fit", "check"
SMALL = ((2, 0, FIT), (3, 0, FIT), (2, 1, CHECK), (3, 1, CHECK))
"""Layers, seed, and which half: the models of the two halves share no seed."""
REAL = {"city": FIT, "code": FIT, "place": CHECK, "name": CHECK}
FALSE_ALARMS = 0.1
BOOTSTRAP = 2000


@dataclass(frozen=True)
class Sample:
    """One generated token whose source is known."""

    model: str
    half: str
    question: str
    missed: bool
    sink_mass: float
    null_divergence: float
    entropy: float
    similarity: float
    feature_mass: float


def samples_of(
    loaded: LoadedModel, generation: Generation, sources: dict[int, Sequence[int]], *, model: str, half: str, name: str
) -> list[Sample]:
    """A sample for each target in `sources`, which gives the positions of its source."""
    rollout = attention_rollout(loaded, generation)
    positions = [predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]
    seq = torch.arange(len(generation.ids))
    features = moving_tokens(generation, features="content") & (seq <= torch.tensor(positions)[:, None])
    figures: tuple[Dilution, ...] = dilutions(rollout, features, positions)
    found = []
    for t, where in sources.items():
        row = torch.where(features[t], rollout.rows[t], -1.0)
        top = set(row.argsort(descending=True)[:TOP].tolist())
        one = figures[t]
        found.append(
            Sample(
                model=model,
                half=half,
                question=name,
                missed=not top & set(where),
                sink_mass=one.sink_mass,
                null_divergence=one.null_divergence,
                entropy=one.entropy or 0.0,
                similarity=one.similarity,
                feature_mass=one.feature_mass,
            )
        )
    return found


def real_samples(loaded: LoadedModel, *, questions: int) -> list[Sample]:
    """The embedded model on planted questions; only tokens that it says and takes from the source."""
    found = []
    for family in FAMILIES:
        for seed in range(questions):
            question = make_question(family, seed=seed)
            generation, sources = locate(loaded, question)
            answered = {t: where for t, where in sources.items() if where and depends(loaded, generation, t, where)}
            found += samples_of(
                loaded, generation, answered, model="smollm2", half=REAL[family], name=f"{family} {seed}"
            )
            print(f"{family} {seed}: {len(answered)} of {len(sources)} tokens", file=sys.stderr, flush=True)
    return found


def locate(loaded: LoadedModel, question: Question) -> tuple[Generation, dict[int, list[int]]]:
    """The question as ids, and for each token of the answer's value where the same token stands in its fact."""
    tokens = encode_messages(loaded, [{"role": "user", "content": question.prompt}])
    generation = given(loaded, tokens, response=question.response)
    starts = np.cumsum([0, *map(len, generation.texts)])
    text = "".join(generation.texts)
    prompt_end = int(starts[generation.prompt_len])
    fact = text.index(question.fact)
    told = fact + question.fact.index(question.value, question.fact.index(question.subject))
    said = text.rindex(question.value)
    assert told < prompt_end <= said, question
    spans = {}
    for t in range(generation.n_targets):
        begin = int(starts[generation.prompt_len + t])
        end = int(starts[generation.prompt_len + t + 1])
        if end <= said or begin >= said + len(question.value):
            continue
        offset = max(begin, said) - said
        spans[t] = [i for i in range(generation.prompt_len) if starts[i] <= told + offset < starts[i + 1]]
    return generation, spans


def depends(loaded: LoadedModel, generation: Generation, t: int, where: Sequence[int]) -> bool:
    """Whether the model says token t, and says it less without its source."""
    span = (min(where), max(where) + 1)
    f = f_of_masks(
        loaded,
        generation,
        (span,),
        torch.tensor([[True], [False]]),
        operator="baseline",
        baseline="space",
        size=ChunkSize(CHUNK_TOKENS),
    )[t]
    print(f"  {generation.texts[generation.prompt_len + t]!r}: {f[0]:.2f} nats, {f[1]:.2f} without", file=sys.stderr)
    return bool(f[0] >= np.log(LEAST_PROBABILITY) and f[0] - f[1] >= LEAST_FALL)


def small_samples(*, questions: int) -> list[Sample]:
    """Small models trained on the planted task."""
    found = []
    for layers, seed, half in SMALL:
        loaded = trained_lookup(layers=layers, seed=seed)
        name = f"lookup, {layers} layers"
        for i, lookup in enumerate(lookups(loaded, count=questions, seed=1000 + seed)):
            sources = {t: [where] for t, where in enumerate(lookup.sources) if where is not None}
            found += samples_of(loaded, lookup.generation, sources, model=name, half=half, name=f"{name} {i}")
        print(f"{name}, seed {seed}: trained and read", file=sys.stderr, flush=True)
    return found


Figure = Callable[[Sample], float]
FIGURES: dict[str, Figure] = {
    "sink mass": lambda s: s.sink_mass,
    "- feature mass": lambda s: -s.feature_mass,
    "similarity": lambda s: s.similarity,
    "entropy": lambda s: s.entropy,
    "- null divergence": lambda s: -s.null_divergence,
}
"""The larger, the more diluted."""


def auc(samples: Sequence[Sample], figure: Figure) -> float:
    """Probability that a missed source has the larger figure than a found one (Mann-Whitney, ties half)."""
    positive = [figure(s) for s in samples if s.missed]
    negative = [figure(s) for s in samples if not s.missed]
    if not positive or not negative:
        return float("nan")
    return float(stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))


def interval(
    samples: Sequence[Sample], statistic: Callable[[Sequence[Sample]], float], *, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval; questions are drawn, since the tokens of one question go together."""
    rng = np.random.default_rng(seed)
    questions: dict[str, list[Sample]] = {}
    for sample in samples:
        questions.setdefault(sample.question, []).append(sample)
    groups = list(questions.values())
    values = []
    for _ in range(BOOTSTRAP):
        drawn = [s for i in rng.integers(len(groups), size=len(groups)) for s in groups[i]]
        values.append(statistic(drawn))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def share(samples: Sequence[Sample], flagged: Callable[[Sample], bool]) -> float:
    return sum(map(flagged, samples)) / len(samples) if samples else float("nan")
