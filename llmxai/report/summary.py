"""The first screen: what was asked and answered, what mattered, whether to trust it, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmxai.names import AttentionStatus, Status
from llmxai.report.focus import (
    EFFECTS,
    REMOVAL,
    Focus,
    Sentence,
    answer_targets,
    build_focus,
    in_words,
    probability,
    rounded,
)
from llmxai.report.removal import Effects, build_effects
from llmxai.report.verdict import (
    Contrast,
    answer_text,
    answer_words,
    build_contrast,
    in_passages,
    is_measured,
    word_status,
)
from llmxai.report.visible import Text, label, shorten, visible

NAMED = 3
"""Most words of a status that a sentence names."""
LONGEST_TITLE = 60
CONTRASTED = {
    Status.CONFIRMED: "confirmed by taking words away",
    Status.CONTRADICTED: "contradicted by taking words away",
    Status.UNDECIDED: "undecided by taking words away",
    Status.UNCONVERGED: "not computed accurately",
}
"""What is said of the token that has a foil."""


@dataclass(frozen=True)
class Trust:
    lead: str
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class Step:
    """Something to do next. `href`: a place on the page."""

    said: Sentence
    href: str = ""


@dataclass(frozen=True)
class Summary:
    title: Sentence
    came: Sentence
    """That the answer was supplied, and how likely it is, or that it was sampled; empty for the first choice."""
    focus: Focus
    trust: Trust
    steps: tuple[Step, ...]


def build_summary(explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray], older: Sequence[str]) -> Summary:
    """From a parsed explanation.json and its maps. `older`: the sentences on trust of a verdict before rule 4."""
    focus = build_focus(explanation, maps)
    return Summary(
        title=_title(explanation, focus.contrast),
        came=_came(explanation),
        focus=focus,
        trust=build_trust(explanation) if is_measured(explanation) else Trust("", tuple((said,) for said in older)),
        steps=_steps(explanation, focus),
    )


def _title(explanation: Mapping[str, Any], contrast: Contrast | None) -> Sentence:
    if contrast is not None:
        return ("Why ", contrast.token, " and not ", contrast.foil, "?")
    answer = visible(shorten(" ".join(answer_text(explanation).split()), limit=LONGEST_TITLE))
    if is_given(explanation):
        return ("What speaks for the answer ", answer)
    return ("Where the answer ", answer, " came from")


def is_given(explanation: Mapping[str, Any]) -> bool:
    """Whether the answer was supplied, not generated."""
    return bool(explanation["generation"]["stop"] == "given")


def _came(explanation: Mapping[str, Any]) -> Sentence:
    rows = answer_targets(explanation)
    targets = [explanation["targets"][row] for row in rows or range(len(explanation["targets"]))]
    first, chance = sum(target["rank"] == 1 for target in targets), rounded(probability(targets))
    if not is_given(explanation):
        if not explanation["generation"]["decoding"].get("do_sample"):
            return ()
        return (f"The answer was sampled: {first} of its {len(targets)} tokens were the model’s first choice.",)
    if first == len(targets):
        return (
            f"This answer was supplied, and the model would have given the same: each token is its first choice "
            f"(probability: {chance}).",
        )
    which = next(target for target in targets if target["rank"] != 1)
    return (
        f"The model did not write this answer: it was supplied, and the model would have said something else. "
        f"Probability of the answer: {chance}; ",
        label(shorten(which["text"], limit=LONGEST_TITLE)),
        f" is the model’s choice number {which['rank']}.",
    )


# ---- can this be trusted


def build_trust(explanation: Mapping[str, Any]) -> Trust:
    """From the two answers of the verdict, counted over words; of a contrast, that word first."""
    words = answer_words(explanation)
    statuses = [word_status(own) for own in words]
    removed = explanation["ablations"] is not None
    contrasted = next((own for own in words if build_contrast(own)), None)
    led = statuses if contrasted is None else [word_status(contrasted)]
    return Trust(
        lead=_lead(Counter(led), len(led), removed),
        sentences=(
            *(() if contrasted is None else (_contrast_line(contrasted, removed=removed),)),
            _sources_line(explanation, words, statuses),
            (_attention_line([_attention(own) for own in words], _noun(explanation)),),
        ),
    )


def _contrast_line(own: Sequence[Mapping[str, Any]], *, removed: bool) -> Sentence:
    contrast, status = build_contrast(own), word_status(own)
    assert contrast is not None
    said = CONTRASTED[status] if removed or status == Status.UNCONVERGED else "nothing was taken away to check it"
    return (contrast.token, " against ", contrast.foil, f": {said}.")


def trust_text(explanation: Mapping[str, Any]) -> str:
    """The same as plain text."""
    trust = build_trust(explanation)
    return " ".join([trust.lead, *map(in_words, trust.sentences)])


def _lead(counts: Mapping[Status, int], n: int, removed: bool) -> str:
    confirmed, contradicted = counts.get(Status.CONFIRMED, 0), counts.get(Status.CONTRADICTED, 0)
    if counts.get(Status.UNCONVERGED, 0) == n:
        return "No."
    if not removed:
        return "Not checked."
    if confirmed == n:
        return "Yes, as far as taking words away can show."
    if confirmed:
        return "For the most part." if 2 * confirmed > n else "In part."
    if contradicted:
        return "Not the contributions." if contradicted == n else "Hardly."
    return "Undecided."


def _of(count: int, n: int, noun: str) -> str:
    if count == n:
        return f"the only {noun}" if n == 1 else f"all {n} {noun}s"
    return f"{count} of the {n} {noun}s"


def _noun(explanation: Mapping[str, Any]) -> str:
    """What is counted."""
    return "passage" if in_passages(explanation) else "word"


def _sources_line(
    explanation: Mapping[str, Any], words: Sequence[Sequence[Mapping[str, Any]]], statuses: Sequence[Status]
) -> Sentence:
    of = {status: [own for own, one in zip(words, statuses, strict=True) if one == status] for status in Status}
    n, inaccurate, noun = len(words), of[Status.UNCONVERGED], _noun(explanation)
    accurate = n - len(inaccurate)
    said: Sentence = ("Computed accurately: ", _of(accurate, n, noun) if accurate else f"no {noun}")
    said += (*((" (not ", *_names(inaccurate), ")") if inaccurate and accurate else ()), ". ")
    if explanation["ablations"] is None:
        return (*said, f"Nothing was taken away, so no {noun} could be confirmed or contradicted.")
    told: list[Sentence] = []
    if confirmed := of[Status.CONFIRMED]:
        told.append((f"confirmed by taking words away: {len(confirmed)}", *_bracketed(confirmed, n)))
    if contradicted := of[Status.CONTRADICTED]:
        again = "" if confirmed else " by taking words away"
        told.append(
            (
                f"contradicted{again}: {len(contradicted)}",
                *_bracketed(contradicted, n),
            )
        )
    if undecided := of[Status.UNDECIDED]:
        told.append((f"undecided: {len(undecided)}{_why_undecided(explanation, undecided)}",))
    joined: Sentence = ()
    for number, part in enumerate(told):
        joined += (("; " if number else ""), *part)
    return (*said, *_capitalized(joined), "." if joined else "")


def _capitalized(sentence: Sentence) -> Sentence:
    texts = [number for number, part in enumerate(sentence) if part]
    if not texts or not isinstance(sentence[texts[0]], str):
        return sentence
    first = str(sentence[texts[0]])
    return (first[0].upper() + first[1:], *sentence[texts[0] + 1 :])


def _bracketed(words: Sequence[Sequence[Mapping[str, Any]]], n: int) -> Sentence:
    """The words themselves, unless they are all or many."""
    return () if len(words) in (0, n) or len(words) > NAMED else (" (", *_names(words), ")")


def _names(words: Sequence[Sequence[Mapping[str, Any]]]) -> Sentence:
    said: Sentence = ()
    for number, own in enumerate(words[:NAMED]):
        said += (", " if number else "", _label(own))
    return (*said, f" and {len(words) - NAMED} more") if len(words) > NAMED else said


def _label(own: Sequence[Mapping[str, Any]]) -> Text:
    return label(shorten("".join(target["text"] for target in own), limit=LONGEST_TITLE))


def _why_undecided(explanation: Mapping[str, Any], words: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Whether a single part matters to these words at all, by the threshold of the verdict."""
    effects = build_effects(explanation)
    least = explanation["computed"].get("crosscheck", {}).get("least_effect")
    if effects is None or least is None:
        return ", too uncertain to say"
    n, numbers = len(words), {id(target): row for row, target in enumerate(explanation["targets"])}
    rows = [[numbers[id(target)] for target in own if target["status"] == Status.UNDECIDED] for own in words]
    some = sum(any(_decides(effects, row, least) for row in own) for own in rows)
    if not some:
        return f", no single word decides {'them' if n > 1 else 'it'}"
    if some == n:
        return ", since the order of the sources may be chance"
    return f" (no single word decides {n - some}; for {some} the order of the sources may be chance)"


