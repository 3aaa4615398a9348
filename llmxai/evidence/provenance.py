"""What a page says about its own record: id, digests and the command that checks it. The page itself verifies nothing.

The id is given before the record is written. The page shows the digests of the files that it was made from; its own
stands in the record only, since a file cannot hold its own digest.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmxai.errors import EvidenceError
from llmxai.evidence.reading import Log, read_log
from llmxai.evidence.verifier.checkpoint import read_checkpoint
from llmxai.evidence.verifier.folder import CHECKPOINTS, LOG
from llmxai.evidence.verifier.lines import Entry, split_lines

UNSIGNED = "unsigned: nobody vouches for this record"


def provenance(
    id: str, *, run: Path, keyid: str | None, digests: Mapping[str, str], model: str | None
) -> dict[str, Any]:
    """`run`: the folder that holds `evidence/`, as the command shall name it; `digests`: SHA-256 of files by name."""
    key = " --pubkey KEY.pub" if keyid else ""
    return {
        "record": id,
        "verify": f"llmxai verify {shlex.quote(str(run))}{key}",
        "signature": f"Ed25519, key {keyid}" if keyid else UNSIGNED,
        "sha256": dict(digests),
        "model sha256": model,
    }


def provenance_of(folder: Path) -> dict[str, Any] | None:
    """The same for an explanation on disk (in a folder of its own, or in a run's), with the reviewers' decisions; for
    the folder of a run, what its whole log is. None where no readable log names it.
    """
    for run in (folder, folder.parent, folder.parent.parent):
        if (run / "evidence" / LOG).exists():
            try:
                log = read_log(run)
            except EvidenceError:
                return None
            prefix = folder.resolve().relative_to(run.resolve()).as_posix()
            name = "explanation.json" if prefix == "." else f"{prefix}/explanation.json"
            found = [entry for entry, _ in log if name in [artefact["path"] for artefact in entry.body["artefacts"]]]
            if not found and run == folder:
                return _of_run(run, log)
            return _told(run, found[-1], log) if found else None
    return None


def records_of(run: Path) -> dict[str, str]:
    """By the name of its folder the id of the newest record of each explanation of a run; empty without a log."""
    if not (run / "evidence" / LOG).exists():
        return {}
    try:
        log = read_log(run)
    except EvidenceError:
        return {}
    return {
        artefact["path"].rpartition("/")[0].rpartition("/")[2]: entry.id
        for entry, _ in log
        for artefact in entry.body["artefacts"] or ()
        if artefact["path"].endswith("/explanation.json")
    }


def _of_run(run: Path, log: Log) -> dict[str, Any]:
    keyid, last = _signer(run, len(log) - 1), log[-1][0]
    return {
        "verify": f"llmxai verify {shlex.quote(str(run))}{' --pubkey KEY.pub' if keyid else ''}",
        "log": last.body["chain"]["log"],
        "records": len(log),
        "last record": last.id,
        "signature": f"Ed25519, key {keyid}" if keyid else UNSIGNED.replace("record", "log"),
    }


def _told(run: Path, entry: Entry, log: Log) -> dict[str, Any]:
    body = json.loads(log[entry.seq][1])
    names = {artefact["path"].rpartition("/")[2]: artefact["sha256"] for artefact in body["artefacts"]}
    told = provenance(
        entry.id,
        run=run,
        keyid=_signer(run, entry.seq),
        digests={name: digest for name, digest in sorted(names.items()) if name != "report.html"},
        model=(body["model"] or {}).get("digest"),
    )
    decisions = [
        f"{each['link']['decision']} by {each['link']['by']}, {each['ended']} (record {each['id']})"
        for each in (json.loads(record) for _, record in log[entry.seq :])
        if each["kind"] == "review" and entry.id in each["link"]["records"]
    ]
    return told | ({"reviews": decisions} if decisions else {})


def _signer(run: Path, seq: int) -> str | None:
    """The key of the first checkpoint over the record, as the page said when it was made."""
    lines, _ = split_lines(run / "evidence" / CHECKPOINTS)
    for line in lines:
        try:
            point = read_checkpoint(line)
        except ValueError:
            return None
        if point.size > seq:
            return point.keyid
    return None
