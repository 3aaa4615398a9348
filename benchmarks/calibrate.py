"""How often the verdict on a token's sources is right, on planted questions; fitted on one half, checked on the other.

For each question: the deletion path, the measured effects, and what the verdict is checked against. A unit is a true
cause if fresh random subsets show it (another seed; at least `LEAST_CAUSE` nats, and above 0 at 99 %), or if it is the
planted source. All mentions of a word are a true cause if F falls by `LEAST_CAUSE` when the mean embedding replaces
them. Prints tables in Markdown. Every question is written to `--samples` at once; a later call continues there.

Usage: python benchmarks/calibrate.py [--quick] [--questions 6] [--suites NAME ...] [--samples FILE] [--tables-only]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from calibrate_tables import FORWARDS, Sample, samples_in, tables  # noqa: E402
from planted import lookups, trained_lookup  # noqa: E402

from llmxai import LoadedModel, load  # noqa: E402
from llmxai.evaluation.case import token_positions  # noqa: E402
from llmxai.evaluation.metrics import randomised  # noqa: E402
from llmxai.evaluation.planted_models import marker_folder  # noqa: E402
from llmxai.evaluation.suites import suite_rows  # noqa: E402
from llmxai.generation import answer  # noqa: E402
from llmxai.methods import deletion_path, estimated, measure_effects, token_targets  # noqa: E402
from llmxai.methods.perturbation.removal import (  # noqa: E402
    f_of_masks,
    half_subsets,
)
from llmxai.models.memory import ChunkSize  # noqa: E402
from llmxai.names import Unit  # noqa: E402
from llmxai.settings import CHUNK_TOKENS, Removal  # noqa: E402
from llmxai.stats import ridge_with_prior, spearman  # noqa: E402
from llmxai.types import Effects, Generation  # noqa: E402

SUITES: dict[str, dict[str, Any]] = {
    "context_memory": {},
    "indirect_object": {},
    "key_value": {"pairs": (3,)},
    "induction": {},
    "multi_hop": {},
    "needle": {"lengths": (2,)},
}
"""Asked of the real model: the chat suites in its template, the others as text to continue. All have a known source."""
SMALL = 100
"""Questions to each small model."""
HELD_OUT, FREE = 64, 128
"""Fresh subsets: halves on which predictions are tested, and subsets that keep each unit with probability one half."""
RANDOM_NODES = 8
"""Nodes of the path in the model with random weights, where an exact integral would not matter."""


def sampled(
    kind: str, loaded: LoadedModel, other: LoadedModel, name: str, generation: Generation, planted: Sequence[int]
) -> Sample:
    """Everything about the first token of one question; `other` has random weights."""
    targets = token_targets(generation)[:1]
    path = deletion_path(loaded, generation, targets=targets)
    random = deletion_path(other, generation, targets=targets, n_steps=RANDOM_NODES)
    effects = estimated(measure_effects(loaded, generation, targets=targets, removal=Removal()), path)
    units = effects.units
    sets = [one for one in effects.hidden if all(end <= generation.prompt_len for _, end in one)]
    own = [effects.hidden.index(one) for one in sets]
    more = half_subsets(len(units), FORWARDS[-1] - len(effects.kept), seed=101)
    tested = half_subsets(len(units), HELD_OUT, seed=202)
    free = torch.rand(FREE, len(units), generator=torch.Generator().manual_seed(303)) < 0.5
    masks = torch.cat([more, tested, free])
    f = removed(loaded, generation, units, masks, operator="delete")
    mean, error = least_squares(masks.double().numpy(), f)
    at = len(more), len(more) + len(tested)
    prior = np.array([float(path.values[0, start:end].sum()) for start, end in units])
    x = np.concatenate([effects.kept.numpy(), more.numpy()])
    y = np.concatenate([effects.f_masked[0].numpy(), f[: at[0]]])
    assert path.certificate is not None
    return Sample(
        model=kind,
        question=name,
        texts=generation.texts,
        prompt_len=generation.prompt_len,
        f=float(effects.f_full[0]),
        row=tuple(path.values[0].tolist()),
        random_row=tuple(random.values[0].tolist()),
        features=tuple(path.features[0].nonzero()[:, 0].tolist()),
        local_error=float(path.certificate.local_error[0]),
        converged=path.certificate.converged[0],
        units=units,
        planted=tuple(any(start <= i < end for i in planted) for start, end in units),
        kept=tuple(tuple(mask.nonzero()[:, 0].tolist()) for mask in effects.kept),
        f_masked=tuple(effects.f_masked[0].tolist()),
        drop=tuple(effects.drop[0].tolist()),
        hidden=tuple(sets),
        hidden_drop=tuple(effects.hidden_drop[0, own].tolist()),
        true_effect=tuple(mean),
        true_error=tuple(error),
        true_hidden=replaced(loaded, generation, effects, sets),
        lds=held_out(x, y, tested.numpy(), f[at[0] : at[1]], prior),
    )


def removed(
    loaded: LoadedModel, generation: Generation, units: Sequence[Unit], masks: torch.Tensor, *, operator: str
) -> np.ndarray:
    """F of the first token under every mask."""
    found = f_of_masks(
        loaded,
        generation,
        token_targets(generation)[:1],
        units,
        masks,
        operator=operator,
        baseline="mean" if operator == "mean" else Removal.baseline,
        size=ChunkSize(CHUNK_TOKENS),
    )
    return np.asarray(found[0].numpy())


def replaced(
    loaded: LoadedModel, generation: Generation, effects: Effects, sets: Sequence[Sequence[Unit]]
) -> tuple[float, ...]:
    """Fall of F with the mean embedding in place of each set: another operator than the one that hides."""
    places = sorted({one for ranges in sets for one in ranges})
    masks = torch.tensor([[place not in ranges for place in places] for ranges in sets], dtype=torch.bool)
    if not len(masks):
        return ()
    return tuple((float(effects.f_full[0]) - removed(loaded, generation, places, masks, operator="mean")).tolist())


def least_squares(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """Weights of a linear fit with an intercept, and their standard errors."""
    design = np.column_stack([np.ones(len(x)), x])
    weights, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = float(np.sum((y - design @ weights) ** 2)) / max(1, len(y) - design.shape[1])
    errors = np.sqrt(variance * np.diag(np.linalg.pinv(design.T @ design)))
    return weights[1:].tolist(), errors[1:].tolist()


def held_out(
    x: np.ndarray, y: np.ndarray, tested: np.ndarray, f: np.ndarray, prior: np.ndarray
) -> dict[str, tuple[float | None, ...]]:
    """LDS on the subsets `tested` of estimates from the first rows of x."""
    found = {"deletion path alone": (spearman(tested @ prior, f),)}
    for name, mean in (("with the prior", prior), ("without", np.zeros_like(prior))):
        fits = [ridge_with_prior(x[:rows].astype(float), y[:rows], mean).mean for rows in FORWARDS]
        found[name] = tuple(spearman(tested @ fit, f) for fit in fits)
    return found


def questions(
    loaded: LoadedModel, kind: str, count: int, asked: Sequence[str]
) -> Iterator[tuple[str, Generation, list[int]]]:
    """Name, answer and the positions of the known source."""
    if kind == "lookup":
        for number, one in enumerate(lookups(loaded, count=count, seed=1000)):
            yield f"lookup {number}", one.generation, [int(one.sources[0] or 0)]
        return
    suites = {"marker": {}} if kind == "marker" else {name: SUITES[name] for name in asked}
    drawn = [list(suite_rows(name, seed=1, limit=count, options=options)) for name, options in suites.items()]
    for rows in zip(*drawn, strict=True):
        for row in rows:
            generation = answer(loaded, row.asked, response=row.response)
            yield row.id, generation, sorted(token_positions(generation, row.text, row.spans))


def models() -> Iterator[tuple[str, LoadedModel]]:
    yield "marker", load(str(marker_folder()), dtype="float32")
    yield "lookup", trained_lookup(layers=3, seed=0)
    yield "smollm2", load("smollm2", dtype="float32")


def measured(path: Path, *, small: int, real: int, suites: Sequence[str]) -> None:
    """Write the samples that `path` does not have yet."""
    done = {(one.model, one.question) for one in samples_in(path)}
    for kind, loaded in models():
        other = randomised(loaded, seed=0)
        count = real if kind == "smollm2" else small
        for name, generation, planted in questions(loaded, kind, count, suites):
            if (kind, name) not in done:
                sample = sampled(kind, loaded, other, name, generation, planted)
                with path.open("a") as file:
                    file.write(json.dumps(asdict(sample)) + "\n")
                print(f"{kind}: {name}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=6, help="of each suite to the real model")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES), help="of the real model")
    parser.add_argument("--quick", action="store_true", help="one of each suite, eight to each small model")
    parser.add_argument("--tables-only", action="store_true", help="measure nothing more")
    parser.add_argument("--samples", type=Path, default=ROOT / "runs" / "calibration.jsonl")
    options = parser.parse_args()
    options.samples.parent.mkdir(parents=True, exist_ok=True)
    if not options.tables_only:
        small, real = (8, 1) if options.quick else (SMALL, options.questions)
        measured(options.samples, small=small, real=real, suites=options.suites)
    print("\n".join(tables(samples_in(options.samples))))


if __name__ == "__main__":
    main()
