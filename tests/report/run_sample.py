"""Runs as llmxai writes them: folders of hand-made explanations, and rows without folders, for the report's tests."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from safetensors.numpy import save_file

from llmxai.report import RunRow
from tests.report.sample import HOSTILE, Sample, chat, hostile, sample


def write_sample(folder: Path, explanation: Sample) -> Path:
    """An explanation's folder without its page."""
    document, maps = explanation
    folder.mkdir(parents=True)
    (folder / "explanation.json").write_text(json.dumps(document), encoding="utf-8")
    save_file(maps, folder / "maps.safetensors")
    return folder


def write_run(run: Path, records: Mapping[str, Sample] | None = None) -> Path:
    """`run/records/ID/...`, without pages and rows."""
    for name, explanation in (records or small_run()).items():
        write_sample(run / "records" / name, explanation)
    return run


def small_run() -> dict[str, Sample]:
    return {
        "0001": chat(),
        "0002": sample(["<s>", " Which", " city", "?"], [" Rome"]),
        "0003": sample(["<s>", " Which", " river", "?"], [" The", " Tiber"], statuses=["agree", "disagree"]),
        "0004": hostile(),
    }


def made_up(n: int, *, seed: int = 0) -> list[RunRow]:
    """Rows of a run of `n` records, one in ten failed."""
    rng = random.Random(seed)
    words = "which city river mountain is the capital of France Peru Chad answer report token".split()  # noqa: SIM905
    return [_made_up(i, rng, words) for i in range(n)]


def _made_up(i: int, rng: random.Random, words: list[str]) -> RunRow:
    prompt = " ".join(rng.choices(words, k=18))
    if i % 10 == 9:
        return RunRow(id=f"r{i:05d}", status="failed", error="PromptError: the prompt is empty.", prompt=prompt)
    counts = [rng.randrange(8), rng.randrange(6), rng.choice([0, 0, 1, 2]), rng.choice([0, 0, 0, 1])]
    return RunRow(
        id=f"r{i:05d}",
        prompt=prompt,
        answer=" ".join(rng.choices(words, k=14)),
        sources=", ".join(rng.choices(words, k=3)),
        probability=rng.random(),
        n_targets=sum(counts),
        agree=counts[0],
        diluted=counts[1],
        disagree=counts[2],
        unconverged=counts[3],
        worst_gap_ratio=rng.random() * (2.5 if counts[3] else 1),
        median_spearman=rng.uniform(-0.4, 0.9) if sum(counts) else None,
        seconds=rng.uniform(2, 9),
        metrics={"gradients.comprehensiveness": rng.gauss(0.4, 0.2), "random.comprehensiveness": rng.gauss(0.05, 0.2)},
    )


def hostile_rows() -> list[RunRow]:
    """Every hostile text as a prompt, an answer, an error and a record's name."""
    explained = [
        RunRow(id=text.replace("/", "_") or "empty", prompt=text, answer=text, n_targets=1, agree=1) for text in HOSTILE
    ]
    failed = [RunRow(id=f"f{i}", status="failed", error=text) for i, text in enumerate(HOSTILE)]
    return [
        *explained,
        *failed,
        RunRow(id="../../etc", prompt="a", answer="b", n_targets=1, disagree=1, metrics={HOSTILE[0]: 1.0}),
        RunRow(id="javascript:window.hacked=1", prompt="a", answer="b", n_targets=1, disagree=1),
    ]
