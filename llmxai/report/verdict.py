"""The first part of the page: what was asked, the main sources, the statuses, and the limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from llmxai.names import CURRENT, AttentionStatus, Role, Status, joint_status
from llmxai.report.removal import Effect, build_effects, count_referee
from llmxai.report.visible import Text, label, shorten, visible
from llmxai.text import by_place, inside


def is_diluted(target: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether rollout is diluted: by the verdict or, before rule 4, by the thresholds in the settings."""
    if target["verdict"] is not None:
        return bool(target["verdict"]["attention"] == AttentionStatus.DILUTED)
    if target["status"] == Status.DILUTED:
        return True
    rollout, rule = target["rollout"], settings.get("crosscheck", {})
    if target["status"] != Status.UNCONVERGED or rollout["sink_mass"] is None:
        return False
    return bool(
        rollout["sink_mass"] > rule.get("most_sink", 1.0)
        or rollout["null_divergence"] < rule.get("least_divergence", 0.0)
    )


@dataclass(frozen=True)
class Contrast:
    """A token and its foil."""

    SENTENCE: ClassVar = (
        "The token ",
        " is explained as a contrast with ",
        ", its foil: positive values favour the token, negative ones the foil, in nats of the token’s "
        "log-probability minus the foil’s.",
    )
    """The sentence on the page; the token follows the first part, the foil the second."""

    token: Text
    foil: Text


def build_contrast(targets: Sequence[Mapping[str, Any]]) -> Contrast | None:
    """The contrast of the token that has a foil; None if none of them has."""
    for target in targets:
        if target["foil"] is not None:
            return Contrast(label(target["text"]), label(target["foil"]["text"]))
    return None


MAIN_SOURCES = 5
LONGEST_QUOTE = 600
"""Characters of a turn or of the answer in the verdict; the whole text follows on the page."""
STATUS_TEXT = {
    Status.CONFIRMED: ("✓", "computed accurately, and what the contributions put first matters when it is taken away"),
    Status.CONTRADICTED: (
        "×",
        "taking words away shows other sources than the contributions: read the measured effects",
    ),
    Status.UNDECIDED: ("?", "computed accurately, but taking words away neither confirms nor contradicts it"),
    Status.AGREE: ("✓", "both methods could be read, and both put the same sources first"),
    Status.DILUTED: ("~", "attention says no more here than it would for any text: do not read its bars"),
    Status.DISAGREE: (
        "×",
        "both methods could be read, and they contradict each other or the effects of removal: trust neither alone",
    ),
    Status.UNCONVERGED: ("!", "the values could not be computed accurately enough: do not read them"),
    Status.UNCHECKED: ("?", "the gradient values can be read, but attention rollout is refused for this model"),
}
"""Sign and plain meaning; those of rules up to 3 only for old records."""
WORST_FIRST = (
    *(Status.UNCONVERGED, Status.CONTRADICTED, Status.DISAGREE, Status.UNDECIDED, Status.DILUTED, Status.UNCHECKED),
    *(Status.CONFIRMED, Status.AGREE),
)
FINE = (Status.CONFIRMED, Status.AGREE)
"""Statuses that flag nothing."""
NOT_PROOF = (
    "The agreement of two methods is not proof of faithfulness, nor is a confirmation by removal: both can miss what "
    "the model really used."
)
LIMITS = (
    NOT_PROOF,
    "An attribution says what the answer is sensitive to. It does not say that the answer is true or fair, or why "
    "the model learned to give it.",
    "A measured effect is of a text with a gap: the model may read a gap in another way than the word. Effects "
    "of several words do not add up; a word can also matter only together with another one.",
    "Where the contributions and the measured effects differ, trust the measured effects.",
    "Held tokens (the chat template, for example) get no value, although the model uses them.",
    "The thresholds behind the statuses were set on questions with known sources, for one small model and a few models "
    "trained for the purpose. For another model they are a starting point.",
    "Small values have little to do with what happens when the word is removed. Read the first few bars, not the tail.",
)
EARLIER_LIMITS = (
    NOT_PROOF,
    "An attribution says what the answer is sensitive to. It does not say that the answer is true or fair, or why "
    "the model learned to give it.",
    "Where the two methods disagree, at least one cannot be trusted for that word. Remove the words in question "
    "from the input and see how the model’s answer changes.",
    "Signed values depend on the baseline: they compare the real words with the neutral token named in the settings. "
    "Another baseline gives other values.",
    "Held tokens (the chat template, for example) get no gradient value, although the model uses them.",
    "The thresholds behind the statuses were set on questions with known sources, for one small model and a few models "
    "trained for the purpose. For another model they are a starting point.",
    "Small values have little to do with what happens when the word is removed. Read the first few bars, not the tail.",
)


