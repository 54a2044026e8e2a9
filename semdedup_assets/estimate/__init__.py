"""What a run will take, before it runs: counted items, timed encoder, earlier results or a short trial run."""
