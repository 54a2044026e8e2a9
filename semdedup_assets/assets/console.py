"""What a run writes to the terminal it was launched from: lines above its progress bars."""

import logging
from typing import Any

import dagster as dg

from semdedup_assets.execution import progress


class _AboveBars(logging.Handler):
    """Writes the messages of a run without what Dagster puts before each: there is one run in a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {})
        moment = logging.Formatter().formatTime(record, "%H:%M:%S")
        progress.write_above_bars(f"{moment} {meta.get('orig_message') or record.getMessage()}")


@dg.logger(  # type: ignore[untyped-decorator]
    dg.colored_console_logger.config_schema,
    description="In a terminal, what was made and what went wrong, above the progress bars; elsewhere Dagster's own.",
)
def console_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """The logger `console` of a job."""
    if not progress.has_terminal():
        logger: logging.Logger = dg.colored_console_logger.logger_fn(context)
        return logger
    found = logging.Logger(context.logger_config["name"], context.logger_config["log_level"].upper())
    found.addHandler(_AboveBars())
    return found
