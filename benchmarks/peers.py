"""Other attribution tools at their defaults beside llmxai, on questions with known sources. Writes PEERS.md.

Captum, Inseq, FlashTrace, ContextCite and AT2 read the same tokens, model and weights, and explain the first token of a
given answer. Every measurement is a process of its own, one after the other: a copy of this one, so that nothing a tool
changes stays. Seconds are the processor's, one thread, without imports and the loading of the model.

Usage: python benchmarks/peers.py [--model smollm2] [--questions 2] [--training 4] [--samples peers.jsonl]
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from machine import kept, surroundings, write_section
from peer_tools import TOOLS, Question, Tool, at2_tool, at2_training, require_ids
from torch import Tensor

from llmxai import LoadedModel, load
from llmxai.evaluation import Row, make_case, suite_rows
from llmxai.evaluation.metrics import lds_on, planted_truth
from llmxai.generation import answer
from llmxai.methods.perturbation.removal import SetFunction, half_subsets

OUT = Path(__file__).parent / "PEERS.md"
SUITES: dict[str, dict[str, Any] | None] = {
    "needle": {"lengths": [2], "distractors": 2},
    "key_value": None,
    "multi_hop": None,
    "context_memory": None,
    "indirect_object": None,
    "induction": None,
}
MASKS, MASKS_SEED = 64, 1
"""Random halves of the prompt's content for the LDS; `measure_effects` draws its own with seed 0."""
TRAINING_SEED = 1
"""Of the questions that AT2 is trained on; 0 is that of the questions asked."""
PEERS = {"captum": "Captum", "inseq": "Inseq", "flashtrace": "FlashTrace", "context-cite": "ContextCite", "at2": "AT2"}


def asked(loaded: LoadedModel, row: Row) -> Question:
    """Raises RuntimeError unless the text of the prompt and the answer has the token ids that llmxai explains."""
    row = replace(row, foil=None, target=None)  # none of the others explains a contrast at its defaults
    generation = answer(loaded, row.asked, response=row.response)
    n = generation.prompt_len
    prompt, said = "".join(generation.texts[:n]), "".join(generation.texts[n:])
    for text, ids in ((prompt, generation.ids[:n]), (prompt + said, generation.ids)):
        require_ids(row.id, loaded.tokenizer(text).input_ids, ids)
    return Question(row, make_case(loaded, row, generation, target="first"), prompt, said)


def questions(loaded: LoadedModel, each: int, *, seed: int = 0) -> list[Question]:
    """`each` of every suite, the first ones of all suites first."""
    suites = [suite_rows(name, limit=each, seed=seed, options=options) for name, options in SUITES.items()]
    return [asked(loaded, row) for rows in zip(*suites, strict=True) for row in rows]


def apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns in a process of its own, or the `failure` that ended it."""
    context = multiprocessing.get_context("fork")
    found, into = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(work, into))
    child.start()
    into.close()
    try:
        return dict(found.recv())
    except EOFError:
        return {"failure": "its process was killed"}
    finally:
        child.join()


def _send(work: Callable[[], dict[str, Any]], into: Connection) -> None:
    try:
        into.send(work())
    except Exception as error:
        traceback.print_exc()
        into.send({"failure": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"})


def kept_apart(samples: Path | None, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`apart`, once, and a line that says so."""

    def told() -> dict[str, Any]:
        found = apart(work)
        ended = found.get("failure") or f"{found.get('seconds', 0):.1f} s"
        print(f"{name}: {ended}", flush=True)
        return found

    return kept(samples, name, told)


def explained(tool: Tool, loaded: LoadedModel, question: Question) -> dict[str, Any]:
    work = tool.prepare(loaded, question)
    start = time.process_time()
    values, told = work()
    seconds = time.process_time() - start
    if len(values) not in (question.prompt_len, len(question.case.generation.ids)):
        raise RuntimeError(f"{tool.name}: {len(values)} scores of {question.prompt_len} prompt tokens.")
    scores = values.detach().double()[list(question.case.features)]
    return {"seconds": seconds, "scores": scores.tolist(), "told": told}


