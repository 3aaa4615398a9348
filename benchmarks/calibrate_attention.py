"""Where the thresholds of attention's verdict come from: planted truth, fitted on one half and checked on the other.

Every sample is a generated token whose source in the prompt is known. It is positive where plain rollout misses the
source in its top 5 features and negative where it finds it. The real model answers questions whose answer stands in the
prompt among others of its kind; small models are trained here to look items up. Only tokens count that the model says
and takes from the source: their log-prob falls when a neutral token stands in its place. Prints tables in Markdown.

Usage: python benchmarks/calibrate_attention.py [--questions 10] [--samples FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the planted task is also what the tests train on

from planted import NEUTRAL, lookups, trained_lookup  # noqa: E402
from questions import FAMILIES, Question, make_question  # noqa: E402

from llmxai import LoadedModel, attention_rollout, load  # noqa: E402
from llmxai.crosscheck import RULE, missed, sources_of, why_diluted  # noqa: E402
from llmxai.generation import encode_messages, force_response  # noqa: E402
from llmxai.methods import measure_effects, token_targets  # noqa: E402
from llmxai.methods.attention.dilution import dilutions  # noqa: E402
from llmxai.methods.features import moving_tokens  # noqa: E402
from llmxai.methods.perturbation.removal import f_of_masks, unit_sums  # noqa: E402
from llmxai.models.memory import ChunkSize  # noqa: E402
from llmxai.settings import CHUNK_TOKENS, Removal  # noqa: E402
from llmxai.types import Dilution, Generation, predicting_position  # noqa: E402

TOP = 5
LEAST_PROBABILITY = 0.1
LEAST_FALL = 2.0
"""Nats by which an answer's log-prob falls without its source, for the token to count as answered from it."""
FIT, CHECK = "fit", "check"
SMALL = ((2, 0, FIT), (2, 1, CHECK), (3, 0, FIT), (3, 1, CHECK))
"""Layers, seed, and which half. With two layers rollout finds nearly every source; with three it misses some though
nothing is diluted, which no figure of the row alone can tell."""
NEUTRAL_ITEM = f"id:{NEUTRAL}"
REAL = {"city": FIT, "code": FIT, "place": CHECK, "name": CHECK}
FALSE_ALARMS = 0.1
"""What a threshold may flag of the tokens whose source rollout finds."""
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
    lacked: int
    """Sources by removal that rollout does not have among its first."""


def samples_of(
    loaded: LoadedModel,
    generation: Generation,
    sources: Mapping[int, Sequence[int]],
    *,
    model: str,
    half: str,
    name: str,
    tokens: bool,
) -> list[Sample]:
    """A sample for each target in `sources`, which gives the positions of its source."""
    rollout = attention_rollout(loaded, generation)
    effects = measure_effects(loaded, generation, removal=Removal(subsets=0, units="token" if tokens else "auto"))
    rolled = unit_sums(rollout.values, effects.units)
    positions = [predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]
    seq = torch.arange(len(generation.ids))
    features = moving_tokens(generation, features="content") & (seq <= torch.tensor(positions)[:, None])
    figures: tuple[Dilution, ...] = dilutions(rollout, features, torch.tensor(positions) + 1)
    found = []
    for t, where in sources.items():
        row = torch.where(features[t], rollout.values[t], -1.0)
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
                lacked=len(missed(rolled[t], sources_of(effects.drop[t].numpy()))),
            )
        )
    return found


def real_samples(loaded: LoadedModel, *, questions: int) -> list[Sample]:
    """The embedded model on planted questions; only tokens that it says and takes from the source."""
    found = []
    for seed in range(questions):
        for family in FAMILIES:
            question = make_question(family, seed=seed)
            generation, sources = locate(loaded, question)
            answered = from_source(loaded, generation, sources, baseline="space")
            found += samples_of(
                loaded,
                generation,
                answered,
                model="smollm2",
                half=REAL[family],
                name=f"{family} {seed}",
                tokens=False,
            )
            print(f"{family} {seed}: {len(answered)} of {len(sources)} tokens", file=sys.stderr, flush=True)
    return found


