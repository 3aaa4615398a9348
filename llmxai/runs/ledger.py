"""The ledger of a run, row by row, and the removal of texts from it. Needs no torch.

The ledger is one small JSON file per row, written by one rename. A row has two states on disk. `ID.prepared`: all its
files are on disk, including its entry and the draft of its record. `ID.json`: its record is in the evidence log too, so
it is done. Both hold the row's key: a digest of its input, the model's digest and the settings. A run killed at any
moment leaves each row done, prepared (the writer of the log completes it) or not done (partial files are replaced).

`ID.aborted` is the draft of an interrupted attempt, until the writer of the log takes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmxai.errors import OutputError
from llmxai.evidence import Draft, vouched
from llmxai.evidence.files import make_durably, replace_durably, replacing, sweep
from llmxai.evidence.log import Known, read_known, read_log, removed_ids
from llmxai.evidence.provenance import provenance_of, records_of, reviews_of
from llmxai.evidence.verifier.folder import evidence_of
from llmxai.report import write_index
from llmxai.report.rebuild import INDEX, PAGE, REBUILT, unnoticed
from llmxai.report.rows import ROWS, record_folders

SCHEMA = "llmxai.row/1"
MARK = ".lock"
"""The file of a run's folder that is locked; it stays and marks the folder as a run's."""
ROW_FILES = (PAGE, "explanation.json", "maps.safetensors")
"""Of a row that was explained."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all, even across a power cut. Raises OutputError."""
    try:
        make_durably(path.parent)
        replace_durably(path, data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}). Choose another folder with --out.") from error


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    write_atomically(path, json_bytes(document))


