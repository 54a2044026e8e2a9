"""The Dagster layer: it calls the stages, records what they made, and holds no arithmetic."""

import warnings

import dagster as dg

# Partitioned checks and component APIs are marked beta or preview; the pinned version was tested with them.
for _category in (dg.BetaWarning, dg.PreviewWarning):
    warnings.filterwarnings("ignore", category=_category)
