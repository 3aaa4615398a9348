"""What checking found, and how it ends: 0 whole, 1 tampered, 2 cannot tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["tampered", "unclear", "note"]
WORDS = ("whole", "tampered", "cannot tell")


@dataclass(frozen=True)
class Finding:
    severity: Severity
    what: str
    seq: int | None = None
    """Place in the log (0-based) of the record that it concerns."""
    record: str | None = None
    """Id of that record, where it could be read."""

    def __str__(self) -> str:
        where = "" if self.seq is None else f"record {self.seq}" + (f" ({self.record})" if self.record else "") + ": "
        return f"{self.severity}: {where}{self.what}"


@dataclass
class Verdict:
    """`exit` is 1 with anything tampered, else 2 with anything unclear, else 0."""

    subject: str
    records: int = 0
    signature: str = "unsigned: nobody vouches for it"
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, what: str, seq: int | None = None, record: str | None = None) -> None:
        self.findings.append(Finding(severity, what, seq, record))

    @property
    def exit(self) -> int:
        severities = {finding.severity for finding in self.findings}
        return 1 if "tampered" in severities else 2 if "unclear" in severities else 0

    @property
    def first_bad(self) -> Finding | None:
        """The tampered finding with the lowest record; findings about no single record come last."""
        bad = [finding for finding in self.findings if finding.severity == "tampered"]
        return min(bad, key=lambda f: (f.seq is None, f.seq or 0), default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "verdict": WORDS[self.exit],
            "exit": self.exit,
            "records": self.records,
            "signature": self.signature,
            "first_bad": asdict(self.first_bad) if self.first_bad else None,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def to_text(self) -> str:
        head = f"{WORDS[self.exit]}: {self.subject}, {self.records} record{'s' * (self.records != 1)}, {self.signature}"
        bad = self.first_bad
        rest = [str(finding) for finding in self.findings if finding is not bad]
        return "\n".join([head, *([str(bad)] if bad else []), *rest])
