"""What a stored explanation.json must be: the types of its values, and how they fit together.

Earlier schemas are upgraded first (llmxai/store/reading.py), so one schema serves them all. Unknown keys are allowed:
a later version may add some.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from llmxai.names import AttentionStatus, Role, Status
from llmxai.store.reading import beyond, faults_of_trace, others_of, stored_name
from llmxai.store.schema_parts import (
    Ablations,
    Cells,
    Checked,
    Context,
    DocumentRow,
    EffectCells,
    Error,
    Figure,
    LogProb,
    Number,
    PromptPart,
    Range,
    Share,
    SpanRow,
    Whole,
    Word,
    faults_of_context,
    faults_of_parts,
)

LONGEST_VALUE = 60
"""Characters of a wrong value that are quoted."""


class _Generation(Checked):
    prompt_len: Whole
    stop: str
    request: dict[str, Any]
    decoding: dict[str, Any]
    source_len: Whole = 0
    classes: list[str] = Field(default_factory=list)
    read_at: list[Whole] = Field(default_factory=list)
    answer: str
    notes: list[str] = Field(default_factory=list)


class _Token(Checked):
    index: Whole
    id: Whole
    text: str
    role: Word[Role]
    logprob: LogProb | None = None
    replayed_logprob: LogProb | None = None
    rank: Whole | None = None


class _Foil(Checked):
    id: Whole
    text: str


class _Certified(Checked):
    """The error of a path method on one target."""

    f_input: Number
    f_baseline: Number
    gap: Number
    local_error: Error
    tolerance: Error
    nodes: Whole
    converged: bool
    floor: Error | None = None


class _TargetVerdict(Checked):
    attention: Word[AttentionStatus]
    attention_reason: str


class _Score(Checked):
    lds: Figure
    leave_one_out: Figure


class _Referee(Checked):
    better: str | None
    difference: Figure
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)] | None
    scores: dict[str, _Score]
    sources: list[Whole] = Field(default_factory=list)
    missed: dict[str, list[Whole]] = Field(default_factory=dict)
    read: list[str] | None = None


class _Curve(Checked):
    sink_mass: list[Number]
    entropy: list[Number]
    null_divergence: list[Number]
    similarity: list[Number]


class _Source(Checked):
    index: Whole = -1
    unit: Whole = -1
    value: Number
    share: Number


class _Agreement(Checked):
    model_config = ConfigDict(extra="ignore")
    spearman: Figure
    spearman_p: Figure
    recency_p: Figure
    adjusted_p: Figure
    kendall: Figure
    top_k: Whole | None
    top_k_overlap: Figure
    rank_biased_overlap: Figure
    jensen_shannon: Figure


class _NoRow(Checked):
    """Of a variant that schema /1 did not have."""

    model_config = ConfigDict(extra="forbid")


class _Row(Checked):
    """The figures of one row of attention rollout, or of its variant."""

    model_config = ConfigDict(extra="ignore")
    sink_mass: Figure
    feature_mass: Figure
    lost_mass: Figure
    entropy: Figure
    null_divergence: Figure
    similarity: Figure


class _Sources(Checked):
    """By method: those that every target has, and others."""

    integrated_gradients: list[_Source]
    deletion_path: list[_Source]
    rollout: list[_Source]
    rollout_variant: list[_Source]
    leave_one_out: list[_Source]
    __pydantic_extra__: dict[str, list[_Source]]


class _Share(Checked):
    unit: Whole
    text: str
    share: Share


class _Step(_Share):
    effect: Figure


class _Traced(_Share):
    direct: Share
    path: list[_Step] = Field(min_length=1)


class _Shares(Checked):
    traced: list[_Traced]
    direct: list[_Share]


class _Passage(_Shares):
    kind: str
    tokens: Range
    text: str


class _TracedUnit(Checked):
    kind: Literal["prompt", "answer"]
    tokens: Range
    text: str
    row: Range | None = None


class _Trace(Checked):
    method: str
    units: list[_TracedUnit]
    rest: list[Share]
    passages: list[_Passage]


class _Target(_Certified, _Shares):
    position: Whole
    tokens: Range
    id: Whole
    text: str
    foil: _Foil | None
    logprob: LogProb | None
    replayed_logprob: LogProb
    f: Number | None = None
    rank: Whole
    status: Word[Status]
    reason: str
    verdict: _TargetVerdict | None
    deletion: _Certified | None
    net: Number
    agreement: _Agreement
    agreement_variant: _Agreement
    rollout: _Row
    rollout_variant: _Row | _NoRow
    curve: _Curve | None
    referee: _Referee | None
    sources: _Sources


class _FullTarget(Checked):
    logprob: LogProb
    rank: Whole
    difference: Number
    cosine: Figure
    same_source: bool
    status: Word[Status]


class _FullPrecision(Checked):
    model: str
    dtype: str
    targets: list[_FullTarget]


class _Variant(Checked):
    method: str
    source: str
    settings: dict[str, Any]


class _Method(Checked):
    source: str
    signed: bool
    refused: str | None
    settings: dict[str, Any]


class _Thresholds(Checked):
    most_sink: Number = 1.0
    least_divergence: Number = 0.0


class _Computed(Checked):
    crosscheck: _Thresholds = _Thresholds()


class Document(Checked):
    """The upgraded explanation.json; `schema` is checked before."""

    created: str
    generation: _Generation
    tokens: list[_Token] = Field(min_length=1)
    words: list[Range]
    parts: list[PromptPart] = Field(default_factory=list)
    targets: list[_Target] = Field(min_length=1)
    trace: _Trace | None
    verdict: Word[Status] | None
    effects: EffectCells | None
    documents: list[DocumentRow] = Field(default_factory=list)
    spans: list[SpanRow] = Field(default_factory=list)
    context: Context | None = None
    ablations: Ablations | None
    refusals: dict[str, str]
    full_precision: _FullPrecision | None
    variant: _Variant | None
    scores: dict[str, _Method]
    settings: dict[str, Any] | None
    computed: _Computed
    environment: dict[str, Any]
    warnings: list[str]


class _TargetToUpgrade(Checked):
    sources: dict[str, Any]
    agreement: dict[str, Any]
    rollout: dict[str, Any]


class _ToUpgrade(Checked):
    """The parts of every schema that an upgrade works on."""

    targets: list[_TargetToUpgrade]
    settings: dict[str, Any] | None


def validated(document: Mapping[str, Any]) -> dict[str, Any]:
    """The upgraded document with its values as the schema has them: numbers that need not be whole are floats.

    Raises ValueError with a sentence on the first value that does not fit.
    """
    found = _read(document, Document)
    if fault := next(_faults(found), None):
        raise ValueError(fault)
    ordered: dict[str, Any] = _in_order(document, found.model_dump(exclude_unset=True))
    return ordered


def _in_order(given: Any, values: Any) -> Any:
    """The values with the keys in the order of the given ones: pages show settings in it."""
    if isinstance(given, dict):
        return {key: _in_order(inner, values[key]) for key, inner in given.items() if key in values}
    if isinstance(given, list):
        return [_in_order(inner, value) for inner, value in zip(given, values, strict=True)]
    return values


def require_upgradable(document: Mapping[str, Any]) -> None:
    """Raise ValueError if an upgrade would not find what it works on."""
    _read(document, _ToUpgrade)


Schema = TypeVar("Schema", bound=Checked)


def _read(document: Mapping[str, Any], schema: type[Schema]) -> Schema:
    try:
        return schema.model_validate(document)
    except ValidationError as error:
        raise ValueError(_said(error.errors(include_url=False)[0])) from None


def _said(fault: Mapping[str, Any]) -> str:
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"{where} is missing."
    expected = str(fault["msg"]).replace("Input should be ", "").removeprefix("Value error, ")
    return f"{where} is {_quoted(fault['input'])}; expected {expected[:1].lower()}{expected[1:]}."


def _quoted(value: Any) -> str:
    """A short value, or the kind of a long one."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    said = ascii(value)
    return said if len(said) <= LONGEST_VALUE else f"{said[:LONGEST_VALUE]}..."


