"""Folders of explanations and runs, damaged in every way that we could think of; seeded.

`damaged(kind, base, place, draw)` writes one, and `read_all(folder, draw)` does what `llmxai report` and `llmxai table`
do with it: pages and tables, or one paragraph.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load, save

from llmxai.errors import UserError
from llmxai.report import export, rebuild, to_columns
from llmxai.store import read_folder
from tests.report.run_sample import made_up, write_sample
from tests.report.sample import hostile, measured, newest, sample

GALLERY = Path(__file__).parents[2] / "tests" / "earlier" / "gallery" / "records"
DATA, MAPS, PAGE, ROWS, MANIFEST = (
    *("explanation.json", "maps.safetensors", "report.html"),
    *("rows.parquet", "manifest.json"),
)
SECONDS = 20
"""After which a case hangs."""
LONGEST = 1000
"""Characters of a paragraph."""


def write_bases(place: Path) -> list[Path]:
    """Explanations of all schemas, with and without removal, verdict, foil, other methods and full precision."""
    old = sample(["<s>", " Which", " river", "?"], [" The", " Tiber"], statuses=["agree", "diluted"])
    plain = sample(["<s>", " Which", " city", "?"], [" Rome"], referee=False)
    document, maps = measured(sample(["<s>", " a", " b", " c"], [" x", " y"], seed=3), statuses=["confirmed"] * 2)
    document["targets"][0]["foil"] = {"id": 5, "text": " z"}
    full = {"logprob": -0.2, "rank": 1, "difference": 0.1, "cosine": 0.9, "same_source": True, "status": "confirmed"}
    document["full_precision"] = {"model": "m", "dtype": "float32", "targets": [full, {**full, "cosine": None}]}
    samples = {"old": old, "plain": plain, "newest": newest(old), "measured": (document, maps), "hostile": hostile()}
    folders = [write_sample(place / name, each) for name, each in samples.items()]
    for record in sorted(GALLERY.iterdir())[:2]:
        folders.append(place / record.name)
        folders[-1].mkdir()
        for name in (DATA, MAPS):
            shutil.copyfile(record / name, folders[-1] / name)
    return folders


def write_run_base(place: Path) -> Path:
    """A run with two records, rows and a manifest."""
    for name, each in (("a", sample(["<s>", " a"], [" b"])), ("b", sample(["<s>", " c"], [" d"], seed=1))):
        write_sample(place / "records" / name, each)
    pq.write_table(pa.table(to_columns(made_up(12))), place / ROWS)
    (place / MANIFEST).write_text(json.dumps({"recipe": {"name": "x", "data": [{"path": "y"}]}, "status": "finished"}))
    return place


DEEP: Any = 0
for _ in range(300):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        99,
        1.5,
        -0.0,
        1e-320,
        1e29,
        -1e29,
        1e31,
        1e308,
        -1e308,
        2**53,
        2**64,
        10**400,
    ),
    *("", "x", "agree", "user", "\ud800", "\x1b[2J\n\u202e", "</script>", "x" * 5000, "prompt"),
    *([], {}, [0], [[]], [[0, 1]], [1, 0], [None], {"a": 1}, {"\ud800": 1}, {"\x1b[2J\n": None}, [1, "a", {}], DEEP),
    *(float("nan"), float("inf"), -float("inf")),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value below."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, each in inner for found in ((*path, key), *places(each, (*path, key)))]


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def spread(document: Any, draw: random.Random) -> tuple[Any, ...]:
    """A way to a value, with names drawn before positions: long lists do not crowd out the rest."""
    found = places(document)
    shapes = sorted({tuple("*" if isinstance(key, int) else key for key in path) for path in found}, key=repr)
    shape = draw.choice(shapes)
    return draw.choice([p for p in found if tuple("*" if isinstance(key, int) else key for key in p) == shape])


def change_json(document: Any, draw: random.Random) -> Any:
    """One value exchanged, removed, doubled, moved or added."""
    *way, last = spread(document, draw)
    inner = at(document, tuple(way))
    how = draw.choice(["put", "put", "put", "remove", "double", "swap", "near", "add"])
    if how == "put":
        inner[last] = draw.choice(VALUES)
    elif how == "remove":
        del inner[last]
    elif how == "double" and isinstance(inner, list):
        inner.insert(last, inner[last])
    elif how == "swap":
        *other, name = spread(document, draw)
        at(document, tuple(other))[name], inner[last] = inner[last], at(document, (*other, name))
    elif how == "near" and isinstance(inner[last], int | float):
        inner[last] = inner[last] + draw.choice([-1, 1, 0.5, -1e-9])
    elif isinstance(inner, dict):
        inner[draw.choice(["x", "unit", "index", "sources", "\ud800"])] = draw.choice(VALUES)
    else:
        inner.append(draw.choice(VALUES))
    return document


def change_bytes(data: bytes, draw: random.Random) -> bytes:
    start, end = sorted((draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)))
    how = draw.choice(["flip", "flip", "flip", "cut", "drop", "insert", "double", "head"])
    if how == "flip" and start < len(data):
        return data[:start] + bytes([data[start] ^ draw.randrange(1, 256)]) + data[start + 1 :]
    if how == "insert":
        return data[:start] + draw.randbytes(draw.randrange(1, 9)) + data[start:]
    if how == "head":
        return draw.randbytes(8) + data[8:]
    return data[:start] if how == "cut" else data[:end] + data[start:] if how == "double" else data[:start] + data[end:]


def change_maps(data: bytes, draw: random.Random) -> bytes:
    maps = load(data)
    name = draw.choice(sorted(maps))
    values = maps[name].copy()
    how = draw.choice(["remove", "rename", "add", "kind", "turn", "cut", "grow", "flat", "number", "other"])
    if how == "remove":
        del maps[name]
    elif how == "rename":
        maps["".join(draw.choices(string.ascii_letters + "\n\x1b.", k=4))] = maps.pop(name)
    elif how == "add":
        maps[draw.choice(["rollout", "effect", "lime", "lime.null", "removal_f", "x", "x.features"])] = values
    elif how == "kind":
        maps[name] = values.astype(draw.choice(["f2", "f8", "i4", "u1", "?", "i8"]))
    elif how == "number" and values.size:
        if values.dtype.kind == "f":
            values.flat[draw.randrange(values.size)] = draw.choice([np.nan, np.inf, -np.inf, 1e38, -1e38, 1e29, 0.0])
        maps[name] = values
    elif how == "other":
        maps[name] = maps[draw.choice(sorted(maps))]
    else:
        maps[name] = {
            "turn": np.ascontiguousarray(values.T),
            "cut": np.ascontiguousarray(values[:-1]),
            "grow": np.pad(values, ((0, 0), (0, 1))),
            "flat": values.ravel(),
        }.get(how, values)
    return save(maps)


def is_a_folder(path: Path) -> None:
    path.mkdir()


def is_a_fifo(path: Path) -> None:
    os.mkfifo(path)


def is_a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def is_a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def is_a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def is_a_link_to_a_file(path: Path) -> None:
    outside = path.parent.with_name("outside")
    outside.write_text('{"secret": 1}')
    path.symlink_to(outside)


def is_empty(path: Path) -> None:
    path.write_bytes(b"")


def is_huge(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 2**42)  # without taking any disk


def is_gone(_path: Path) -> None:
    pass


INSTEAD = (
    *(is_a_folder, is_a_fifo, is_a_link_to_itself, is_a_link_to_nothing, is_a_link_to_a_device, is_a_link_to_a_file),
    *(is_empty, is_huge, is_gone),
)


def json_changed(folder: Path, draw: random.Random) -> None:
    document = json.loads((folder / DATA).read_bytes())
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        document = change_json(document, draw)
    (folder / DATA).write_text(json.dumps(document), encoding="utf-8")


def bytes_of_json_changed(folder: Path, draw: random.Random) -> None:
    (folder / DATA).write_bytes(change_bytes((folder / DATA).read_bytes(), draw))


def bytes_of_maps_changed(folder: Path, draw: random.Random) -> None:
    (folder / MAPS).write_bytes(change_bytes((folder / MAPS).read_bytes(), draw))


def maps_changed(folder: Path, draw: random.Random) -> None:
    (folder / MAPS).write_bytes(change_maps((folder / MAPS).read_bytes(), draw))


def files_exchanged(folder: Path, draw: random.Random) -> None:
    """Between the two files of a folder, or with another explanation's."""
    others = [each for each in folder.with_name("bases").iterdir() if each.is_dir()]
    own, other = draw.choice([(DATA, MAPS), (MAPS, DATA), (DATA, DATA), (MAPS, MAPS)])
    (folder / own).write_bytes((draw.choice(others) / other).read_bytes())


