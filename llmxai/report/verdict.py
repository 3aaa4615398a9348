"""Whether plain rollout may be read: a status names only the worst that is wrong with a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from llmxai.names import Role, Status
from llmxai.report.removal import count_referee
from llmxai.report.visible import Text, label, shorten, visible


def is_diluted(target: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """By the thresholds that the settings name, also where the gradients did not converge and the status says that."""
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
    """Why this token and not the foil."""

    SENTENCE: ClassVar = (
        "The token ",
        " is explained as a contrast with ",
        ", its foil: positive values speak for the token, negative ones for the foil, in nats of the token’s "
        "log-probability minus the foil’s.",
    )
    """What the page says of it; the token stands after the first part, the foil after the second."""

    token: Text
    foil: Text


def build_contrast(targets: Sequence[Mapping[str, Any]]) -> Contrast | None:
    """Of the one of these tokens that has a foil; None where none has."""
    for target in targets:
        if target["foil"] is not None:
            return Contrast(label(target["text"]), label(target["foil"]["text"]))
    return None


MAIN_SOURCES = 5
LONGEST_QUOTE = 600
"""Characters of a turn or of the answer in the verdict; the whole text follows on the page."""
STATUS_TEXT = {
    Status.AGREE: ("✓", "both methods could be read, and both put the same sources first"),
    Status.DILUTED: ("~", "attention says no more here than it would for any text: do not read its bars"),
    Status.DISAGREE: (
        "×",
        "both methods could be read, and they contradict each other or the removals: trust neither alone",
    ),
    Status.UNCONVERGED: ("!", "the gradient values could not be computed accurately enough: do not read them"),
    Status.UNCHECKED: ("?", "the gradient values can be read, but attention rollout is refused for this model"),
}
NOT_PROOF = (
    "The agreement of two methods is not proof of faithfulness: both can be wrong about what the model really used, "
    "in the same way."
)
LIMITS = (
    NOT_PROOF,
    "An attribution says what the answer is sensitive to. It does not say that the answer is true or fair, nor why the "
    "model was trained to give it.",
    "Where the two methods disagree, at least one is not to be trusted for that word. Remove the words in question "
    "from the input and see what the model then says.",
    "Signed values depend on the baseline: they compare the real words with a neutral one, as named in the settings. "
    "Another baseline gives other values.",
    "Tokens that are held real (the chat template, for example) get no gradient value, though the model does use them.",
    "The thresholds behind the statuses were set on questions whose sources are known, for one small model and a few "
    "that were trained for it. For another model they are a starting point.",
    "Small values have little to do with what happens when the word is removed. Read the first few bars, not the tail.",
)


@dataclass(frozen=True)
class Asked:
    """One stretch of what the model was given, shortened."""

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
class VerdictView:
    asked: tuple[Asked, ...]
    answer: Text
    given: bool
    """Whether the answer was given to the model, not written by it."""
    main_sources: tuple[MainSource, ...]
    removed_sources: tuple[MainSource, ...]
    """The same by removal of one part at a time; empty where the referee was not asked."""
    counts: tuple[StatusCount, ...]
    n_tokens: int
    contrast: Contrast | None
    """The token that has a foil, with it."""
    sentences: tuple[str, ...]
    not_proof: str


def build_verdict(explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> VerdictView:
    """From a parsed explanation.json and its maps to the first part of the page."""
    return VerdictView(
        asked=_asked(explanation),
        answer=visible(shorten(answer_text(explanation), limit=LONGEST_QUOTE)),
        given=explanation["generation"]["stop"] == "given",
        main_sources=_main_sources(explanation, maps),
        removed_sources=_removed_sources(explanation, maps),
        counts=_counts(explanation["targets"]),
        n_tokens=len(explanation["targets"]),
        contrast=build_contrast(explanation["targets"]),
        sentences=(*_chosen(explanation), *_sentences(explanation["targets"], explanation["computed"])),
        not_proof=NOT_PROOF,
    )


def answer_text(explanation: Mapping[str, Any]) -> str:
    """The answer without the mark that ends it."""
    tokens, generation = explanation["tokens"], explanation["generation"]
    end = len(tokens) - (generation["stop"] == "eos")  # the end mark is a token, but no text
    return "".join(token["text"] for token in tokens[generation["prompt_len"] : end]).strip() or "(nothing)"


def _asked(explanation: Mapping[str, Any]) -> tuple[Asked, ...]:
    """What people wrote, without the template around it."""
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
    """Prompt words by the sum of |gradient value| over the converged targets."""
    first = explanation["generation"]["prompt_len"]
    converged = np.array([target["converged"] for target in explanation["targets"]])
    weight = np.abs(maps["integrated_gradients"][converged]).sum(axis=0)
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
    """Parts of the prompt by the sum of |fall of the log-prob| over all targets."""
    if explanation["ablations"] is None:
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


def _counts(targets: Sequence[Mapping[str, Any]]) -> tuple[StatusCount, ...]:
    counts = tuple(
        StatusCount(str(status), sign, sum(target["status"] == status for target in targets), meaning)
        for status, (sign, meaning) in STATUS_TEXT.items()
        if status != Status.UNCHECKED or any(target["status"] == status for target in targets)
    )
    return tuple(each for each in counts if each.count or each.status != Status.UNCHECKED)


def _chosen(explanation: Mapping[str, Any]) -> tuple[str, ...]:
    """How far the answer is what the model would say by itself; nothing where it is in every token."""
    generation, ranks = explanation["generation"], [target["rank"] for target in explanation["targets"]]
    first = sum(rank == 1 for rank in ranks)
    if generation["stop"] == "given":
        return (
            f"The model did not write this answer: it was given, and the page explains the probability that the model "
            f"gives to it. {first} of its {len(ranks)} tokens would have been the model’s own first choice.",
        )
    if not generation["decoding"].get("do_sample"):
        return ()
    return (f"The answer was drawn at random: {first} of its {len(ranks)} tokens were the model’s first choice.",)


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
            f"Attention says nothing of use for {_some(len(diluted), n)}: typically {_most(sink)} of it ends on the "
            f"very first token, or it spreads as it would for any text. For these do not read the bars of attention "
            f"rollout."
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
    referee = count_referee(targets)
    if asked := sum(referee.values()):
        said.append(
            f"The referee removed parts of the input and measured the effect. This supports the gradients for "
            f"{referee['gradients']} of {_of(asked)}, attention for {referee['attention']}, and neither for "
            f"{referee['neither']}."
        )
    if any(target["referee"] is None for target in targets):
        said.append("No referee was asked: nothing was removed from the input to see which method is right.")
    return tuple(said)


def _most(share: float) -> str:
    return "more than 99%" if share > 0.99 else f"{share:.0%}"


def _all(n: int) -> str:
    return "the only token" if n == 1 else f"all {n} tokens"


def _of(n: int) -> str:
    return "1 token" if n == 1 else f"{n} tokens"


def _some(count: int, n: int) -> str:
    return _all(n) if count == n else f"{count} of the {n} tokens"