def _faults(document: Document) -> Iterator[str]:
    yield from _faults_of_text(document)
    yield from faults_of_parts(document.parts, document.generation.prompt_len)
    yield from _faults_of_removal(document)
    if document.context is not None:
        yield from faults_of_context(
            document.context,
            parts=len(document.parts),
            prompt_len=document.generation.prompt_len,
            tokens=len(document.tokens) - document.generation.prompt_len,
            documents=len(document.documents),
        )
    for t, target in enumerate(document.targets):
        yield from _faults_of_target(document, t, target)
    if document.effects is not None:
        yield from _faults_of_effects(document, document.effects)
    if document.trace is not None:
        yield from faults_of_trace(document, document.trace)
    if len(lengths := {len(each) for target in document.targets for each in _curves(target)}) > 1:
        yield f"curve has lists of {' and '.join(map(str, sorted(lengths)))} layers; expected one number of layers."
    if document.full_precision is not None and len(document.full_precision.targets) != len(document.targets):
        yield (
            f"full_precision.targets is a list of {len(document.full_precision.targets)}; expected one for each of the "
            f"{len(document.targets)} targets."
        )


def _faults_of_text(document: Document) -> Iterator[str]:
    """Tokens, the words that they make, and the targets among them."""
    tokens, first = document.tokens, document.generation.prompt_len
    for i, token in enumerate(tokens):
        if token.index != i:
            yield f"tokens.{i}.index is {token.index}; expected {i}."
    end = 0
    for i, (start, stop) in enumerate(document.words):
        if start != end or stop <= start:
            yield f"words.{i} is [{start}, {stop}]; expected a range of tokens that begins at {end}."
        end = stop
    if end != len(tokens):
        yield f"words end at token {end}; expected {len(tokens)}, the number of tokens."
    single = {target.tokens[0] for target in document.targets if target.tokens[1] == target.tokens[0] + 1}
    unplayed = [token.index for token in tokens[first:] if token.replayed_logprob is None or token.rank is None]
    if first >= len(tokens) or not single.issuperset(unplayed):  # older folders: every generated token is a target
        yield (
            f"generation.prompt_len is {first}: of the {len(tokens)} tokens, one behind it has no replayed_logprob and "
            f"is no target, or there is none; expected one of the two for each."
        )
        return
    for t, target in enumerate(document.targets):
        start, stop = target.tokens
        if not first <= start < stop <= len(tokens):
            yield f"targets.{t}.tokens is [{start}, {stop}]; expected a range of the generated tokens from {first} on."
            continue
        text = "".join(token.text for token in tokens[start:stop])
        if (target.position, target.id, target.text) != (start, tokens[start].id, text):
            said = f"token {target.position} with the id {target.id}"
            yield f"targets.{t} is {said}; expected token {start}, with the id {tokens[start].id} and its text."


