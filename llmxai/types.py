"""The data that flows through llmxai: frozen, with named axes.

Axes: batch, node, target, seq, query, key, head, layer, hidden, vocab.
Units: log-probs and attributions are in nats, rollout rows are shares of 1, LDS and correlations have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from llmxai.names import AttentionStatus as AttentionStatus
from llmxai.names import Role as Role
from llmxai.names import Status as Status
from llmxai.names import Unit
from llmxai.pieces import ContextEffects as ContextEffects
from llmxai.pieces import Effects as Effects
from llmxai.pieces import Piece as Piece
from llmxai.target import Target as Target
from llmxai.target import TargetKind as TargetKind
from llmxai.target import predicted_token as predicted_token
from llmxai.target import predicting_position as predicting_position
from llmxai.target import rows_in as rows_in
from llmxai.text import quoted


@dataclass(frozen=True)
class Agreement:
    """One rollout row against |integrated gradients| over the target's features.

    Every figure is None with fewer than three features or if one side is constant.
    """

    spearman: float | None
    spearman_p: float | None
    """One-sided p-value of the Spearman correlation against permutations of the features."""
    recency_p: float | None
    """The same against permutations that preserve recency: both methods favour nearby tokens, which is not evidence."""
    adjusted_p: float | None
    """The larger of the two p-values, corrected over the targets (Benjamini-Hochberg)."""
    kendall: float | None
    """Tau-b."""
    top_k: int
    top_k_overlap: float | None
    """Share of the top-k features that the two methods have in common; None without features."""
    rank_biased_overlap: float | None
    """Extrapolated RBO, p = 0.9 (Webber, Moffat & Zobel 2010)."""
    jensen_shannon: float | None
    """Divergence (bits) of the two, each scaled to sum 1."""


@dataclass(frozen=True)
class Dilution:
    """How much one rollout row says, compared with the null of the same depth, length and mask."""

    sink_mass: float
    """Share of the row on position 0."""
    feature_mass: float
    """Share of the row on the target's features."""
    entropy: float | None
    """Entropy of the row over the features, 0 (one feature) to 1 (uniform); None with fewer than two."""
    null_divergence: float
    """Jensen-Shannon divergence (bits, 0 to 1) of the row from the uniform-causal null, over all positions."""
    similarity: float
    """Mean cosine with the other targets' rows over the positions both see; 1 for a single target."""


@dataclass(frozen=True)
class Score:
    """How well one method predicts the effects of removal on one target."""

    lds: float | None
    """Linear datamodelling score: Spearman of the summed scores of the kept units with F (Cohen-Wang et al. 2024,
    ContextCite); None if either is constant."""
    leave_one_out: float | None
    """Spearman of the method's unit scores with the leave-one-out drops."""


@dataclass(frozen=True)
class RefereeVerdict:
    """The referee's verdict on one target: which method better predicts the effects of removal."""

    scores: Mapping[str, Score]
    """By method name: `layer_integrated_gradients`, `attention_rollout`, the variant, and `leave_one_out` itself as a
    ceiling (its `leave_one_out` is None)."""
    better: str | None
    """The name of the better of gradients and plain rollout; None if the interval of the difference contains 0."""
    difference: float | None
    """LDS of integrated gradients minus LDS of plain rollout."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the difference, over the random subsets."""
    sources: tuple[int, ...]
    """The units whose removal lowers F much: by a nat, and by a share of the largest drop (`Rule`)."""
    missed: Mapping[str, tuple[int, ...]]
    """By method name, the `sources` that are not among the method's own first units."""
    read: tuple[str, ...] | None = None
    """The methods to read for this target, best first: the one that predicts removals best, and those that are not
    certainly worse. Empty if none predicts them: then only the measured effects can be read. None in explanations of
    earlier versions."""


@dataclass(frozen=True)
class CrossCheck:
    """The verdict of one target, and the figures of both families behind it."""

    status: Status
    """Whether the sources can be trusted."""
    reason: str
    """One plain sentence with the figures behind it."""
    attention: AttentionStatus
    """Whether attention rollout can be read."""
    attention_reason: str
    agreement: Agreement
    """Of integrated gradients and plain rollout."""
    dilution: Dilution | None
    """Of plain rollout; None if it is refused."""
    variant_agreement: Agreement
    variant_dilution: Dilution | None
    verdict: RefereeVerdict | None
    """None if nothing was removed."""


