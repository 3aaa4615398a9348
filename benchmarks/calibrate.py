"""How often the verdict on a token's sources is right, on planted questions; fitted on one half, checked on the other.

For one or two tokens of each question: the deletion path, the measured effects, and what the verdict is checked
against. A unit is a true cause if fresh random subsets show it (another seed; at least `LEAST_CAUSE` nats, and above 0
at 99 %), or if it is the planted source. A word of the answer, or all mentions of a word, are a true cause if F falls
by `LEAST_CAUSE` when the mean embedding replaces them. Prints tables in Markdown. Every question is written to
`--samples` at once; a later call continues there.

Usage: python benchmarks/calibrate.py [--quick] [--questions 6] [--models NAME ...] [--suites NAME ...]
       [--samples FILE] [--tables-only]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from calibrate_tables import Sample, fresh_masks, samples_in, tables  # noqa: E402
from planted import lookups, trained_lookup  # noqa: E402

from llmxai import LoadedModel, load  # noqa: E402
from llmxai.evaluation.case import token_positions  # noqa: E402
from llmxai.evaluation.metrics import randomised  # noqa: E402
from llmxai.evaluation.planted_models import marker_folder, tracer_folder  # noqa: E402
from llmxai.evaluation.questions import FIRST_SAID  # noqa: E402
from llmxai.evaluation.suites import suite_rows  # noqa: E402
from llmxai.generation import answer  # noqa: E402
from llmxai.methods import deletion_path, measure_effects, token_targets  # noqa: E402
from llmxai.methods.perturbation.removal import f_of_masks  # noqa: E402
from llmxai.models.memory import ChunkSize  # noqa: E402
from llmxai.names import Unit  # noqa: E402
from llmxai.settings import CHUNK_TOKENS, Removal  # noqa: E402
from llmxai.types import Generation, Target  # noqa: E402

SUITES: dict[str, dict[str, Any]] = {
    "context_memory": {},
    "indirect_object": {},
    "key_value": {"pairs": (3,)},
    "induction": {},
    "multi_hop": {},
    "needle": {"lengths": (2,)},
}
"""Asked of the real model: the chat suites in its template, the others as text to continue. All have a known source."""
SMALL = 200
"""Questions to each small model."""
MORE, TESTED, FREE = 0, 0, 96
"""Fresh subsets: more halves, halves that predictions are tested on, and subsets of any size."""
MORE_LONG, TESTED_LONG = 192, 200
"""Halves for the curve of LDS against the number of forward passes."""
LONG_QUESTIONS = 2
"""Of each suite to a real model that get as many; all of the small models do."""
RANDOM_NODES = 4
"""Nodes of the path in the model with random weights, where an exact integral would not matter."""


@dataclass(frozen=True)
class Question:
    """One given answer, and the generated tokens in it whose sources (token positions) are known."""

    suite: str
    number: int
    generation: Generation
    sources: dict[int, tuple[int, ...]]


def sampled(kind: str, loaded: LoadedModel, other: LoadedModel, asked: Question, *, long: bool) -> list[Sample]:
    """Everything about the tokens of one question; `other` has random weights."""
    generation = asked.generation
    every = token_targets(generation)
    targets = [every[t] for t in asked.sources]
    path = deletion_path(loaded, generation, targets=targets)
    random = deletion_path(other, generation, targets=targets, n_steps=RANDOM_NODES)
    effects = measure_effects(loaded, generation, targets=targets, removal=Removal())
    more, tested = (MORE_LONG, TESTED_LONG) if long else (MORE, TESTED)
    masks = fresh_masks(effects.kept.numpy(), more=more, tested=tested, free=FREE)
    f = removed(loaded, generation, targets, effects.units, np.concatenate(masks), operator="delete")
    ends = np.cumsum([len(one) for one in masks])[:-1]
    assert path.certificate is not None
    samples = []
    for row, (t, planted) in enumerate(asked.sources.items()):
        seen = generation.prompt_len + t
        own = [place for place, fall in enumerate(effects.hidden_drop[row].tolist()) if not math.isnan(fall)]
        sets = [tuple(unit for unit in effects.hidden[place] if unit[1] <= seen) for place in own]
        parts = np.split(f[row], ends)
        samples.append(
            Sample(
                model=kind,
                suite=asked.suite,
                number=asked.number,
                target=t,
                texts=generation.texts,
                prompt_len=generation.prompt_len,
                f=float(effects.f_full[row]),
                row=tuple(path.values[row].tolist()),
                random_row=tuple(random.values[row].tolist()),
                features=tuple(path.features[row].nonzero()[:, 0].tolist()),
                local_error=float(path.certificate.local_error[row]),
                converged=path.certificate.converged[row],
                units=effects.units,
                planted=planted,
                kept=tuple(tuple(mask.nonzero()[:, 0].tolist()) for mask in effects.kept),
                f_masked=tuple(effects.f_masked[row].tolist()),
                drop=tuple(effects.drop[row].tolist()),
                hidden=tuple(effects.hidden[place] for place in own),
                hidden_drop=tuple(effects.hidden_drop[row, own].tolist()),
                true_hidden=replaced(loaded, generation, targets[row], float(effects.f_full[row]), sets),
                more=tuple(parts[0].tolist()),
                tested=tuple(parts[1].tolist()),
                free=tuple(parts[2].tolist()),
            )
        )
    return samples


def removed(
    loaded: LoadedModel,
    generation: Generation,
    targets: Sequence[Target],
    units: Sequence[Unit],
    masks: np.ndarray,
    *,
    operator: str,
) -> np.ndarray:
    """F of every target under every mask."""
    found = f_of_masks(
        loaded,
        generation,
        targets,
        units,
        torch.from_numpy(masks),
        operator=operator,
        baseline="mean" if operator == "mean" else Removal.baseline,
        size=ChunkSize(CHUNK_TOKENS),
    )
    return np.asarray(found.numpy())


def replaced(
    loaded: LoadedModel, generation: Generation, target: Target, f: float, sets: Sequence[Sequence[Unit]]
) -> tuple[float, ...]:
    """Fall of F with the mean embedding in place of each set: another operator than the one that hides."""
    places = sorted({one for ranges in sets for one in ranges})
    masks = np.array([[place not in ranges for place in places] for ranges in sets], dtype=bool)
    if not masks.size:
        return ()
    return tuple((f - removed(loaded, generation, [target], places, masks, operator="mean")[0]).tolist())


def small_questions(kind: str, loaded: LoadedModel, count: int) -> Iterator[Question]:
    """Of the models that were trained on a planted task."""
    if kind == "lookup":
        for number, one in enumerate(lookups(loaded, count=count, seed=1000)):
            second = (int(one.sources[2] or 0), one.generation.prompt_len + 1)  # the item, and the topic asked for
            yield Question(kind, number, one.generation, {0: (int(one.sources[0] or 0),), 2: second})
        return
    drawn = suite_rows(kind, seed=1, limit=count, options={"others": OTHERS} if kind == "trace" else {})
    for number, row in enumerate(drawn):
        generation = answer(loaded, row.asked, response=row.response)
        planted = tuple(sorted(token_positions(generation, row.text, row.spans[:1] if kind == "trace" else row.spans)))
        if kind == "marker":
            yield Question(kind, number, generation, {0: planted})
            continue
        words = (row.response or "").split()
        own = tuple(generation.prompt_len + place for place in FOLLOWED[row.fields["task"]])
        yield Question(kind, number, generation, {words.index(FIRST_SAID) + 1: planted, len(words) - 1: own})


FOLLOWED = {"copy": (1,), "chain2": (1,), "chain3": (3,), "think": (4,), "sum": (3, 5)}
"""Of the model `tracer`: the words of the answer that its last word follows from."""
OTHERS = 16
"""Different words in a question to the model `tracer`, besides those of the answer: few are repeated, as in a text."""
AGAIN = ". Again:"
"""Between an answer and its repetition, whose sources are all mentions."""


def real_questions(loaded: LoadedModel, count: int, asked: Sequence[str]) -> Iterator[Question]:
    """Of the real model: the first token of the answer, and of its repetition. Without a template, all are raw."""
    drawn = [enumerate(suite_rows(name, seed=1, limit=count, options=SUITES[name])) for name in asked]
    for number, row in chain.from_iterable(zip(*drawn, strict=True)):
        prompt, text = row.asked, row.response or ""
        if row.messages and loaded.tokenizer.chat_template is None:
            prompt, text = f"{row.text}\nAnswer:", f" {text}"
        generation = answer(loaded, prompt, response=f"{text}{AGAIN} {text.strip()}")
        planted = tuple(sorted(token_positions(generation, row.text, row.spans)))
        ends = np.cumsum([len(piece) for piece in generation.texts[generation.prompt_len :]])
        before = tuple(range(generation.prompt_len, generation.prompt_len + int(np.sum(ends <= len(text)))))
        again = int(np.sum(ends <= len(text + AGAIN)))
        yield Question(row.source, number, generation, {0: planted, again: planted + before})


MODELS: dict[str, Callable[[], LoadedModel]] = {
    "marker": lambda: load(str(marker_folder()), dtype="float32"),
    "lookup": lambda: trained_lookup(layers=3, seed=0),
    "trace": lambda: load(str(tracer_folder()), dtype="float32"),
    "smollm2": lambda: load("smollm2", dtype="float32"),
}


def measured(path: Path, *, models: Sequence[str], small: int, real: int, suites: Sequence[str]) -> None:
    """Write the samples that `path` does not have yet."""
    done = {one.question for one in samples_in(path)}
    for name in models:
        loaded = MODELS[name]() if name in MODELS else load(name, dtype="float32")
        kind = Path(name).stem
        trained = name in MODELS and name != "smollm2"
        asked = small_questions(kind, loaded, small) if trained else real_questions(loaded, real, suites)
        for one in asked:
            if (kind, one.suite, one.number) not in done:
                long = trained or one.number < LONG_QUESTIONS
                other = randomised(loaded, seed=one.number)
                lines = [json.dumps(asdict(sample)) for sample in sampled(kind, loaded, other, one, long=long)]
                with path.open("a") as file:
                    file.write("".join(f"{line}\n" for line in lines))
                print(f"{kind}: {one.suite} {one.number}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=6, help="of each suite to the real model")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="some of these, or another that is loaded")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES), help="of the real model")
    parser.add_argument("--quick", action="store_true", help="one of each suite, eight to each small model")
    parser.add_argument("--tables-only", action="store_true", help="measure nothing more")
    parser.add_argument("--samples", type=Path, default=ROOT / "runs" / "calibration.jsonl")
    options = parser.parse_args()
    options.samples.parent.mkdir(parents=True, exist_ok=True)
    if not options.tables_only:
        small, real = (8, 1) if options.quick else (SMALL, options.questions)
        measured(options.samples, models=options.models, small=small, real=real, suites=options.suites)
    print("\n".join(tables(samples_in(options.samples))))


if __name__ == "__main__":
    main()
