"""For the site: links from docs/ to other files of the repository become links to the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\]\(\.\./(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_more: Any) -> str:
    """`../README.md` is no page of the site. A file that does not exist stops the build."""
    root = Path(config["docs_dir"]).parent

    def outside(found: re.Match[str]) -> str:
        path = found["path"]
        if not (root / path).exists():
            raise FileNotFoundError(f"{page.file.src_path}: links to ../{path}, which does not exist")
        kind = "tree" if (root / path).is_dir() else "blob"
        return f"]({config['repo_url']}/{kind}/main/{path}{found['anchor'] or ''})"

    return LINK.sub(outside, markdown) if page.file.src_path.count("/") == 0 else markdown