def _faults_of_removal(document: Document) -> Iterator[str]:
    units = [] if document.ablations is None else document.ablations.units
    yield from beyond("ablations.units", units, len(document.tokens))
    drops = None if document.ablations is None else document.ablations.answer_drop
    if drops is not None and len(drops) != len(units):
        yield f"ablations.answer_drop is a list of {len(drops)}; expected one number for each of {len(units)} units."
    if document.effects is None:
        return
    if document.ablations is None:
        yield "ablations is None; expected a mapping, since effects were measured."
    for i, unit in enumerate(document.effects.units):
        yield from beyond(f"effects.units.{i}.tokens", unit.tokens, len(document.tokens))
    if [unit.tokens for unit in document.effects.units if unit.kind == "prompt"] != [[unit] for unit in units]:
        yield "effects.units of the kind prompt are not the units of ablations; expected the same, in order."


def _faults_of_target(document: Document, t: int, target: _Target) -> Iterator[str]:
    units = 0 if document.ablations is None else len(document.ablations.units)
    listed = dict(target.sources)
    for name, sources in listed.items():
        by_unit = name == "leave_one_out"
        most, key = (units, "unit") if by_unit else (len(document.tokens), "index")
        for i, source in enumerate(sources):
            place, other = (source.unit, source.index) if by_unit else (source.index, source.unit)
            if other != -1 or not 0 <= place < most:
                yield f"targets.{t}.sources.{name}.{i} has no {key} below {most}; expected one, and no other place."
    for method in others_of(document.scores, None if document.variant is None else document.variant.method):
        if document.scores[method].refused is None and stored_name(method) not in listed:
            yield f"targets.{t}.sources has no {stored_name(method)!r}; expected all methods of scores not refused."
    if (document.verdict is None) != (target.verdict is None):
        yield f"targets.{t}.verdict is {_there(target.verdict)} and verdict {_there(document.verdict)}; expected both."
    sink, divergence = target.rollout.sink_mass, target.rollout.null_divergence
    if (sink is None) != (divergence is None) or (sink is None and target.status == Status.DILUTED):
        yield f"targets.{t}.rollout has no sink_mass or no null_divergence; expected numbers."
    if target.referee is not None:
        yield from _faults_of_referee(f"targets.{t}.referee", target.referee, units)


def _there(value: object) -> str:
    return "missing" if value is None else "there"


def _faults_of_referee(place: str, referee: _Referee, units: int) -> Iterator[str]:
    for unit in (*referee.sources, *(unit for missing in referee.missed.values() for unit in missing)):
        if unit >= units:
            yield f"{place} names the unit {unit}; expected one below {units}."
    if referee.sources and "missed" not in referee.model_fields_set:
        yield f"{place}.missed is missing; expected a mapping, since there are sources."
    if referee.interval is not None and referee.difference is None:
        yield f"{place}.difference is None; expected a number, since there is an interval."


def _faults_of_effects(document: Document, effects: EffectCells) -> Iterator[str]:
    shape = (len(document.targets), len(effects.units))
    for name in ("effect", "low", "high"):
        rows: Cells = getattr(effects, name)
        if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
            yield f"effects.{name} has another shape; expected {shape[0]} rows of {shape[1]} numbers."
        elif [[x is None for x in row] for row in rows] != [[x is None for x in row] for row in effects.effect]:
            yield f"effects.{name} is null in other places than effects.effect; expected the same."
    if len(effects.explained) not in (0, shape[0]):  # empty without random subsets
        yield f"effects.explained is a list of {len(effects.explained)}; expected {shape[0]} values."


def _curves(target: _Target) -> tuple[list[float], ...]:
    curve = target.curve
    return () if curve is None else (curve.sink_mass, curve.entropy, curve.null_divergence, curve.similarity)
