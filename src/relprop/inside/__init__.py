"""Explanations inside the model: its units by relevance, what maximises them, its parameters, pairs of features."""

from relprop.inside.maximise import Maximal, maximise
from relprop.inside.pairs import Pairs, bilrp
from relprop.inside.ranking import Ranking, ranked
from relprop.inside.weights import Parameters, parameters

__all__ = ["Maximal", "Pairs", "Parameters", "Ranking", "bilrp", "maximise", "parameters", "ranked"]
