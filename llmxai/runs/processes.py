"""One process or several of `accelerate launch`: who takes which row, and waiting for each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

LONGEST_WAIT = timedelta(days=30)
"""Rows take as long as they take; a process that died is noticed by the launcher, not by a clock."""


@dataclass(frozen=True)
class Processes:
    """This process among those that share a run."""

    index: int = 0
    count: int = 1
    device_map: str | None = None
    """Where this process puts the model, if it must not spread over all devices."""
    wait: Callable[[], None] = lambda: None

    @property
    def leads(self) -> bool:
        return self.index == 0

    def mine(self, row_index: int) -> bool:
        """Rows are dealt out in turn."""
        return row_index % self.count == self.index


def processes() -> Processes:
    """As torchrun or `accelerate launch` started us; a single process otherwise."""
    import torch
    from accelerate import PartialState

    # without cpu=True several processes on CPUs would each be told that they are alone
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    if state.num_processes == 1:
        return Processes()
    on_gpu = state.device.type == "cuda"
    return Processes(
        index=state.process_index,
        count=state.num_processes,
        device_map=f"cuda:{state.local_process_index}" if on_gpu else None,
        wait=state.wait_for_everyone,
    )
