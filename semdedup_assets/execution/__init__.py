"""What a stage is, and how its partitions are made: whatever the stage, and wherever it runs."""
