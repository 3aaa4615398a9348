"""Write one explanation as a folder, whole or not at all (docs/explanation-folder.md)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from llmxai.errors import NonFiniteError, OutputError
from llmxai.store.document import full_precision_of, refusals_of, warnings_of
from llmxai.store.reading import SCHEMA
from llmxai.types import Dilution, DilutionCurve, Effects, Explanation, RefereeVerdict, Rollout

TOP_SOURCES = 20
FILES = ("report.html", "explanation.json", "maps.safetensors")
DERIVED = ("report.pdf", "report.rebuilt.html", "report.rebuilt.pdf")
"""What `llmxai report` may have put beside them; it goes when the explanation is replaced."""
EVIDENCE = "evidence"
"""The folder with the log; it is only ever appended to, also where the explanation beside it is replaced."""

Render = Callable[[Mapping[str, Any], Mapping[str, np.ndarray], Mapping[str, str]], str]
"""From the parsed explanation.json, the maps and the SHA-256 of both files by name to the HTML page."""


def write_folder(explanation: Explanation, out: Path | str, *, render: Render) -> Path:
    """Write `report.html`, `explanation.json` and `maps.safetensors` into `out`, which appears by one rename.

    An `out` that holds an earlier explanation is replaced; one that holds anything else is left alone.
    Raises OutputError where it cannot be written.
    """
    out = Path(out)
    require_replaceable(out)
    document, maps = to_json(explanation), to_maps(explanation)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error}). Choose another folder with --out.") from error
    try:
        text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
        (scratch / "explanation.json").write_text(text + "\n", encoding="utf-8")
        save_file(maps, scratch / "maps.safetensors", metadata={"schema": SCHEMA})
        digests = {name: _digest(scratch / name) for name in ("explanation.json", "maps.safetensors")}
        (scratch / "report.html").write_text(render(document, maps, digests), encoding="utf-8")
        scratch.chmod(0o755)
        (scratch / "maps.safetensors").chmod(0o644)
        _put(scratch, out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error}). Choose another folder with --out.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def to_maps(explanation: Explanation) -> dict[str, np.ndarray]:
    """The maps, float32: [target, seq], and [target, unit] of the referee; none for what is refused.

    Raises NonFiniteError in place of NaN.
    """
    maps = {
        "integrated_gradients": explanation.attribution.values.float().numpy(),
    }
    rolled = {"rollout": explanation.rollout, "rollout_variant": explanation.variant}
    maps |= {name: rollout.rows.float().numpy() for name, rollout in rolled.items() if rollout.refused is None}
    if explanation.ablations is not None:
        maps["leave_one_out"] = explanation.ablations.drop.float().numpy()
    for name, values in maps.items():
        if not np.isfinite(values).all():
            raise NonFiniteError(f"The map {name!r} holds NaN or infinity; nothing was written.")
    return maps


def to_json(explanation: Explanation) -> dict[str, Any]:
    """The explanation as plain JSON values, schema `llmxai.explanation/2`."""
    generation = explanation.generation
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "generation": {
            "prompt_len": generation.prompt_len,
            "stop": generation.stop,
            "request": dict(generation.request),
            "decoding": dict(generation.decoding),
            "source_len": generation.source_len,
            "classes": list(generation.classes),
            "answer": "".join(generation.texts[generation.prompt_len :]),
        },
        "tokens": [
            {"index": i, "id": token, "text": text, "role": str(role)}
            for i, (token, text, role) in enumerate(
                zip(generation.ids, generation.texts, generation.roles, strict=True)
            )
        ],
        "words": [list(word) for word in generation.words],
        "targets": [_target(explanation, t) for t in range(generation.n_targets)],
        "ablations": _ablations(explanation.ablations),
        "refusals": refusals_of(explanation),
        "full_precision": full_precision_of(explanation),
        "variant": dict(explanation.settings["variant"]),
        "settings": {name: value for name, value in explanation.settings.items() if name != "variant"},
        "environment": dict(explanation.environment),
        "warnings": list(warnings_of(explanation)),
    }


def _target(explanation: Explanation, t: int) -> dict[str, Any]:
    generation, attribution = explanation.generation, explanation.attribution
    check, position = explanation.checks[t], explanation.generation.prompt_len + t
    f_input, f_baseline = float(attribution.f_input[t]), float(attribution.f_baseline[t])
    features, foil = attribution.features[t].numpy(), generation.foil_of(t)
    return {
        "position": position,
        "id": generation.ids[position],
        "text": generation.texts[position],
        "foil": None if foil is None else {"id": foil.id, "text": foil.text},
        "logprob": None if generation.logprobs is None else generation.logprobs[t],
        "replayed_logprob": explanation.replay.logprobs[t],
        "rank": explanation.replay.ranks[t],
        "status": str(check.status),
        "reason": check.reason,
        "gap": float(attribution.gap[t]),
        "local_error": float(attribution.local_error[t]),
        "tolerance": float(attribution.tolerance[t]),
        "nodes": attribution.nodes[t],
        "f_input": f_input,
        "f_baseline": f_baseline,
        "net": f_input - f_baseline,
        "converged": attribution.converged[t],
        "agreement": asdict(check.agreement),
        "agreement_variant": asdict(check.variant_agreement),
        "rollout": _row(check.dilution, explanation.rollout, t),
        "rollout_variant": _row(check.variant_dilution, explanation.variant, t),
        "curve": _curve(explanation.rollout.curve, t),
        "referee": _verdict(check.verdict),
        "sources": {
            "integrated_gradients": _sources(attribution.values[t].numpy(), features),
            "rollout": _rolled_sources(explanation.rollout, t, features),
            "rollout_variant": _rolled_sources(explanation.variant, t, features),
            "leave_one_out": _unit_sources(explanation.ablations, t),
        },
    }


def _rolled_sources(rollout: Rollout, t: int, features: np.ndarray) -> list[dict[str, Any]]:
    return [] if rollout.refused is not None else _sources(rollout.rows[t].numpy(), features)


def _row(dilution: Dilution | None, rollout: Rollout, t: int) -> dict[str, Any]:
    if dilution is None:
        return dict.fromkeys((*(part.name for part in fields(Dilution)), "lost_mass"))
    return {**asdict(dilution), "lost_mass": float(rollout.lost_mass[t])}


def _curve(curve: DilutionCurve | None, t: int) -> dict[str, list[float]] | None:
    if curve is None:
        return None
    return {part.name: getattr(curve, part.name)[t].tolist() for part in fields(curve)}


def _verdict(verdict: RefereeVerdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {
        "better": verdict.better,
        "difference": verdict.difference,
        "interval": None if verdict.interval is None else list(verdict.interval),
        "scores": {name: asdict(score) for name, score in verdict.scores.items()},
        "sources": list(verdict.sources),
        "missed": {name: list(units) for name, units in verdict.missed.items()},
    }


def _ablations(ablations: Effects | None) -> dict[str, Any] | None:
    if ablations is None:
        return None
    return {
        **ablations.settings,
        "operator": ablations.operator,
        "units": [list(unit) for unit in ablations.units],
        "masks": len(ablations.kept),
    }


def _unit_sources(ablations: Effects | None, t: int) -> list[dict[str, Any]]:
    """The units whose loss changes the log-prob most, by |drop|, with their share of the sum of |drop|."""
    if ablations is None:
        return []
    drop = ablations.drop[t].numpy()
    found = _sources(drop, np.ones(len(drop), dtype=bool))
    return [{"unit": one["index"], "value": one["value"], "share": one["share"]} for one in found]


def _sources(values: np.ndarray, features: np.ndarray) -> list[dict[str, Any]]:
    """The features with the largest |value|, with their share of the sum of |value| over all features."""
    indices = np.flatnonzero(features)
    magnitude = np.abs(values[indices])
    total = float(magnitude.sum())
    order = np.argsort(-magnitude, kind="stable")[:TOP_SOURCES]
    return [
        {
            "index": int(indices[i]),
            "value": float(values[indices[i]]),
            "share": float(magnitude[i]) / total if total else 0.0,
        }
        for i in order
    ]


def require_replaceable(out: Path) -> None:
    """Raise OutputError where `out` is a file, holds files that are not ours, or lies where nothing can be written."""
    nearest = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not os.access(nearest, os.W_OK):
        raise OutputError(f"{out}: {nearest} cannot be written. Choose another folder with --out.")
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file. Choose another folder with --out.")
    strangers = sorted(entry.name for entry in out.iterdir() if entry.name not in (*FILES, *DERIVED, EVIDENCE))
    if strangers:
        raise OutputError(
            f"{out}: holds {strangers[0]!r}, which llmxai did not write, so it is left alone. Choose a new or an "
            f"empty folder with --out."
        )


def evidence_folder(out: Path | str) -> Path:
    """Where the log of an explanation in `out` lies: inside it, or beside it where nothing of ours may go inside."""
    out = Path(out)
    try:
        require_replaceable(out)
    except OutputError:
        return out.with_name(f"{out.name}.{EVIDENCE}")
    return out / EVIDENCE


def _put(scratch: Path, out: Path) -> None:
    """By one rename where `out` is new; else file by file, with the earlier files put back where one fails."""
    for name in FILES:
        _sync(scratch / name)
    if not out.exists():
        scratch.rename(out)
        return
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-old-"))
    earlier = [name for name in FILES if (out / name).exists()]
    try:
        for name in earlier:
            (out / name).rename(old / name)
        for name in FILES:
            (scratch / name).rename(out / name)
        for name in DERIVED:
            (out / name).unlink(missing_ok=True)
    except BaseException:
        for name in FILES:
            if (old / name).exists():
                (old / name).replace(out / name)
            elif name not in earlier:
                (out / name).unlink(missing_ok=True)
        raise
    finally:
        if all((out / name).exists() for name in earlier):
            shutil.rmtree(old, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
