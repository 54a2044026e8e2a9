"""Pictures, tables and pages of the results."""
