"""The programs of the presets, each run as a process of its own."""
