"""Deletion-path integrated gradients: from a prompt with all features hidden to the real one.

Every feature i has a presence a_i in [0, 1]: in every layer and head, log a_i is added to the attention score of key i
for all later queries. With a_i = 1 the model is unchanged; with a_i = 0 token i is masked for all later tokens. A token
always sees itself, and positions stay. Along a = p(u) (1, ..., 1) with p(u) = u^3

    A_i = integral over u in [0, 1] of  dF/da_i p'(u) du ,      sum of A_i = F(all seen) - F(none seen).

It is the Aumann-Shapley value (1974) of a token's soft deletion. Only the numbers added to the scores need gradients,
so quantised and frozen weights work unchanged. u^3 puts nodes densely near 0, where F changes most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from llmxai.errors import OptionError, UnsupportedModelError
from llmxai.methods.attention.capture import attention_modules, own_attention, through_interface
from llmxai.methods.features import moving_tokens
from llmxai.methods.gradients.fused import forget_masks, fused_attention, saved_heads
from llmxai.methods.gradients.integrated_gradients import certified, integrate
from llmxai.methods.registry import method
from llmxai.methods.targets import Target, seen_by, targets_of
from llmxai.models import LoadedModel, ModelKind, embed, forward_logits, layer_stacks
from llmxai.models.embedding import input_device, on_device
from llmxai.models.families import field_of, in_windows, kind_of, softmax_refusal
from llmxai.models.forward import configured
from llmxai.models.memory import Saved, Shape, saved_by
from llmxai.names import Progress, quiet
from llmxai.settings import CHUNK_TOKENS, Compute, DeletionPath, Tolerance
from llmxai.types import Generation, Scores

POWER = 3
"""p(u) = u^POWER."""
SCOUTS = 8
"""Intervals of the grid on which F is evaluated first; along this path F bends little."""
MAP_NUMBERS = 2**28
"""Most attention weights that the graph of one chunk may keep on a CPU (1 GiB in float32), else it is checkpointed.