def locate(loaded: LoadedModel, question: Question) -> tuple[Generation, dict[int, list[int]]]:
    """The question as ids, and for each token of the answer's value where the same token stands in its fact."""
    tokens = encode_messages(loaded, [{"role": "user", "content": question.prompt}])
    generation = force_response(loaded, tokens, response=question.response)
    starts = np.cumsum([0, *map(len, generation.texts)])
    text = "".join(generation.texts)
    prompt_end = int(starts[generation.prompt_len])
    fact = text.index(question.fact)
    stated_at = fact + question.fact.index(question.value, question.fact.index(question.subject))
    answered_at = text.rindex(question.value)
    assert stated_at < prompt_end <= answered_at, question
    spans = {}
    for t in range(generation.n_targets):
        begin = int(starts[generation.prompt_len + t])
        end = int(starts[generation.prompt_len + t + 1])
        if end <= answered_at or begin >= answered_at + len(question.value):
            continue
        offset = max(begin, answered_at) - answered_at
        spans[t] = [i for i in range(generation.prompt_len) if starts[i] <= stated_at + offset < starts[i + 1]]
    return generation, spans


def from_source(
    loaded: LoadedModel, generation: Generation, sources: Mapping[int, Sequence[int]], *, baseline: str
) -> dict[int, Sequence[int]]:
    """The targets that the model says, and says less when their own source is ablated."""
    units = tuple((min(where), max(where) + 1) for where in sources.values())
    masks = torch.cat([torch.ones(1, len(units), dtype=torch.bool), ~torch.eye(len(units), dtype=torch.bool)])
    f = f_of_masks(
        loaded,
        generation,
        token_targets(generation),
        units,
        masks,
        operator="baseline",
        baseline=baseline,
        size=ChunkSize(CHUNK_TOKENS),
    )
    return {
        t: where
        for i, (t, where) in enumerate(sources.items())
        if f[t, 0] >= np.log(LEAST_PROBABILITY) and f[t, 0] - f[t, i + 1] >= LEAST_FALL
    }


def small_samples(*, questions: int) -> list[Sample]:
    """Small models trained on the planted task."""
    found = []
    torch.set_num_threads(1)  # threads of such small models wait for each other longer than they compute
    for layers, seed, half in SMALL:
        loaded = trained_lookup(layers=layers, seed=seed)
        name = f"lookup, {layers} layers"
        for i, lookup in enumerate(lookups(loaded, count=questions, seed=1000 + seed)):
            planted = {t: [where] for t, where in enumerate(lookup.sources) if where is not None}
            sources = from_source(loaded, lookup.generation, planted, baseline=NEUTRAL_ITEM)
            found += samples_of(
                loaded,
                lookup.generation,
                sources,
                model=name,
                half=half,
                name=f"{name}, seed {seed}: {i}",
                tokens=True,
            )
        print(f"{name}, seed {seed}: trained and read", file=sys.stderr, flush=True)
    return found


Figure = Callable[[Sample], float]
FIGURES: dict[str, Figure] = {
    "sink mass": lambda s: s.sink_mass,
    "null divergence, negative": lambda s: -s.null_divergence,
    "feature mass, negative": lambda s: -s.feature_mass,
    "similarity": lambda s: s.similarity,
    "entropy": lambda s: s.entropy,
}
"""The larger, the more diluted."""


def auc(samples: Sequence[Sample], figure: Figure) -> float:
    """Probability that a missed source has the larger figure than a found one (Mann-Whitney, ties half)."""
    positive, negative = ([figure(s) for s in samples if s.missed is truth] for truth in (True, False))
    if not positive or not negative:
        return float("nan")
    return float(stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))


def best_threshold(samples: Sequence[Sample], figure: Figure) -> float:
    """Half-way between two neighbouring values: most caught minus false alarms, of those that keep `FALSE_ALARMS`."""
    values = sorted({figure(s) for s in samples})
    cuts = [(low + high) / 2 for low, high in pairwise(values)]

    def gain(cut: float) -> tuple[bool, float]:
        false = share(samples, lambda s: figure(s) > cut, missed=False)
        return false <= FALSE_ALARMS, share(samples, lambda s: figure(s) > cut, missed=True) - false

    return max(cuts, key=gain)


def share(samples: Sequence[Sample], flagged: Callable[[Sample], bool], *, missed: bool) -> float:
    """Share of the samples with that truth that are flagged."""
    mine = [s for s in samples if s.missed is missed]
    return sum(map(flagged, mine)) / len(mine) if mine else float("nan")


def interval(samples: Sequence[Sample], statistic: Callable[[Sequence[Sample]], float]) -> str:
    """The statistic and its 95 % bootstrap interval; questions are drawn, since the tokens of one go together."""
    rng = np.random.default_rng(0)
    questions: dict[str, list[Sample]] = {}
    for sample in samples:
        questions.setdefault(sample.question, []).append(sample)
    groups = list(questions.values())
    values = [
        statistic([s for i in rng.integers(len(groups), size=len(groups)) for s in groups[i]]) for _ in range(BOOTSTRAP)
    ]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return f"{statistic(samples):.2f} [{low:.2f}, {high:.2f}]"


