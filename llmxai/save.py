"""Write an explanation to disk with its report and its record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from llmxai.errors import EvidenceError
from llmxai.evidence import Attempt, announce, begin, explained, signing_key, vouched
from llmxai.evidence.files import describe
from llmxai.evidence.provenance import provenance
from llmxai.evidence.record import File
from llmxai.explanation import Explanation
from llmxai.report import build_view, home_of, render_report
from llmxai.report.rebuild import unnoticed
from llmxai.store import FILES, evidence_folder, require_writable, to_json, write_folder
from llmxai.store.folder import DERIVED


def save(
    explanation: Explanation,
    out: Path | str,
    *,
    replace: bool = False,
    attempt: Attempt | None = None,
    run: Path | str | None = None,
) -> Path:
    """Write `report.html`, `explanation.json` and `maps.safetensors` into the folder `out`, then append the record.

    An earlier explanation in `out` is refused, or replaced with `replace`; its record stays in the log.
    `attempt`: from `llmxai.evidence.recording` or `begin`, for a record that says who asked, why and since when;
    without one, the record starts when saving starts and goes to `out/evidence`. A private attempt writes no files,
    only the record, which holds no text. `run`: the folder of a run; the page links back to its index.html.

    >>> save(explanation, "runs/france")  # report.html, explanation.json, maps.safetensors, evidence/

    Raises OutputError if `out` cannot be written, holds other files or, without `replace`, an earlier explanation, and
    EvidenceError if the log is damaged or `out` is outside the folder of the attempt's log.
    """
    out = Path(out)
    if attempt is None or attempt.private is None:
        require_writable(out, replace=replace)
    warnings = to_json(explanation)["warnings"]
    if attempt is None:
        attempt = begin(evidence_folder(out), signer=signing_key())
        warnings = [*warnings, "The recorded start is the start of saving: the time of the request is unknown."]
    base = attempt.folder.parent
    if not out.resolve().is_relative_to(base.resolve()):
        raise EvidenceError(f"{out}: is outside {base}, the folder of the log, so the log could not name its files.")
    if attempt.private is not None:
        explained(attempt, explanation, warnings=warnings)
        return out
    home = None if run is None else home_of(out, run=Path(run))
    with nullcontext(unnoticed) if attempt.drafts else vouched(base, signer=attempt.signer) as changing:
        if any((out / name).exists() for name in DERIVED):  # they go with what they were made from
            changing()
        folder = write_folder(
            explanation,
            out,
            render=lambda *parts: _page(attempt, home, *parts),
            replace=replace,
            replacing=lambda scratch: announce(attempt, _as_in(out, scratch, base)),
        )
        files = [describe(folder.resolve() / name, base=base.resolve()) for name in FILES]
        explained(attempt, explanation, artefacts=files, warnings=warnings)
    return folder


def _as_in(out: Path, scratch: Path, base: Path) -> list[File]:
    """The files in `scratch` as they are described once they are in `out`."""
    place = out.resolve().relative_to(base.resolve())
    return [
        dataclasses.replace(describe(scratch / name, base=scratch), path=(place / name).as_posix()) for name in FILES
    ]


def _page(
    attempt: Attempt,
    home: str | None,
    document: Mapping[str, Any],
    maps: Mapping[str, np.ndarray],
    digests: Mapping[str, str],
) -> str:
    told = provenance(
        attempt.id,
        run=attempt.folder.parent,
        keyid=attempt.keyid,
        digests=digests,
        model=document["environment"]["model"]["digest"],
    )
    return render_report(build_view(document, maps, home=home, provenance=told))
