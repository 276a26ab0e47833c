"""Documents as relevance-weighted sums of word vectors: is a topic or an opinion in them, and what do two classifiers read?

    python studies/document_vectors.py DATA --work FOLDER [--corpora product_topics movie_reviews] [--picture FILE] [--json FILE]

DATA is the folder with the corpora (`*.tsv.gz` with the columns id, label, fold, text). Word vectors are made of all texts without their
labels: positive pointwise mutual information of words within 4 places, factorised to 100 dimensions (Levy & Goldberg 2014), kept in
FOLDER. A word network (convolution over two words, ReLU, maximum over the text) and an SVM on TF-IDF learn folds 0 to 4; vectors of the
documents in folds 5 to 9 are what the table is of. About two minutes on one core.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, diags_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import relprop
from relprop import analyse

ALL = ("movie_reviews", "sentence_polarity", "subjectivity", "product_topics")
WORD = re.compile(r"\w[\w'-]*|[^\w\s]")
SIZE, WINDOW, LEAST, FILTERS = 100, 4, 8, 150
SHORTEST, LONGEST = 3, 500


def corpus(folder: Path, name: str) -> tuple[list[list[str]], list[str], np.ndarray]:
    """The words of each text, the labels and the folds."""
    csv.field_size_limit(2**24)
    with gzip.open(folder / f"{name}.tsv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(io.StringIO(file.read()), delimiter="\t"))
    texts = [WORD.findall(row["text"].lower())[:LONGEST] for row in rows]
    return texts, [row["label"] for row in rows], np.array([int(row["fold"]) for row in rows])


def word_vectors(data: Path, work: Path) -> tuple[dict[str, int], Tensor]:
    """Each word's row and the vectors (V, D) of length 1, from all texts; made once."""
    file = work / "vectors.npz"
    if not file.exists():
        texts = [words for name in ALL for words in corpus(data, name)[0]]
        words, vectors = factorised(texts)
        np.savez(file, words=np.array(words), vectors=vectors)
    held = np.load(file, allow_pickle=False)
    return {str(word): i for i, word in enumerate(held["words"])}, torch.from_numpy(held["vectors"]).float()


def factorised(texts: list[list[str]]) -> tuple[list[str], np.ndarray]:
    """Words that occur often enough, and the factors of their mutual information."""
    count = Counter(word for words in texts for word in words)
    words = sorted(word for word, number in count.items() if number >= LEAST)
    place = {word: i for i, word in enumerate(words)}
    ids = np.concatenate([[place.get(w, -1) for w in text] + [-2] * WINDOW for text in texts])
    size = len(words)
    pairs = csr_array((size, size))
    for step in range(1, WINDOW + 1):
        left, right = ids[:-step], ids[step:]
        kept = (left >= 0) & (right >= 0)
        found = coo_array((np.ones(int(kept.sum())), (left[kept], right[kept])), shape=(size, size)).tocsr()
        pairs = pairs + found + found.T
    rows = np.asarray(pairs.sum(1)).ravel()
    context = rows**0.75 / (rows**0.75).sum()
    pairs = (diags_array(1 / rows) @ pairs @ diags_array(1 / context)).tocsr()
    pairs.data = np.maximum(np.log(pairs.data), 0)
    pairs.eliminate_zeros()
    left, values, _ = randomized_svd(pairs, SIZE, n_iter=3, random_state=0)
    vectors = left * np.sqrt(values)
    return words, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class WordNetwork(nn.Module):
    """Vectors of the words (B, T, D) -> scores (B, K); no biases, so that all of the score is of words."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.pairs = nn.Conv1d(SIZE, FILTERS, 2, bias=False)
        self.scores = nn.Linear(FILTERS, classes, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """The largest answer of each filter in the text, weighted."""
        return self.scores(F.relu(self.pairs(vectors.transpose(1, 2))).amax(2))


def trained(texts: list[Tensor], labels: Tensor, classes: int, epochs: int = 14) -> WordNetwork:
    """The network after some passes over the texts."""
    torch.manual_seed(0)
    model = WordNetwork(classes)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-5)
    for _ in range(epochs):
        for part in torch.randperm(len(texts)).split(32):
            batch = F.dropout(pad_sequence([texts[i] for i in part], batch_first=True), 0.3)
            optimiser.zero_grad()
            F.cross_entropy(model(batch), labels[part]).backward()
            optimiser.step()
    return model.eval()


def explained(model: WordNetwork, texts: list[Tensor], targets: Tensor, **options: Any) -> list[Tensor]:
    """Relevance (T, D) of each text."""
    explainer = relprop.Explainer(model, **options)
    found: list[Tensor] = []
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), 32):
        part = order[start : start + 32]
        batch = pad_sequence([texts[i] for i in part], batch_first=True)
        relevance = explainer(batch, target=targets[part]).relevance
        found += [row[: len(texts[i])] for row, i in zip(relevance, part, strict=True)]
    back = dict(zip(order, found, strict=True))
    return [back[i] for i in range(len(texts))]


def read_by_svm(model: Any, texts: list[str]) -> tuple[np.ndarray, list[list[tuple[str, float]]]]:
    """The predicted classes, and each text's words with the relevance of the predicted class."""
    guess = model.predict(texts)
    tokens = relprop.explain(model, texts, list(guess)).tokens
    return guess, [[(text, relevance) for text, _, _, relevance in one] for one in tokens]


