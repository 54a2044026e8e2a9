"""SemDeDup (arXiv 2303.09540): arrays in, arrays out; no files, no Dagster."""
