"""A report elsewhere: as a view in a notebook, a PDF, a table in CSV or Parquet."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from llmxai.errors import OptionError, OutputError
from llmxai.names import Status
from llmxai.report.render import render_report
from llmxai.report.rows import read_rows, record_folders, to_columns
from llmxai.report.tables import signed
from llmxai.report.units import GRADIENT_SCALE, Level, TargetView
from llmxai.report.verdict import FINE, STATUS_TEXT, MainEffect, MainSource
from llmxai.report.view import ReportView, build_view
from llmxai.report.visible import Piece, Text, percent, plain
from llmxai.store import holds_explanation, read_folder
from llmxai.text import csv_cell

HEIGHT = 760
"""Pixels; the page scrolls inside."""
TITLE_SOURCES = 3
"""Sources in the title of a word."""
MOST_WORDS = 300
"""Words of the answer that a notebook shows; the report shows all."""


def inline(document: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> str:
    """The notebook view of an explanation: the answer with its sources, and the complete report folded below.

    From a parsed explanation.json and its maps. The first part is plain HTML without script or style, so it uses the
    notebook's own fonts and colours and remains in viewers that remove frames.
    """
    view = build_view(document, maps)
    frame = Markup(framed(render_report(view)))  # made by our own templates
    report = Markup("<details>\n<summary>The whole report</summary>\n{}\n</details>").format(frame)
    return str(Markup("<div>\n{}\n{}\n</div>").format(brief(view), report))


def brief(view: ReportView) -> Markup:
    """The question, the answer (with the first sources in each word's title), its main sources and its statuses."""
    verdict = view.verdict
    asked = [_line(Markup("{}: <bdi>{}</bdi>").format(turn.role, _html(turn.text))) for turn in verdict.asked]
    rows = [
        ("Asked", Markup("").join(asked)),
        ("The answer that was given" if verdict.given else "Answered", _answer(view)),
        *([("Main sources, measured by taking words away", _effects(verdict.main_effects))] if view.effects else []),
        (f"Main sources, by {verdict.by}", _listed(verdict.main_sources)),
    ]
    if verdict.contrast:
        token, foil = _html(verdict.contrast.token), _html(verdict.contrast.foil)
        rows.insert(2, ("Contrast", Markup("Why “<bdi>{}</bdi>” and not “<bdi>{}</bdi>”").format(token, foil)))
    if view.removal and not view.effects:
        rows.append((f"What mattered most when {view.removal.operator}", _listed(verdict.removed_sources)))
    counts = [
        Markup('<abbr title="{}">{} {} {}</abbr>').format(count.meaning, count.sign, count.count, count.status)
        for count in verdict.counts
    ]
    rows.append((verdict.counted, Markup(", ").join(counts)))
    return Markup("<dl>\n{}\n</dl>").format(
        Markup("\n").join(Markup("<dt>{}</dt><dd>{}</dd>").format(name, said) for name, said in rows)
    )


def _answer(view: ReportView) -> Markup:
    """Line by line: each has the writing direction of its first letter."""
    level = view.levels["words"]
    lines = [Markup("")]
    for target in level.targets[:MOST_WORDS]:
        lines[-1] += _word(level, target)
        if "\n" in plain(level.units[target.unit].text):
            lines.append(Markup(""))
    if (more := len(level.targets) - MOST_WORDS) > 0:
        lines[-1] += Markup(" <em>and {} more words</em>").format(more)
    return Markup("").join(_line(line) for line in lines if line)


def _line(said: Markup) -> Markup:
    return Markup('<div dir="auto">{}</div>').format(said)


def _word(level: Level, target: TargetView) -> Markup:
    """White space, then the word, then its sign if its status is flagged."""
    first, *rest = level.units[target.unit].text
    bare = first.text if first.mark or not first.text.strip(" ") else first.text.lstrip(" ")
    space = first.text[: len(first.text) - len(bare)]
    pairs = target.deletion if target.deletion_error is not None else target.gradients
    sources = ", ".join(
        f"“{plain(level.units[number].label)}” {signed(value / GRADIENT_SCALE)}"
        for number, value in pairs[:TITLE_SOURCES]
    )
    read = f"{sources} (nats)" if sources else "no source"
    title = f"{target.status}, p = {percent(target.probability)}: " + (
        "its values are not to be read" if target.status == Status.UNCONVERGED else read
    )
    sign = "" if target.status in FINE else STATUS_TEXT[Status(target.status)][0]
    return Markup('{}<abbr title="{}">{}</abbr>{}').format(
        _html((Piece(space),)),
        title,
        _html((Piece(bare, first.mark), *rest)),
        Markup("<sup>{}</sup>").format(sign) if sign else "",
    )


def _effects(effects: Sequence[MainEffect]) -> Markup:
    named = [
        Markup("<bdi>{}</bdi>{} {}").format(_html(one.text), f" ({one.note})" if one.note else "", one.nats)
        for one in effects
    ]
    return Markup(", ").join(named) if named else Markup("none that differs from zero beyond its interval")


def _listed(sources: Sequence[MainSource]) -> Markup:
    named = [Markup("<bdi>{}</bdi> {}").format(_html(source.text), source.share) for source in sources]
    return Markup(", ").join(named) if named else Markup("none that can be named")


def _html(text: Text) -> Markup:
    """Text with invisible characters by name; keeps line breaks and runs of spaces without a style."""
    pieces = [
        Markup("<kbd>{}</kbd>").format(piece.text)
        if piece.mark
        else escape(piece.text).replace("\n", Markup("<br>")).replace("  ", Markup("&nbsp; "))
        for piece in text
    ]
    return Markup("").join(pieces)


def framed(page: str) -> str:
    """A complete page in its own frame, without access to the notebook, its cookies, its kernel or the network.

    `sandbox="allow-scripts"` without `allow-same-origin` gives the frame an opaque origin; the page inside is escaped
    as one attribute, and keeps its own content security policy.
    """
    return (
        f'<iframe title="llmxai: where the answer came from" sandbox="allow-scripts" referrerpolicy="no-referrer" '
        f'width="100%" height="{HEIGHT}" frameborder="0" srcdoc="{escape(page)}"></iframe>'
    )


VARIABLE = "LLMXAI_CHROMIUM"
NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
OFFLINE = (
    "--headless",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-pdf-header-footer",
)
LONGEST = 300
"""Seconds to wait for the browser."""


def find_chromium() -> str:
    """The browser to print with. Raises OutputError if there is none."""
    named = os.environ.get(VARIABLE)
    found = shutil.which(named) if named else next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        looked = f"{VARIABLE} names {named!r}, which is not a program" if named else "none of the usual names was found"
        raise OutputError(
            f"A PDF needs Chromium, Chrome or Edge, and {looked}. Install one (Debian: apt-get install chromium), name "
            f"it in {VARIABLE}, or open the page in any browser and print it."
        )
    return found


def write_pdf(page: Path) -> Path:
    """Print `page` to a PDF next to it, completely or not at all. Raises OutputError if that fails."""
    chromium, out = find_chromium(), page.with_suffix(".pdf")
    sandbox = ("--no-sandbox",) if getattr(os, "geteuid", lambda: 1)() == 0 else ()  # root cannot use Chromium's
    with tempfile.TemporaryDirectory(prefix="llmxai-pdf-", ignore_cleanup_errors=True) as scratch:
        printed = Path(scratch) / "page.pdf"
        command = [
            chromium,
            *OFFLINE,
            *sandbox,
            f"--user-data-dir={Path(scratch) / 'profile'}",
            f"--print-to-pdf={printed}",
            page.resolve().as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OutputError(f"{page}: {chromium} could not print it ({error}).") from error
        if done.returncode or not printed.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise OutputError(f"{page}: {chromium} could not print it (exit {done.returncode}: {last}).")
        try:
            shutil.copyfile(printed, scratch_beside := out.with_name(f".{out.name}"))
            scratch_beside.replace(out)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error}).") from error
    return out