def random_halves(question: Question) -> Tensor:
    return half_subsets(len(question.case.features), MASKS, seed=MASKS_SEED)


def halves(loaded: LoadedModel, question: Question) -> dict[str, Any]:
    """F on the random halves of the LDS: the same for every tool, so computed once."""
    removal = SetFunction(loaded, question.case.generation, question.case.target, question.case.features)
    start = time.process_time()
    f = removal.values(random_halves(question))
    return {"f": f.tolist(), "seconds": time.process_time() - start}


def figures(question: Question, scores: Sequence[float], f: Sequence[float]) -> dict[str, float]:
    """llmxai's own `mrr` and `lds`; the LDS of scores that are all alike is 0, for they predict nothing."""
    values, truth = torch.tensor(scores, dtype=torch.float64), question.case.truth
    assert truth is not None
    found = {"lds": 0.0} | lds_on(random_halves(question), torch.tensor(f, dtype=torch.float64), values)
    return {"mrr": planted_truth(values, truth)["mrr"], "lds": found["lds"]}


Results = dict[str, list[tuple[Question, dict[str, Any]]]]
"""By tool: every question with its sample, which has `figures` if the tool gave scores."""


def measured(loaded: LoadedModel, every: Sequence[Question], tools: Sequence[Tool], samples: Path | None) -> Results:
    found: Results = {tool.name: [] for tool in tools}
    for question in every:
        f = kept_apart(samples, f"{loaded.name}, {question.row.id}: halves", partial(halves, loaded, question))["f"]
        for tool in tools:
            name = f"{loaded.name}, {question.row.id}: {tool.name}"
            sample = kept_apart(samples, name, partial(explained, tool, loaded, question))
            if "failure" not in sample:
                sample["figures"] = figures(question, sample["scores"], f)
            found[tool.name].append((question, sample))
    return found


