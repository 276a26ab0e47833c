"""The analyses of whole data sets: what each asks and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relprop.analyse.comparison import compare_maps
from relprop.analyse.confirming import confirm
from relprop.analyse.context import context_use
from relprop.analyse.documents import document_vectors
from relprop.analyse.strategies import spray
from relprop.analyse.words import class_words


@dataclass(frozen=True, slots=True)
class Question:
    """One analysis.

    Attributes:
        function: what answers it.
        asks: the question, in a sentence.
        needs: what it is given.
    """

    function: Callable[..., Any]
    asks: str
    needs: str


ANALYSES: dict[str, Question] = {
    "spray": Question(spray, "Which strategies does the model use for a class, and does one look like an artefact?", "relevance of many samples"),
    "confirm": Question(confirm, "Does the model go by a suspected artefact?", "the model, affected and clean inputs, the place"),
    "context": Question(context_use, "How much relevance lies outside the objects?", "relevance and bounding boxes"),
    "compare": Question(compare_maps, "Where do two models go by different things?", "relevance of two models for the same samples"),
    "documents": Question(document_vectors, "What is a text about, to the model?", "relevance of words and word vectors"),
    "words": Question(class_words, "Which words speak for a class?", "relevance of the words of many texts"),
}  # fmt: skip