def study(data: Path, work: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """One corpus: the table of document vectors and the comparison of the two classifiers; and the vectors for a picture."""
    place, vectors = word_vectors(data, work)
    texts, labels, folds = corpus(data, name)
    classes = sorted(set(labels))
    index = torch.tensor([classes.index(one) for one in labels])
    known = [[word for word in words if word in place] for words in texts]
    embedded = [vectors[[place[w] for w in words]] for words in known]
    enough = np.array([len(words) >= SHORTEST for words in known])
    early, late = np.flatnonzero((folds < 5) & enough), np.flatnonzero((folds >= 5) & enough)
    test, true = [embedded[i] for i in late], index[late]

    model = trained([embedded[i] for i in early], index[early], len(classes))
    with torch.no_grad():
        guess = torch.tensor([int(model(one[None]).argmax()) for one in test])
    wrong = (
        guess + torch.randint(1, len(classes), guess.shape, generator=torch.Generator().manual_seed(0))
    ) % len(classes)
    relevance = explained(model, test, guess, rules="epsilon")
    squared = explained(model, test, guess, method="sensitivity")
    other = explained(model, test, wrong, rules="epsilon")

    svm = make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), LinearSVC())
    plain = [" ".join(words) for words in known]
    svm.fit([plain[i] for i in early], [labels[i] for i in early])
    svm_guess, svm_words = read_by_svm(svm, [plain[i] for i in late])
    own = place
    frequency = np.bincount([own[w] for i in late for w in set(known[i])], minlength=len(vectors))
    weight = analyse.tfidf(np.ones(len(vectors)), len(late), frequency)
    draw = torch.Generator().manual_seed(0)

    kinds = {
        "word network, relevance": (relevance_of(relevance), test),
        "word network, relevance, element-wise": (relevance, test),
        "word network, sensitivity": (relevance_of(squared), test),
        "word network, relevance of a wrong class": (relevance_of(other), test),
        "SVM, relevance": (
            [torch.tensor([r for w, r in words if w in own]) for words in svm_words],
            [vectors[[own[w] for w, _ in words if w in own]] for words in svm_words],
        ),
        "TF-IDF": ([weight[[own[w] for w in known[i]]] for i in late], test),
        "uniform": ([torch.ones(len(one)) for one in test], test),
        "random weights": ([torch.rand(len(one), generator=draw) for one in test], test),
    }
    documents = {kind: analyse.document_vectors(*pair) for kind, pair in kinds.items()}
    power = {kind: analyse.explanatory_power(one, true) for kind, one in documents.items()}
    accuracy = {
        "word network": float((guess == true).double().mean()),
        "SVM": float(np.mean([classes[int(t)] == g for t, g in zip(true, svm_guess, strict=True)])),
    }
    network_words = [
        list(zip(known[i], row.sum(1).tolist(), strict=True)) for i, row in zip(late, relevance, strict=True)
    ]
    pair = analyse.Paired(
        (guess.numpy(), np.array([classes.index(g) for g in svm_guess])),
        labels=true.numpy(),
        classes=classes,
        names=("word network", "SVM"),
    )
    compared = analyse.compare_words(network_words, svm_words, pair)
    lists = {
        who: analyse.class_words(words, [classes[int(g)] for g in found], least=5)
        for who, words, found in (
            ("word network", network_words, pair.targets[0]),
            ("SVM", svm_words, pair.targets[1]),
        )
    }
    closeness = {
        who: float(np.nanmean([analyse.coherence([row.word for row in rows], {w: vectors[i] for w, i in own.items()}) for rows in found.values()]))
        for who, found in lists.items()
    }  # fmt: skip
    shares = {"word network": analyse.kind_shares(network_words), "SVM": analyse.kind_shares(svm_words)}
    result = {
        "documents": len(late),
        "classes": classes,
        "accuracy": accuracy,
        "power": {kind: {"value": p.value, "deviation": p.deviation, "k": p.k, "excluded": p.excluded} for kind, p in power.items()},
        "words": {who: {c: [row.word for row in rows] for c, rows in found.items()} for who, found in lists.items()},
        "closeness": closeness,
        "shares": shares,
        "compared": str(compared),
    }  # fmt: skip
    return result, {"documents": documents, "labels": true, "classes": classes, "power": power}


def relevance_of(parts: list[Tensor]) -> list[Tensor]:
    """One value a word: the sum over the components of its vector."""
    return [one.sum(1) for one in parts]


def printed(name: str, found: dict[str, Any]) -> None:
    """The tables of one corpus."""
    told = ", ".join(f"{who} {value:.1%}" for who, value in found["accuracy"].items())
    print(f"\n{name}: {found['documents']} documents, {len(found['classes'])} classes; accuracy: {told}")
    for kind, one in found["power"].items():
        print(f"  {kind:<42} {one['value']:.3f} ± {one['deviation']:.3f}  (k = {one['k']})")
    for who, lists in found["words"].items():
        print(f"  {who}: closeness of the words {found['closeness'][who]:.3f}; relevance on ", end="")
        print(", ".join(f"{kind} {a:.1%} of {b:.1%}" for kind, (a, b) in found["shares"][who].items()))
        for name_of, words in lists.items():
            print(f"    {name_of}: {', '.join(words[:10])}")
    print("  " + found["compared"].replace("\n", "\n  "), flush=True)


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--corpora", nargs="+", default=["product_topics", "movie_reviews"])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    written = {}
    for name in options.corpora:
        found, drawn = study(options.data, options.work, name)
        written[name] = found
        printed(name, found)
        if options.picture and name == options.corpora[0]:
            chosen = (
                "word network, relevance",
                "word network, relevance of a wrong class",
                "SVM, relevance",
                "TF-IDF",
                "uniform",
                "random weights",
            )
            captions = {kind: f"neighbours {drawn['power'][kind].value:.1%}" for kind in chosen}
            analyse.document_chart(
                {kind: drawn["documents"][kind] for kind in chosen}, drawn["labels"], drawn["classes"],
                captions=captions, title="Documents as sums of word vectors, weighted by …",
            ).save(options.picture)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
