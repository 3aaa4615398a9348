"""A page as PDF, printed by a Chromium that is already on the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from llmxai.errors import OutputError

VARIABLE = "LLMXAI_CHROMIUM"
NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
OFFLINE = (
    "--headless",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-pdf-header-footer",
)
LONGEST = 300
"""Seconds to wait for the browser."""


def find_chromium() -> str:
    """The browser to print with. Raises OutputError where there is none."""
    named = os.environ.get(VARIABLE)
    found = shutil.which(named) if named else next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        looked = f"{VARIABLE} names {named!r}, which is not a program" if named else "none of the usual names was found"
        raise OutputError(
            f"A PDF needs Chromium, Chrome or Edge, and {looked}. Install one (Debian: apt-get install chromium), name "
            f"it in {VARIABLE}, or open the page in any browser and print it."
        )
    return found


def write_pdf(page: Path) -> Path:
    """Print `page` to a PDF beside it, whole or not at all. Raises OutputError where that fails."""
    chromium, out = find_chromium(), page.with_suffix(".pdf")
    sandbox = ("--no-sandbox",) if getattr(os, "geteuid", lambda: 1)() == 0 else ()  # root cannot have Chromium's
    with tempfile.TemporaryDirectory(prefix="llmxai-pdf-", ignore_cleanup_errors=True) as scratch:
        printed = Path(scratch) / "page.pdf"
        command = [
            chromium,
            *OFFLINE,
            *sandbox,
            f"--user-data-dir={Path(scratch) / 'profile'}",
            f"--print-to-pdf={printed}",
            page.resolve().as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OutputError(f"{page}: {chromium} could not print it ({error}).") from error
        if done.returncode or not printed.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise OutputError(f"{page}: {chromium} could not print it (exit {done.returncode}: {last}).")
        try:
            shutil.copyfile(printed, scratch_beside := out.with_name(f".{out.name}"))
            scratch_beside.replace(out)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error}).") from error
    return out
