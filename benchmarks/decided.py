"""What share of the tokens, words and answers gets a verdict: on the bench prompts, and in folders of explanations.

    python benchmarks/decided.py --stored float32 bfloat16 4bit -- reports/gallery/records

The prompts are those of prompts.json, explained by the embedded model with default settings. Punctuation and end marks
are no words. Prints a table in Markdown, then why the undecided tokens are undecided.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from llmxai import Explanation, explain, load, load_explanation
from llmxai.names import CURRENT, Status, joint_status
from llmxai.settings import DTYPES
from llmxai.types import Certificate

PROMPTS = Path(__file__).with_name("prompts.json")
QUANTIZED = ("8bit", "4bit")
HEAD = f"| explained | what | n | {' | '.join(CURRENT)} | decided |"
CASES = {
    "nothing was removed": "Nothing was removed",
    "too few parts": "could be removed: too few",
    "no single removal costs 0.5 nats for certain": "No single removal",
    "too many random orders match as well": "random orders match",
    "the first source's interval is too wide": "is too uncertain",
}
"""Why a token is undecided, by words of the reason."""


@dataclass(frozen=True)
class Counted:
    """Statuses of one answer."""

    tokens: Sequence[Status]
    words: Sequence[Status]
    reasons: Sequence[str]
    """Of the undecided tokens."""
    certificates: Mapping[str, Certificate]
    """Of the path methods."""


def counted(explanation: Explanation) -> Counted:
    """Every target of one token, and every word."""
    targets = zip(explanation.targets, explanation.checks, strict=True)
    single = [check for target, check in targets if len(target.positions) == 1]
    return Counted(
        tokens=[check.status for check in single],
        words=[word.status for word in explanation.answer_words()],
        reasons=[check.reason for check in single if check.status == Status.UNDECIDED],
        certificates={
            name: scores.certificate for name, scores in explanation.scores.items() if scores.certificate is not None
        },
    )


def of_prompts(stored: str) -> Iterator[Counted]:
    """The bench prompts, by a model stored in this dtype or in 8 or 4 bits."""
    loaded = load("smollm2", quantize=stored) if stored in QUANTIZED else load("smollm2", dtype=stored)
    for prompt in json.loads(PROMPTS.read_text()):
        yield counted(explain(loaded, prompt["messages"], max_new_tokens=prompt["max_new_tokens"]))


def table(answers: dict[str, Sequence[Counted]]) -> list[str]:
    """A row each for tokens, words and whole answers."""
    lines = [HEAD, "| --- " * 8 + "|"]
    for name, all_of in answers.items():
        kinds = {
            "tokens": [status for one in all_of for status in one.tokens],
            "words": [status for one in all_of for status in one.words],
            "answers": [joint_status(one.words) for one in all_of],
        }
        for kind, statuses in kinds.items():
            shown = [statuses.count(status) for status in CURRENT]
            share = (shown[0] + shown[1]) / len(statuses)
            lines.append(f"| {name} | {kind} | {len(statuses)} | {' | '.join(map(str, shown))} | {share:.0%} |")
    lines += ["", "| explained | why a token is undecided | tokens |", "| --- | --- | --- |"]
    for name, all_of in answers.items():
        why = Counter(case(reason) for one in all_of for reason in one.reasons)
        lines += [f"| {name} | {one} | {n} |" for one, n in why.most_common()]
    lines += [
        "",
        "| explained | method | targets | converged | nodes, all targets |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, all_of in answers.items():
        for method in all_of[0].certificates:
            own = [one.certificates[method] for one in all_of if method in one.certificates]
            converged = [done for one in own for done in one.converged]
            nodes = sum(sum(one.nodes) for one in own)
            lines.append(f"| {name} | {method} | {len(converged)} | {fmean(converged):.0%} | {nodes} |")
    return lines


def case(reason: str) -> str:
    """Which of the cases a reason describes."""
    return next((name for name, words in CASES.items() if words in reason), reason)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="with the folder of an explanation in each folder below")
    parser.add_argument(
        "--stored", nargs="*", choices=(*DTYPES, *QUANTIZED), default=["float32"], help="how the model is stored"
    )
    options = parser.parse_args()
    answers: dict[str, Sequence[Counted]] = {f"bench prompts, {one}": list(of_prompts(one)) for one in options.stored}
    for folder in options.folders:
        found = sorted(file.parent for file in folder.glob("*/explanation.json"))
        answers[folder.parent.name] = [counted(load_explanation(one)) for one in found]
    print("\n".join(table(answers)))


if __name__ == "__main__":
    main()
