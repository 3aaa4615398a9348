"""The provenance box of a page: the id of its record, digests, and the command that checks them.

The page itself verifies nothing. The id is chosen before the record is written. The page shows the digests of the files
that it was made from; its own digest is only in the record, since a file cannot contain its own digest.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmxai.evidence.verifier.folder import CHECKPOINTS, LOG
from llmxai.evidence.verifier.lines import MANIFEST, BrokenLogError, Entry, UnreadableError, chained, split_lines
from llmxai.evidence.verifier.proof import read_checkpoint

UNSIGNED = "unsigned: no key vouches for this record"


def provenance(
    id: str, *, run: Path, keyid: str | None, digests: Mapping[str, str], model: str | None
) -> dict[str, Any]:
    """`run`: the folder with `evidence/`, as the command names it; `digests`: SHA-256 of files by name."""
    key = " --pubkey KEY.pub" if keyid else ""
    return {
        "record": id,
        "verify": f"llmxai verify {shlex.quote(str(run))}{key}",
        "signature": f"Ed25519, key {keyid}" if keyid else UNSIGNED,
        "sha256": dict(digests),
        "model sha256": model,
    }


def provenance_of(folder: Path, *, keyid: str | None = None) -> dict[str, Any] | None:
    """The same for an explanation on disk (in its own folder or in a run's), with the reviewers' decisions; for the
    folder of a run, about its whole log. None if no readable log names it.
    """
    for run in (folder, folder.parent, folder.parent.parent):
        if (run / "evidence" / LOG).exists():
            log = _Log.of(run)
            if log is None:
                return None
            prefix = folder.resolve().relative_to(run.resolve()).as_posix()
            found = log.told("explanation.json" if prefix == "." else f"{prefix}/explanation.json")
            if found is None and run == folder:
                return log.told_of_run(keyid)
            return found
    return None


def provenances_of(run: Path) -> Callable[[Path], dict[str, Any] | None]:
    """`provenance_of` for the folders of one run; reads its log only once."""
    log = _Log.of(run) if (run / "evidence" / LOG).exists() else None
    base = run.resolve()

    def of(folder: Path) -> dict[str, Any] | None:
        if log is None or folder.resolve() == base:
            return provenance_of(folder)
        return log.told(f"{folder.resolve().relative_to(base).as_posix()}/explanation.json")

    return of


def records_of(run: Path) -> dict[str, str]:
    """The id of the newest record of each explanation of a run, by the name of its folder; empty without a log."""
    log = _Log.of(run) if (run / "evidence" / LOG).exists() else None
    if log is None:
        return {}
    return {path.rpartition("/")[0].rpartition("/")[2]: known.id for path, known in log.known.items()}


def reviews_of(run: Path) -> dict[str, list[str]]:
    """The decisions on each explanation of a run, by the name of its folder, oldest first; empty without a log."""
    log = _Log.of(run) if (run / "evidence" / LOG).exists() else None
    if log is None:
        return {}
    return {path.rpartition("/")[0].rpartition("/")[2]: known.short for path, known in log.known.items() if known.short}


@dataclass
class _Known:
    """The newest record that names an explanation.json."""

    id: str
    seq: int
    digests: dict[str, str]
    model: str | None
    decisions: list[str]
    short: list[str]
    """The decisions without time and record."""


class _Log:
    """The facts about a log that pages show, collected in one pass: a long log is never held in memory."""

    def __init__(self, run: Path) -> None:
        """Raises BrokenLogError."""
        self.run = run
        self.known: dict[str, _Known] = {}
        self.last: Entry | None = None
        """The last record that is no manifest: a manifest names the pages, so they cannot tell of it."""
        self.records = 0
        owners: dict[str, _Known] = {}
        for entry, record in chained(split_lines(run / "evidence" / LOG)[0]):
            if entry.body["kind"] == MANIFEST:
                continue
            self.last, self.records = entry, self.records + 1
            files = {artefact["path"]: artefact["sha256"] for artefact in entry.body["artefacts"]}
            for path in files:
                if path.rpartition("/")[2] == "explanation.json":
                    self.known[path] = owners[entry.id] = _known(entry, files, record)
            if entry.body["kind"] == "review":
                for id in entry.body["link"]["records"]:
                    if id in owners:
                        owners[id].decisions.append(_decision(entry))
                        owners[id].short.append(f"{entry.body['link']['decision']} ({entry.body['link']['by']})")

    @classmethod
    def of(cls, run: Path) -> _Log | None:
        """None if there is no record, or the log is damaged."""
        try:
            log = cls(run)
        except (BrokenLogError, UnreadableError):
            return None
        return None if log.last is None else log

    def told(self, path: str) -> dict[str, Any] | None:
        """The box of an explanation's page; None if no record names it."""
        known = self.known.get(path)
        if known is None:
            return None
        told = provenance(
            known.id, run=self.run, keyid=_signer(self.run, known.seq), digests=known.digests, model=known.model
        )
        return told | ({"reviews": known.decisions} if known.decisions else {})

    def told_of_run(self, keyid: str | None) -> dict[str, Any]:
        assert self.last is not None
        keyid = _signer(self.run, self.last.seq, keyid)
        return {
            "verify": f"llmxai verify {shlex.quote(str(self.run))}{' --pubkey KEY.pub' if keyid else ''}",
            "log": self.last.body["chain"]["log"],
            "records": self.records,
            "last record": self.last.id,
            "signature": f"Ed25519, key {keyid}" if keyid else UNSIGNED.replace("record", "log"),
        }


def _known(entry: Entry, files: Mapping[str, str], record: bytes) -> _Known:
    names = {path.rpartition("/")[2]: sha256 for path, sha256 in files.items()}
    digests = {name: digest for name, digest in sorted(names.items()) if name != "report.html"}
    return _Known(entry.id, entry.seq, digests, (json.loads(record)["model"] or {}).get("digest"), [], [])


def _decision(review: Entry) -> str:
    link = review.body["link"]
    return f"{link['decision']} by {link['by']}, {review.body['ended']} (record {review.id})"


def _signer(run: Path, seq: int, otherwise: str | None = None) -> str | None:
    """The key of the first checkpoint over the record, which the page named when it was made."""
    try:
        for line in split_lines(run / "evidence" / CHECKPOINTS)[0]:
            point = read_checkpoint(line)
            if point.size > seq:
                return point.keyid
    except ValueError:
        return None
    return otherwise
