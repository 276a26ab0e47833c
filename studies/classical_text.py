"""TF-IDF and a linear SVM on four corpora: accuracy, and what deleting words in the order of relevance does to the score.

    python studies/classical_text.py DATA [--texts 200] [--json FILE] [--picture FILE]

DATA is the folder with the corpora (`*.tsv.gz` with the columns id, label, fold, text); fold 9 is held out. Words are
deleted from the text itself, one after the other, and the model reads what is left: in the order of relevance, of the
absolute weight of their term, and at random. The figure is the mean over the first ten deletions of the score that is
left, as a part of the whole score, with the interval of 95 % from 2000 resamples of the texts.

Then the bag of words is compared with a neural network, word by word: a convolution over word vectors with the largest value
over the text, trained on the same sentences. Of each held-out sentence the rank correlation of the two relevances of its words,
for the class that the sentence has, beside that with the words of the network shuffled.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

import relprop
from relprop import show
from relprop.text import Vocabulary, words

CORPORA = ("movie_reviews", "sentence_polarity", "subjectivity", "product_topics")
STEPS = 10


def corpus(folder: Path, name: str) -> tuple[list[str], list[str], np.ndarray]:
    """Texts, labels and folds."""
    csv.field_size_limit(2**24)
    with gzip.open(folder / f"{name}.tsv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(io.StringIO(file.read()), delimiter="\t"))
    return [r["text"] for r in rows], [r["label"] for r in rows], np.array([int(r["fold"]) for r in rows])


def trained(texts: list[str], labels: list[str], held: np.ndarray) -> Any:
    """The pipeline, fitted on what is not held out."""
    model = make_pipeline(TfidfVectorizer(), LinearSVC())
    return model.fit([t for t, h in zip(texts, held, strict=True) if not h], np.array(labels)[~held])


def score(model: Any, texts: list[str], index: np.ndarray) -> np.ndarray:
    """The score of each text's explained class."""
    found = model.decision_function(texts)
    if found.ndim == 1:
        return np.where(index == 1, found, -found)
    return found[np.arange(len(texts)), index]


def orders(model: Any, explanation: Any, rng: np.random.Generator) -> dict[str, list[list[int]]]:
    """The words of each text in the orders in which they are deleted."""
    vectoriser, svm = model[0], model[-1]
    size = np.abs(svm.coef_)
    found: dict[str, list[list[int]]] = {"relevance": [], "|weight|": [], "random": []}
    for tokens, row in zip(explanation.tokens, explanation.target.tolist(), strict=True):
        weights = size[row if len(size) > 1 else 0]
        columns = [vectoriser.vocabulary_.get(token.text.lower(), -1) for token in tokens]
        keys = {
            "relevance": [-token.relevance for token in tokens],
            "|weight|": [-(weights[c] if c >= 0 else 0.0) for c in columns],
            "random": list(rng.random(len(tokens))),
        }
        for name, key in keys.items():
            found[name].append(list(np.argsort(key, kind="stable")))
    return found


def without(text: str, tokens: Any, places: list[int]) -> str:
    """The text without some of its words."""
    for place in sorted(places, key=lambda p: -tokens[p].start):
        text = text[: tokens[place].start] + text[tokens[place].end :]
    return text


