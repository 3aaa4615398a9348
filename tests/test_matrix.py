"""Every row of `make matrix` is right."""

from __future__ import annotations

from pathlib import Path

import pytest
from matrix import CASES, run


@pytest.mark.parametrize("case", CASES)
def test_every_architecture_end_to_end(case: str, tmp_path: Path) -> None:
    row = run(case, tmp_path / "out")
    assert row.right, row
