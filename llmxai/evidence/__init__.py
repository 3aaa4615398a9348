"""Evidence: every explanation, refusal and failure leaves a record that can be checked later.

from llmxai.evidence import append, open_log, recording, verify

append("runs/a/evidence", record)                      # one record; durable and sealed when it returns
with open_log("runs/a/evidence", signer=key) as log:   # many records, one writer at a time
    log.append(record, texts={"input": "..."})
with recording("runs/a/evidence") as attempt:          # one attempt, one record, whatever happens
    save(explain(model, "..."), "runs/a", attempt=attempt)
verify("runs/a").exit                                  # 0 whole, 1 tampered, 2 cannot tell

See docs/verify.md for what this proves and what it does not.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from llmxai.evidence.bundle import consistency, export_bundle
    from llmxai.evidence.keys import public_key, secret_key, signing_key
    from llmxai.evidence.log import EvidenceLog, Receipt, append, open_log
    from llmxai.evidence.record import Record, RecordKind
    from llmxai.evidence.recorder import (
        Attempt,
        Draft,
        announce,
        begin,
        drafting,
        evaluated,
        explained,
        keeping,
        recording,
    )
    from llmxai.evidence.redaction import (
        Mark,
        Review,
        Vouching,
        clean_up,
        import_review,
        prune,
        read_review,
        redact,
        review,
        vouched,
        withdraw,
    )
    from llmxai.evidence.sealing import SecretKey
    from llmxai.evidence.verifier.check import verify

__all__ = [
    "Attempt",
    "Draft",
    "EvidenceLog",
    "Mark",
    "Receipt",
    "Record",
    "RecordKind",
    "Review",
    "SecretKey",
    "Vouching",
    "announce",
    "append",
    "begin",
    "clean_up",
    "consistency",
    "drafting",
    "evaluated",
    "explained",
    "export_bundle",
    "import_review",
    "keeping",
    "open_log",
    "prune",
    "public_key",
    "read_review",
    "recording",
    "redact",
    "review",
    "secret_key",
    "signing_key",
    "verify",
    "vouched",
    "withdraw",
]

if not TYPE_CHECKING:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "bundle": ["consistency", "export_bundle"],
            "keys": ["public_key", "secret_key", "signing_key"],
            "log": ["EvidenceLog", "Receipt", "append", "open_log"],
            "record": ["Record", "RecordKind"],
            "recorder": [
                *("Attempt", "Draft", "announce", "begin", "drafting"),
                *("evaluated", "explained", "keeping", "recording"),
            ],
            "redaction": [
                *(
                    "Mark",
                    "Review",
                    "Vouching",
                    "clean_up",
                    "import_review",
                    "prune",
                    "read_review",
                    "redact",
                    "review",
                ),
                *("vouched", "withdraw"),
            ],
            "sealing": ["SecretKey"],
            "verifier.check": ["verify"],
        },
    )
