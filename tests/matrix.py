"""Every architecture explained end to end, with tiny random weights: `make matrix` prints the table."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import escape
from tiny import (
    ARCHITECTURES,
    CLASSES,
    CLASSIFIERS,
    ENCODER_DECODERS,
    HYBRIDS,
    certificate_of,
    make_classifier,
    make_encoder_decoder,
    make_loaded,
)
from torch import Tensor
from transformers import PreTrainedModel

from llmxai import Explanation, IntegratedGradients, Settings, explain, save
from llmxai.crosscheck.verdict import candidates
from llmxai.models import LoadedModel
from llmxai.store import read_folder
from llmxai.types import Generation, Role, Status, predicting_position

CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "The capital of France is Paris. Which city is the capital?"},
]
SCALE = 0.1
"""Standard deviation of the weights: answers that are not a coin toss, and a path that can converge."""
OPT_NODES = 1024
"""OPT's ReLU bends the path at many places; 256 nodes are enough elsewhere."""
ROUTED = {"mixtral", "gpt_oss"}
"""Mixtures of experts: the router chooses others along the path, F jumps there, and no rule integrates a jump."""
EVERY_EXPERT = {"num_experts_per_tok": 4}

CASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, {}) for name in (*ARCHITECTURES, *HYBRIDS, *CLASSIFIERS, *ENCODER_DECODERS)},
    **{f"{name}, every expert": (name, EVERY_EXPERT) for name in sorted(ROUTED)},
}


@dataclass(frozen=True)
class Row:
    """What came of one case."""

    case: str
    roles: bool
    """Every role that the chat holds was found, and their texts are those that were given."""
    replayed: float
    """Largest difference (nats) between a log-prob recorded while generating and one replayed."""
    converged: bool
    gap: float
    """The largest, in nats."""
    rollout_error: float | None
    """Largest difference between rollout and the product of whole eager maps; None where rollout is refused."""
    reported: bool
    """The folder holds the same numbers, the page names the model, and who did not converge is marked so."""
    why: str
    """Why rollout is refused."""

    @property
    def right(self) -> bool:
        name = CASES[self.case][0]
        if name in HYBRIDS:
            rollout = bool(self.why) and self.rollout_error is None
        else:
            rollout = self.rollout_error is not None and self.rollout_error < 1e-5
        converged = self.converged != (self.case in ROUTED)
        return bool(self.roles and self.replayed < 1e-3 and converged and rollout and self.reported)


def run(case: str, folder: Path) -> Row:
    """Generate, replay, integrate, roll out, cross-check, write, and read back."""
    name, changes = CASES[case]
    if name in CLASSIFIERS:
        loaded = make_classifier(name, initializer_range=SCALE)
        result = explain(loaded, CHAT[1]["content"], settings=nodes(256))
    elif name in ENCODER_DECODERS:
        loaded = make_encoder_decoder(name)
        result = explain(loaded, CHAT[1]["content"], max_new_tokens=3, settings=nodes(512))
    else:
        scale = "init_std" if name == "opt" else "initializer_range"
        loaded = make_loaded(name, **{scale: SCALE, **changes})
        asked = nodes(OPT_NODES if name == "opt" else 256)
        result = explain(loaded, CHAT, max_new_tokens=3, settings=asked)
    recorded = result.generation.logprobs or ()
    why = result.rollout.refused or ""
    naive = None if why else naive_rollout(loaded, result.generation)
    certificate = certificate_of(result.gradients)
    return Row(
        case=case,
        roles=roles_are_right(result.generation),
        replayed=max(abs(a - b) for a, b in zip(recorded, result.replay.logprobs, strict=True)),
        converged=all(certificate.converged),
        gap=float(certificate.gap.abs().max()),
        rollout_error=None if naive is None else float((result.rollout.values - naive).abs().max()),
        reported=is_reported(result, folder),
        why=why,
    )


def nodes(most: int) -> Settings:
    return Settings(gradients=IntegratedGradients(max_nodes=most))


def roles_are_right(generation: Generation) -> bool:
    texts = dict.fromkeys(Role, "")
    for text, role in zip(generation.texts, generation.roles, strict=True):
        texts[role] += text
    used = {role for role, text in texts.items() if text}
    if generation.classes:
        same = "".join(texts[Role.USER].split()) == "".join(CHAT[1]["content"].split())  # word pieces drop spaces
        named = texts[Role.GENERATED] == CLASSES[generation.generated_ids[0]]
        return used == {Role.TEMPLATE, Role.USER, Role.GENERATED} and same and named
    if generation.source_len:
        return used == {Role.TEMPLATE, Role.USER, Role.GENERATED} and texts[Role.USER] == CHAT[1]["content"]
    return used == {Role.TEMPLATE, Role.SYSTEM, Role.USER, Role.GENERATED} and all(
        texts[Role(message["role"])] == message["content"] for message in CHAT
    )