def _over(figure: Figure, cut: float, sample: Sample) -> bool:
    return figure(sample) > cut


def flagged_by_rule(sample: Sample) -> bool:
    """Whether rollout is warned of: it is diluted, or a source by removal is not among its first."""
    dilution = Dilution(
        sink_mass=sample.sink_mass,
        feature_mass=sample.feature_mass,
        entropy=sample.entropy,
        null_divergence=sample.null_divergence,
        similarity=sample.similarity,
    )
    return why_diluted(dilution, RULE) is not None or sample.lacked > 0


def model_auc(samples: Sequence[Sample]) -> float:
    """Probability that a token of the real model has the larger sink mass than one of a small model."""
    real, small = ([s.sink_mass for s in samples if (s.model == "smollm2") is which] for which in (True, False))
    return float(stats.mannwhitneyu(real, small).statistic / (len(real) * len(small)))


def data_table(samples: Sequence[Sample]) -> list[str]:
    rows = [
        "| model | half | tokens | source missed | sink mass: median [least, most] | null divergence | entropy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key in sorted({(s.model, s.half) for s in samples}):
        mine = [s for s in samples if (s.model, s.half) == key]
        spread = [
            f"{np.median(x):.3g} [{min(x):.3g}, {max(x):.3g}]"
            for x in ([getattr(s, name) for s in mine] for name in ("sink_mass", "null_divergence", "entropy"))
        ]
        rows.append(f"| {key[0]} | {key[1]} | {len(mine)} | {sum(s.missed for s in mine)} | {' | '.join(spread)} |")
    return rows


def figures_table(fit: Sequence[Sample], check: Sequence[Sample]) -> list[str]:
    rows = [
        "| figure | AUC, fitted half | AUC, other half [95 %] | threshold | caught, other half | "
        "false alarms, other half |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, figure in FIGURES.items():
        cut = best_threshold(fit, figure)
        over = partial(_over, figure, cut)
        caught, false = (share(check, over, missed=truth) for truth in (True, False))
        rows.append(
            f"| {name} | {auc(fit, figure):.2f} | {interval(check, partial(auc, figure=figure))} | {cut:.4g} | "
            f"{caught:.0%} | {false:.0%} |"
        )
    return rows


def rule_table(halves: Mapping[str, Sequence[Sample]]) -> list[str]:
    rows = [
        "| dilution or a source by removal, on | tokens | missed and flagged | found and flagged | caught [95 %] | "
        "false alarms [95 %] |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, samples in halves.items():
        counts = []
        for truth in (True, False):
            mine = [s for s in samples if s.missed is truth]
            counts.append(f"{sum(map(flagged_by_rule, mine))} of {len(mine)}")
        caught, false = (
            interval(samples, partial(share, flagged=flagged_by_rule, missed=truth))
            if any(s.missed is truth for s in samples)
            else "-"
            for truth in (True, False)
        )
        rows.append(f"| {name} | {len(samples)} | {counts[0]} | {counts[1]} | {caught} | {false} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=10, help="questions a family to the real model")
    parser.add_argument("--samples", type=Path, help="JSON file of samples: read where it exists, else written")
    options = parser.parse_args()
    if options.samples and options.samples.exists():
        samples = [Sample(**one) for one in json.loads(options.samples.read_text())]
    else:
        threads = torch.get_num_threads()
        samples = small_samples(questions=40)
        torch.set_num_threads(threads)
        samples += real_samples(load("smollm2", dtype="float32"), questions=options.questions)
        if options.samples:
            options.samples.write_text(json.dumps([asdict(s) for s in samples]))
    fit, check = ([s for s in samples if s.half == half] for half in (FIT, CHECK))
    halves = {"the fitted half": fit, "the other half": check}
    for model in sorted({s.model for s in samples}):
        halves[f"{model}, other half"] = [s for s in check if s.model == model]
    tables = [data_table(samples), figures_table(fit, check), rule_table(halves)]
    print("\n".join(line for table in tables for line in [*table, ""]))
    compared = [s for s in check if s.model in ("smollm2", "lookup, 2 layers")]
    print(f"Sink mass, smollm2's tokens against the 2-layer model's, other half: AUC {interval(compared, model_auc)}.")


if __name__ == "__main__":
    main()
