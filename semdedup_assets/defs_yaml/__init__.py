"""A pipeline's `defs.yaml`: how a new one is written, and what is wrong with one."""
