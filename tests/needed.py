"""What a test needs from the machine, apart from Python packages."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def needed(missing: str, target: str) -> NoReturn:
    """Skip, or fail where LLMXAI_REQUIRE_SERVERS=1 says that nothing may be skipped."""
    if os.environ.get("LLMXAI_REQUIRE_SERVERS") == "1":
        pytest.fail(f"LLMXAI_REQUIRE_SERVERS=1 and {missing}: run `make {target}`")
    pytest.skip(f"{missing} (make {target})")