@dataclass(frozen=True)
class Asked:
    """One turn of the model's input, shortened."""

    role: str
    text: Text


@dataclass(frozen=True)
class StatusCount:
    status: str
    sign: str
    count: int
    meaning: str


@dataclass(frozen=True)
class MainSource:
    """A word or part of the prompt and its share of all absolute values on the prompt."""

    text: Text
    share: str


@dataclass(frozen=True)
class MainEffect:
    """A part of the prompt and its largest effect on a word of the answer."""

    text: Text
    note: str
    nats: str
    on: Text
    """The word that it has this effect on."""
    change: str
    """Probability of that word with and without the part; empty with a foil."""


@dataclass(frozen=True)
class VerdictView:
    asked: tuple[Asked, ...]
    answer: Text
    given: bool
    """Whether the answer was supplied, not generated by the model."""
    main_effects: tuple[MainEffect, ...]
    """Measured; empty if nothing was removed, and before rule 4."""
    main_sources: tuple[MainSource, ...]
    by: str
    """The method of `main_sources`."""
    removed_sources: tuple[MainSource, ...]
    """The same by removal of one part at a time; empty if nothing was removed."""
    measured: bool
    """Whether the statuses are a verdict of rule 4 or later."""
    counts: tuple[StatusCount, ...]
    """Of words since rule 4, of tokens before; without those that are zero."""
    counted: str
    """What is counted."""
    contrast: Contrast | None
    """The token that has a foil, and the foil."""
    sentences: tuple[str, ...]
    """On trust, before rule 4; since then see `llmxai.report.summary`."""
    not_proof: str


