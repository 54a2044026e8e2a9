"""The one place that spells a path."""

from dataclasses import dataclass

from semdedup_assets.storage.files import join


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the results of one pipeline lie below a local root or an object-store URL.

    Attributes:
        root: local path or URL.
        dataset: name of the dataset.
        model: name of the embedding model.
    """

    root: str
    dataset: str
    model: str

    @property
    def catalogue(self) -> str:
        """Which file belongs to which shard (JSON); shared by all models of the dataset."""
        return join(self.root, self.dataset, "catalogue.json")

    def _below(self, *parts: str) -> str:
        return join(self.root, self.dataset, self.model, *parts)

    def embeddings(self, shard: str) -> str:
        """Arrow: a shard's ids, keys, vectors and carried columns."""
        return self._below("embeddings", f"{shard}.arrow")

    def skipped(self, shard: str) -> str:
        """Parquet: a shard's broken items with their reasons."""
        return self._below("embeddings", f"{shard}.skipped.parquet")

    @property
    def training_sample(self) -> str:
        """Arrow: the vectors that centroids are fitted to."""
        return self._below("training_sample.arrow")

    def centroids(self, k: str) -> str:
        """NumPy: (k, d) float32."""
        return self._below(f"k={k}", "centroids.npy")

    def clusters(self, k: str) -> str:
        """Parquet: size in the sample and bucket of each cluster."""
        return self._below(f"k={k}", "clusters.parquet")

    def assignments(self, k: str, shard: str) -> str:
        """Arrow: a shard's rows in the order of their clusters, one record batch a bucket."""
        return self._below(f"k={k}", "assignments", f"{shard}.arrow")

    def scores(self, k: str, bucket: str) -> str:
        """Parquet: greatest similarity to an earlier item, by item of the bucket's clusters."""
        return self._below(f"k={k}", "scores", f"{bucket}.parquet")

    def _selected(self, k: str, epsilon: str, *parts: str) -> str:
        # A percent sign in a URL would be read as an escape.
        name = epsilon if epsilon.startswith("keep=") else f"epsilon={epsilon}"
        return self._below(f"k={k}", name.replace("%", "pct"), *parts)

    def masks(self, k: str, epsilon: str) -> str:
        """JSON: what the keep masks of all buckets add up to; written last."""
        return self._selected(k, epsilon, "masks", "masks")

    def mask(self, k: str, epsilon: str, bucket: str) -> str:
        """Parquet: kept or removed, and the nearest kept item, by item of the bucket's clusters."""
        return self._selected(k, epsilon, "masks", f"{bucket}.parquet")

    def manifest(self, k: str, epsilon: str, version: str) -> str:
        """Folder: one immutable manifest."""
        return self._selected(k, epsilon, "manifests", version)

    def current_manifest(self, k: str, epsilon: str) -> str:
        """JSON: which manifest is current."""
        return self._selected(k, epsilon, "manifests", "current.json")

    def figures(self, k: str) -> str:
        """JSON: what the figures of one k add up to; written last."""
        return self._below(f"k={k}", "figures", "figures")

    def figure(self, k: str, name: str) -> str:
        """PNG, or Parquet with its numbers: `<name>` holds the suffix."""
        return self._below(f"k={k}", "figures", name)

    def gallery(self, k: str, epsilon: str) -> str:
        """JSON: what the gallery of one k and epsilon shows; written last."""
        return self._selected(k, epsilon, "gallery", "gallery")

    def gallery_file(self, k: str, epsilon: str, name: str) -> str:
        """A page or a picture of the gallery: `<name>` holds the suffix."""
        return self._selected(k, epsilon, "gallery", name)

    @property
    def estimate(self) -> str:
        """JSON: what the pipeline is predicted to take; written last."""
        return self._below("estimate", "estimate")


def recipe_path(result: str) -> str:
    """JSON beside a result that says what made it; written last, so that it also says the result is complete."""
    return f"{result}.recipe.json"
