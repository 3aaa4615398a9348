"""The output folder of an explanation."""

from llmxai.store.folder import SCHEMA, read_folder, require_replaceable, to_json, write_folder

__all__ = ["SCHEMA", "read_folder", "require_replaceable", "to_json", "write_folder"]
