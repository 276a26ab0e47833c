"""What a whole data set of relevance says: strategies class by class, context use, comparisons, document vectors."""

from relprop.analyse.boxes import Box, box_mask, output_names, read_boxes, read_classes
from relprop.analyse.charts import context_chart, document_chart
from relprop.analyse.comparison import (
    Alike,
    Contrast,
    ModelComparison,
    Paired,
    compare_maps,
    compare_places,
    mcnemar,
)
from relprop.analyse.confirming import confirm
from relprop.analyse.context import ContextGap, ContextRow, ContextUse, context_gap, context_use
from relprop.analyse.documents import (
    Power,
    document_vectors,
    explanatory_power,
    knn,
    knn_accuracy,
    principal,
    tfidf,
)
from relprop.analyse.domains import (
    Profile,
    Region,
    Trials,
    along_time,
    fisher_mean,
    regions,
    trial_correlation,
    trials_alike,
)
from relprop.analyse.fisher import TAUS, fisher_discriminant
from relprop.analyse.graph import SYMMETRIES, eigengap, knn_affinity, laplacian_spectrum
from relprop.analyse.of_store import confirm_store, spray_store
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
from relprop.analyse.stored import StoredContext, compare_stores, store_context, store_words, stored_words
from relprop.analyse.strategies import Settings, spray
from relprop.analyse.table import ANALYSES
from relprop.analyse.words import WordRow, class_words, coherence, compare_words, kind_shares, words_of

__all__ = [
    "ANALYSES",
    "FLAGGED",
    "SYMMETRIES",
    "TAUS",
    "Alike",
    "Analysis",
    "Box",
    "ClassAnalysis",
    "Cluster",
    "Confirmation",
    "ContextGap",
    "ContextRow",
    "ContextUse",
    "Contrast",
    "Effect",
    "Evidence",
    "ModelComparison",
    "Paired",
    "Place",
    "Power",
    "Profile",
    "Region",
    "Settings",
    "StoredContext",
    "Trials",
    "WordRow",
    "along_time",
    "box_mask",
    "class_words",
    "coherence",
    "compare_maps",
    "compare_places",
    "compare_stores",
    "compare_words",
    "confirm",
    "confirm_store",
    "context_chart",
    "context_gap",
    "context_use",
    "document_chart",
    "document_vectors",
    "eigengap",
    "explanatory_power",
    "fisher_discriminant",
    "fisher_mean",
    "kind_shares",
    "knn",
    "knn_accuracy",
    "knn_affinity",
    "laplacian_spectrum",
    "load",
    "mcnemar",
    "output_names",
    "principal",
    "project_out",
    "read_boxes",
    "read_classes",
    "regions",
    "signal_pattern",
    "spray",
    "spray_store",
    "store_context",
    "store_words",
    "stored_words",
    "tfidf",
    "trial_correlation",
    "trials_alike",
    "words_of",
]
