"""`llmxai methods`."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table


def methods() -> None:
    """List the attribution methods, what they need and where they come from."""
    from llmxai.methods import METHODS

    table = Table("method", "needs", "what it gives", "source", box=None, pad_edge=False)
    for entry in METHODS.values():
        table.add_row(entry.name, ", ".join(sorted(entry.needs)), entry.summary, entry.source)
    Console(width=None if sys.stdout.isatty() else 400).print(table)
