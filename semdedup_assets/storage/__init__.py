"""Where results lie and how they are written: no half-written file is ever read."""