def naive_rollout(loaded: LoadedModel, generation: Generation) -> Tensor:
    """Whole maps of a copy that was built with eager attention, multiplied."""
    model = type(loaded.model)._from_config(loaded.model.config, attn_implementation="eager")
    model.load_state_dict(loaded.model.state_dict())
    if generation.source_len:
        return naive_two_sides(model.eval(), generation)
    seen = generation.ids[: generation.prompt_len] if generation.classes else generation.ids
    with torch.no_grad():
        maps = model.eval()(torch.tensor([seen]), output_attentions=True).attentions
    identity = torch.eye(len(seen), dtype=torch.float64)
    product = identity
    for layer in maps:
        product = (identity + layer[0].double().mean(dim=0)) @ product / 2
    if generation.classes:
        return torch.nn.functional.pad(product[list(generation.read_at)].mean(dim=0, keepdim=True), (0, 1))
    return product[[predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]]


def naive_two_sides(model: PreTrainedModel, generation: Generation) -> Tensor:
    """The same for encoder and decoder on one axis, every attention a block of a matrix."""
    cut, n = generation.source_len, len(generation.ids)
    source, own = slice(0, cut), slice(cut, n)
    given, written = (torch.tensor([generation.ids[side]]) for side in (source, own))
    with torch.no_grad():
        output = model(input_ids=given, decoder_input_ids=written, output_attentions=True, use_cache=False)
    blocks = [(layer, source, source) for layer in output.encoder_attentions]
    for mine, cross in zip(output.decoder_attentions, output.cross_attentions, strict=True):
        blocks += [(mine, own, own), (cross, own, source)]
    product = torch.eye(n, dtype=torch.float64)
    for weights, queries, keys in blocks:
        layer = torch.eye(n, dtype=torch.float64)
        layer[queries, queries] /= 2
        layer[queries, keys] += weights[0].double().mean(dim=0) / 2
        product = layer @ product
    return product[[predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]]


def is_reported(result: Explanation, folder: Path) -> bool:
    document, maps = read_folder(save(result, folder))
    page = (folder / "report.html").read_text(encoding="utf-8")
    marked = [target["status"] == Status.UNCONVERGED for target in document["targets"]]
    return (
        torch.equal(torch.from_numpy(maps["integrated_gradients"]), result.gradients.values.float())
        and rollout_is_reported(result, document, maps, page)
        and marked == [is_too_far_off(result, t) for t in range(len(result))]
        and result.environment["model"]["architecture"] in page
    )


def is_too_far_off(result: Explanation, t: int) -> bool:
    """Whether the error of the contributions could change which source comes first."""
    scores = result.scores_of()
    certificate, effects = certificate_of(scores), result.effects
    found = [] if effects is None else candidates(scores, effects, t)
    margin = found[0].score - found[1].score if len(found) > 1 else 0.0
    return not certificate.converged[t] and float(certificate.local_error[t]) > margin / 2


def rollout_is_reported(
    result: Explanation, document: Mapping[str, Any], maps: Mapping[str, np.ndarray], page: str
) -> bool:
    """The map; or for a refused one the reason, in the JSON, in the warnings and on the page, and no map."""
    reason = result.rollout.refused
    if reason is None:
        return document["refusals"].keys() <= {"deletion_path"} and torch.equal(
            torch.from_numpy(maps["rollout"]), result.rollout.values.float()
        )
    return (
        {name: why for name, why in document["refusals"].items() if name != "deletion_path"}
        == dict.fromkeys(("attention_rollout", "gradient_weighted_rollout"), reason)
        and all(target["rollout"]["sink_mass"] is None for target in document["targets"])
        and "rollout" not in maps
        and any(reason in warning for warning in document["warnings"])
        and page.count(escape(reason)) >= 3
    )


def main() -> int:
    """Print the table; 1 if a row is wrong."""
    print(f"{'architecture':23}{'roles':7}{'replayed':>10}{'converged':>11}{'gap':>9}{'rollout = eager':>17}  report")
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES):
            row = run(case, Path(folder) / str(number))
            print(line(row), flush=True)
            wrong += [] if row.right else [case]
    print(f"{len(CASES)} cases, {len(wrong)} wrong{': ' if wrong else ''}{', '.join(wrong)}")
    return int(bool(wrong))


def line(row: Row) -> str:
    rollout = "refused" if row.rollout_error is None else f"{row.rollout_error:.0e}"
    note = row.why or ("F jumps where the router changes its mind; marked unconverged" if row.case in ROUTED else "")
    return (
        f"{row.case:23}{yes(row.roles):7}{row.replayed:>10.0e}{yes(row.converged):>11}{row.gap:>9.0e}{rollout:>17}"
        f"  {yes(row.reported)}{f'  ({note})' if note else ''}"
    )


def yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    sys.exit(main())
