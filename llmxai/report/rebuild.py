"""Rebuild the pages of a folder from its stored data, without a model or torch."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmxai.errors import OutputError
from llmxai.report.index import build_index
from llmxai.report.render import DATA, DATA_ROWS, LongIndex, render_index, render_long_index, render_report
from llmxai.report.rows import read_rows, record_folders
from llmxai.report.view import build_view
from llmxai.store import holds_explanation, read_folder, read_json, short

PAGE, INDEX, MANIFEST, EVALUATION = "report.html", "index.html", "manifest.json", "evaluation.html"
REBUILT = "report.rebuilt.html"
"""Name of a rebuilt page if the evidence log holds the digest of the existing one, which must stay unchanged."""
SCRATCH = ".page-"
DATA_PAGE = re.compile(r"\d{5}-[0-9a-f]{12}\.html")
EVIDENCE = "evidence"
"""The name of the log's folder, or its ending."""

Provenances = Callable[[Path], Mapping[str, Any] | None]
"""From the folder of an explanation or of a run to its provenance box (llmxai/report/provenance.py)."""
Records = Callable[[Path], Mapping[str, str]]
"""From the folder of a run to the ids of its records in the evidence log, by the names of their folders."""
Reviews = Callable[[Path], Mapping[str, Sequence[str]]]
"""From the folder of a run to the reviewers' decisions in the evidence log, by the same names."""
Report = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps)."""


@dataclass(frozen=True)
class Rebuilt:
    page: Path
    """The page to open: the report of one explanation, or the index of a run."""
    pages: int
    failures: tuple[str, ...]
    """One sentence for each record whose page could not be built."""


Changing = Callable[[], None]
"""Called before a file changes. With it, one that would not change is left alone."""


def unnoticed() -> None:
    """No manifest is kept here."""


def no_provenance(_folder: Path) -> None:
    """No provenance: there are no records."""


def no_reviews(_run: Path) -> dict[str, list[str]]:
    """No decisions: there are no records."""
    return {}


def no_records(_run: Path) -> dict[str, str]:
    """No ids: there are no records."""
    return {}


def rebuild(
    folder: Path | str,
    *,
    provenance: Provenances = no_provenance,
    records: Records = no_records,
    reviews: Reviews = no_reviews,
    report: Report = lambda _stage, _done, _n: None,
    changing: Changing = unnoticed,
) -> Rebuilt:
    """Write the pages of `folder`: `report.html` of one explanation; of a run, every record's and `index.html`.

    A record that cannot be read does not stop the others. Raises OutputError if the folder is neither.
    """
    folder = Path(folder)
    if holds_explanation(folder):
        return Rebuilt(write_page(folder, provenance=provenance(folder), changing=changing), 1, ())
    folders = record_folders(folder)
    failures = []
    for done, record in enumerate(folders):
        report("pages", done, len(folders))
        try:
            home = home_of(record, run=folder)
            write_page(record, home=home, provenance=provenance(record), changing=changing)
        except OutputError as error:
            failures.append(str(error))
    report("index", 0, 1)
    index = write_index(
        folder, provenance=provenance(folder), records=records(folder), reviews=reviews(folder), changing=changing
    )
    return Rebuilt(index, len(folders) - len(failures) + 1, tuple(failures))


def home_of(folder: Path, *, run: Path) -> str:
    """The address of the index of `run`, relative to a page in `folder`."""
    return os.path.relpath(run / INDEX, folder).replace(os.sep, "/")


def write_page(
    folder: Path,
    *,
    home: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    changing: Changing = unnoticed,
) -> Path:
    """`report.html` of one explanation, from its stored data. `home`: the index, relative to the folder.

    If an evidence log may hold the digest of the existing page and the new one differs, the existing page stays and the
    new one is named `report.rebuilt.html`; otherwise `llmxai verify` would report a change.
    """
    document, maps = read_folder(folder)
    page = render_report(build_view(document, maps, home=home, provenance=provenance))
    if _logged(folder) and (folder / PAGE).is_file() and (folder / PAGE).read_bytes() != page.encode("utf-8"):
        return _replace(folder / REBUILT, page, changing)
    return _replace(folder / PAGE, page, changing)


def _logged(folder: Path) -> bool:
    """Whether there is an evidence log in, next to or above the folder of an explanation."""
    folder = folder.resolve()
    places = (folder, folder.parent, folder.parent.parent)
    return folder.with_name(f"{folder.name}.{EVIDENCE}").is_dir() or any((at / EVIDENCE).is_dir() for at in places)


def write_index(
    run: Path,
    *,
    provenance: Mapping[str, Any] | None = None,
    records: Mapping[str, str] | None = None,
    reviews: Mapping[str, Sequence[str]] | None = None,
    changing: Changing = unnoticed,
) -> Path:
    """`index.html` of a run, from rows.parquet or, without it, from each explanation.json. For more than 5,000 records,
    their texts go into data pages in `index-data/`.

    `records`: the id in the evidence log, by the name of a record's folder; `reviews`: the decisions, by the same.
    """
    rows = read_rows(run)
    place = "records/" if (run / "records").is_dir() else ""
    explained = {folder.name: page for folder in record_folders(run) if (page := _page_of(folder))}
    view = build_index(
        rows,
        name=run.resolve().name,
        place=place,
        pages=explained,
        evaluation=EVALUATION if (run / EVALUATION).is_file() else None,
        manifest=_manifest(run / MANIFEST),
        provenance=provenance,
        records=records,
        reviews=reviews,
    )
    pages = LongIndex(render_index(view), {}) if len(rows) <= DATA_ROWS else render_long_index(view, size=DATA_ROWS)
    for name, page in pages.data.items():
        _replace(run / name, page, changing)
    index = _replace(run / INDEX, pages.page, changing)
    _remove_others(run / DATA, {Path(name).name for name in pages.data}, changing)
    return index


def _page_of(folder: Path) -> str:
    """The name of the newest page of an explanation; empty if there is none."""
    return next((name for name in (REBUILT, PAGE) if (folder / name).is_file()), "")


def _remove_others(folder: Path, kept: Collection[str], changing: Changing) -> None:
    """Remove the data pages of an earlier index, and the remains of an interrupted one."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in kept and (DATA_PAGE.fullmatch(path.name) or path.name.startswith(SCRATCH)):
            changing()
            path.unlink(missing_ok=True)
    if not kept:
        with contextlib.suppress(OSError):  # there is none, or it holds other files
            folder.rmdir()


def _manifest(path: Path) -> Mapping[str, Any]:
    try:
        values = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read as JSON ({short(error)}).") from error
    return values if isinstance(values, dict) else {"manifest": values}


def _replace(path: Path, text: str, changing: Changing) -> Path:
    """Write a file completely or not at all."""
    known = changing is not unnoticed and path.is_file() and not path.is_symlink()
    if known and path.read_bytes() == text.encode("utf-8"):
        return path
    changing()
    scratch = None
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=SCRATCH, encoding="utf-8", delete=False) as file:
            scratch = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        scratch.replace(path)
    except OSError as error:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error}).") from error
    return path
