"""Parquet tables that are whole or not there, however long: a group of rows in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmxai.errors import OutputError
from llmxai.evidence.files import replacing

GROUP = 1000
"""Rows that are written at a time."""


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Parquet, whole or not at all. Raises OutputError."""
    rest = iter(rows)
    try:
        with replacing(path) as stream, pq.ParquetWriter(stream, schema) as writer:
            while some := list(islice(rest, GROUP)):
                writer.write_table(pa.Table.from_pylist(some, schema=schema))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}). Choose another folder with --out.") from error
