"""Manifests to hold SemDeDup against: random pruning, exact and near duplicates, a file each."""
