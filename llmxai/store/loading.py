"""An explanation's folder as an `Explanation` again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmxai.errors import OutputError
from llmxai.explanation import GRADIENTS, ROLLOUT, Explanation
from llmxai.names import Role, Status
from llmxai.settings import settings_from
from llmxai.store.reading import SCHEMA, read_folder
from llmxai.types import (
    Agreement,
    Certificate,
    CrossCheck,
    Dilution,
    DilutionCurve,
    Effects,
    Foil,
    FullPrecision,
    Generation,
    RefereeVerdict,
    Replay,
    Score,
    Scores,
    predicting_position,
)

Maps = Mapping[str, np.ndarray]
DILUTION = ("sink_mass", "feature_mass", "entropy", "null_divergence", "similarity")


def load_explanation(folder: Path | str) -> Explanation:
    """The explanation that `llmxai explain` or `save` wrote into `folder`.

    Its scores are those of the maps, float32. No model is needed. Raises OutputError for a folder that is not ours, or
    that an earlier version wrote: `llmxai report` still reads those.
    """
    document, maps = read_folder(folder)
    if document["schema"] != SCHEMA:
        raise OutputError(
            f"{folder}: was written with schema {document['schema']!r}, which lacks what an Explanation needs. Its "
            f"page and tables can be made again (llmxai report, llmxai table); explain the answer again for the rest."
        )
    return from_json(document, maps)


def from_json(document: Mapping[str, Any], maps: Maps) -> Explanation:
    """From a parsed explanation.json of the newest schema and its maps."""
    generation = _generation(document)
    settings = settings_from(document["settings"])
    computed = {**document["computed"], "variant": document["variant"]}
    targets = document["targets"]
    replay = Replay(
        logprobs=tuple(target["replayed_logprob"] for target in targets),
        f=tuple(target["f_input"] for target in targets),
        ranks=tuple(target["rank"] for target in targets),
        tolerance=computed.get("replay_tolerance"),
    )
    names = {GRADIENTS: "integrated_gradients", ROLLOUT: "rollout", settings.rollout.variant: "rollout_variant"}
    return Explanation(
        generation=generation,
        replay=replay,
        scores={name: _scores(name, names.get(name), document, maps, generation) for name in document["scores"]},
        effects=_effects(document, maps, replay),
        checks=tuple(_check(target) for target in targets),
        settings=settings,
        computed=computed,
        environment=document["environment"],
        created=document["created"],
        full_precision=_full_precision(document["full_precision"]),
    )


def _generation(document: Mapping[str, Any]) -> Generation:
    told, tokens, targets = document["generation"], document["tokens"], document["targets"]
    recorded = [target["logprob"] for target in targets]
    foils = [Foil(t=t, **target["foil"]) for t, target in enumerate(targets) if target["foil"] is not None]
    return Generation(
        ids=tuple(token["id"] for token in tokens),
        prompt_len=told["prompt_len"],
        roles=tuple(Role(token["role"]) for token in tokens),
        texts=tuple(token["text"] for token in tokens),
        words=tuple((start, end) for start, end in document["words"]),
        logprobs=None if None in recorded else tuple(recorded),
        stop=told["stop"],
        request=told["request"],
        decoding=told["decoding"],
        source_len=told["source_len"],
        classes=tuple(told["classes"]),
        read_at=tuple(told["read_at"]),
        foil=foils[0] if foils else None,
    )


def _scores(name: str, map_name: str | None, document: Mapping[str, Any], maps: Maps, generation: Generation) -> Scores:
    told, targets, n = document["scores"][name], document["targets"], len(generation.ids)
    own = map_name or name
    nothing = torch.zeros(len(targets), n, dtype=torch.float64)
    if told["refused"] is not None:
        return Scores(name, nothing, nothing.bool(), told["signed"], told["settings"], refused=told["refused"])
    values = _float(maps[own])
    if name == GRADIENTS:
        features = _bool(maps["features"])
        return Scores(name, values, features, told["signed"], told["settings"], certificate=_certificate(targets))
    null = maps.get(f"{own}_null" if map_name else f"{own}.null")
    last = [predicting_position(generation.prompt_len, t) for t in range(len(targets))]
    seen = torch.arange(n) <= torch.tensor(last)[:, None]
    lost = [target[own]["lost_mass"] for target in targets] if map_name else None
    return Scores(
        name,
        values,
        seen if map_name else _bool(maps[f"{own}.features"]),
        told["signed"],
        told["settings"],
        null=None if null is None else _float(null),
        lost_mass=None if lost is None else torch.tensor(lost, dtype=torch.float64),
        curve=_curve([target["curve"] for target in targets]) if name == ROLLOUT else None,
    )


def _certificate(targets: Sequence[Mapping[str, Any]]) -> Certificate:
    def column(name: str) -> Tensor:
        return torch.tensor([target[name] for target in targets], dtype=torch.float64)

    return Certificate(
        f_input=column("f_input"),
        f_baseline=column("f_baseline"),
        gap=column("gap"),
        local_error=column("local_error"),
        tolerance=column("tolerance"),
        nodes=tuple(target["nodes"] for target in targets),
        converged=tuple(target["converged"] for target in targets),
    )


def _curve(curves: Sequence[Mapping[str, Sequence[float]] | None]) -> DilutionCurve | None:
    known = [curve for curve in curves if curve is not None]
    if not known:
        return None
    names = ("sink_mass", "entropy", "null_divergence", "similarity")
    return DilutionCurve(
        **{name: torch.tensor([curve[name] for curve in known], dtype=torch.float64) for name in names}
    )


def _effects(document: Mapping[str, Any], maps: Maps, replay: Replay) -> Effects | None:
    told = document["ablations"]
    if told is None:
        return None
    units = tuple((start, end) for start, end in told["units"])
    f = torch.from_numpy(maps["removal_f"].copy())
    return Effects(
        operator=told["operator"],
        units=units,
        kept=_bool(maps["removal_kept"]),
        f_full=torch.tensor(replay.f, dtype=torch.float64),
        f_without=f[:, : len(units)],
        f_masked=f[:, len(units) :],
        settings={key: value for key, value in told.items() if key not in ("operator", "units", "masks")},
    )


def _check(target: Mapping[str, Any]) -> CrossCheck:
    return CrossCheck(
        status=Status(target["status"]),
        reason=target["reason"],
        agreement=Agreement(**target["agreement"]),
        dilution=_dilution(target["rollout"]),
        variant_agreement=Agreement(**target["agreement_variant"]),
        variant_dilution=_dilution(target["rollout_variant"]),
        verdict=_verdict(target["referee"]),
    )


def _dilution(row: Mapping[str, float | None]) -> Dilution | None:
    if row["sink_mass"] is None:
        return None
    return Dilution(**{name: row[name] for name in DILUTION})  # type: ignore[arg-type]


def _verdict(told: Mapping[str, Any] | None) -> RefereeVerdict | None:
    if told is None:
        return None
    return RefereeVerdict(
        scores={name: Score(**score) for name, score in told["scores"].items()},
        better=told["better"],
        difference=told["difference"],
        interval=None if told["interval"] is None else (told["interval"][0], told["interval"][1]),
        sources=tuple(told["sources"]),
        missed={name: tuple(units) for name, units in told["missed"].items()},
    )


def _full_precision(told: Mapping[str, Any] | None) -> FullPrecision | None:
    if told is None:
        return None
    targets = told["targets"]
    return FullPrecision(
        model=told["model"],
        dtype=told["dtype"],
        digest=told["digest"],
        replay=Replay(
            logprobs=tuple(target["logprob"] for target in targets),
            f=tuple(target["logprob"] for target in targets),
            ranks=tuple(target["rank"] for target in targets),
            tolerance=None,
        ),
        cosines=tuple(target["cosine"] for target in targets),
        same_source=tuple(target["same_source"] for target in targets),
        statuses=tuple(Status(target["status"]) for target in targets),
    )


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float64))


def _bool(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(bool))
