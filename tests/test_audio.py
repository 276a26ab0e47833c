"""Recordings: read, resampled, explained from the command line and drawn over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relprop import InvalidInput, show
from relprop.audio import open_recording, resampled
from relprop.cli import main
from relprop.show.audio import spans

soundfile = pytest.importorskip("soundfile")

NETS = """
import torch
from torch import nn


def wave():
    layers = nn.Conv1d(1, 4, 16, 8), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*layers).eval()
"""


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A tone of a quarter of a second in the middle of a second, in stereo at 8 kHz."""
    time = np.arange(8000) / 8000
    sound = 0.5 * np.sin(2 * np.pi * 440 * time) * (np.abs(time - 0.5) < 0.125)
    soundfile.write(tmp_path / "tone.wav", np.stack([sound, 0.5 * sound], 1), 8000)
    return tmp_path / "tone.wav"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_recording_is_read_as_one_channel_and_resampled(recording: Path) -> None:
    heard = open_recording(recording)
    assert (heard.rate, len(heard.samples), heard.seconds) == (8000, 8000, 1.0)
    assert float(heard.samples.abs().max()) == pytest.approx(0.375, abs=1e-3)  # the mean of both channels
    faster = open_recording(recording, 16000)
    assert len(faster.samples) == 16000
    middle = slice(4000, 12000)
    assert torch.allclose(faster.samples[::2][middle], heard.samples[middle], atol=2e-2)
    with pytest.raises(InvalidInput, match="16000"):
        resampled(heard, 3)


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "nan.wav", np.full(9, np.nan, dtype=np.float32), 8000, subtype="FLOAT")
    for name, part in (
        ("text.wav", "unreadable"), ("empty.wav", "empty"), ("nan.wav", "NaN"), ("none.wav", "no such file"),
        (".", "a folder"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=part):
            open_recording(tmp_path / name)


def test_bars_add_up_to_the_relevance_and_are_of_round_times() -> None:
    values = np.random.default_rng(0).normal(size=16000 * 3 + 123)
    summed = spans(values, 16000)
    assert len(summed) <= 101 and summed.sum() == pytest.approx(values.sum())
    assert summed[0] == pytest.approx(values[: 16000 // 20].sum())  # 50 ms each


def test_sounds_and_spectrograms_are_drawn() -> None:
    values = torch.randn(2, 1, 4000)
    both, one = show.audio(values, values, rate=8000), show.audio(values[0, 0], rate=8000, title="a title")
    assert both.height > one.height and one.mode == "RGB"
    assert show.audio(torch.zeros(100)).mode == "RGB"
    assert show.spectrogram(torch.randn(40, 90), 0.9).mode == "RGB"
    with pytest.raises(InvalidInput, match="one channel"):
        show.audio(torch.zeros(1, 2, 100))
    with pytest.raises(InvalidInput, match="the samples that were explained"):
        show.audio(torch.zeros(100), torch.zeros(99))


def test_the_command_line_explains_a_recording(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sounding.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    asked = ("explain", recording, "--model", "sounding:wave", "--channels", 1)
    code, printed, _ = run(capsys, *asked, "--rate", 4000, "--out", "why.png")
    assert code == 0 and Path("why.png").is_file()
    assert "1.00 s at 4000 Hz" in printed and "no sample" in printed
    code, printed, _ = run(capsys, *asked, "--target", 2, "--json")
    (result,) = json.loads(printed)["results"]
    assert code == 0 and result["target"] == 2
    loud = np.array(result["relevance"])
    assert loud.sum() == pytest.approx(result["audit"]["relevance"], abs=1e-5)
    inside = np.abs(np.linspace(0, 1, len(loud)) - 0.5) < 0.15
    assert np.abs(loud[~inside]).max() < 1e-6 < np.abs(loud[inside]).max()
    for given, part in (
        ((recording, "--model", "demo"), "takes photographs"),
        (("none.wav", "--model", "sounding:wave"), "no such file"),
        ((recording, recording, "--model", "sounding:wave"), "2 recordings"),
        ((recording, "cat.jpg", "--model", "sounding:wave"), "audio and photos"),
    ):
        code, _, error = run(capsys, "explain", *given)
        assert code == 2 and part in error and "Traceback" not in error


def test_a_folder_of_a_model_that_hears_brings_its_rate(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Wav2Vec2Config(
        **sizes, intermediate_size=16, conv_dim=(8, 8), conv_kernel=(10, 8), conv_stride=(8, 8),
        num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        classifier_proj_size=8, id2label={0: "no", 1: "yes"},
    )  # fmt: skip
    transformers.Wav2Vec2ForSequenceClassification(config).eval().save_pretrained(tmp_path / "model")
    out = tmp_path / "why.png"
    asked = ("explain", recording, "--model", tmp_path / "model", "--out", out)
    code, _, error = run(capsys, *asked)
    assert code == 2 and "no feature extractor" in error
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "model")
    code, printed, _ = run(capsys, *asked, "--target", "yes")
    assert code == 0 and out.is_file() and "yes, score" in printed and "at 16000 Hz" in printed
    code, printed, _ = run(capsys, "plan", "--model", tmp_path / "model")  # of a second of noise
    assert code == 0 and "aten.conv1d" in printed and "Wav2Vec2ForSequenceClassification" in printed
    code, printed, _ = run(capsys, "plan", recording, "--model", tmp_path / "model", "--json")
    assert code == 0 and json.loads(printed)["operations"]
