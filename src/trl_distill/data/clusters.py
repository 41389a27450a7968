"""Texts to clusters of much the same words, by scikit-learn (extra `clusters`)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from ..errors import UsageError
from .words import WORD

FEATURES = 50_000  # most frequent words and pairs of words
DIMENSIONS = 100  # that they are projected to, as scikit-learn's example of clustering texts does
STARTS = 5  # of k-means, of which the best counts
NAMED_BY = 3  # words


@dataclass(frozen=True)
class Clusters:
    """Texts by cluster.

    Attributes:
        labels: The cluster of each text, in their order.
        names: The words that distinguish each cluster.
    """

    labels: list[int]
    names: list[str]


def check_clusters() -> None:
    """Raise UsageError if scikit-learn is missing."""
    if find_spec("sklearn") is None:
        raise UsageError(
            'clusters needs scikit-learn, which is not installed; run `pip install "trl-distill[clusters]"`, or give '
            "--category-column or --category-function."
        )


def clusters_of(texts: Sequence[str], count: int, *, seed: int) -> Clusters:
    """Group texts by k-means over tf-idf weights of words and pairs of words, reduced by a truncated SVD.

    This is latent semantic analysis (S. Deerwester et al., 1990) as in scikit-learn's "Clustering text documents using
    k-means".

    Args:
        texts: Normalised texts.
        count: Clusters; at most as many as there are texts.
        seed: Seed of the projection and of k-means.

    Raises:
        UsageError: scikit-learn is missing.
    """
    check_clusters()
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    count = min(count, len(texts))
    if count < 2:
        return Clusters([0] * len(texts), ["all"])
    weigh = TfidfVectorizer(
        lowercase=False, token_pattern=rf"(?u){WORD}", ngram_range=(1, 2), max_features=FEATURES, sublinear_tf=True
    )
    try:
        weights = weigh.fit_transform(texts)
    except ValueError:  # no text has a word
        return Clusters([0] * len(texts), ["all"])
    points = weights
    if min(weights.shape) > DIMENSIONS:
        points = normalize(TruncatedSVD(DIMENSIONS, random_state=seed).fit_transform(weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different texts than clusters
        labels = KMeans(count, n_init=STARTS, random_state=seed).fit_predict(points)
    words, overall = weigh.get_feature_names_out(), np.asarray(weights.mean(axis=0)).ravel()
    names = []
    for label in range(count):
        inside = np.flatnonzero(labels == label)
        more = np.asarray(weights[inside].mean(axis=0)).ravel() - overall if len(inside) else overall
        names.append(", ".join(words[place] for place in np.argsort(-more, kind="stable")[:NAMED_BY]))
    return Clusters([int(label) for label in labels], names)
