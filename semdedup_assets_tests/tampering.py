"""Spoil what is stored, so that a check must fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from semdedup_assets.stages.work import Work
from semdedup_assets.storage.layout import recipe_path


def change_recipe(path: str, change: Callable[[dict[str, Any]], object]) -> None:
    place = Path(recipe_path(path))
    recipe = json.loads(place.read_text())
    change(recipe)
    place.write_text(json.dumps(recipe))


def change_table(path: str, recipe: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Write a Parquet file of a result anew behind its recipe's back."""
    change(pl.read_parquet(path)).write_parquet(path)
    size = Path(path).stat().st_size
    change_recipe(recipe, lambda found: found["files"].update({Path(path).name: size}))


def lose_a_cluster(work: Work, k: str) -> None:
    """Score a whole cluster as duplicates of another cluster's item, so that masks keep nothing of it."""
    paths = [work.layout.scores(k, bucket) for bucket in work.buckets]
    path = next(path for path in paths if pl.read_parquet(path)["cluster"].n_unique() > 1)

    def of_another_cluster(table: pl.DataFrame) -> pl.DataFrame:
        wrong = pl.col("cluster") == table["cluster"][-1]
        similarity = pl.when(wrong).then(pl.lit(1.0, pl.Float32)).otherwise("similarity")
        neighbour = pl.when(wrong).then(table["id"][0]).otherwise("duplicate_of")
        return table.with_columns(similarity=similarity, duplicate_of=neighbour)

    change_table(path, path, of_another_cluster)