@dataclass(frozen=True)
class Part:
    """Something that the user gave as one piece, and the tokens of the prompt that carry its text.

    >>> first, last = 12, 15  # tokens
    >>> start, end = part.characters(first, last); part.text[start:end]
    """

    kind: str
    """`prompt` (a raw one), `turn`, `thinking` (the reasoning field of an assistant's turn), `call` (of a tool, by the
    assistant), `document` or `tool` (what the model may call)."""
    source: int
    """Which of the messages (of a turn, thinking, call), documents or tools of the request it is."""
    title: str
    """The turn's role, the document's title (with a number, if an earlier one has the same), or the tool's name."""
    text: str
    """The original text, unchanged; of a call's arguments and of a tool, the JSON."""
    first: int
    """The tokens of the part lie in [first, last); others may lie between them. Both 0 if the template leaves the part
    out."""
    last: int
    spans: tuple[tuple[int, int, int], ...]
    """(token, start, end), in the order of tokens: the token carries the characters [start, end) of `text`. A token may
    also carry characters of the template or of a neighbour; several tokens may carry one character."""

    def characters(self, first: int, last: int) -> tuple[int, int] | None:
        """The smallest range of characters of `text` with all that the tokens [first, last) carry; None if nothing."""
        carried = [(start, end) for token, start, end in self.spans if first <= token < last]
        return (min(start for start, _ in carried), max(end for _, end in carried)) if carried else None

    def tokens(self, start: int, end: int) -> tuple[int, ...]:
        """The tokens that carry any of the characters [start, end) of `text`."""
        return tuple(dict.fromkeys(token for token, a, b in self.spans if a < end and start < b))


@dataclass(frozen=True)
class PromptTokens:
    """The model's input: ids, the role of each, and the request they came from."""

    ids: tuple[int, ...]
    roles: tuple[Role, ...]
    request: Mapping[str, Any]
    source_len: int = 0
    """For an encoder-decoder: how many of them the encoder reads."""
    parts: tuple[Part, ...] = ()
    """What the user gave: documents, then turns with their reasoning and calls, then tools; empty for token ids."""
    thinks: str = ""
    """The mark that ends the reasoning which the prompt has begun (`</think>`); empty if it has begun none."""
    notes: tuple[str, ...] = ()
    """Sentences for the reader on how the prompt was made."""


