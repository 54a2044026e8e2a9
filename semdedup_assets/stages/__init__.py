"""The stages of a pipeline: each reads results from the store, calls the algorithm, and writes one result."""
