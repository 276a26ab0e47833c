"""Texts: tokens with their place, targets by name, models that bring their tokenizer, what a model writes, pictures."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import relprop
from relprop import InvalidInput, show
from relprop.cli import main
from relprop.targets import contrast
from relprop.text import Token, Vocabulary, token_id, tokenise

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "film",
    "is",
    "un",
    "##aff",
    "##able",
    "good",
    "bad",
    "!",
    ",",
]
LINES = ["the cat sat on the mat and the dog ran to the house in Paris"] * 5
TINY: dict[str, Any] = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
}


def word_pieces() -> Any:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True)


def byte_pairs() -> Any:
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = byte_level(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    found.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<end>"], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    found.train_from_iterator(LINES, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=found, eos_token="<end>")


@pytest.fixture(scope="module")
def pieces() -> Any:
    return word_pieces()


@pytest.fixture(scope="module")
def bytes_() -> Any:
    return byte_pairs()


@pytest.fixture(scope="module")
def classifier() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), id2label={0: "NEGATIVE", 1: "POSITIVE"}, **TINY)
    return transformers.BertForSequenceClassification(config).eval().double()


@pytest.fixture(scope="module")
def writer(bytes_: Any) -> Any:
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.LlamaConfig(vocab_size=len(bytes_), num_key_value_heads=1, **TINY, **ends)
    return transformers.LlamaForCausalLM(config).eval().double()


# ---------------------------------------------------------------- tokens


def test_tokens_have_their_characters_and_add_up_to_the_relevance(classifier: Any, pieces: Any) -> None:
    texts = ["The  film is unaffable!", "good"]
    explanation = relprop.explain(classifier, texts, tokenizer=pieces)
    first, second = explanation.tokens
    assert [token.text for token in first] == [
        "[CLS]",
        "The",
        "film",
        "is",
        "un",
        "aff",
        "able",
        "!",
        "[SEP]",
    ]
    assert [token.text for token in second] == ["[CLS]", "good", "[SEP]"]  # no padding
    for text, tokens in zip(texts, explanation.tokens, strict=True):
        for token in tokens:
            named = token.text.startswith("[")
            assert token.start == token.end if named else text[token.start : token.end] == token.text
    assert explanation.audit is not None
    for row, tokens in enumerate(explanation.tokens):
        total = sum(token.relevance for token in tokens)
        assert total == pytest.approx(float(explanation.audit.relevance[row]), abs=1e-12)
    assert explanation.relevance.shape == (2, 9)
    assert (explanation.relevance[1, 3:] == 0).all()


def test_texts_in_a_batch_are_explained_as_alone(
    classifier: Any, writer: Any, pieces: Any, bytes_: Any
) -> None:
    for model, tokenizer, texts in (
        (classifier, pieces, ["the film is good", "bad"]),
        (writer, bytes_, ["the cat sat on", "the dog"]),
    ):
        both = relprop.explain(model, texts, tokenizer=tokenizer)
        for row, text in enumerate(texts):
            alone = relprop.explain(model, text, tokenizer=tokenizer)
            for one, other in zip(both.tokens[row], alone.tokens[0], strict=True):
                assert one[:3] == other[:3]
                assert one.relevance == pytest.approx(other.relevance, abs=1e-9)


def test_a_letter_of_several_bytes_and_marks_of_spaces_are_named_readably(bytes_: Any) -> None:
    whole = tokenise(torch.nn.Identity(), "the 🙂 Zoë\ncat", bytes_)
    shown = [piece.text for piece in whole.pieces[0]]
    assert shown[0] == "the"
    assert shown.count("🙂") == 4
    assert "cat" in shown[-1]
    assert not any(mark in text for text in shown for mark in "ĠĊ�")
    for piece in whole.pieces[0]:
        assert piece.end <= len(whole.texts[0])


def test_unknown_words_keep_their_place(pieces: Any) -> None:
    whole = tokenise(torch.nn.Identity(), "the zebra", pieces)
    assert whole.pieces[0][2][:3] == ("[UNK]", 4, 9)


def test_ids_are_spelled_where_a_tokenizer_is_known(classifier: Any, pieces: Any) -> None:
    given = dict(pieces(["the film is good", "bad"], return_tensors="pt", padding=True))
    explanation = relprop.explain(classifier, given, "POSITIVE", tokenizer=pieces)
    assert [token.text for token in explanation.tokens[1]] == ["[CLS]", "bad", "[SEP]"]
    assert isinstance(explanation.relevance, dict)
    numbers = relprop.explain(classifier, {"input_ids": torch.tensor([[5, 6]])})
    assert [token.text for token in numbers.tokens[0]] == ["<5>", "<6>"]


def test_any_tokenizer_will_do_for_any_model() -> None:
    torch.manual_seed(0)
    bag = torch.nn.Sequential(torch.nn.Embedding(4, 6), torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
    words = Vocabulary(["?", "good", "bad", "film"], unknown=0)
    table = {"good": 1, "film": 3}

    def split(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        cut = text.index(" ")
        return [table[w] for w in text.split()], [(0, cut), (cut + 1, len(text))]

    inside = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, **table}, unk_token="?"))
    inside.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    found = [relprop.explain(bag, "good film", tokenizer=t) for t in (words, split, inside)]
    assert [token[:3] for token in found[0].tokens[0]] == [("good", 0, 4), ("film", 5, 9)]
    assert found[0].tokens == found[1].tokens == found[2].tokens


# ---------------------------------------------------------------- targets


def test_targets_by_name_number_and_contrast_agree(classifier: Any, pieces: Any) -> None:
    text = "the film is good"
    scores = {
        name: float(relprop.explain(classifier, text, target, tokenizer=pieces).score)
        for name, target in {
            "by": "positive",
            "n": 1,
            "other": "NEGATIVE",
            "c": contrast("POSITIVE", 0),
        }.items()
    }
    assert scores["by"] == scores["n"]
    assert scores["c"] == pytest.approx(scores["n"] - scores["other"])


def test_next_tokens_are_named_by_text_id_and_place(writer: Any, bytes_: Any) -> None:
    texts, explainer = ["the cat sat on", "the dog"], relprop.Explainer(writer, tokenizer=bytes_)
    dog = token_id(bytes_, " dog")
    output = [writer(**bytes_(text, return_tensors="pt")).logits[0] for text in texts]
    for target in (" dog", dog, (-1, " dog"), [(3, dog), (-1, " dog")]):
        found = explainer(texts, target)
        assert found.target == [(3, dog), (1, dog)]
        assert torch.allclose(found.score, torch.stack([one[-1, dog] for one in output]))
    likely = explainer(texts)
    assert [place[1] for place in likely.target] == [int(one[-1].argmax()) for one in output]
    difference = explainer(texts, contrast(" dog", " cat"))
    cat = token_id(bytes_, " cat")
    assert torch.allclose(difference.score, torch.stack([one[-1, dog] - one[-1, cat] for one in output]))
    parts = relprop.Explainer(writer, tokenizer=bytes_, batch_size=1)(texts, contrast(" dog", " cat"))
    assert torch.allclose(parts.relevance, difference.relevance) and parts.target == difference.target


def test_a_gap_is_explained_where_it_is(pieces: Any) -> None:
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(WORDS), **TINY)).eval()
    found = relprop.explain(model, "the [MASK] is good", "film", tokenizer=pieces)
    assert found.target == [(2, WORDS.index("film"))]
    with pytest.raises(InvalidInput, match=r"0 of them[\s\S]*do: write \[MASK\]"):
        relprop.explain(model, "the film", tokenizer=pieces)


def test_a_contrast_of_classes_needs_no_text() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).eval().double()
    x = torch.randn(2, 4, dtype=torch.float64)
    found = relprop.explain(model, x, contrast(2, [0, 1]))
    assert torch.allclose(found.score, model(x)[:, 2] - model(x)[[0, 1], [0, 1]])
    with pytest.raises(InvalidInput, match="contrast of 1 with itself"):
        relprop.explain(model, x, contrast(1, 1))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("inputs", "target", "parts"),
    [
        ("", None, ("the text is empty",)),
        (["good", "  "], None, ("text 1 is empty",)),
        ("good", "UGLY", ("no class is called 'UGLY'", "NEGATIVE, POSITIVE")),
        ("the " * 600, None, ("602 tokens, and the model takes 512",)),
        ({"input_ids": torch.tensor([[2, 99]])}, None, ("id 99 is out of range", "0 to 14")),
        (
            {"input_ids": torch.tensor([[2, 5]]), "attention_mask": torch.zeros(1, 2, dtype=torch.long)},
            None,
            ("hides every token of sample 0",),
        ),
    ],
    ids=["empty", "blank", "label", "long", "id", "hidden"],
)
def test_bad_texts_are_refused(
    classifier: Any, pieces: Any, inputs: Any, target: Any, parts: tuple[str, ...]
) -> None:
    tokenizer = copy.deepcopy(pieces)
    tokenizer.model_max_length = 512
    with pytest.raises(InvalidInput) as caught:
        relprop.explain(classifier, inputs, target, tokenizer=tokenizer)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ((7, " dog"), "position 7 is beyond the text's 4 tokens"),
        ("dog house", " tokens ('"),
        ((-1, 9999), "out of range"),
    ],
)
def test_bad_places_and_tokens_are_refused(writer: Any, bytes_: Any, target: Any, part: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        relprop.explain(writer, "the cat sat on", target, tokenizer=bytes_)
    assert part in str(caught.value)


def test_texts_without_a_mask_must_be_equally_long() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(3, 4), torch.nn.Flatten(), torch.nn.Linear(8, 2)).eval()
    with pytest.raises(InvalidInput, match="takes no attention_mask"):
        relprop.explain(model, ["a b", "a"], tokenizer=Vocabulary(["", "a", "b"]))
    with pytest.raises(InvalidInput, match="not in the vocabulary"):
        relprop.explain(model, "a c", tokenizer=Vocabulary(["", "a", "b"]))
    with pytest.raises(InvalidInput, match="needs a tokenizer"):
        relprop.explain(model, "a b")


# ---------------------------------------------------------------- what a model writes


def test_every_written_token_is_explained_as_by_itself_and_the_model_is_untouched(
    writer: Any, bytes_: Any
) -> None:
    before = {name: value.clone() for name, value in writer.state_dict().items()}
    settings = writer.generation_config.to_dict()
    written = relprop.explain_generation(writer, "the cat sat on", bytes_, max_new_tokens=3)
    assert writer.generation_config.to_dict() == settings
    assert all(torch.equal(before[name], value) for name, value in writer.state_dict().items())
    ids = bytes_("the cat sat on")["input_ids"] + [one.target[0][1] for one in written.explanations]
    assert written.matrix.shape == (len(written), len(ids) - 1)
    for number, one in enumerate(written.explanations):
        length = len(ids) - len(written) + number
        alone = relprop.explain(writer, {"input_ids": torch.tensor([ids[:length]])}, one.target[0])
        assert torch.allclose(one.relevance[:, :length], alone.relevance["input_ids"], atol=1e-9)
        assert (one.relevance[:, length:] == 0).all()
        assert one.audit is not None and float(one.audit.gap.abs().max()) < 1e-8  # its norms are in float32
    assert written.heatmap().mode == "RGB"


def test_weights_that_a_writing_model_changes_stay_as_they_are(writer: Any, bytes_: Any) -> None:
    class Clamped(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.weight.clamp_(-0.01, 0.01)
            return super().forward(x)

    model = copy.deepcopy(writer)
    model.lm_head = Clamped(writer.config.hidden_size, writer.config.vocab_size, bias=False).double().eval()
    before = model.lm_head.weight.detach().clone()
    assert len(relprop.explain_generation(model, "the cat", bytes_, max_new_tokens=2)) == 2
    assert torch.equal(model.lm_head.weight, before)


def test_a_model_with_a_decoder_writes_too(bytes_: Any) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(bytes_), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    written = relprop.explain_generation(model, "the cat", bytes_, max_new_tokens=2)
    assert set(written[0].relevance) == {"input_ids", "decoder_input_ids"}
    assert written.tokens[-len(written)].text == "<end>"  # what the decoder starts from
    with pytest.raises(InvalidInput, match="cannot write"):
        relprop.explain_generation(torch.nn.Linear(2, 2).eval(), "the cat", bytes_)


# ---------------------------------------------------------------- pictures


def test_a_picture_shows_every_word_and_zero_is_neutral() -> None:
    neutral, page = tuple(show.colourise(torch.zeros(1, 1), 1.0)[0, 0].tolist()), (255, 255, 255)
    picture = show.text(torch.zeros(40), ["word"] * 40, size=300)
    used = {colour for _, colour in picture.getcolors(100000)}
    assert neutral in used and page in used
    assert not any(max(colour) - min(colour) > 12 for colour in used)
    coloured = show.text(torch.tensor([3.0, -3.0]), ["for", "against"])
    used = {colour for _, colour in coloured.getcolors(100000)}
    assert {tuple(show.colourise(torch.tensor([[v]]), 1.0)[0, 0].tolist()) for v in (1.0, -1.0)} <= used
    assert show.text(torch.zeros(80), ["word"] * 80, size=300).height > picture.height


def test_characters_that_a_font_lacks_are_drawn_without_a_warning() -> None:
    assert show.text(torch.ones(3), ["日本", "🙂", "a\tb"]).mode == "RGB"


def test_html_escapes_the_text_and_holds_every_token(classifier: Any, pieces: Any, tmp_path: Path) -> None:
    explanation = relprop.explain(classifier, "the <b> film & good", tokenizer=pieces)
    html = explanation._repr_html_()
    assert "<b>" not in html.replace("<b>", "", html.count("font-weight:<b>"))
    assert "&amp;" in html and "film" in html and "[CLS]" in html
    assert explanation.save(tmp_path / "why.html").read_text().startswith("<!DOCTYPE html>")
    assert explanation.save(tmp_path / "why.png").stat().st_size > 1000


def test_segments_give_the_text_back() -> None:
    tokens = [Token(t, s, e, 1.0) for t, s, e in (("[CLS]", 0, 0), ("ab", 0, 2), ("b", 1, 2), ("d", 4, 5))]
    (one,) = show.coloured([tokens], ["ab  d\n"])
    assert "".join(s.text for s in one.segments if not s.special) == "ab  d\n"
    assert [s.relevance for s in one.segments] == [1.0, 2.0, None, 1.0, None]
    assert str(show.text_terminal(one)) == " [CLS] ab  d\n"


# ---------------------------------------------------------------- folders, pipelines and the command line


@pytest.fixture(scope="module")
def folder(classifier: Any, pieces: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("classifier")
    copy.deepcopy(classifier).float().save_pretrained(place)
    pieces.save_pretrained(place)
    return place


def test_a_folder_and_a_pipeline_bring_their_tokenizer(classifier: Any, pieces: Any, folder: Path) -> None:
    text = "the film is good"
    expected = relprop.explain(classifier, text, "POSITIVE", tokenizer=pieces)
    pipeline = transformers.pipeline("text-classification", model=classifier, tokenizer=pieces)
    for model in (folder, str(folder), pipeline):
        found = relprop.explain(model, text, "POSITIVE")
        assert [token[:3] for token in found.tokens[0]] == [token[:3] for token in expected.tokens[0]]
        assert torch.allclose(found.relevance.double(), expected.relevance, atol=1e-6)


def test_a_folder_that_could_run_code_or_lacks_parts_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(InvalidInput, match="no weights in safetensors"):
        relprop.explain(tmp_path, "the film")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InvalidInput, match="needs a tokenizer"):
        relprop.explain(tmp_path, "the film")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["NoSuchModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="NoSuchModel"):
        relprop.explain(tmp_path, "the film")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_line_explains_a_text(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "why.png"
    asked = ("explain", "the film is good", "--model", folder, "--target", "POSITIVE-vs-NEGATIVE")
    code, printed, _ = run(capsys, *asked, "--out", out)
    assert code == 0 and out.is_file()
    for part in ("POSITIVE rather than NEGATIVE", "the film is good", "no token", "gap"):
        assert part in printed
    code, printed, _ = run(capsys, *asked, "--json")
    (result,) = json.loads(printed)["results"]
    assert code == 0 and result["target"] == {"for": 1, "against": 0}
    assert [token["text"] for token in result["tokens"]] == ["[CLS]", "the", "film", "is", "good", "[SEP]"]


def test_the_plan_and_the_doctor_take_a_folder_and_a_text(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, error = run(capsys, "plan", "--model", folder, "--json")
    operations = [row["operation"] for row in json.loads(printed)["operations"]]
    assert code == 0 and error == "" and "aten.scaled_dot_product_attention.default" in operations
    code, printed, error = run(capsys, "doctor", "the film is good", "--model", folder, "--json")
    found = json.loads(printed)
    assert code == 0 and found["healthy"] and found["model"] == "BertForSequenceClassification"
    code, printed, error = run(capsys, "plan", "cat.jpg", "--model", folder)
    assert (code, printed) == (2, "") and "is of transformers" in error


def test_the_command_line_explains_what_a_model_writes(
    writer: Any, bytes_: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy.deepcopy(writer).float().save_pretrained(tmp_path)
    bytes_.save_pretrained(tmp_path)
    code, printed, _ = run(capsys, "explain", "the cat", "--model", tmp_path, "--generate", 2, "--json")
    assert code == 0 and len(json.loads(printed)["results"]) == 2
    code, printed, _ = run(capsys, "explain", "the cat", "--model", tmp_path, "--target", "-1: dog")
    assert code == 0 and "' dog' at position 1" in printed
    code, _, error = run(capsys, "explain", "the cat", "--model", tmp_path, "--target", "9: dog")
    assert code == 2 and "beyond the text's 2 tokens" in error and "Traceback" not in error


def test_the_command_line_refuses_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, part in (
        (("explain", "", "--model", folder), "is empty"),
        (("explain", "good", "--model", folder, "--target", "UGLY"), "no class is called"),
        (("explain", "cat.jpg", "--model", folder), "is of transformers"),
        (("explain", "good", "--model", folder, "--out", tmp_path / "why.txt"), "no known ending"),
        (("explain", "--model", folder), "none given"),
        (("explain", "good", "--model", folder, "--generate", "2"), "cannot write"),
    ):
        code, printed, error = run(capsys, *given)
        assert (code, printed) == (2, "") and part in error and "Traceback" not in error, error