def _decides(effects: Effects, row: int, least: float) -> bool:
    """Whether the strongest single part lowers the score by `least` nats at least."""
    value = effects.value[row]
    if np.isnan(value).all():
        return False
    return bool(effects.low[row, int(np.nanargmax(value))] >= least)


def _attention(own: Sequence[Mapping[str, Any]]) -> str:
    """Of a word: the worst of its tokens."""
    told = [target["verdict"]["attention"] for target in own]
    return next(status for status in reversed(AttentionStatus) if status in told)


def _attention_line(attention: Sequence[str], noun: str) -> str:
    n, readable = len(attention), attention.count(AttentionStatus.READABLE)
    if attention.count(AttentionStatus.REFUSED) == n:
        return "Attention cannot be read on this model: rollout is not defined for it."
    if readable == 0:
        return "Attention cannot be read on this model."
    if readable == n:
        return f"Attention can be read for {_of(n, n, noun)}."
    return f"Attention can be read for {_of(readable, n, noun)}."


# ---- what next


def _steps(explanation: Mapping[str, Any], focus: Focus) -> tuple[Step, ...]:
    steps = [_try(explanation, focus)]
    words = answer_words(explanation)
    for status in (Status.CONTRADICTED, Status.DISAGREE):
        which = next((own for own in words if word_status(own) == status), None)
        if which is not None:
            name = _label(which)
            what = (
                ": there the methods contradict each other."
                if status == Status.DISAGREE
                else ": there only the measured effects count."
            )
            steps.append(Step(("Look at ", name, what), f"#{status}"))
    if len(steps) == 1:
        steps.append(Step(("Choose a word of the answer to see what it rests on.",), "#answer"))
    if focus.contrast is None:
        steps.append(Step(("Expected another answer? Have the two compared.",)))
    steps.append(Step(("Read the limits: the answer may still be untrue.",), "#limits"))
    return tuple(steps)


def _try(explanation: Mapping[str, Any], focus: Focus) -> Step:
    if not focus.sources:
        return Step(("Ask in other words: does the answer stay? No single part of the prompt has a clear effect.",))
    first = focus.sources[0]
    if focus.method not in (EFFECTS, REMOVAL):
        return Step(
            ("Have the sources measured: take ", first.text, " out of the prompt and see whether the answer stays.")
        )
    what = "what does the model say by itself?" if is_given(explanation) else "does the answer change?"
    return Step(("Take ", first.text, f" out of the prompt and ask again: {what}"))