TABLES = ("records", "tokens", "sources", "traced", "documents", "spans")
ENDINGS = (".csv", ".json", ".parquet")
FLAT = ("position", "text", "logprob", "replayed_logprob", "rank", "status", "reason")
CERTIFICATE = ("gap", "local_error", "tolerance", "nodes", "f_input", "f_baseline", "net", "converged")

Columns = dict[str, list[Any]]


def export(folder: Path | str, file: Path | str, *, table: str | None = None) -> int:
    """Write one table of an explanation or a run to `file` (.csv, .json or .parquet); returns the number of its rows.

    `records`: one row per record. `tokens`: one per generated token, with its status, gap and agreement. `sources`: one
    per generated token, method and source (the stored top 20). `traced`: one per passage (answer, sentence, word, or
    target) and part of the prompt, with its traced and its direct share, and the path that carries the most.
    `documents`: one per document, turn or tool of the prompt, with its effect on the answer. `spans`: one per part of
    the text that was removed, in characters of the document or turn that it belongs to.

    By default: `tokens` for one explanation, `records` for a run.

    Raises OptionError for an unknown table or file ending, and OutputError if a folder or file cannot be read or
    written.
    """
    folder, file = Path(folder), Path(file)
    single = holds_explanation(folder)
    table = table or ("tokens" if single else "records")
    if table not in TABLES:
        raise OptionError(f"Unknown table {table!r}. Known: {', '.join(TABLES)}.")
    if file.suffix not in ENDINGS:
        raise OptionError(f"{file}: the file ending gives the format; {file.suffix!r} is none of {', '.join(ENDINGS)}.")
    if table == "records":
        if single:
            raise OptionError(f"{folder}: is one explanation and has no table of records. Use {', '.join(TABLES[1:])}.")
        columns = to_columns(read_rows(folder))
    else:
        columns = _tables([folder] if single else record_folders(folder), table=table)
    if not columns:
        raise OutputError(f"{folder}: holds nothing for a table of {table}: no explanation, or none that has them.")
    try:
        WRITERS[file.suffix](columns, file)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error}).") from error
    return len(next(iter(columns.values())))