The kernels that keep none give no gradient with respect to a mask. On a GPU the planner counts them.
"""
MAPS = 2
"""Maps [head, query, key] that a layer keeps for the backward pass at most."""
FUSED_FROM = 384
"""Tokens from which a CPU uses the fused kernel, or fewer if it would have to checkpoint; GPUs always do."""
ABSENT = -4000.0
"""log a of a hidden token for the fused kernel: its weight is exactly 0, and the number fits into 16 bits."""
PRESENCE = "llmxai_presence"
"""The name by which transformers finds our masks and our attention."""


@method(
    "deletion_path",
    needs={"gradients", "attentions"},
    source="Aumann & Shapley 1974, as in Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365, on attention",
)
def deletion_path(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    tolerance: Tolerance = DeletionPath.tolerance,
    max_nodes: int = DeletionPath.max_nodes,
    n_steps: int | None = DeletionPath.n_steps,
    compute: Compute = Compute(),
    f_input: Float[Tensor, " target"] | None = None,
    progress: Progress = quiet,
) -> Scores:
    """Signed contribution (nats) of every token's visibility to later tokens, with its convergence gap.

    The values of a target sum to F minus F with all features hidden from later tokens, plus the gap. `features`: see
    `moving_tokens`; all other tokens stay present. The token at the last predicting position is not a feature, since no
    later token could see it. For an encoder, a token is hidden from all others. For an encoder-decoder, source tokens
    are hidden from each other and from the decoder, and one of them always stays. `tolerance`, `max_nodes`, `n_steps`,
    `compute`, `f_input`: as in `layer_integrated_gradients`; a long sequence is checkpointed (see `MAP_NUMBERS`).

    Raises OptionError for an invalid option, UnsupportedModelError for layers without softmax attention or layers that
    do not accept our mask, and NonFiniteError if the model gives NaN on the path.
    """
    spec = DeletionPath(tolerance=tolerance, max_nodes=max_nodes, n_steps=n_steps)  # raises OptionError
    targets = targets_of(generation, targets)
    path = presence_path(loaded, generation, features=features)
    on_cpu = path.input.device.type == "cpu"
    fused = fuses(loaded.model, tokens=len(path.moving))
    if (
        on_cpu
        and not fused
        and kept_maps(loaded.model, compute.chunk_tokens, tokens=1 + max(t.last for t in targets)) > MAP_NUMBERS
    ):
        compute = replace(compute, checkpoint=True)
    found = integrate(loaded, path, targets, spec, compute=compute, f_input=f_input, progress=progress, scouts=SCOUTS)
    return certified("deletion_path", found, {"features": features, "path": f"presence u^{POWER}", **found.settings})


@dataclass
class Hidden:
    """The tokens that the running forward pass hides, and the number of attentions it reached."""

    added: Float[Tensor, "node live"] | None = None
    """log a of every token, 0 if it is present; None: nothing is hidden."""
    source: int = 0
    """For an encoder-decoder: how many of them the encoder reads."""
    in_encoder: bool = False
    masks: list[Tensor] = field(default_factory=list)
    attended: int = 0
    """Attentions of the interface that used one of the masks."""
    fused: bool = False
    """Whether the scores never exist as a tensor (`fused_attention`)."""
    given: int = 0
    """Attention modules that received a mask unchanged; counted if no attention uses the interface."""
    plain: dict[tuple[int, ...], bool] = field(default_factory=dict)
    """Whether the masks of a pass are plainly causal, by their place in it and their shape: a GPU would wait each time.
    """

    @contextmanager
    def by(self, added: Float[Tensor, "node live"]) -> Iterator[None]:
        """Prepare for one forward pass; a backward pass that recomputes layers does not need `masks`."""
        self.added, self.masks, self.attended, self.given = added, [], 0, 0
        try:
            yield
        finally:
            self.added, self.masks, self.in_encoder = None, [], False

    def mask(self, seen: Bool[Tensor, "batch 1 query key"], *, dtype: torch.dtype, two_way: bool) -> Tensor:
        """The numbers added to the scores: log a of the key if the query sees it, else the dtype's smallest number.

        For the fused kernel only log a of every key, [node, 1, 1, key].
        """
        queries, keys = seen.shape[-2:]
        least = torch.finfo(dtype).min
        case = (len(self.masks), queries, keys)
        if self.fused and self.added is not None and queries > 1 and case not in self.plain:
            self.plain[case] = plainly_causal(seen)
        if self.added is not None and self.plain.get(case):
            own = self.added.to(seen.device)
            row = nn.functional.pad(own, (keys - own.shape[1], 0)).clamp(min=ABSENT)[:, None, None, :]
            self.masks.append(row)
            return row
        if self.added is None:
            found = torch.zeros((), dtype=dtype, device=seen.device)
        else:
            crosses = bool(self.source) and two_way and not self.in_encoder
            first = slice(0, self.source) if crosses or self.in_encoder else slice(self.source, None)
            own = self.added[:, first].to(seen.device)
            own = nn.functional.pad(own, (keys - own.shape[1], 0))  # a cached prefix is present
            found = own.clamp(min=least)[:, None, None, :]
            if not crosses:
                itself = torch.ones(queries, keys, dtype=torch.bool, device=seen.device)
                itself = itself.tril(keys - queries).triu(keys - queries)
                found = found.masked_fill(itself, 0)
        mask = torch.where(seen, found, least)
        self.masks.append(mask)
        return mask


@contextmanager
def hiding(model: PreTrainedModel, hidden: Hidden) -> Iterator[None]:
    """Inside this context, the model adds the numbers of `hidden` to its attention scores.

    Masks are built once per pass and shared by the layers, through transformers' mask interface. Each layer attends
    with its own function, so window, scale, soft cap and sinks are those of the architecture, except in plain causal
    attention, where log a is a channel of the keys (`fused_attention`). Else it is the plain kernel on GPUs: the
    memory-efficient one refuses the gradient of a mask that is shared by the heads.
    """
    own = model.config._attn_implementation

    def make_mask(*arguments: Any, **options: Any) -> Tensor:
        two_way = "allow_is_bidirectional_skip" in options
        whole = {**options, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return hidden.mask(sdpa_mask(*arguments, **whole), dtype=options["dtype"], two_way=two_way)

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        if attention_mask is not None and attention_mask.is_floating_point():
            hidden.attended += 1
            if attention_mask.shape[2] < query.shape[2]:
                return fused_attention(query, key, value, attention_mask, options.get("scaling")), None
            attention_mask = attention_mask.to(query.dtype)
        function = own_attention(module) if own == "eager" else sdpa_attention_forward
        with sdpa_kernel(SDPBackend.MATH) if query.is_cuda else nullcontext():
            return function(module, query, key, value, attention_mask, **options)[0], None

    def look(_module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        hidden.given += any(_is_one_of(given, hidden.masks) for given in (*arguments, *options.values()))

    handles = []
    if not through_interface(model):
        handles += [part.register_forward_pre_hook(look, with_kwargs=True) for part in attention_modules(model)]
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        handles.append(encoder.register_forward_pre_hook(lambda *_: setattr(hidden, "in_encoder", True)))
        handles.append(encoder.register_forward_hook(lambda *_: setattr(hidden, "in_encoder", False)))
    AttentionInterface.register(PRESENCE, attend)
    AttentionMaskInterface.register(PRESENCE, make_mask)
    try:
        with configured(model, PRESENCE):
            yield
    finally:
        forget_masks()
        for handle in handles:
            handle.remove()
        AttentionInterface._global_mapping.pop(PRESENCE, None)
        AttentionMaskInterface._global_mapping.pop(PRESENCE, None)


def fuses(model: PreTrainedModel, *, tokens: int) -> bool:
    """Whether a decoder's attention is plain causal softmax by PyTorch's kernel, on a device and a length for it."""
    if not plain_causal(model):
        return False
    on_cpu = input_device(model).type == "cpu"
    return not on_cpu or tokens >= FUSED_FROM or kept_maps(model, None, tokens=tokens) > MAP_NUMBERS


def plain_causal(model: PreTrainedModel) -> bool:
    """Whether a decoder's attention is plain causal softmax by PyTorch's kernel."""
    text = model.config.get_text_config()
    windows = set(getattr(text, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    windows |= in_windows(text)
    plain = model.config._attn_implementation in ("sdpa", PRESENCE) and through_interface(model)
    return bool(plain and not windows and kind_of(model) is ModelKind.CAUSAL)


def plainly_causal(seen: Bool[Tensor, "batch 1 query key"]) -> bool:
    """Whether every query sees itself and all that is before it."""
    queries, keys = seen.shape[-2:]
    causal = torch.ones(queries, keys, dtype=torch.bool, device=seen.device).tril(keys - queries)
    return bool((seen == causal).all())


def _is_one_of(given: Any, masks: Sequence[Tensor]) -> bool:
    """Compare by value: Accelerate copies tensors that it moves to another device."""
    if not isinstance(given, Tensor):
        return False
    return any(given.shape == mask.shape and torch.equal(given.to(mask), mask) for mask in masks)


@dataclass(frozen=True)
class PresencePath:
    """log a = POWER log u on the moving tokens, for u from 0 (hidden) to 1 (seen); all others are always seen."""

    input: Float[Tensor, "seq hidden"]
    moving: Bool[Tensor, " seq"]
    two_way: bool
    """Whether the model reads in both directions, so other tokens can see the last one."""
    hidden: Hidden
    ids: tuple[int, ...]

    def attached(self, model: PreTrainedModel) -> Any:
        """The model with hidden tokens in its attention."""
        return hiding(model, self.hidden)

    def saved(self, model: PreTrainedModel) -> Saved:
        """Weights, unless the kernel is fused: such kernels give no gradient with respect to a mask."""
        if fuses(model, tokens=len(self.moving)):
            return saved_heads(Shape.of(model.config), on_cpu=input_device(model).type == "cpu")
        weights = 1 if model.dtype.itemsize > 2 else MAPS  # in float32 once more
        return Saved(maps=max(weights, saved_by(model).maps), heads=3.0)  # not what comes out

    def inputs(self, loaded: LoadedModel, alphas: Sequence[float], live: slice) -> Float[Tensor, "node live"]:
        """log a, in float32 or wider; exactly 0 if a token is seen and -inf if it is hidden."""
        del loaded
        logs = [POWER * math.log(u) if u > 0 else -math.inf for u in alphas]
        rows = on_device(logs, self.input.device, dtype=self.input.dtype)
        return torch.where(self.moving[live], rows[:, None], 0.0)

    def logits(
        self,
        loaded: LoadedModel,
        inputs: Float[Tensor, "node live"],
        *,
        positions: Sequence[int],
        live: slice,
        prefix: DynamicCache | None,
    ) -> Float[Tensor, "node row vocab"]:
        """Logits with `inputs` added to the scores. Raises UnsupportedModelError if they do not reach every layer."""
        embeds = self.input[live].to(loaded.dtype).expand(len(inputs), -1, -1)
        places = [position - live.start for position in positions]
        with self.hidden.by(inputs):
            try:
                found = forward_logits(
                    loaded.model,
                    embeds,
                    ids=self.ids[live],
                    positions=places,
                    prefix=prefix,
                    source=self.hidden.source,
                )
            except UnsupportedModelError as error:
                raise UnsupportedModelError(
                    f"{loaded.name}: {type(loaded.model).__name__} refuses a mask that is added to its attention "
                    f"scores ({error}), so the deletion path is not defined for it; integrated gradients work."
                ) from error
        require_reached(loaded, self.hidden.attended or self.hidden.given)
        return found

    def slopes(
        self, gradient: Float[Tensor, "node live"], alphas: Float[Tensor, " node"], live: slice
    ) -> Float[Tensor, "node live"]:
        """dF/da_i p'(u) = dF/d(log a_i) p'(u) / p(u), with p'/p = POWER / u."""
        return torch.where(self.moving[live], gradient * (POWER / alphas)[:, None], 0.0)

    def features(self, targets: Sequence[Target]) -> Bool[Tensor, "target seq"]:
        """The moving tokens that another token up to a target's last predicting position can see."""
        seen = seen_by(targets, len(self.moving))
        if not self.two_way:
            seen[range(len(targets)), [target.last for target in targets]] = False
        return self.moving & seen.to(self.moving.device)