def deletion(model: Any, texts: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    """For each order the part of the score that is left, mean over the first deletions: one value a text."""
    binary = model.decision_function(texts[:1]).ndim == 1
    whole = model.decision_function(texts)
    classes = model.classes_
    index = (whole > 0).astype(int) if binary else whole.argmax(1)
    explanation = relprop.explain(model, texts, [classes[i] for i in index])
    start = score(model, texts, index)
    result = {}
    for name, order in orders(model, explanation, np.random.default_rng(seed)).items():
        left = []
        for step in range(1, STEPS + 1):
            cut = [
                without(text, tokens, places[:step])
                for text, tokens, places in zip(texts, explanation.tokens, order, strict=True)
            ]
            left.append(score(model, cut, index))
        result[name] = np.mean(left, 0) / np.abs(start).mean()
    return result


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % of the means of resampled texts."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def study(folder: Path, name: str, count: int) -> dict[str, Any]:
    """One corpus: accuracy on fold 9 and the deletion curves' means."""
    texts, labels, folds = corpus(folder, name)
    held = folds == 9
    model = trained(texts, labels, held)
    own = [t for t, h in zip(texts, held, strict=True) if h]
    accuracy = float((model.predict(own) == np.array(labels)[held]).mean())
    left = deletion(model, own[:count])
    rows = {k: {"mean": float(v.mean()), "interval": interval(v)} for k, v in left.items()}
    gap = left["|weight|"] - left["relevance"]
    return {"accuracy": accuracy, "left": rows, "|weight| − relevance": [float(gap.mean()), *interval(gap)]}


class Convolution(torch.nn.Module):
    """Three words at a time, the largest value over the text, two classes."""

    def __init__(self, size: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(size, width, padding_idx=0)
        self.convolution = torch.nn.Conv1d(width, width, 3, padding=1)
        self.drop = torch.nn.Dropout(0.5)
        self.last = torch.nn.Linear(width, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T) to (B, 2)."""
        found = torch.relu(self.convolution(self.embedding(ids).transpose(1, 2)))
        return self.last(self.drop(found.amax(2)))


def neural(texts: list[str], labels: np.ndarray, vocabulary: Vocabulary, epochs: int = 6) -> Convolution:
    """The network, trained on texts."""
    torch.manual_seed(0)
    model = Convolution(len(vocabulary.table()))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    rows = [torch.tensor([number for number, _, _ in vocabulary(text)]) for text in texts]
    classes = torch.from_numpy(labels)
    for _ in range(epochs):
        for part in torch.randperm(len(rows)).split(100):
            ids = torch.nn.utils.rnn.pad_sequence([rows[i] for i in part.tolist()], batch_first=True)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(ids), classes[part]).backward()
            optimiser.step()
    return model.eval()


def agreement(folder: Path, count: int, picture: Path | None = None) -> dict[str, Any]:
    """How alike a bag of words and a neural network find the words of sentences."""
    texts, names, folds = corpus(folder, "sentence_polarity")
    held, labels = folds == 9, np.array(names).astype(int)
    bag = trained(texts, names, held)
    train = [t for t, h in zip(texts, held, strict=True) if not h]
    own = [t for t, h in zip(texts, held, strict=True) if h]
    vocabulary = Vocabulary(["", "?", *bag[0].get_feature_names_out()], unknown=1)
    network = neural(train, labels[~held], vocabulary)
    explainer = relprop.Explainer(network, tokenizer=vocabulary)
    rng = np.random.default_rng(0)
    right, found, shuffled = [], [], []
    for number, (text, label) in enumerate(zip(own[:count], labels[held][:count], strict=True)):
        theirs = explainer(text, int(label))
        ours = relprop.explain(bag, text, str(label))
        a, b = ([w.relevance for w in words(one)[0]] for one in (ours, theirs))
        right.append(int(theirs.output.argmax()) == label)
        if not np.ptp(a) or not np.ptp(b):  # of one word, or of none that is known: no order
            continue
        found.append(float(spearmanr(a, b).statistic))
        shuffled.append(float(spearmanr(a, rng.permutation(b)).statistic))
        if picture is not None and number == 0:
            rows = [words(one)[0] for one in (ours, theirs)]
            titles = ["bag of words", "convolutional network"]
            show.save(show.text_picture(show.coloured(rows, [text, text], title=titles)), picture)
    return {
        "accuracy of the network": float(np.mean(right)),
        "sentences": len(found),
        "rank correlation": [float(np.mean(found)), *interval(np.array(found))],
        "shuffled": [float(np.mean(shuffled)), *interval(np.array(shuffled))],
    }


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--only-compare", action="store_true", help="leave out the corpora")
    options = parser.parse_args()
    found = {}
    for name in () if options.only_compare else CORPORA:
        found[name] = study(options.data, name, options.texts)
        print(name, f"accuracy {found[name]['accuracy']:.1%}")
        for order, row in found[name]["left"].items():
            print(f"  {order:10} {row['mean']:+.3f}  {row['interval'][0]:+.3f} … {row['interval'][1]:+.3f}")
        print(
            "  |weight| − relevance", [round(v, 3) for v in found[name]["|weight| − relevance"]], flush=True
        )
    found["word by word"] = agreement(options.data, options.texts, options.picture)
    print("word by word", found["word by word"], flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
