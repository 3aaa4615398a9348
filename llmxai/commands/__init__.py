"""The commands, one file a topic: plain functions with Typer annotations, each thin over the library."""
