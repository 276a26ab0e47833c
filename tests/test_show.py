"""Pictures of relevance: what their colours mean, what they state, and how they fail."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relprop import show
from relprop.errors import InvalidInput, MissingExtra
from relprop.show.colour import COLOURS, grey, overlaid, palette, resized_map
from relprop.show.layout import number, text_width, wrapped

SIDE = 48
NEUTRAL = (247, 247, 247)


@pytest.fixture
def relevance() -> torch.Tensor:
    return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def occurrences(picture: Image.Image, pixels: np.ndarray) -> int:
    """How often the picture holds exactly these pixels."""
    page, (high, wide) = np.asarray(picture), pixels.shape[:2]
    corner = (page[: page.shape[0] - high + 1, : page.shape[1] - wide + 1] == pixels[0, 0]).all(-1)
    return sum(bool((page[y : y + high, x : x + wide] == pixels).all()) for y, x in np.argwhere(corner))


# the scale and its colours


@pytest.mark.parametrize("colours", [COLOURS, "RdBu_r", "PuOr", "coolwarm", "bwr", "seismic", "PRGn_r"])
def test_zero_is_the_neutral_colour_to_the_bit(colours: str) -> None:
    painted = show.colourise(np.array([[0.0, 1.0, -1.0, -0.0]]), 1.0, colours)
    assert tuple(painted[0, 0]) == tuple(painted[0, 3]) == tuple(palette(colours)[128])
    from matplotlib import colormaps

    middle = colormaps["RdBu_r" if colours == COLOURS else colours].resampled(257)(128, bytes=True)
    assert tuple(painted[0, 0]) == tuple(middle[:3])


def test_the_default_middle_is_near_white_for_is_red_and_against_is_blue() -> None:
    blue, white, red = show.colourise(np.array([[-1.0, 0.0, 1.0]]), 1.0)[0].astype(int)
    assert tuple(white) == NEUTRAL
    assert red[0] > red[2] + 100
    assert blue[2] > blue[0] + 100


def test_lightness_falls_alike_on_both_sides_of_zero() -> None:
    luma = palette(COLOURS).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(luma[:129]) >= -0.5).all()
    assert (np.diff(luma[128:]) <= 0.5).all()
    assert abs(luma[0] - luma[-1]) < 25


def test_the_scale_is_symmetric_and_saturates_beyond_its_limit() -> None:
    values = np.linspace(0, 3, 50)[None]
    plus, minus = show.colourise(values, 2.0), show.colourise(-values, 2.0)
    assert (show.colourise(values, 2.0, "RdBu") == show.colourise(-values, 2.0, "RdBu_r")).all()
    assert (plus[0, values[0] >= 2] == palette()[-1]).all()
    assert (minus[0, values[0] >= 2] == palette()[0]).all()
    assert show.colour_scale(values) == show.colour_scale(-values)


def test_the_limit_is_a_robust_quantile_of_the_size_of_relevance() -> None:
    values = np.ones(10_000)
    values[0] = -1e6
    assert show.colour_scale(values) == 1.0
    assert show.colour_scale(values, 1.0) == 1e6
    assert show.colour_scale(torch.tensor([3.0, -4.0], dtype=torch.bfloat16), 1.0) == 4.0


def test_a_map_with_few_values_that_are_not_zero_is_still_seen() -> None:
    values = np.zeros((100, 100))
    values[3, 4] = -2.0
    assert show.colour_scale(values) == 2.0


def test_a_map_of_zeros_is_drawn_neutral_and_without_division_by_zero(photo: np.ndarray) -> None:
    zeros = torch.zeros(3, SIDE, SIDE)
    assert show.colour_scale(zeros) == 0.0
    assert (show.colourise(show.to_map(zeros), 0.0) == NEUTRAL).all()
    assert occurrences(show.heatmap(zeros, size=SIDE), np.full((SIDE, SIDE, 3), 247, np.uint8)) >= 1
    for picture in (show.heatmap(zeros, photo), show.series(zeros[0, 0]), show.table(zeros[0, 0])):
        assert picture.mode == "RGB"


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e12, 1e300])
def test_colours_do_not_depend_on_the_unit_of_relevance(relevance: torch.Tensor, scale: float) -> None:
    values = show.to_map(relevance)
    painted = show.colourise(values * scale, show.colour_scale(values * scale))
    assert (painted == show.colourise(values, show.colour_scale(values))).mean() > 0.999


def test_a_map_is_the_sum_over_channels(relevance: torch.Tensor) -> None:
    np.testing.assert_allclose(show.to_map(relevance), relevance.sum(0).numpy())
    np.testing.assert_array_equal(show.to_map(relevance[0]), relevance[0].numpy())
    assert show.to_map(relevance.float().requires_grad_()).shape == (SIDE, SIDE)


# heatmaps


def test_a_heatmap_holds_the_pixels_of_its_map_unchanged(relevance: torch.Tensor) -> None:
    values = show.to_map(relevance)
    expected = show.colourise(values, show.colour_scale(values))
    assert occurrences(show.heatmap(relevance, size=SIDE, title="title"), expected) == 1


def test_an_overlay_leaves_the_grey_photograph_untouched_where_relevance_is_zero(photo: np.ndarray) -> None:
    values = np.zeros((SIDE, SIDE))
    values[:, SIDE // 2 :] = 1.0
    picture = show.heatmap(values, photo, size=SIDE)
    assert occurrences(picture, grey(photo)[:, : SIDE // 2]) == 1
    assert occurrences(picture, grey(photo)) == 0


def test_the_opacity_of_an_overlay_grows_with_relevance() -> None:
    black = np.zeros((1, 33, 3), np.uint8)
    for sign, channel in ((1, 0), (-1, 2)):
        lit = overlaid(sign * np.linspace(0, 1, 33)[None], black, 1.0)[0].astype(int)
        assert lit[0].tolist() == [0, 0, 0]
        assert (np.diff(lit[:, channel]) >= 0).all()


def test_a_photograph_is_shown_beside_its_map_without_overlay(
    relevance: torch.Tensor, photo: np.ndarray
) -> None:
    picture = show.heatmap(relevance, photo, overlay=False, size=SIDE)
    values = show.to_map(relevance)
    assert occurrences(picture, photo) == 1
    assert occurrences(picture, show.colourise(values, show.colour_scale(values))) == 1


def test_a_batch_becomes_a_grid_with_every_map_on_its_own_scale(relevance: torch.Tensor) -> None:
    batch = torch.stack([relevance * 10.0**i for i in range(5)])
    values = show.to_map(relevance)
    painted = show.colourise(values, show.colour_scale(values))
    near = [show.colourise(m, show.colour_scale(m)) for m in map(show.to_map, batch)]
    picture = show.heatmap(batch, size=SIDE, title=[f"sample {i}" for i in range(5)])
    assert occurrences(picture, painted) >= 1
    assert all(occurrences(picture, pixels) >= 1 for pixels in near)


def test_a_given_limit_holds_for_every_map_of_a_batch(relevance: torch.Tensor) -> None:
    batch = torch.stack([relevance, relevance / 2])
    picture = show.heatmap(batch, size=SIDE, limit=2.0)
    for values in map(show.to_map, batch):
        assert occurrences(picture, show.colourise(values, 2.0)) == 1


def test_images_are_accepted_in_every_usual_form(photo: np.ndarray) -> None:
    chw = torch.from_numpy(photo).permute(2, 0, 1)
    forms = [photo, photo / 255, Image.fromarray(photo), chw, chw / 255, chw.numpy()]
    for form in forms:
        np.testing.assert_array_equal(show.photograph(form), photo)
    normalised = (chw / 255 - 0.45) / 0.22
    scaled = show.photograph(normalised)
    assert (scaled.min(), scaled.max()) == (0, 255)
    assert show.photograph(torch.zeros(1, 9, 7)).shape == (9, 7, 3)
    assert show.photograph(np.zeros((9, 7, 4), np.uint8)).shape == (9, 7, 3)


def test_a_batch_takes_a_list_of_photographs_of_different_sizes(relevance: torch.Tensor) -> None:
    photos = [Image.new("RGB", (40, 60)), Image.new("RGB", (80, 30))]
    assert show.heatmap(torch.stack([relevance, relevance]), photos).width > 400


def test_a_small_map_is_magnified_to_equal_squares_and_a_large_one_smoothly() -> None:
    values = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(resized_map(values, (8, 12)), np.kron(values, np.ones((4, 4))))
    assert len(np.unique(resized_map(values, (4, 6)))) > 6
    assert not resized_map(np.zeros((50, 50)), (33, 71)).any()


def test_the_picture_of_a_map_of_another_size_has_the_photographs_shape(photo: np.ndarray) -> None:
    values = np.random.default_rng(1).normal(size=(6, 6))
    expected = overlaid(np.kron(values, np.ones((8, 8))), photo, show.colour_scale(values))
    assert occurrences(show.heatmap(values, photo, size=SIDE), expected) == 1


def test_long_titles_make_the_picture_taller_and_are_not_cut(relevance: torch.Tensor) -> None:
    title = "a title that is far too long for a picture as narrow as this one, so it takes several lines"
    short, long = (show.heatmap(relevance, size=160, title=t) for t in ("a title", title))
    assert long.width == short.width
    assert long.height > short.height
    lines = wrapped(title + " " + "x" * 200, 150, 10.5, "bold")
    assert "".join(lines).replace(" ", "") == (title + "x" * 200).replace(" ", "")
    assert all(text_width(line, 10.5, "bold") <= 150 for line in lines)


def test_titles_are_text_and_never_formulas(relevance: torch.Tensor) -> None:
    assert show.heatmap(relevance, title=r"costs $5 and $\broken{").width > 0


@pytest.mark.parametrize(
    "value, text",
    [(0.031, "0.031"), (-12.0, "−12"), (0, "0"), (3.1e-5, "3.1·10⁻⁵"), (1234, "1200"),
     (2e7, "2.0·10⁷"), (1, "1.0")],
)  # fmt: skip
def test_numbers_are_stated_in_two_digits(value: float, text: str) -> None:
    assert number(value) == text


# methods beside each other


def test_a_row_has_the_photograph_and_a_panel_for_each_method(
    relevance: torch.Tensor, photo: np.ndarray
) -> None:
    maps = {name: relevance.roll(i, -1) * 100**i for i, name in enumerate(["lrp", "gradient", "occlusion"])}
    picture = show.methods_row(photo, maps, size=SIDE)
    assert occurrences(picture, photo) == 1
    for r in maps.values():
        values = show.to_map(r)
        assert occurrences(picture, show.colourise(values, show.colour_scale(values))) == 1
    narrower = show.methods_row(photo, dict(list(maps.items())[:2]), size=SIDE)
    assert (picture.width - 32) / (narrower.width - 32) == pytest.approx(4 / 3, abs=0.02)


def test_a_batch_of_methods_has_a_row_for_each_image(relevance: torch.Tensor, photo: np.ndarray) -> None:
    batch = torch.stack([relevance, relevance.flip(-1)])
    picture = show.methods_row([photo, photo[::-1].copy()], {"a": batch, "b": -batch}, size=SIDE)
    assert occurrences(picture, photo) == occurrences(picture, photo[::-1]) == 1
    with pytest.raises(InvalidInput, match="different numbers of images"):
        show.methods_row([photo, photo], {"a": batch, "b": relevance})


# other kinds


def test_every_kind_draws_one_sample_and_a_batch() -> None:
    shapes = {
        "image": (3, 20, 20),
        "series": (2, 40),
        "video": (3, 9, 20, 20),
        "table": (7,),
        "text": (5,),
        "audio": (400,),
    }
    assert shapes.keys() == show.DRAW.keys()
    for kind, shape in shapes.items():
        values = torch.randn(2, *shape)
        for inputs in (None, values):
            both = show.draw(values, kind, inputs=inputs)
            one = show.draw(values[0], kind, inputs=None if inputs is None else values[0], batched=False)
            assert one.mode == both.mode == "RGB"
            assert both.size != one.size


@pytest.mark.parametrize(
    "shape, kind",
    [((3, 224, 224), "image"), ((28, 28), "image"), ((3, 16, 112, 112), "video"), ((187,), "series"),
     ((12, 1000), "series")],
)  # fmt: skip
def test_the_kind_follows_from_the_shape(shape: tuple[int, ...], kind: str) -> None:
    assert show.kind_of(shape) == kind
    small = torch.ones(1, *[min(n, 40) if len(shape) > 2 else n for n in shape])
    assert show.draw(small).mode == "RGB"


@pytest.mark.parametrize("shape", [(), (64, 7, 7), (5, 20), (64, 16, 56, 56), (1, 1, 1, 1, 1), (224, 224, 3)])
def test_an_ambiguous_shape_is_refused_with_the_kinds_to_choose_from(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="pass kind=, one of 'image', 'series', 'video', 'table'"):
        show.kind_of(shape)


def test_a_series_is_red_above_and_blue_below_the_zero_line() -> None:
    page = np.asarray(show.series(np.array([1.0] * 10 + [-1.0] * 10))).astype(int)
    for colour, above in ((palette()[-1], True), (palette()[0], False)):
        rows, columns = np.nonzero((page == colour).all(-1))
        bars = rows < page.shape[0] - 40  # the words below are coloured too
        assert ((columns[bars].mean() < page.shape[1] / 2) == above).all()
        assert (rows[bars].mean() < page.shape[0] / 2.2) == above


def test_the_bars_of_a_table_are_sorted_and_the_rest_is_summed() -> None:
    few, many = show.table(np.arange(-3.0, 3)), show.table(np.arange(-50.0, 50))
    assert many.height > few.height
    assert show.table(np.arange(-500.0, 500)).height == many.height


def test_a_video_shows_its_first_and_last_frame_on_one_scale() -> None:
    clip = torch.randn(1, 20, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    picture = show.video(clip, size=SIDE, most=4)
    v = show.colour_scale(clip)
    shown = [occurrences(picture, show.colourise(frame, v)) for frame in clip[0]]
    assert (sum(shown), shown[0], shown[-1]) == (4, 1, 1)


# bad input


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(relevance: torch.Tensor, photo: np.ndarray, bad: float) -> None:
    relevance[0, 3, 4] = bad
    calls = [
        lambda: show.colour_scale(relevance),
        lambda: show.to_map(relevance),
        lambda: show.heatmap(relevance),
        lambda: show.methods_row(photo, {"lrp": relevance}),
        lambda: show.series(relevance[0]),
        lambda: show.draw(relevance[None]),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match=r"holds NaN or infinity \(1 of \d+ values\)\n  do: "):
            call()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: show.colourise(np.ones((2, 2)), 1.0, "rainbow"), "'rainbow'\n.*red_blue.*coolwarm"),
        (lambda: show.colourise(np.ones((2, 2)), 1.0, "viridis"), "zero must be the neutral middle"),
        (lambda: show.colourise(np.ones((2, 2)), 0.0), "colour limit is 0.0"),
        (lambda: show.colourise(np.ones((2, 2)), -1.0), "colour limit is -1.0"),
        (lambda: show.colourise(np.ones(3), 1.0), r"map has shape \(3,\)"),
        (lambda: show.colour_scale(np.ones(3), 0.0), r"quantile is 0.0, and must lie in \(0, 1\]"),
        (lambda: show.colour_scale(np.ones(0)), "relevance is empty"),
        (lambda: show.colour_scale("red"), "relevance is not numeric: str"),
        (lambda: show.colour_scale(torch.ones(2, dtype=torch.complex64)), "relevance is complex"),
        (lambda: show.to_map(np.ones((20, 20, 3))), r"looks like \(H, W, C\)\n  do: put channels first"),
        (lambda: show.to_map(np.ones(20)), r"expected \(C, H, W\) or \(H, W\)"),
        (lambda: show.heatmap(np.ones((9, 9)), size=3), "size is 3"),
        (lambda: show.heatmap(np.ones((9, 9)), limit=0), "limit is 0, and must be a positive number"),
        (lambda: show.heatmap(np.ones((2, 1, 9, 9)), [np.ones((9, 9))]), "1 images for 2 relevance maps"),
        (lambda: show.heatmap(np.ones((2, 1, 9, 9)), title=["one"]), "1 titles for 2 pictures"),
        (lambda: show.heatmap(np.ones((9, 9)), np.ones((2, 9, 9))), r"image has shape \(2, 9, 9\)"),
        (lambda: show.methods_row(np.ones((9, 9)), {}), "got no relevance maps"),
        (lambda: show.methods_row(None, {"lrp": np.ones((9, 9))}), "got no image"),
        (lambda: show.series(np.ones((2, 9)), np.ones(9)), "pass the series that was explained"),
        (lambda: show.series(np.ones((99, 9))), "99 channels"),
        (lambda: show.table(np.ones(3), names=["one"]), "1 names for 3 features"),
        (lambda: show.video(np.ones((3, 9, 9))), "video relevance has shape"),
        (lambda: show.video(np.ones((1, 4, 9, 9)), np.ones((3, 5, 9, 9))), "frames have shape"),
        (lambda: show.draw(np.ones((2, 9)), "sound"), "unknown kind 'sound'"),
        (lambda: show.draw(np.ones((2, 9)), "image"), "is no image"),
        (lambda: show.draw(np.ones(9)), "its first dimension is the batch"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_what_and_what_to_do(call, message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        call()
    assert re.search(message, str(error.value), re.DOTALL)
    assert "\n  do: " in str(error.value)


@pytest.mark.parametrize("module", ["matplotlib", "PIL"])
def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    palette.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"pip install 'relprop\[show\]'"):
        show.heatmap(np.ones((9, 9)))


# out of the house


def test_the_bytes_are_a_png_of_the_picture(relevance: torch.Tensor) -> None:
    picture = show.heatmap(relevance)
    again = Image.open(io.BytesIO(show.png_bytes(picture)))
    assert again.format == "PNG"
    np.testing.assert_array_equal(np.asarray(again), np.asarray(picture))


def test_html_is_self_contained_and_escapes_its_caption(relevance: torch.Tensor) -> None:
    page = show.html(show.heatmap(relevance), 'a "cat" <script>alert(1)</script>')
    assert page.startswith("<figure")
    assert 'src="data:image/png;base64,' in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "figcaption" not in show.html(show.heatmap(relevance))


@pytest.mark.parametrize("name, magic", [("a.png", b"\x89PNG"), ("a.JPG", b"\xff\xd8"), ("a.pdf", b"%PDF")])
def test_a_picture_is_saved_in_the_format_of_its_ending(
    tmp_path: Path, relevance: torch.Tensor, name: str, magic: bytes
) -> None:
    assert show.save(show.heatmap(relevance), str(tmp_path / name)) == tmp_path / name
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_png_is_the_default_and_only_one_file_is_written(tmp_path: Path, relevance: torch.Tensor) -> None:
    umask = os.umask(0)
    os.umask(umask)
    written = show.save(show.heatmap(relevance), tmp_path / "map")
    assert list(tmp_path.iterdir()) == [written] == [tmp_path / "map.png"]
    assert written.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, relevance: torch.Tensor) -> None:
    picture = show.heatmap(relevance)
    for path, message in [
        (tmp_path / "a.gif", r"unknown ending '.gif'\n  do: use one of .png, .jpg, .jpeg, .pdf"),
        (tmp_path / "none" / "a.png", "there is no folder .*none'\n  do: create the folder"),
        (tmp_path, "it is a folder"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            show.save(picture, path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    from relprop.errors import InvalidInput
    from relprop.show.picture import whole

    (tmp_path / "file").touch()
    with (
        pytest.raises(InvalidInput, match=r"x\.png: cannot be written \(Not a directory"),
        whole(tmp_path / "file" / "x.png"),
    ):
        pass


def test_a_failed_save_leaves_the_older_file_whole(
    tmp_path: Path, relevance: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = show.save(show.heatmap(relevance), tmp_path / "a.png")
    before = path.read_bytes()

    def half(self: Image.Image, file: io.BytesIO, **options: object) -> None:
        file.write(before[:50])
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        show.save(show.heatmap(-relevance), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# no global state


def test_threads_draw_the_same_pictures_as_one_after_the_other(
    relevance: torch.Tensor, photo: np.ndarray
) -> None:
    def drawn(i: int) -> bytes:
        r = relevance.roll(i, -1) * 10.0**i
        parts = [show.heatmap(r, photo, title=f"number {i} $"), show.series(r[0, 0]), show.table(r[0, 0])]
        return b"".join(part.tobytes() for part in parts)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(drawn, range(6)))
    assert together == [drawn(i) for i in range(6)]


def test_drawing_changes_no_argument(relevance: torch.Tensor, photo: np.ndarray) -> None:
    r, p = relevance.clone(), photo.copy()
    show.heatmap(relevance, photo)
    show.methods_row(photo, {"lrp": relevance})
    show.series(relevance[0, :2], relevance[0, :2])
    assert torch.equal(r, relevance)
    np.testing.assert_array_equal(p, photo)


def test_import_is_light_and_pyplot_is_never_loaded() -> None:
    code = (
        "import sys, numpy as np, relprop.show as show\n"
        "assert not {'matplotlib', 'PIL'} & sys.modules.keys(), 'import loads the extra'\n"
        "show.heatmap(np.ones((9, 9))); show.series(np.ones(9))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={**os.environ})


def test_letters_that_no_font_has_are_no_warning() -> None:
    picture = show.heatmap(np.ones((1, 4, 4)), title="\ue123 \U0001f600 \u0e01 $x_1$")
    assert picture.size == show.heatmap(np.ones((1, 4, 4)), title="x").size
