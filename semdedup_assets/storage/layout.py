"""Where each result lies: the one module that builds a path of the store.

A location is the path of a result without a suffix: `<location>.result.json` is its record, and its files are named
`<location>.<attempt>.<name>`.
"""

from dataclasses import dataclass

from semdedup_assets.kept_sets import Clustering, KeptSet, Selection
from semdedup_assets.storage.files import join

CURRENT = "current.json"
"""Which of the manifests in its folder a training job reads."""


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
    def folder(self) -> str:
        """Everything that belongs to the pipeline's model."""
        return join(self.root, self.dataset, self.model)

    @property
    def shard_index(self) -> str:
        """JSON: which file belongs to which shard; shared by all models of the dataset."""
        return join(self.root, self.dataset, "shard_index.json")

    def items(self, shard: str) -> str:
        """Parquet: a shard's ids, keys and carried columns."""
        return join(self.folder, "items", shard)

    def embeddings(self, shard: str) -> str:
        """Arrow: a shard's ids and vectors; Parquet: its skipped items with their reasons."""
        return join(self.folder, "embeddings", shard)

    def caption_embeddings(self, shard: str) -> str:
        """Arrow: ids and vectors of the captions of a shard's images."""
        return join(self.folder, "caption_embeddings", shard)

    @property
    def reference_embeddings(self) -> str:
        """Arrow: ids and vectors of the references' items, with their keys beside it."""
        return join(self.folder, "reference_embeddings")

    @property
    def held_out_sets(self) -> str:
        """JSON lines: held-out texts in the sets that models are evaluated on."""
        return join(self.folder, "held_out_sets")

    @property
    def observed_references(self) -> str:
        """JSON: fingerprint of the files of each reference, as they were last listed."""
        return join(self.folder, "observed_references.json")

    @property
    def training_sample(self) -> str:
        """Arrow: the vectors that centroids are fitted to."""
        return join(self.folder, "training_sample")

    def centroids(self, clustering: Clustering) -> str:
        """NumPy: (k, d) float32; Parquet: size in the sample and range of each cluster."""
        return self.of_clustering(clustering, "centroids")

    def assignments(self, clustering: Clustering, shard: str) -> str:
        """Arrow: a shard's rows in the order of their clusters, one record batch for each range of clusters."""
        return self.of_clustering(clustering, "assignments", shard)

    def scores(self, clustering: Clustering, selection: Selection, cluster_range: int) -> str:
        """Parquet: greatest similarity to an earlier item, by item of the range's clusters."""
        return self.of_clustering(clustering, "scores", selection.keep_order, f"r{cluster_range:04d}")

    def boundary_items(self, clustering: Clustering, repair: object, shard: str) -> str:
        """Arrow: a shard's items that search other clusters, one record batch for each range of these."""
        return self.of_clustering(clustering, f"boundary-{repair}", shard)

    def of_clustering(self, clustering: Clustering, *parts: str) -> str:
        """A result that belongs to a clustering."""
        return join(self.folder, clustering.path, *parts)

    def of_selection(self, clustering: Clustering, selection: Selection, *parts: str) -> str:
        """A result that belongs to a clustering and a selection."""
        return self.of_clustering(clustering, selection.path, *parts)

    def of_all_clusterings(self, selection: Selection, *parts: str) -> str:
        """A result that is made from every clustering, of a selection."""
        return join(self.folder, "clusterings", selection.path, *parts)

    def of_kept_set(self, kept_set: KeptSet, *parts: str) -> str:
        """A result that belongs to a kept set: its masks, manifests, gallery."""
        return join(self.folder, kept_set.path, *parts)

    def of_baseline(self, name: str, *parts: str) -> str:
        """A result of a baseline that needs no clustering: its fingerprints, masks, manifests."""
        return join(self.folder, "baselines", name, *parts)

    def current_manifest(self, kept_set: KeptSet) -> str:
        """JSON: which manifest a training job reads."""
        return current_manifest(self.of_kept_set(kept_set, "manifests"))

    @property
    def training(self) -> str:
        """Files of trainers at work, which are theirs alone; of a local store."""
        return join(self.folder, "training")

    @property
    def estimate(self) -> str:
        """JSON: what the pipeline is predicted to take."""
        return join(self.folder, "estimate")


def current_manifest(manifests: str) -> str:
    """JSON: which of the manifests in a folder a training job reads."""
    return join(manifests, CURRENT)


def comparison(root: str, name: str) -> str:
    """Parquet: which items some manifests keep in common, and what changed between them; of a comparison by its name."""
    return join(root, "manifest_comparisons", name)


def training_comparison(root: str, name: str) -> str:
    """Parquet: what models that were trained on some kept sets are worth beside each other; of a comparison by its name."""
    return join(root, "training_comparisons", name)
