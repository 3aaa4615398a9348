"""Once texts of records were removed (llmxai/evidence/removal.py), a run's own tables and pages lose them as well."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llmxai.evidence.provenance import provenance_of, records_of
from llmxai.evidence.reading import read_log, removed_ids
from llmxai.evidence.verifier.folder import evidence_of
from llmxai.report import write_index
from llmxai.report.rebuild import INDEX, PAGE, REBUILT
from llmxai.report.rows import ROWS, record_folders
from llmxai.runs.ledger import Ledger
from llmxai.runs.results import GROUP, write_table

REMOVED = "(removed)"
"""Stands where the text was."""
PAGES = tuple(str(Path(page).with_suffix(kind)) for page in (PAGE, REBUILT) for kind in (".html", ".pdf"))
"""What `llmxai report` may have put beside an explanation; no record names the last three."""


def clear_removed(run: Path | str) -> int:
    """Take the texts of removed records out of the ledger, rows.parquet, the index and pages that were made again.

    Goes by the log: what a redaction or a prune of any time says is gone goes from everything here, so that a call that
    was interrupted is finished by the next. Figures stay. Returns how many rows of the ledger were cleared.

    Raises EvidenceError where there is no log or a broken one, and OutputError for what cannot be written.
    """
    place = evidence_of(Path(run))
    base, log = place.parent, read_log(place)
    gone = removed_ids(log)
    if not gone:
        return 0
    for entry, _ in log:
        if entry.id in gone:
            _remove_pages({(base / artefact["path"]).parent for artefact in entry.body["artefacts"]})
    cleared = _clear_ledger(Ledger(base), gone)
    if (base / ROWS).is_file():
        with pq.ParquetFile(base / ROWS) as table:
            write_table(base / ROWS, _without_texts(table, gone), table.schema_arrow)
    if (base / INDEX).is_file():
        if (base / ROWS).is_file() or record_folders(base):
            write_index(base, provenance=provenance_of(base), records=records_of(base))
        else:
            (base / INDEX).unlink()
    return cleared


def _remove_pages(folders: Collection[Path]) -> None:
    """Of explanations that are gone; where a later record has put its own there, they stay."""
    for folder in folders:
        if not (folder / "explanation.json").exists():
            for page in PAGES:
                (folder / page).unlink(missing_ok=True)


def _clear_ledger(ledger: Ledger, gone: Collection[str]) -> int:
    cleared = 0
    for row_id in ledger.rows():
        entry = ledger.read(row_id)
        if entry is not None and entry.get("record") in gone and (bare := _bare(entry)) != entry:
            ledger.commit(row_id, bare)
            cleared += 1
    return cleared


def _without_texts(table: pq.ParquetFile, gone: Collection[str]) -> Iterator[dict[str, Any]]:
    for batch in table.iter_batches(batch_size=GROUP):
        for row in batch.to_pylist():
            yield _bare(row) if row.get("record") in gone else row


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its figures and none of its texts; it says so in their place."""
    texts = {name: REMOVED for name in ("prompt", "answer", "error") if row.get(name)}
    fields: dict[str, Any] = {name: None for name in row if name.startswith("field.")}  # of the table
    if "fields" in row:  # of the ledger
        fields["fields"] = {}
    return row | texts | fields
