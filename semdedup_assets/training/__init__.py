"""Proof of value: what models that are trained on a kept set are worth, beside those on baselines."""
