"""The code location, as `create-dagster project` writes it."""

from pathlib import Path

import dagster as dg

from semdedup_assets import load_from_defs_folder


@dg.definitions
def defs() -> dg.Definitions:
    """Everything below `defs/`."""
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
