"""Trained networks of the world: explained, the account closes, and the relevance is where the reason is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import relprop
import trained
from relprop import Explanation, show


def closed(explanation: Explanation) -> None:
    """The account closes, and nothing was blown up on the way."""
    audit = explanation.audit
    assert audit is not None
    assert (audit.gap.abs() <= audit.tolerance).all()
    assert float(audit.magnitude.max()) <= 10 * max(1.0, float(explanation.score.abs().max()))


def test_the_similarity_of_two_sentences_lies_in_the_words_they_share_in_meaning() -> None:
    model, tokenizer = trained.sentence_encoder()
    text = "The children were playing football in the park yesterday."
    explainer = relprop.Explainer(model, tokenizer=tokenizer)
    near = explainer(text, trained.similarity_to(model, tokenizer, "Kids kick a ball on the grass."))
    far = explainer(text, trained.similarity_to(model, tokenizer, "The stock market fell sharply."))
    for one in (near, far):
        closed(one)
    assert float(near.score) > 0.5 > 0.1 > float(far.score)
    words = sorted(near.tokens[0], key=lambda token: -token.relevance)
    assert {token.text for token in words[:4]} == {"children", "football", "park", "playing"}
    assert sum(token.relevance for token in words[:4]) > 0.8 * sum(token.relevance for token in words)
    assert near.heatmap().mode == "RGB"


def test_the_similarity_of_two_voices_lies_in_what_is_spoken(shared: Path) -> None:
    model = trained.voice_encoder()
    frames = trained.mels(trained.digit(shared, 0, 7))[None]
    with torch.no_grad():
        same, other = (model(trained.mels(trained.digit(shared, who, 3))[None]) for who in (0, 3))

    def like(voice: Tensor) -> Explanation:
        return relprop.explain(model, frames, lambda vector: (vector * voice).sum(1))

    ours, theirs = like(same), like(other)
    for one in (ours, theirs):
        closed(one)
    assert float(ours.score) > float(theirs.score) + 0.1
    loud = frames[0].sum(1) > 0.05 * frames[0].sum(1).max()
    relevance = ours.relevance[0].abs().sum(1)
    assert float(relevance[loud].mean()) > 2 * float(relevance[~loud].mean())
    assert show.spectrogram(ours.relevance[0].T).mode == "RGB"


def test_speech_is_found_where_it_is_and_not_in_the_silence_before(shared: Path) -> None:
    model = trained.speech_detector()
    sound = torch.cat([torch.zeros(1024), trained.digit(shared, 0, 7)])[: 512 * 9][None]
    with torch.no_grad():
        scores = model(sound)[0]
    found = relprop.explain(model, sound, target=8)
    closed(found)
    assert float(scores[8]) > 2 > -2 > float(scores[0])
    windows = found.relevance[0].reshape(9, 512).sum(1)
    assert (windows[:2].abs() < 1e-6).all()  # the silence
    assert float(windows.sum()) == pytest.approx(float(found.audit.relevance) if found.audit else 0, abs=1e-4)
    assert show.audio(found.relevance, sound).mode == "RGB"


def test_the_pitch_of_a_tone_is_explained_by_its_periods() -> None:
    model = trained.pitch()
    sound = trained.tone(220.0)
    found = relprop.explain(model, sound)
    closed(found)
    assert trained.hertz_of(int(found.target[0])) == pytest.approx(220, rel=0.01)
    relevance = found.relevance[0].double()
    relevance = relevance - relevance.mean()
    period = trained.RATE // 220
    shifts = [float((relevance[:-k] * relevance[k:]).sum()) for k in (period, period // 2)]
    assert shifts[0] > abs(shifts[1])  # it repeats with the tone
    assert show.audio(found.relevance, sound).mode == "RGB"
