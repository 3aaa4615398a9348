"""The output folder of an explanation."""

from typing import TYPE_CHECKING

from llmxai._lazy import lazy

if TYPE_CHECKING:
    from llmxai.store.folder import FILES, evidence_folder, require_replaceable, to_json, to_maps, write_folder
    from llmxai.store.reading import READABLE, SCHEMA, read_folder, upgraded

__all__ = [
    "FILES",
    "READABLE",
    "SCHEMA",
    "evidence_folder",
    "read_folder",
    "require_replaceable",
    "to_json",
    "to_maps",
    "upgraded",
    "write_folder",
]

if not TYPE_CHECKING:
    __getattr__ = lazy(
        __name__,
        {
            **dict.fromkeys(
                ("FILES", "evidence_folder", "require_replaceable", "to_json", "to_maps", "write_folder"),
                "llmxai.store.folder",
            ),
            **dict.fromkeys(("READABLE", "SCHEMA", "read_folder", "upgraded"), "llmxai.store.reading"),
        },
    )
