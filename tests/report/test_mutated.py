"""1,100 damaged folders: each gives a page, a table or one paragraph. Nothing hangs, and no traceback is printed."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.report.mutated import KINDS, damage, prepare, read_all

CASES = 1100
PARTS = 11


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mutated")
    prepare(place)
    return place


told: Counter[str] = Counter()
kinds: Counter[str] = Counter()


@pytest.mark.parametrize("part", range(PARTS))
def test_a_damaged_folder_gives_a_page_a_table_or_one_paragraph(place: Path, part: int) -> None:
    for number in range(part * CASES // PARTS, (part + 1) * CASES // PARTS):
        draw = random.Random(number)
        case, kind = damage(place, draw)
        try:
            found = read_all(case, draw)
        except BaseException as error:
            error.add_note(f"case {number}: {kind}")
            raise
        told.update(found)
        kinds[kind] += 1


def test_that_many_were_tried() -> None:
    """Runs after them. Some are harmless, most are refused; every kind is among them."""
    assert sum(kinds.values()) == CASES
    assert set(kinds) == {kind.__name__ for kind in KINDS}
    assert told["page"] > 100
    assert told["table"] > 100
    assert told["paragraph"] > 500