def _tables(folders: list[Path], *, table: str) -> Columns:
    rows: list[dict[str, Any]] = []
    for folder in folders:
        document, _ = read_folder(folder)
        if table == "traced":
            rows.extend({"record": folder.resolve().name, **row} for row in _traced(document))
            continue
        if table in ("documents", "spans"):
            rows.extend({"record": folder.resolve().name, **_flat(row)} for row in document.get(table, ()))
            continue
        for number, target in enumerate(document["targets"], start=1):
            head = {"record": folder.resolve().name, "number": number}
            found = [_token(target)] if table == "tokens" else _sources(document, target)
            rows.extend({**head, **row} for row in found)
    names = list(dict.fromkeys(key for row in rows for key in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `documents` or `spans` with single values: ranges become two columns."""
    pairs = {"interval": ("low", "high"), "tokens": ("first", "last")}
    return {
        name: value
        for key, given in row.items()
        for name, value in (zip(pairs[key], given, strict=True) if key in pairs else ((key, given),))
    }


def _token(target: Mapping[str, Any]) -> dict[str, Any]:
    referee = target["referee"] or {}
    return {
        **{key: target[key] for key in FLAT},
        "foil": target["foil"] and target["foil"]["text"],
        "attention": target["verdict"] and target["verdict"]["attention"],
        **{key: target[key] for key in CERTIFICATE},
        **{f"deletion.{key}": value for key, value in (target["deletion"] or {}).items() if key in CERTIFICATE},
        **{f"agreement.{key}": value for key, value in target["agreement"].items()},
        **{f"rollout.{key}": value for key, value in target["rollout"].items()},
        **{f"agreement_variant.{key}": value for key, value in target["agreement_variant"].items()},
        **{f"rollout_variant.{key}": value for key, value in target["rollout_variant"].items()},
        "referee.better": referee.get("better"),
        "referee.read": " ".join(referee["read"]) if "read" in referee else None,
        "referee.difference": referee.get("difference"),
        **{f"lds.{method}": score["lds"] for method, score in referee.get("scores", {}).items()},
        "referee.sources": len(referee["sources"]) if "sources" in referee else None,  # rule 3 and later
        **{f"missed.{method}": len(units) for method, units in referee.get("missed", {}).items()},
    }


def _sources(document: Mapping[str, Any], target: Mapping[str, Any]) -> list[dict[str, Any]]:
    tokens, rows = document["tokens"], []
    for method, sources in target["sources"].items():
        for place, source in enumerate(sources, start=1):
            first, end = _range(document, source)
            rows.append(
                {
                    "target": target["text"],
                    "foil": target["foil"] and target["foil"]["text"],
                    "status": target["status"],
                    "method": method,
                    "place": place,
                    "first": first,
                    "end": end,
                    "source": "".join(token["text"] for token in tokens[first:end]),
                    "role": tokens[first]["role"],
                    "value": source["value"],
                    "share": source["share"],
                }
            )
    return rows


def _traced(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    trace = document["trace"] or {"passages": [], "units": []}
    rows = []
    for passage in trace["passages"]:
        for place, source in enumerate(passage["traced"], start=1):
            first, end = trace["units"][source["unit"]]["tokens"]
            steps = [(step["text"], step["effect"]) for step in source["path"]]
            rows.append(
                {
                    "kind": passage["kind"],
                    "passage": passage["text"],
                    "place": place,
                    "first": first,
                    "end": end,
                    "source": source["text"],
                    "share": source["share"],
                    "direct": source["direct"],
                    "path": " -> ".join([*(text.strip() for text, _ in steps), passage["text"].strip()]),
                    "effects": " ".join("" if fall is None else f"{fall:+.4g}" for _, fall in steps),
                }
            )
    return rows


def _range(document: Mapping[str, Any], source: Mapping[str, Any]) -> tuple[int, int]:
    """The half-open token range of a source: one token, or a part of the input that was removed."""
    if "unit" in source:
        first, end = document["ablations"]["units"][source["unit"]]
        return first, end
    return source["index"], source["index"] + 1


def _write_csv(columns: Columns, file: Path) -> None:
    with file.open("w", encoding="utf-8-sig", newline="", errors="backslashreplace") as out:  # the mark tells Excel
        writer = csv.writer(out)
        writer.writerow(map(csv_cell, columns))
        writer.writerows(map(csv_cell, row) for row in zip(*columns.values(), strict=True))


def _write_parquet(columns: Columns, file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    clean = {
        name: [value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value for value in own]
        for name, own in columns.items()
    }
    pq.write_table(pa.table(clean), file)


def _write_json(columns: Columns, file: Path) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")


WRITERS = {".csv": _write_csv, ".json": _write_json, ".parquet": _write_parquet}
