"""The output folder of an explanation."""

from typing import TYPE_CHECKING

from llmxai._lazy import lazy

if TYPE_CHECKING:
    from llmxai.store.folder import FILES, evidence_folder, require_replaceable, to_json, to_maps, write_folder
    from llmxai.store.reading import SCHEMA, read_folder

__all__ = [
    "FILES",
    "SCHEMA",
    "evidence_folder",
    "read_folder",
    "require_replaceable",
    "to_json",
    "to_maps",
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
            **dict.fromkeys(("SCHEMA", "read_folder"), "llmxai.store.reading"),
        },
    )
