"""What the tests of the image need from the machine."""

from __future__ import annotations

import os

import pytest


def needed(missing: str, target: str) -> None:
    """Skip, or fail where LLMXAI_REQUIRE_SERVERS=1 says that nothing may be skipped."""
    if os.environ.get("LLMXAI_REQUIRE_SERVERS") == "1":
        pytest.fail(f"LLMXAI_REQUIRE_SERVERS=1 and {missing}: run `make {target}`")
    pytest.skip(f"{missing} (make {target})")