@dataclass(frozen=True)
class Answer:
    """A model's answer as its adapter returns it: only ids, no text yet."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    """Log-prob (nats) of each id when it was chosen; None if the answer was supplied."""
    stop: str
    """`eos`, `string` (one of the model's stop strings), `length`, `given`, or `class`."""
    classes: tuple[str, ...] = ()
    read_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Foil:
    """A token that the model might have generated instead; the generated token is explained as a contrast with it."""

    t: int
    """The generated token (0-based)."""
    id: int
    text: str
    """The text that the foil's token would have added."""


@dataclass(frozen=True)
class Generation:
    """A prompt and its answer, as the exact ids that the model read and chose."""

    ids: tuple[int, ...]
    """Prompt ids, then generated ids."""
    prompt_len: int
    roles: tuple[Role, ...]
    texts: tuple[str, ...]
    """The text that each token adds; `""` if a later token completes the character."""
    words: tuple[tuple[int, int], ...]
    """Half-open token ranges that cover the sequence, one per word."""
    logprobs: tuple[float, ...] | None
    """Log-prob (nats) of each generated id, recorded while generating; None if the response was supplied."""
    stop: str
    """Why the text ends: `eos`, `string` (a stop string), `length`, `given`, or `class` for a classifier."""
    request: Mapping[str, Any]
    """The request, unchanged: `prompt`, `messages` or `input_ids`; and what was supplied of `response`, `foil`,
    `documents`, `documents_in`, `tools`, `chat_template_kwargs` and `continue_final_message`."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Decoding settings and seed; empty if the response was supplied."""
    source_len: int = 0
    """For an encoder-decoder, the number of tokens that the encoder reads; the decoder's follow."""
    classes: tuple[str, ...] = ()
    """Names of a classifier's classes. Its answer is one token: the id is the class's number, the text its name."""
    read_at: tuple[int, ...] = ()
    """The positions that a classifier's head reads (BERT: `[CLS]`); empty if unknown."""
    foil: Foil | None = None
    """The foil of one generated token; the other tokens are explained by their own log-prob."""
    parts: tuple[Part, ...] = ()
    """The turns, documents and tools of the prompt, with their tokens; empty for token ids and in older folders."""
    notes: tuple[str, ...] = ()
    """Sentences for the reader on how prompt and answer were put together; they are among the warnings."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        if not (len(self.roles) == len(self.texts) == n):
            raise ValueError(f"{n} ids, {len(self.roles)} roles and {len(self.texts)} texts: one of each a token")
        if not 0 < self.prompt_len < n:
            raise ValueError(f"prompt_len {self.prompt_len} must lie inside the {n} tokens")
        if self.foil is not None and not 0 <= self.foil.t < self.n_targets:
            raise ValueError(f"the foil is for generated token {self.foil.t} of {self.n_targets}")

    def __repr__(self) -> str:
        prompt, answer = ("".join(part) for part in (self.texts[: self.prompt_len], self.texts[self.prompt_len :]))
        tokens = f"{self.prompt_len} + {self.n_targets} tokens"
        return f"Generation({quoted(prompt, 60)} -> {quoted(answer, 60)}, {tokens}, {self.stop})"

    @property
    def n_targets(self) -> int:
        return len(self.ids) - self.prompt_len

    def part(self, kind: str, source: int) -> Part:
        """The part of this kind and number, such as `("document", 0)`. Raises LookupError if there is none."""
        found = next((part for part in self.parts if (part.kind, part.source) == (kind, source)), None)
        if found is None:
            known = ", ".join(f"{part.kind} {part.source}" for part in self.parts) or "none"
            raise LookupError(f"There is no {kind} {source}. There are: {known}.")
        return found

    def foil_of(self, t: int) -> Foil | None:
        """The foil of generated token `t`, or None."""
        return self.foil if self.foil is not None and self.foil.t == t else None

    @property
    def generated_ids(self) -> tuple[int, ...]:
        return self.ids[self.prompt_len :]

    @property
    def answer_tokens(self) -> tuple[int, ...]:
        """The generated tokens (0-based) that a reader sees as the answer: without the end mark and, if the answer is
        given after a thought, without the thought. All of them if nothing would be left."""
        end = self.n_targets - (self.stop == "eos")
        chosen = tuple(t for t in range(end) if self.roles[self.prompt_len + t] is Role.GENERATED)
        return chosen or tuple(range(self.n_targets))


@dataclass(frozen=True, eq=False)
class DilutionCurve:
    """How a rollout dilutes: figures of the partial products, entry k after the top k + 1 layers.

    The last entry is the whole product, so it equals the row's own figures.
    """

    sink_mass: Float[Tensor, "target layer"]
    """Share of the row on position 0."""
    entropy: Float[Tensor, "target layer"]
    """Entropy over the positions that the target sees, 0 (one position) to 1 (uniform)."""
    null_divergence: Float[Tensor, "target layer"]
    """Jensen-Shannon divergence (bits) from the null after the same layers."""
    similarity: Float[Tensor, "target layer"]
    """Mean cosine with the other targets' rows (rank collapse: 1); 1 for a single target."""

    def __repr__(self) -> str:
        return "DilutionCurve({} targets x {} layers)".format(*self.sink_mass.shape)


@dataclass(frozen=True, eq=False)
class Certificate:
    """How far each target of a path method is from completeness (nats).

    Identity, with the values of the `Scores` that carry it: `values[t].sum() == f_input[t] - f_baseline[t] + gap[t]`.
    """

    f_input: Float[Tensor, " target"]
    """F of the real input; with a `floor`, its mean over neighbouring points of the path."""
    f_baseline: Float[Tensor, " target"]
    gap: Float[Tensor, " target"]
    """Convergence (completeness) gap: sum of the values minus (f_input - f_baseline)."""
    local_error: Float[Tensor, " target"]
    """Sum over the panels of the path of |panel error|; at least |gap|, since errors cannot cancel in it."""
    tolerance: Float[Tensor, " target"]
    """The largest `local_error` with which the target counts as converged."""
    nodes: tuple[int, ...]
    """Gradient nodes spent on each target."""
    converged: tuple[bool, ...]
    floor: Float[Tensor, " target"] | None = None
    """By how much F jumps between neighbouring points of the path (standard deviation), since the model rounds its
    activations (LLM.int8, or computing in 16 bits); None if it computes in float32 or wider. `local_error` says how
    well the contributions are known nevertheless."""

    def __repr__(self) -> str:
        largest = float(self.gap.abs().max()) if self.gap.numel() else 0.0
        return f"Certificate({sum(self.converged)} of {len(self.converged)} converged, largest gap {largest:.2g} nats)"


@dataclass(frozen=True, eq=False)
class Scores:
    """The result of any method: one score per target and token.

    Gradients and removals: signed contributions, in nats if the method says so. Attention: shares of 1; each row sums
    to 1 minus `lost_mass` (attention sinks that are not tokens).
    """

    method: str
    """Its name in the table of methods."""
    values: Float[Tensor, "target seq"]
    """float64; 0 for every position that is not a feature of the target."""
    features: Bool[Tensor, "target seq"]
    """The tokens that can get a score; for attention, all that the target sees."""
    signed: bool
    """Whether a negative score means that the token speaks against the target."""
    settings: Mapping[str, Any]
    certificate: Certificate | None = None
    """For path methods."""
    null: Float[Tensor, "target seq"] | None = None
    """For attention: the same with uniform attention, which depends on masks and depth but not on content."""
    lost_mass: Float[Tensor, " target"] | None = None
    curve: DilutionCurve | None = None
    """For attention that is a product over layers."""
    refused: str | None = None
    """Why the method is not defined for the model; the values are then 0."""

    def __repr__(self) -> str:
        if self.refused is not None:
            return f"Scores({self.method}, refused: {quoted(self.refused, 80)})"
        shape = "{} targets x {} tokens".format(*self.values.shape)
        first = self.values[0] if len(self.values) else self.values.new_zeros(0)
        largest = first.abs().argsort(descending=True, stable=True)[:3].tolist()
        told = ", ".join(f"token {i} {float(first[i]):+.3g}" for i in largest)
        return f"Scores({self.method}, {shape}, {'signed' if self.signed else 'unsigned'}; target 0: {told})"


@dataclass(frozen=True)
class Replay:
    """The teacher-forced log-prob (nats) and rank (1 = arg-max) of each generated id."""

    logprobs: tuple[float, ...]
    f: tuple[float, ...]
    """F of every generated token with the real input, which all methods compare against: the log-prob, or the lead
    over the foil."""
    ranks: tuple[int, ...]
    tolerance: float | None
    """The allowed difference from the recorded log-probs; None if none were recorded."""

    def f_of(self, target: Target, prompt_len: int) -> float:
        """F of a target of log-probs, or of the contrast with the answer's foil."""
        if target.kind == "contrast":
            return sum(self.f[predicted_token(position) - prompt_len] for position in target.positions)
        return self.logprob_of(target, prompt_len)

    def logprob_of(self, target: Target, prompt_len: int) -> float:
        """The joint log-prob of a target's tokens."""
        return sum(self.logprobs[predicted_token(position) - prompt_len] for position in target.positions)


@dataclass(frozen=True)
class FullPrecision:
    """The same answer, teacher-forced, with the weights before quantisation, target by target."""

    model: str
    dtype: str
    digest: str | None
    replay: Replay
    """Rank 1: the full-precision model would have chosen the same token."""
    cosines: tuple[float | None, ...]
    """Of the gradient attributions with both weights, over the target's features; None if one of them is 0."""
    same_source: tuple[bool, ...]
    """Whether both have the same token as their first source, by |value|."""
    statuses: tuple[Status, ...]


def covers(generation: Generation, targets: Sequence[Target], tokens: Unit) -> bool:
    """Whether targets make up a range of generated tokens, but for those that are none of the answer."""
    rows, first = rows_in(targets, generation.prompt_len, tokens), generation.prompt_len
    said = {token - first for row in rows for token in range(*targets[row].tokens)}
    return bool(rows) and said.issuperset(set(range(*tokens)) & set(generation.answer_tokens))


def said_words(generation: Generation, targets: Sequence[Target]) -> list[Unit]:
    """The words of the answer that say something and that targets make up, as ranges of generated tokens.

    Neither its end mark nor punctuation alone.
    """
    first = generation.prompt_len
    words = [
        (start - first, end - first)
        for start, end in generation.words
        if start >= first and any(c.isalnum() for c in "".join(generation.texts[start:end]))
        if not (generation.stop == "eos" and end == len(generation.ids))
    ]
    return [word for word in words if covers(generation, targets, word)]