def build_verdict(explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> VerdictView:
    """From a parsed explanation.json and its maps to the first part of the page."""
    measured = is_measured(explanation)
    words = answer_words(explanation)
    return VerdictView(
        measured=measured,
        asked=_asked(explanation),
        answer=visible(shorten(answer_text(explanation), limit=LONGEST_QUOTE)),
        given=explanation["generation"]["stop"] == "given",
        main_effects=_main_effects(explanation, words),
        main_sources=_main_sources(explanation, maps),
        by="contributions (deletion path)" if "deletion_path" in maps else "integrated gradients",
        removed_sources=_removed_sources(explanation, maps),
        counts=_counts(word_status(own) for own in words) if measured else _counts(_statuses(explanation["targets"])),
        counted=_counted(explanation, len(words)),
        contrast=build_contrast(explanation["targets"]),
        sentences=() if measured else _sentences(explanation["targets"], explanation["computed"]),
        not_proof=NOT_PROOF,
    )


def _counted(explanation: Mapping[str, Any], n: int) -> str:
    targets = explanation["targets"]
    if not is_measured(explanation):
        return f"Of the {len(targets)} tokens (pieces of words) in the answer"
    if in_passages(explanation):
        return "Of the only passage explained" if n == 1 else f"Of the {n} passages explained"
    return f"Of {'the only word' if n == 1 else f'the {n} words'} in the answer"


def in_passages(explanation: Mapping[str, Any]) -> bool:
    """Whether the targets are passages, or only some of the tokens, instead of every token of the answer."""
    targets = explanation["targets"]
    first, end = explanation["generation"]["prompt_len"], len(explanation["tokens"])
    length = sum(stop - start for start, stop in {tuple(one["tokens"]) for one in targets})
    return bool(length != len(targets)) or len(targets) < end - first - (explanation["generation"]["stop"] == "eos")


def answer_text(explanation: Mapping[str, Any]) -> str:
    """The answer without the mark that ends it."""
    tokens, generation = explanation["tokens"], explanation["generation"]
    end = len(tokens) - (generation["stop"] == "eos")  # the end mark is a token but not text
    return "".join(token["text"] for token in tokens[generation["prompt_len"] : end]).strip() or "(nothing)"


def _asked(explanation: Mapping[str, Any]) -> tuple[Asked, ...]:
    """The content of the input, without the template."""
    runs: list[tuple[str, str]] = []
    before = None
    for token in explanation["tokens"][: explanation["generation"]["prompt_len"]]:
        role = token["role"]
        if role == before:
            runs[-1] = (role, runs[-1][1] + token["text"])
        else:
            runs.append((role, token["text"]))
        before = role
    return tuple(
        Asked(role, visible(shorten(text.strip(), limit=LONGEST_QUOTE)))
        for role, text in runs
        if role not in (Role.TEMPLATE, Role.BOS)
    )


def _main_sources(explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> tuple[MainSource, ...]:
    """Prompt words by the sum of |contribution| over the targets that are accurate enough."""
    first = explanation["generation"]["prompt_len"]
    converged = np.array([target["converged"] for target in explanation["targets"]])
    if "deletion_path" in maps:
        converged = np.array([target["status"] != Status.UNCONVERGED for target in explanation["targets"]])
    weight = np.abs(maps.get("deletion_path", maps["integrated_gradients"])[converged]).sum(axis=0)
    total = float(weight[:first].sum())
    if not total:
        return ()
    sums = [
        (float(weight[a:b].sum()), "".join(token["text"] for token in explanation["tokens"][a:b]))
        for a, b in explanation["words"]
        if b <= first
    ]
    return _best(sums, total)


def _removed_sources(explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> tuple[MainSource, ...]:
    """Parts of the prompt by the sum of |drop of the log-prob| over all targets; before effects were estimated."""
    if explanation["ablations"] is None or explanation["effects"] is not None:
        return ()
    weight = np.abs(maps["leave_one_out"]).sum(axis=0)
    texts = [
        "".join(token["text"] for token in explanation["tokens"][a:b]) for a, b in explanation["ablations"]["units"]
    ]
    return _best([(float(value), text) for value, text in zip(weight, texts, strict=True)], float(weight.sum()))


def _best(sums: Sequence[tuple[float, str]], total: float) -> tuple[MainSource, ...]:
    worded = [(value, text) for value, text in sums if any(c.isalnum() for c in text)] or sums
    best = sorted(worded, key=lambda pair: -pair[0])[:MAIN_SOURCES]
    return tuple(MainSource(label(text), f"{value / total:.0%}") for value, text in best if value > 0)


def is_measured(explanation: Mapping[str, Any]) -> bool:
    """Whether the statuses are a verdict of rule 4 or later."""
    return explanation["verdict"] is not None


def answer_rows(explanation: Mapping[str, Any]) -> list[list[int]]:
    """The targets of each word of the answer that says something: not its end mark, nor punctuation alone.

    Where there is none, of every word; where words were no targets, each target by itself.
    """
    first, targets = explanation["generation"]["prompt_len"], explanation["targets"]
    words = [(max(start, first), end) for start, end in explanation["words"] if end > first]
    placed = by_place(target["tokens"] for target in targets)
    made = [(word, rows) for word in words if (rows := inside(placed, *word))]
    mark = words[-1] if explanation["generation"]["stop"] == "eos" else None
    alone = inside(placed, first, words[-1][0] if mark and len(words) > 1 else len(explanation["tokens"]))
    if not {*alone} <= {row for _, rows in made for row in rows}:  # passages of several words
        return [[row] for row in alone]
    worded = [
        rows for word, rows in made if word != mark and any(c.isalnum() for row in rows for c in targets[row]["text"])
    ]
    return worded or [rows for _, rows in made] or [[row] for row in range(len(targets))]


def answer_words(explanation: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """The targets of `answer_rows`."""
    return [[explanation["targets"][row] for row in rows] for rows in answer_rows(explanation)]


def word_status(own: Sequence[Mapping[str, Any]]) -> Status:
    """The status of most of its decided tokens; in records of rules up to 3, of the token that needs the most care."""
    statuses = _statuses(own)
    if all(status in CURRENT for status in statuses):
        return joint_status(statuses)
    return next(status for status in WORST_FIRST if status in statuses)


def _statuses(targets: Sequence[Mapping[str, Any]]) -> list[Status]:
    return [Status(target["status"]) for target in targets]


def _counts(statuses: Iterable[Status]) -> tuple[StatusCount, ...]:
    found = list(statuses)
    return tuple(
        StatusCount(str(status), sign, found.count(status), meaning)
        for status, (sign, meaning) in STATUS_TEXT.items()
        if status in found
    )


def _main_effects(
    explanation: Mapping[str, Any], words: Sequence[Sequence[Mapping[str, Any]]]
) -> tuple[MainEffect, ...]:
    """Parts of the prompt by their largest effect on a word of the answer; a part with its mentions counts once."""
    effects, first = build_effects(explanation), explanation["generation"]["prompt_len"]
    if effects is None:
        return ()
    best: dict[int, tuple[Effect, Sequence[Mapping[str, Any]]]] = {}
    for own, rows in zip(words, answer_rows(explanation), strict=True):
        for effect in effects.on(rows):
            known = best.get(effect.part)
            if effect.low > 0 and (known is None or effect.value > known[0].value):
                best[effect.part] = effect, own
    found: list[MainEffect] = []
    taken: set[tuple[int, int]] = set()
    for effect, own in sorted(best.values(), key=lambda pair: -pair[0].value):
        part = effects.parts[effect.part]
        if part.ranges[0][0] >= first or taken & set(part.ranges) or len(found) == MAIN_SOURCES:
            continue
        taken |= set(part.ranges)
        found.append(
            MainEffect(
                text=part.text,
                note=part.note,
                nats=f"{effect.value:.2f} nats",
                on=label("".join(target["text"] for target in own)),
                change=effect.becomes(sum(target["replayed_logprob"] for target in own)),
            )
        )
    return tuple(found)


def _sentences(targets: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> tuple[str, ...]:
    n = len(targets)
    converged = sum(target["converged"] for target in targets)
    count = {status: sum(target["status"] == status for target in targets) for status in Status}
    said = []
    if converged == n:
        said.append(
            f"The gradient values can be read for {_all(n)}: each set adds up, within its tolerance, to the change "
            f"that it explains."
        )
    else:
        said.append(
            f"The gradient values cannot be read for {_some(n - converged, n)}: they could not be computed accurately "
            f"enough. They are marked “!” and left out of the main sources."
        )
    if diluted := [target for target in targets if is_diluted(target, settings)]:
        sink = float(np.median([target["rollout"]["sink_mass"] for target in diluted]))
        said.append(
            f"Attention says nothing useful about {_some(len(diluted), n)}: typically {_most(sink)} of it ends on the "
            f"very first token, or it spreads as it would for any text. Do not read the bars of attention rollout "
            f"there."
        )
    if contradicted := count[Status.DISAGREE]:
        said.append(f"For {_some(contradicted, n)} the two methods contradict each other: trust neither alone.")
    if agreed := count[Status.AGREE]:
        said.append(f"For {_some(agreed, n)} both methods put the same sources first.")
    if unchecked := count[Status.UNCHECKED]:
        said.append(
            f"Attention rollout is refused for this model, so for {_some(unchecked, n)} no second method checks the "
            f"gradients. The note below says why."
        )
    if asked := sum(count_referee(targets).values()):
        said.append(_refereed(targets, settings, asked))
    if any(target["referee"] is None for target in targets):
        said.append("No referee was asked: nothing was removed from the input to see which method is right.")
    return tuple(said)


def _refereed(targets: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], asked: int) -> str:
    """What removal supports; attention only where it can be read, since the page says not to read it elsewhere."""
    readable = [target for target in targets if not is_diluted(target, settings)]
    gradients, attention = count_referee(targets)["gradients"], count_referee(readable)["attention"]
    counts = [("the gradients", gradients), ("attention", attention), ("neither", asked - gradients - attention)]
    told = [f"{name} for {count}" for name, count in counts if count]
    listed = told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
    return f"The referee removed parts of the input and measured the effect. Of {_of(asked)}, this supports {listed}."


def _most(share: float) -> str:
    return "more than 99%" if share > 0.99 else f"{share:.0%}"


def _all(n: int) -> str:
    return "the only token" if n == 1 else f"all {n} tokens"


def _of(n: int) -> str:
    return "1 token" if n == 1 else f"{n} tokens"


def _some(count: int, n: int) -> str:
    return _all(n) if count == n else f"{count} of the {n} tokens"
