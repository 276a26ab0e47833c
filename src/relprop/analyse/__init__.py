"""What a whole data set of relevance says: context use, comparisons, document vectors."""

from relprop.analyse.documents import (
    Power,
    document_vectors,
    explanatory_power,
    knn,
    knn_accuracy,
    principal,
    tfidf,
)
from relprop.analyse.domains import Profile, Region, along_time, fisher_mean, regions, trial_correlation

__all__ = [
    "Power",
    "Profile",
    "Region",
    "along_time",
    "document_vectors",
    "explanatory_power",
    "fisher_mean",
    "knn",
    "knn_accuracy",
    "principal",
    "regions",
    "tfidf",
    "trial_correlation",
]
