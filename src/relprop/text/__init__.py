"""Text: tokenizers, tokens with their place in the text, targets by name, models that bring their tokenizer.

transformers is imported when a saved folder is opened: `pip install 'relprop[text]'`.
"""

from relprop.text.asked import Asked, label_id, token_id
from relprop.text.opened import (
    folder_model,
    folder_tokenizer,
    is_folder,
    labels_of,
    opened,
)
from relprop.text.read import named, reading
from relprop.text.tokenizers import DECODER, Vocabulary, is_text, name_of, parameters_of, spelled, tokenise
from relprop.text.tokens import Piece, Token, Tokenised, per_token
from relprop.text.words import WORD, words

__all__ = [
    "DECODER",
    "WORD",
    "Asked",
    "Piece",
    "Token",
    "Tokenised",
    "Vocabulary",
    "folder_model",
    "folder_tokenizer",
    "is_folder",
    "is_text",
    "label_id",
    "labels_of",
    "name_of",
    "named",
    "opened",
    "parameters_of",
    "per_token",
    "reading",
    "spelled",
    "token_id",
    "tokenise",
    "words",
]