def told_of(samples: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What llmxai said about its own errors, over all questions."""
    told = [sample["told"] for sample in samples]
    if not told:
        return {}
    converged = [one["converged"] for one in told if "converged" in one]
    errors, widths = ([one[key] for one in told if key in one] for key in ("error", "half_width"))
    return {
        "converged": f"{sum(converged)} of {len(converged)}",
        "error": f"{max(errors):.2g}" if errors else "",
        "half_width": f"{median(widths):.2g}" if widths else "",
    }


def table(results: Results, tools: Sequence[Tool]) -> list[str]:
    lines = [
        "| tool | scores of | questions | CPU seconds | source MRR | LDS | says how far off it is |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for tool in tools:
        samples = [sample for _, sample in results[tool.name]]
        good = [sample for sample in samples if "figures" in sample]
        cells = [tool.name, tool.scored, f"{len(good)} of {len(samples)}"]
        if good:
            mrr, found = (fmean(sample["figures"][name] for sample in good) for name in ("mrr", "lds"))
            cells += [f"{median(sample['seconds'] for sample in good):.1f}", f"{mrr:.2f}", f"{found:.2f}"]
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join([*cells, tool.error.format_map(told_of(good))])} |")
    return lines


def by_suite(results: Results) -> list[str]:
    """MRR / LDS of every suite."""
    lines = [f"| source MRR / LDS | {' | '.join(SUITES)} |", "| " + " | ".join(["---"] * (1 + len(SUITES))) + " |"]
    for name, pairs in results.items():
        cells = []
        for suite in SUITES:
            good = [s["figures"] for q, s in pairs if q.row.source == suite and "figures" in s]
            cells.append(" / ".join(f"{fmean(one[key] for one in good):.2f}" for key in ("mrr", "lds")) if good else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def remarks(results: Results, training: dict[str, Any]) -> list[str]:
    """What stands between these figures and the tools' own defaults, and what failed."""
    trained = f"where its training failed: {training.get('failure')}"
    if "questions" in training:
        trained = (
            f"on {training['questions']} generated questions of the same suites, in {training['seconds']:.0f} CPU "
            f"seconds, where its README speaks of a few thousand"
        )
    lines = [
        "- Few questions: small differences may be chance.",
        "- Scores of words and sentences are spread evenly over their tokens, and equal scores share their mean rank: "
        "the MRR of the right sentence of 9 tokens is 0.2. The LDS of scores that are all alike counts as 0.",
        "- The LDS deletes tokens, as ContextCite and llmxai's deletion path and effects do; the others mask or "
        "replace tokens, follow gradients or read attention.",
        "- All explain the first token, which FlashTrace and Inseq pick from the whole answer: Captum and llmxai its "
        "log-prob, Inseq its probability, ContextCite and AT2 its log-odds. Inseq's scores are norms, without signs.",
        "- Captum and Inseq have no default method. `saliency` is that of Inseq's command line; integrated gradients "
        "are those of its README and of Captum's class for gradients of language models.",
        "- Inseq leaves the padding token, here the end of a turn, out of its tokens, but not out of its scores "
        "(`drop_padding`), so in a chat its labels are shifted. Its scores are read by position here.",
        "- ContextCite and AT2 get the user's message as their context, with an empty query and the template "
        "`{context}`, and the given answer in place of one that they generate. By default ContextCite scores "
        "sentences, and AT2's `SimpleContextAttributionTask` tokens.",
        "- ContextCite also leaves out all sources at once. Of a raw prompt of one sentence nothing is then left, and "
        "it fails.",
        "- AT2 cannot be used off the shelf with this model: its README offers estimators of a few popular models, and "
        "a model's kind is guessed from its name, so it is told here. It is trained as its README says (32 masks a "
        f"question, 1000 steps; batches of all questions, every token of the answer a target), but {trained}.",
    ]
    for name, pairs in results.items():
        notes = {sample["told"]["note"] for _, sample in pairs if "note" in sample.get("told", {})}
        lines += [f"- {name}: {note}." for note in notes]
        failed = [(question.row.source, sample["failure"]) for question, sample in pairs if "failure" in sample]
        if failed:
            where = ", ".join(dict.fromkeys(suite for suite, _ in failed))
            lines.append(f"- {name}: failed on {len(failed)} questions ({where}), first with `{failed[0][1]}`.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--questions", type=int, default=2, help="of every suite")
    parser.add_argument("--training", type=int, default=4, help="of every suite, to train AT2")
    parser.add_argument("--samples", type=Path, help="file of single measurements, which a later call reuses")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the copies of this process have no other thread
    loaded = load(options.model, dtype="float32", device_map="cpu")
    name = f"{loaded.name}: AT2, trained on {options.training} of every suite"
    training = kept_apart(
        options.samples, name, lambda: at2_training(loaded, questions(loaded, options.training, seed=TRAINING_SEED))
    )
    tools = (*TOOLS, at2_tool(training["weights"])) if "weights" in training else TOOLS
    results = measured(loaded, questions(loaded, options.questions), tools, options.samples)
    versions = ", ".join(f"{PEERS[package]} {version(package)}" for package in PEERS)
    head = (
        f"{surroundings()}. {versions}; torch {torch.__version__}, transformers {version('transformers')}. "
        f"`{options.model}` in float32, {options.questions} of each of the suites {', '.join(SUITES)}; the target is "
        f"the first token of the given answer. Seconds: of the processor, one thread, median, first call in a process "
        f"of its own. MRR: mean reciprocal rank of the first planted source among the tokens of the prompt's content. "
        f"LDS: Spearman correlation with the log-prob on {MASKS} random halves of them, the others deleted. Every tool "
        f"at its defaults; means over the questions that it answers.\n"
    )
    write_section(
        options.out,
        f"Planted questions, {options.model}",
        [head, *table(results, tools), "", *by_suite(results), "", *remarks(results, training)],
        introduction="# Beside other tools\n\nWritten by `make bench-peers` (`benchmarks/peers.py`).\n",
    )


if __name__ == "__main__":
    main()