def presence_path(loaded: LoadedModel, generation: Generation, *, features: str) -> PresencePath:
    """The path over the presence of a generation's tokens, in float32 (float64 for a float64 model).

    If an encoder's whole source would be hidden, its last token stays: softmax over equally hidden keys equals softmax
    over all of them, and the decoder has no other key.
    """
    if (refusal := softmax_refusal(loaded.model.config, what="the deletion path")) is not None:
        raise UnsupportedModelError(f"{loaded.name}: {refusal}")
    wide = torch.float64 if loaded.dtype == torch.float64 else torch.float32
    moving = moving_tokens(generation, features=features)
    source = generation.source_len
    if source and moving[:source].all():
        moving[source - 1] = False
    if not moving[: generation.prompt_len].any():
        raise OptionError(
            f"With features={features!r} the source is a single token, which the decoder must see. Give a longer one."
        )
    x = embed(loaded.model, generation.ids, source=source).to(wide)
    return PresencePath(
        input=x,
        moving=moving.to(x.device),
        two_way=loaded.kind is ModelKind.CLASSIFIER,
        hidden=Hidden(source=source, fused=fuses(loaded.model, tokens=len(x))),
        ids=generation.ids,
    )


def kept_maps(model: PreTrainedModel, chunk_tokens: int | None, *, tokens: int) -> int:
    """Attention weights that the graph of one chunk keeps without checkpointing."""
    layers = sum(len(stack) for stack in layer_stacks(model))
    heads = field_of(model.config.get_text_config(), "num_attention_heads", 1)
    chunk = max(chunk_tokens or CHUNK_TOKENS, tokens)
    return int(MAPS * layers * heads * tokens * chunk)


def require_reached(loaded: LoadedModel, reached: int) -> None:
    """Raise UnsupportedModelError if fewer attentions used our mask than the model has."""
    stacks = [len(stack) for stack in layer_stacks(loaded.model)]
    wanted = stacks[0] if len(stacks) == 1 else stacks[0] + 2 * stacks[1]
    if reached != wanted:
        raise UnsupportedModelError(
            f"{loaded.name}: {reached} of the {wanted} attentions of {type(loaded.model).__name__} use the mask that "
            f"hides tokens unchanged, so the deletion path is not defined for it; integrated gradients work."
        )
