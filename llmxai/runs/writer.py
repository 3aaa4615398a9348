"""The single writer of a run: enters prepared rows in row order into the evidence log, then into the ledger."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from llmxai.evidence import Draft, EvidenceLog, withdraw
from llmxai.runs.ledger import Ledger
from llmxai.runs.scheduling import Window

GROUP = 100
"""Most rows entered at once."""


@dataclass(frozen=True)
class RunProgress:
    """The progress of a run."""

    stage: str
    engine: str = "local"
    rows: int = 0
    """Rows done, including those of earlier calls."""
    total: int | None = None
    failed: int = 0
    fresh: int = 0
    """Rows done by this call."""
    tokens: int = 0
    """Tokens of the prompts and answers that this call explained."""
    targets: int = 0
    seconds: float = 0.0
    """Seconds since the first row of this call."""


Progress = Callable[[RunProgress], None]


class RunWriter:
    """`log` is the run's open log."""

    def __init__(self, log: EvidenceLog, ledger: Ledger, *, news: RunProgress, progress: Progress) -> None:
        self.log, self.ledger, self.news, self.progress = log, ledger, news, progress
        self._waiting: deque[tuple[str, str]] = deque()
        self._began = time.monotonic()

    @property
    def waits(self) -> bool:
        """Whether rows remain to be entered."""
        return bool(self._waiting)

    def expect(self, window: Window) -> None:
        """Announce the next rows, in their order."""
        for job in window.jobs:
            if job.index in window.to_do or self.ledger.is_prepared(job.row.id, key=job.key):
                self._waiting.append((job.row.id, job.key))
            else:
                self._count(self.ledger.read(job.row.id) or {}, fresh=False)

    def advance(self) -> None:
        """Enter every prepared row that has no unfinished row before it: durably into the log, many at once if many are
        ready, then into the ledger."""
        while ready := self._ready():
            self._record([draft for _, _, draft in ready if draft is not None])
            for row_id, entry, _ in ready:
                if entry["status"] != "ok":
                    self._withdraw(row_id)
                self.ledger.commit(row_id, entry)
                self._waiting.popleft()
                self._count(entry, fresh=True)
                self.progress(self.news)

    def _ready(self) -> list[tuple[str, dict[str, Any], Draft | None]]:
        """The next prepared rows, up to a failed one, whose withdrawal must follow its own record."""
        ready: list[tuple[str, dict[str, Any], Draft | None]] = []
        for row_id, key in islice(self._waiting, GROUP):
            found = self.ledger.prepared(row_id, key=key)
            if found is None:
                break
            ready.append((row_id, *found))
            if found[0]["status"] != "ok":
                break
        return ready

    def take_aborted(self) -> None:
        """Enter the records of interrupted attempts."""
        for path, draft in self.ledger.aborted():
            self._record([draft])
            path.unlink()

    def _record(self, drafts: Iterable[Draft]) -> None:
        """Append the records that the log does not have yet (an earlier process may have been killed)."""
        log = self.log
        log.append_many((draft.record, draft.texts) for draft in drafts if draft.record.id not in log)

    def _withdraw(self, row_id: str) -> None:
        """Remove the files of an earlier attempt at a row that failed this time, and log the removal."""
        place = self.ledger.run / "records" / row_id
        if place.exists():
            withdraw(self.log, [place], reason="the row was done again and failed")
            shutil.rmtree(place)

    def _count(self, entry: dict[str, object], *, fresh: bool) -> None:
        old = self.news
        tokens, targets = (int(str(entry.get(name) or 0)) for name in ("n_tokens", "n_targets"))
        self.news = replace(
            old,
            rows=old.rows + 1,
            failed=old.failed + (entry.get("status") != "ok"),
            fresh=old.fresh + fresh,
            tokens=old.tokens + tokens * fresh,
            targets=old.targets + targets * fresh,
            seconds=time.monotonic() - self._began,
        )
