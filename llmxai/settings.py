"""The settings of an explanation: one frozen object that Python takes, a recipe validates, the command line fills, the
record stores and a replay reads back.

Needs no torch. Every field is a plain JSON value or another of these objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Any, TypeVar, get_type_hints

from llmxai.errors import OptionError, did_you_mean

FEATURES = ("content", "prompt", "all")
BASELINES = ("space", "zero", "eos", "pad", "mask", "mean")
OPERATORS = ("delete", "baseline", "mean")
UNITS = ("auto", "token", "word", "sentence")
FUSIONS = ("mean", "max", "min")
PRECISIONS = ("float32", "stored")
DTYPES = ("float32", "bfloat16", "float16", "float64")
LEAST_NODES = 4
"""Nodes of one panel of a path."""
LEAST_BUDGET = 16
"""Forward passes that suffice to take a prompt apart at all."""
MOST_NODES = 100_000
"""Nodes of a path, and subsets: more would need more memory than there is."""
SEEDS = (-(2**63), 2**64 - 1)
"""The least and the largest seed that PyTorch takes."""
MOST_SEED = 2**63 - 1
"""The largest seed that both NumPy and PyTorch take; the least is 0."""
CHUNK_TOKENS = 1024
"""Tokens that go through the model at once by default."""

STRICT = {"extra": "forbid", "allow_inf_nan": False, "use_attribute_docstrings": True}
"""How pydantic validates these classes in recipes and records: unknown names are refused."""
KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "none"}
"""Types of values in words."""
T = TypeVar("T")


def checked(spec: type[T]) -> type[T]:
    """Make a dataclass raise OptionError for unknown names (suggesting the nearest) and values of the wrong type."""
    made: Any = spec.__init__
    hints = {name: hint for name, hint in get_type_hints(spec).items() if not name.startswith("_")}

    @wraps(made)
    def init(self: Any, *values: Any, **options: Any) -> None:
        for name, value in {**dict(zip(hints, values, strict=False)), **options}.items():
            if name not in hints:
                near = did_you_mean(name, hints) or near_field(name)
                raise OptionError(f"{spec.__name__}: there is no {name!r}.{near} Known: {', '.join(hints)}.")
            require_kind(name, value, hints[name])
        made(self, *values, **options)

    spec.__init__ = init  # type: ignore[method-assign]
    return spec


def require_kind(what: str, value: Any, hint: Any) -> None:
    """Raise OptionError for a value that is not of the type `hint`."""
    if not _fits(value, hint):
        raise OptionError(f"{what} is {value!r}; expected {_kind(hint)}.")


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in hint.__args__)
    if isinstance(value, bool):  # a bool is an int in Python
        return hint is bool
    if hint is float:
        return isinstance(value, int | float)
    if isinstance(hint, type):
        return isinstance(value, hint)
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _kind(hint: Any) -> str:
    if isinstance(hint, UnionType):
        return " or ".join(map(_kind, hint.__args__))
    return KINDS.get(hint, hint.__name__) if isinstance(hint, type) else "a list of names"


def require_known(what: str, value: str, known: tuple[str, ...]) -> None:
    """Raise OptionError for a value that is not one of `known`."""
    if value not in known:
        raise OptionError(f"{what} {value!r} is unknown.{did_you_mean(value, known)} Known: {', '.join(known)}.")


def require_least(what: str, value: int | float, least: int | float) -> None:
    """Raise OptionError for a number below `least`."""
    if value < least:
        raise OptionError(f"{what} is {value}; expected at least {least}.")


def require_between(what: str, value: int, least: int, most: int) -> None:
    """Raise OptionError for a number below `least` or above `most`."""
    require_least(what, value, least)
    if value > most:
        raise OptionError(f"{what} is {value}; expected at most {most}.")


def require_baseline(value: str) -> None:
    """Raise OptionError for an unknown baseline; whether the model has that token is checked once it is loaded."""
    kind, _, what = value.partition(":")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OptionError(f"baseline {value!r} is not UTF-8. Give the token in UTF-8, or its number: id:N.") from error
    if value not in BASELINES and not (kind == "id" and what.isdecimal()) and not (kind == "token" and what):
        raise OptionError(
            f"baseline {value!r} is unknown.{did_you_mean(value, BASELINES)} Known: {', '.join(BASELINES)}, id:N, "
            f"token:TEXT."
        )


@checked
@dataclass(frozen=True)
class Decoding:
    """How the answer is chosen. Greedy unless a temperature is given."""

    __pydantic_config__ = STRICT

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens is {self.max_new_tokens}; there must be at least 1 token to explain.")
        if not 0 <= self.temperature < math.inf:
            raise OptionError(f"temperature is {self.temperature}; expected 0 (greedy) or a positive number.")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p is {self.top_p}; expected a number above 0 and up to 1.")
        if self.top_k < 0:
            raise OptionError(f"top_k is {self.top_k}; expected 0 (off) or a positive number.")
        require_between("seed", self.seed, *SEEDS)


@checked
@dataclass(frozen=True)
class Tolerance:
    """The error that counts as converged: max(relative x |F(input) - F(baseline)|, absolute), in nats."""

    __pydantic_config__ = STRICT

    relative: float = 0.02
    absolute: float = 0.02

    def __post_init__(self) -> None:
        if not (0 <= self.relative < math.inf and 0 <= self.absolute < math.inf and self.relative + self.absolute > 0):
            raise OptionError(
                f"tolerance: relative {self.relative}, absolute {self.absolute}; expected one above 0, none negative."
            )


@checked
@dataclass(frozen=True)
class IntegratedGradients:
    """Layer-integrated gradients (Sundararajan, Taly & Yan 2017, https://arxiv.org/abs/1703.01365)."""

    __pydantic_config__ = STRICT

    baseline: str = "space"
    """Where the path starts: space, zero, eos, pad, mask, mean, id:N or token:TEXT."""
    tolerance: Tolerance = Tolerance()
    max_nodes: int = 128
    """Gradient evaluations per target, at most."""
    n_steps: int | None = None
    """A fixed number of Gauss-Legendre nodes on the whole path, instead of adaptive panels."""

    def __post_init__(self) -> None:
        require_baseline(self.baseline)
        require_between("max_nodes", self.max_nodes, LEAST_NODES, MOST_NODES)
        if self.n_steps is not None:
            require_between("n_steps", self.n_steps, 1, MOST_NODES)


@checked
@dataclass(frozen=True)
class DeletionPath:
    """Integrated gradients along the presence of tokens, from hidden to seen."""

    __pydantic_config__ = STRICT

    tolerance: Tolerance = Tolerance()
    max_nodes: int = 128
    """Gradient evaluations per target, at most."""
    n_steps: int | None = None
    """A fixed number of Gauss-Legendre nodes on the whole path, instead of adaptive panels."""

    def __post_init__(self) -> None:
        require_between("max_nodes", self.max_nodes, LEAST_NODES, MOST_NODES)
        if self.n_steps is not None:
            require_between("n_steps", self.n_steps, 1, MOST_NODES)


@checked
@dataclass(frozen=True)
class AttentionRollout:
    """Attention rollout (Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928) and its variant."""

    __pydantic_config__ = STRICT

    residual: float = 0.5
    """Share of each layer that stays in the residual stream."""
    head_fusion: str = "mean"
    """How the heads of a layer become one map: mean, max or min."""
    variant: str = "gradient_weighted_rollout"
    """The second attention method, also compared with the gradients; `llmxai methods` lists them."""

    def __post_init__(self) -> None:
        if not 0 <= self.residual < 1:
            raise OptionError(f"residual is {self.residual}; expected a share from 0 up to, but not including, 1.")
        require_known("head_fusion", self.head_fusion, FUSIONS)


@checked
@dataclass(frozen=True)
class Removal:
    """How parts of the prompt are removed to measure their effect."""

    __pydantic_config__ = STRICT

    units: str = "auto"
    """What is removed at a time: token, word, sentence, or auto (words; larger pieces in a long prompt)."""
    operator: str = "delete"
    """`delete` takes tokens out, `baseline` puts a neutral token's embedding in their place, `mean` the mean one."""
    answer: bool = True
    """Hide the answer's earlier words, and words with all their mentions, as well."""
    subsets: int = 128
    """Random subsets, each of which keeps half of the units."""
    baseline: str = "space"
    """The neutral token of the operator `baseline`, named as in `IntegratedGradients`."""
    seed: int = 0
    chunk_tokens: int | None = None
    """Tokens that go through the model at once, halved if memory runs out; None: planned from the free memory."""
    budget: int = 200
    """Forward passes for a prompt whose units are found from coarse to fine: of more than 64 words, with auto."""
    recomputed: int = 100_000
    """Tokens that these passes may compute again. If deletion would take more, units are hidden from the question and
    the answer instead, which reuses all keys and values, and as many of the first sources are deleted as fit."""

    def __post_init__(self) -> None:
        require_known("removal units", self.units, UNITS)
        require_known("removal operator", self.operator, OPERATORS)
        require_baseline(self.baseline)
        require_between("subsets", self.subsets, 0, MOST_NODES)
        require_least("seed", self.seed, 0)
        require_least("budget", self.budget, LEAST_BUDGET)
        require_least("recomputed", self.recomputed, 0)
        if self.chunk_tokens is not None:
            require_least("chunk_tokens", self.chunk_tokens, 1)


@checked
@dataclass(frozen=True)
class Compute:
    """How gradients are computed. Affects time and memory; the numbers change by rounding only."""

    __pydantic_config__ = STRICT

    precision: str = "float32"
    """What a model that is stored in 16 bits, or in 4 with 16-bit products, computes in: `float32`, or `stored`."""
    gradient_dtype: str | None = None
    """Gradients on a copy of the weights in this dtype (say bfloat16), while F stays in the model's own; of quantised
    weights and of those spread over devices, layer by layer. The certificate covers the rounding, and a panel that
    fails is recomputed in the model's dtype."""
    chunk_tokens: int | None = None
    """Tokens (nodes x live tokens) that go through the model at once; None: planned from the free memory."""
    checkpoint: bool | None = None
    """Recompute activations in the backward pass, one layer at a time: far less memory for about 50 % more work. None:
    if the memory requires it."""

    def __post_init__(self) -> None:
        require_known("precision", self.precision, PRECISIONS)
        if self.gradient_dtype is not None:
            require_known("gradient_dtype", self.gradient_dtype, DTYPES)
        if self.chunk_tokens is not None:
            require_least("chunk_tokens", self.chunk_tokens, 1)


@checked
@dataclass(frozen=True)
class Settings:
    """How an answer is explained: everything except the model, the prompt and the answer itself.

    >>> Settings(gradients=IntegratedGradients(max_nodes=256), removal=None, also=("saliency",))
    """

    __pydantic_config__ = STRICT

    features: str = "content"
    """Tokens that get a contribution: `content` (written by people and the model), `prompt` or `all`."""
    gradients: IntegratedGradients = IntegratedGradients()
    deletion: DeletionPath = DeletionPath()
    rollout: AttentionRollout = AttentionRollout()
    removal: Removal | None = Removal()
    """None: nothing is removed, and no effect is measured."""
    also: tuple[str, ...] = ()
    """More methods to compute and show, by name; `llmxai methods` lists them."""
    compute: Compute = Compute()

    def __post_init__(self) -> None:
        require_known("features", self.features, FEATURES)
        object.__setattr__(self, "also", tuple(dict.fromkeys(self.also)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `settings_from` reads them back."""
        return {**asdict(self), "also": list(self.also)}


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from nested values; missing fields keep their defaults.

    Raises OptionError for an unknown field (suggesting the nearest) and for a value out of range.
    """
    from pydantic import ValidationError

    try:
        found: Settings = _validator().validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if isinstance(cause := first.get("ctx", {}).get("error"), OptionError):
            raise cause from None
        if first["type"] == "unexpected_keyword_argument":
            raise OptionError(
                f"settings: there is no {where!r}.{near_field(where)} Known: {', '.join(field_paths())}."
            ) from None
        raise OptionError(f"settings: {where} is {first['input']!r}: {in_words(first)}.") from None
    return found


def field_paths(spec: Any = None, *, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name (`gradients.tolerance.relative`), with its default."""
    spec = Settings() if spec is None else spec
    found: dict[str, Any] = {}
    for each in fields(spec):
        value, name = getattr(spec, each.name), f"{prefix}{each.name}"
        found |= field_paths(value, prefix=f"{name}.") if is_dataclass(value) else {name: value}
    return found


def near_field(name: str) -> str:
    """A sentence, with a leading space, that suggests a setting similar to `name`; empty if there is none."""
    paths = list(field_paths())
    holding = [path for path in paths if name in path.split(".")]
    groups = dict.fromkeys(path.rpartition(".")[0] for path in paths)
    return f" Did you mean {holding[0]!r}?" if holding else did_you_mean(name, [*groups, *paths])


def in_words(fault: Mapping[str, Any]) -> str:
    """One fault in pydantic's words."""
    said = str(fault["msg"]).replace("tuple", "list")  # YAML and JSON have only lists
    return said[0].lower() + said[1:]


LONGEST_YAML = 2**18
"""Characters."""
MOST_VALUES = 10_000
"""Values that it may come to, each alias counted as what it stands for."""


def parse_yaml(text: str) -> Any:
    """The values in YAML of plain data. Raises ValueError if it is not that, or becomes more than any recipe is."""
    import yaml

    if len(text) > LONGEST_YAML:
        raise ValueError(f"it has more than {LONGEST_YAML} characters")
    try:
        loader = yaml.SafeLoader(text)
    except yaml.YAMLError as error:  # a character that YAML does not have
        raise ValueError(" ".join(str(error).split())) from error
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _require_few(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (RecursionError, OverflowError):
        raise ValueError("it is nested too deeply, or a number is too large") from None
    finally:
        loader.dispose()


def _require_few(node: Any, known: dict[int, int]) -> int:
    """The number of values below a node, the ones that aliases stand for among them. Raises ValueError for too many."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_VALUES + 1  # until it is known: a node that contains itself has no end
    inner = node.value if isinstance(node.value, list) else []
    count = 1
    for each in inner:
        count += sum(_require_few(part, known) for part in (each if isinstance(each, tuple) else (each,)))
        if count > MOST_VALUES:
            raise ValueError(f"its aliases make more than {MOST_VALUES} values of it")
    known[id(node)] = count
    return count


def put(document: dict[str, Any], assignment: str) -> None:
    """Put `a.b=value` (the value in YAML) into nested values; a number names a place in a list.

    Raises OptionError for an invalid assignment or an unknown place.
    """
    name, sign, text = assignment.partition("=")
    if not sign or not name:
        raise OptionError(f"--set {assignment!r}: expected a.b=value, such as gradients.max_nodes=64.")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise OptionError(f"--set {assignment!r}: the value is not YAML ({error}).") from error
    assign(document, name, value, said=f"--set {assignment!r}")


def assign(document: dict[str, Any], name: str, value: Any, *, said: str) -> None:
    """Put a value under its dotted name. Raises OptionError, which quotes `said`, if there is no such place."""
    *parents, last = name.split(".")
    place: Any = document
    for part in parents:
        place = _inside(place, part, said)
    if isinstance(place, list):
        _inside(place, last, said)
        place[int(last)] = value
    else:
        place[last] = value


def _inside(place: Any, part: str, said: str) -> Any:
    if isinstance(place, list):
        if not part.isdigit() or int(part) >= len(place):
            raise OptionError(f"{said}: {part!r} is not a position in a list of {len(place)}; positions start at 0.")
        return place[int(part)]
    if place.get(part) is None:
        place[part] = {}
    if not isinstance(place[part], dict | list):
        raise OptionError(f"{said}: {part!r} holds {place[part]!r}, which has no keys.")
    return place[part]


@cache
def _validator() -> Any:
    from pydantic import TypeAdapter  # imported only when a recipe, a record or the command line needs it

    return TypeAdapter(Settings)