def something_else_in_its_place(folder: Path, draw: random.Random) -> None:
    name = draw.choice([DATA, MAPS, PAGE])
    (folder / name).unlink(missing_ok=True)
    draw.choice(INSTEAD)(folder / name)


def run_changed(run: Path, draw: random.Random) -> None:
    """Of a run: its rows, its manifest, a record, or what is in their place."""
    how = draw.choice(["rows", "column", "manifest", "manifest", "record", "else"])
    if how == "rows":
        (run / ROWS).write_bytes(change_bytes((run / ROWS).read_bytes(), draw))
    elif how == "column":
        columns = {name: list(values) for name, values in pq.read_table(run / ROWS).to_pydict().items()}
        value = draw.choice([None, "x", -1, 1.5, True, b"\xff", [1], {"a": 1}, 1e308, float("nan"), 2**62, "\x1b[2J"])
        columns[draw.choice([*columns, "metric.x", "new\n"])] = [value] * 12
        pq.write_table(pa.table(columns), run / ROWS)
    elif how == "manifest":
        (run / MANIFEST).write_text(json.dumps(change_json(json.loads((run / MANIFEST).read_text()), draw)))
    elif how == "record":
        draw.choice([json_changed, bytes_of_json_changed, something_else_in_its_place])(run / "records" / "a", draw)
    else:
        name = draw.choice([ROWS, MANIFEST, "records", "records/a", "index.html", "index-data"])
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink(missing_ok=True)
        draw.choice(INSTEAD)(run / name)