def json_bytes(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def key_of(**parts: Any) -> str:
    """SHA-256 over the parts as JSON with sorted keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=list)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


class Ledger:
    """The rows of one run."""

    def __init__(self, run: Path, *, marked: bool = False) -> None:
        """`marked`: the folder is a run's, with its mark, and nothing is written once that is gone."""
        self.run, self.folder, self.marked = run, run / "ledger", marked
        self.known: Known | None = None
        """The facts in the log; if given, only rows that it confirms are done."""

    def find(self, row_id: str, *, key: str) -> dict[str, Any] | None:
        """The row's entry if it is done under this key."""
        entry = self.read(row_id)
        if entry is None or entry.get("key") != key:
            return None
        return entry if self.known is None or self._is_recorded(row_id, entry, self.known) else None

    def _is_recorded(self, row_id: str, entry: Mapping[str, Any], known: Known) -> bool:
        """Whether the entry's record is in the log and matches the entry and the row's files."""
        if entry.get("record") not in known.ids:
            return False
        if entry["record"] in known.removed:  # its texts and files were removed on purpose
            return True
        said = known.digest(f"ledger/{row_id}.json")
        if said is not None and hashlib.sha256(self._path(row_id, "json").read_bytes()).hexdigest() != said:
            return False
        names = ROW_FILES if entry.get("explanation_sha256") else ()
        return all((self.run / "records" / row_id / name).is_file() for name in names)

    def read(self, row_id: str) -> dict[str, Any] | None:
        """The row's entry, whatever its key; None if there is no readable one."""
        return _read(self._path(row_id, "json"))

    def rows(self) -> list[str]:
        """The ids of the rows that are done."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def prepare(self, row_id: str, entry: Mapping[str, Any], draft: Draft | None) -> None:
        """Store the row's future entry and record. All other files of the row must already be on disk."""
        kept = None
        if draft is not None:
            kept = draft.entering(f"ledger/{row_id}.json", json_bytes({"schema": SCHEMA, **entry})).to_json()
        document = {"schema": SCHEMA, "key": entry["key"], "entry": dict(entry), "draft": kept}
        self._write(row_id, "prepared", document)

    def prepared(self, row_id: str, *, key: str) -> tuple[dict[str, Any], Draft | None] | None:
        """The entry and the draft of the row, if it is prepared under this key."""
        found = _read(self._path(row_id, "prepared"))
        if found is None or found.get("key") != key:
            return None
        return found["entry"], None if found["draft"] is None else Draft.from_json(found["draft"])

    def is_prepared(self, row_id: str, *, key: str) -> bool:
        """Whether the row is prepared under this key."""
        found = _read(self._path(row_id, "prepared"))
        return found is not None and found.get("key") == key

    def has(self, row_id: str, *, key: str, attempt: str) -> bool:
        """Whether this attempt at the row is prepared or done: a batch may be handed out again after that."""
        if self.is_prepared(row_id, key=key):  # checked first, since a row is prepared until it is done
            return True
        entry = self.find(row_id, key=key)
        return entry is not None and entry.get("attempt") == attempt

    def commit(self, row_id: str, entry: Mapping[str, Any]) -> None:
        """Mark the row as done: its record is in the log."""
        self._write(row_id, "json", {"schema": SCHEMA, **entry})
        self._path(row_id, "prepared").unlink(missing_ok=True)

    def abort(self, row_id: str, draft: Draft) -> None:
        """Store the record of an interrupted attempt."""
        self._write(row_id, "aborted", {"schema": SCHEMA, "draft": draft.to_json()})

    def aborted(self) -> Iterator[tuple[Path, Draft]]:
        """The records of interrupted attempts, each with its file."""
        for path in sorted(self.folder.glob("*.aborted")):
            found = _read(path)
            if found is not None:
                yield path, Draft.from_json(found["draft"])

    def require_run(self) -> None:
        """Raise OutputError if the folder of the run was removed meanwhile."""
        if self.marked and not (self.run / MARK).exists():
            raise OutputError(f"{self.run}: was removed while the run was using it. Nothing more is written there.")

    def _write(self, row_id: str, state: str, document: Mapping[str, Any]) -> None:
        self.require_run()
        write_json(self._path(row_id, state), document)

    def _path(self, row_id: str, state: str) -> Path:
        return self.folder / f"{row_id}.{state}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and entry.get("schema") == SCHEMA else None


GROUP = 1000
"""Rows written at a time."""


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write Parquet, completely or not at all. Raises OutputError."""
    rest = iter(rows)
    try:
        with replacing(path) as stream, pq.ParquetWriter(stream, schema) as writer:
            while some := list(islice(rest, GROUP)):
                writer.write_table(pa.Table.from_pylist(some, schema=schema))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}). Choose another folder with --out.") from error


REMOVED = "(removed)"
"""Replaces a removed text."""
PAGE_FILES = tuple(str(Path(page).with_suffix(kind)) for page in (PAGE, REBUILT) for kind in (".html", ".pdf"))
"""Files that `llmxai report` may have written next to an explanation; no record names the last three."""


def clear_removed(run: Path | str, *, signer: Ed25519PrivateKey | None = None) -> int:
    """Remove the texts of removed records from the ledger, rows.parquet, the index and rebuilt pages.

    Follows the log: texts that any redaction or prune lists are removed everywhere, so the next call completes one that
    was interrupted. Figures stay. Returns the number of cleared ledger rows. `signer` signs the new
    manifest.

    Raises EvidenceError for a missing or damaged log, and OutputError if a file cannot be written.
    """
    place = evidence_of(Path(run))
    base, log = place.parent, read_log(place)
    gone = removed_ids(log)
    if not gone:
        return 0
    sweep(base)
    again = read_known(base).changing  # a call that was killed may have changed files for which no manifest vouches
    written: list[str] = []
    with vouched(base, signer=signer, also=written) as changing:
        if again:
            changing()
        for entry, _ in log:
            if entry.id in gone:
                _remove_pages({(base / artefact["path"]).parent for artefact in entry.body["artefacts"]}, changing)
        cleared = _clear_ledger(Ledger(base), gone, written, changing, again=again)
        if (base / ROWS).is_file():
            with pq.ParquetFile(base / ROWS) as table:
                if again or any(_bare(row) != row for row in _rows_of(table) if row.get("record") in gone):
                    changing()
                    write_table(base / ROWS, _without_texts(table, gone), table.schema_arrow)
        if (base / INDEX).is_file():
            if (base / ROWS).is_file() or record_folders(base):
                how = unnoticed if again else changing
                refresh_index(base, changing=how)
            else:
                changing()
                (base / INDEX).unlink()
    return cleared


def refresh_index(run: Path, *, changing: Callable[[], None]) -> Path:
    """Write the index of a run again, with what its log says now. Raises OutputError."""
    return write_index(
        run, provenance=provenance_of(run), records=records_of(run), reviews=reviews_of(run), changing=changing
    )


def _remove_pages(folders: Collection[Path], changing: Callable[[], None]) -> None:
    """Remove the pages of removed explanations, unless a later record has replaced them."""
    for folder in folders:
        if not (folder / "explanation.json").exists():
            for page in filter(Path.exists, (folder / page for page in PAGE_FILES)):
                changing()
                page.unlink()


def _clear_ledger(
    ledger: Ledger, gone: Collection[str], written: list[str], changing: Callable[[], None], *, again: bool
) -> int:
    """The number of entries from which texts were removed; the paths of those that were written go into `written`.

    Also remove rows that a killed process had prepared and entered, or that were interrupted."""
    for path in (*ledger.folder.glob("*.prepared"), *ledger.folder.glob("*.aborted")):
        draft = (_read(path) or {}).get("draft")
        if draft is not None and draft["record"]["id"] in gone:
            path.unlink()
    cleared = 0
    for row_id in ledger.rows():
        entry = ledger.read(row_id)
        if entry is None or entry.get("record") not in gone:
            continue
        bare = _bare(entry)
        if again or bare != entry:
            changing()
            ledger.commit(row_id, {name: value for name, value in bare.items() if name != "schema"})
            written.append(f"ledger/{row_id}.json")
            cleared += bare != entry
    return cleared


def _without_texts(table: pq.ParquetFile, gone: Collection[str]) -> Iterator[dict[str, Any]]:
    for row in _rows_of(table):
        yield _bare(row) if row.get("record") in gone else row


def _rows_of(table: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    for batch in table.iter_batches(batch_size=GROUP):
        yield from batch.to_pylist()


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its figures; its texts are replaced by `REMOVED`."""
    texts = {name: REMOVED for name in ("prompt", "answer", "error", "sources") if row.get(name)}
    fields: dict[str, Any] = {name: None for name in row if name.startswith("field.")}  # of the table
    if "fields" in row:  # of the ledger
        fields["fields"] = {}
    return row | texts | fields
