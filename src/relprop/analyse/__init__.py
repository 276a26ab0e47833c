"""What a whole data set of relevance says: strategies class by class, context use, comparisons, document vectors."""

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
from relprop.analyse.fisher import TAUS, fisher_discriminant
from relprop.analyse.graph import SYMMETRIES, eigengap, knn_affinity, laplacian_spectrum
from relprop.analyse.projection import project_out, signal_pattern
from relprop.analyse.result import (
    FLAGGED,
    Analysis,
    ClassAnalysis,
    Cluster,
    Confirmation,
    Effect,
    Evidence,
    Place,
    load,
)

__all__ = [
    "FLAGGED",
    "SYMMETRIES",
    "TAUS",
    "Analysis",
    "ClassAnalysis",
    "Cluster",
    "Confirmation",
    "Effect",
    "Evidence",
    "Place",
    "Power",
    "Profile",
    "Region",
    "along_time",
    "document_vectors",
    "eigengap",
    "explanatory_power",
    "fisher_discriminant",
    "fisher_mean",
    "knn",
    "knn_accuracy",
    "knn_affinity",
    "laplacian_spectrum",
    "load",
    "principal",
    "project_out",
    "regions",
    "signal_pattern",
    "tfidf",
    "trial_correlation",
]
