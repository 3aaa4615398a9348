"""`python llmxai/evidence/verifier RUN [--pubkey KEY.pub] [--checkpoint HELD] [--json]`: `llmxai verify`, alone.

Exit status: 0 whole, 1 tampered, 2 cannot tell.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from types import ModuleType

if not __package__:  # run as a folder: its files are found here, and the rest of llmxai is never imported
    for name in ("llmxai", "llmxai.evidence", "llmxai.evidence.verifier"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(Path(__file__).parent)] if name.endswith("verifier") else []


def main() -> int:
    from llmxai.evidence.verifier.check import read_held, read_key, verify

    parser = argparse.ArgumentParser(prog="verifier", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder, its evidence/, a bundle (.zip) or a consistency proof")
    parser.add_argument("--pubkey", type=Path, help="Ed25519 public key in PEM whose signature is required")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint that was kept elsewhere")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    try:
        key = read_key(options.pubkey) if options.pubkey else None
        held = [read_held(options.checkpoint)] if options.checkpoint else []
    except (OSError, ValueError) as error:
        print(f"verifier: {error}", file=sys.stderr)
        return 2
    verdict = verify(options.run, key=key, held=held)
    show(json.dumps(verdict.to_json(), indent=1) if options.json else verdict.to_text())
    return verdict.exit


def show(text: str) -> None:
    """Print; if the reader (`| head -1`) has left, the exit status says the verdict all the same."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends


if __name__ == "__main__":
    sys.exit(main())