KINDS: dict[Callable[[Path, random.Random], None], int] = {
    json_changed: 10,
    bytes_of_json_changed: 3,
    maps_changed: 3,
    bytes_of_maps_changed: 2,
    files_exchanged: 1,
    something_else_in_its_place: 2,
    run_changed: 3,
}
"""With how often each is drawn."""


class HungError(BaseException):
    """A case took longer than SECONDS."""


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    def end(*_: object) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def prepare(place: Path) -> None:
    write_bases(place / "bases")
    write_run_base(place / "run-base")


def damage(place: Path, draw: random.Random) -> tuple[Path, str]:
    """A damaged copy at `place / "case"`, and the name of its kind."""
    kind = draw.choices(list(KINDS), weights=list(KINDS.values()))[0]
    case = place / "case"
    shutil.rmtree(case, ignore_errors=True)
    bases = sorted((place / "bases").iterdir())
    shutil.copytree(place / "run-base" if kind is run_changed else draw.choice(bases), case)
    kind(case, draw)
    return case, kind.__name__


def read_all(case: Path, draw: random.Random) -> list[str]:
    """What `report` and `table` make of it: `page`, `table` or `paragraph`. Anything else raises."""
    ending, rows = draw.choice([".csv", ".parquet"]), draw.choice([None, "tokens", "sources"])
    told = [
        _one(lambda: rebuild(case).page, "page"),
        _one(lambda: export(case, case / f"t{ending}", table=rows), "table"),
    ]
    if (case / DATA).is_file():
        told.append(_one(lambda: read_folder(case), "read"))
        refused = {each == "paragraph" for each in (told[1:] if (case / PAGE).is_dir() else told)}
        assert len(refused) == 1, f"one reader refuses what another one takes: {told}"
    return told[:2]


def _one(work: Callable[[], object], word: str) -> str:
    try:
        with no_longer_than(SECONDS):
            made = work()
    except UserError as error:
        said = str(error)
        assert said.isprintable(), said
        assert len(said) < LONGEST, said
        return "paragraph"
    if isinstance(made, Path):
        assert made.read_text(encoding="utf-8").startswith("<!doctype html>"), "a page"
    return word
