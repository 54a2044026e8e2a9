"""What to install where an optional library is missing."""


def without_dagster(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The error to raise where Dagster cannot be imported: it names the extra, or is the given one for another library."""
    if error.name != "dagster":
        return error
    message = (
        "this part of semdedup-assets needs Dagster, which is not installed: pip install 'semdedup-assets[dagster]'"
    )
    return ModuleNotFoundError(message, name=error.name)
