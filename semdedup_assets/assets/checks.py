"""Checks that a result is fit to go on with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from semdedup_assets.assets.declaration import Declaration


@dataclass
class SkippedShare:
    """Fails where more than a settable share of a shard's items is broken; one for each run."""

    asset: dg.AssetKey
    most: float
    failed: dict[str, float] = field(default_factory=dict)

    @property
    def spec(self) -> dg.AssetCheckSpec:
        """What the asset declares."""
        return dg.AssetCheckSpec(
            "skipped_share",
            asset=self.asset,
            blocking=True,
            description=f"At most {self.most:.2%} of a shard's items are broken (`max_skipped`).",
        )

    def evaluate(self, context: dg.AssetExecutionContext, partition: str, details: Mapping[str, Any]) -> None:
        """Judge one shard."""
        share = details["skipped"] / max(1, details["records"])
        if share > self.most:
            self.failed[partition] = share
            context.log.warning(
                f"{partition}: {details['skipped']} of {details['records']} items are broken, more than "
                f"{self.most:.2%}; the first: {details['skipped_examples'][:3]}"
            )

    def result(self) -> dg.AssetCheckResult:
        """The verdict on all shards of the run."""
        return dg.AssetCheckResult(
            check_name="skipped_share",
            passed=not self.failed,
            metadata={"limit": self.most, "shards_above": dg.MetadataValue.json(self.failed)},
        )


def skipped_share(declaration: Declaration) -> SkippedShare:
    """The check on a pipeline's embeddings."""
    return SkippedShare(declaration.key("embeddings"), declaration.pipeline.max_skipped)
