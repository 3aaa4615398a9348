"""The output folder of an explanation."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from llmxai.store.document import to_json, to_maps
    from llmxai.store.folder import FILES, earlier_in, evidence_folder, require_writable, write_folder
    from llmxai.store.loading import load_explanation
    from llmxai.store.reading import (
        READABLE,
        SCHEMA,
        holds_explanation,
        others_of,
        read_document,
        read_folder,
        read_json,
        require_file,
        short,
        stored_name,
        upgraded,
    )

__all__ = [
    "FILES",
    "READABLE",
    "SCHEMA",
    "earlier_in",
    "evidence_folder",
    "holds_explanation",
    "load_explanation",
    "others_of",
    "read_document",
    "read_folder",
    "read_json",
    "require_file",
    "require_writable",
    "short",
    "stored_name",
    "to_json",
    "to_maps",
    "upgraded",
    "write_folder",
]

if not TYPE_CHECKING:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "document": ["to_json", "to_maps"],
            "folder": ["FILES", "earlier_in", "evidence_folder", "require_writable", "write_folder"],
            "loading": ["load_explanation"],
            "reading": [
                *("READABLE", "SCHEMA", "holds_explanation", "others_of", "read_document", "read_folder", "read_json"),
                *("require_file", "short", "stored_name", "upgraded"),
            ],
        },
    )
