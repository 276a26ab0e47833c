"""Context use: masks from boxes lie where the boxes do, and planted context is told from none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from relprop import analyse
from relprop.data import Preprocessing
from relprop.errors import InvalidInput

PIL = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize(
    ("width", "height", "squash"), [(300, 200, False), (180, 260, False), (300, 200, True)]
)
def test_a_box_is_masked_where_the_network_sees_it(width: int, height: int, squash: bool) -> None:
    how = Preprocessing(96, 112, (0.5,), (0.5,), "nearest", squash)
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[60:140, 70:130] = 255
    seen = how.tensor(how.crop(PIL.fromarray(pixels).convert("RGB")))[0] > 0
    mask = analyse.box_mask([analyse.Box("x", 70, 60, 130, 140)], width, height, how)
    assert (mask != seen).sum() <= 2 * (40 + 60)  # the outermost pixels, where resampling rounds
    inner = analyse.box_mask([analyse.Box("x", 74, 64, 126, 136)], width, height, how)
    outer = analyse.box_mask([analyse.Box("x", 66, 56, 134, 144)], width, height, how)
    assert not (inner & ~seen).any() and not (seen & ~outer).any()


def test_boxes_are_joined_clipped_and_dropped_beyond_the_crop() -> None:
    how = Preprocessing(100, 100)
    boxes = [
        analyse.Box("a", -50, 0, 10, 10),
        analyse.Box("a", 5, 5, 20, 20),
        analyse.Box("a", 140, 0, 200, 9),
    ]
    mask = analyse.box_mask(boxes[:2], 100, 100, how)
    assert int(mask.sum()) == 100 + 225 - 25
    assert not analyse.box_mask(boxes[2:], 100, 100, how).any()
    assert not analyse.box_mask([analyse.Box("a", 3.6, 3.6, 4.4, 4.4)], 100, 100, how).any()
    half = analyse.box_mask(boxes[:2], 100, 100, how, side=50)
    assert torch.equal(half[1:3, 1:3], mask[2:6:2, 2:6:2])


def maps(context: float, count: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    found = torch.rand(count, 8, 8, generator=draw, dtype=torch.float64) * context
    found[:, 2:6, 2:6] = torch.rand(count, 4, 4, generator=draw, dtype=torch.float64)
    return found


MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[2:6, 2:6] = True


def test_planted_context_is_found_class_by_class() -> None:
    relevance = torch.cat([maps(0.1, 20, 0), maps(0.8, 30, 1)])
    found = analyse.context_use(relevance, MASK.expand(50, 8, 8), ["cat"] * 20 + ["boat"] * 30, [True] * 50)
    assert [row.name for row in found.rows] == ["boat", "cat"]
    boat, cat = found.rows
    assert boat.low < boat.median < boat.high and cat.high < 0.2 < boat.low
    assert (boat.used, boat.dropped, boat.accuracy) == (30, 0, 1.0)
    assert boat.how_much == pytest.approx(boat.median * 3, rel=1e-12)  # 48 pixels outside for 16 inside
    assert found.overall.mean == pytest.approx((boat.mean + cat.mean) / 2)
    assert "boat" in str(found) and found.as_dict()["overall"]["used"] == 50


def test_a_uniform_map_has_ratio_one_and_scaling_changes_nothing() -> None:
    relevance = torch.cat([torch.ones(1, 8, 8).double(), maps(0.4, 5, 2)])
    masks = MASK.expand(6, 8, 8)
    found = analyse.context_use(relevance, masks, ["a"] * 6)
    assert found.ratio[0] == 1 and found.share[0] == 0.5
    again = analyse.context_use(relevance * 7, masks, ["a"] * 6)
    torch.testing.assert_close(again.ratio, found.ratio)


def test_undefined_samples_are_counted_never_zero() -> None:
    relevance = torch.ones(4, 8, 8)
    relevance[1, 2:6, 2:6] = -1
    masks = MASK.repeat(4, 1, 1)
    masks[2], masks[3] = True, False
    found = analyse.context_use(relevance, masks, ["a", "a", "b", "b"])
    rows = {row.name: row for row in found.rows}
    assert (rows["a"].used, rows["a"].dropped) == (1, 1)
    assert (rows["b"].used, rows["b"].dropped) == (0, 2) and math.isnan(rows["b"].median)
    assert found.as_dict()["overall"]["used"] == 1
    assert found.overall.mean == 1 and math.isnan(found.overall.low)


def test_two_models_are_compared_on_the_same_samples() -> None:
    pytest.importorskip("scipy")
    classes = ["cat"] * 20 + ["boat"] * 20
    masks = MASK.expand(40, 8, 8)
    much = analyse.context_use(maps(0.8, 40, 0), masks, classes)
    little = analyse.context_use(torch.cat([maps(0.1, 20, 0), maps(0.8, 20, 9)]), masks, classes)
    gap = analyse.context_gap(much, little)
    assert gap.overall.low > 0 and gap.corrected["cat"] < 0.001 < 0.05 < gap.corrected["boat"]
    with pytest.raises(InvalidInput, match="do: explain the same samples"):
        analyse.context_gap(much, analyse.context_use(maps(0.1, 20, 0), masks[:20], classes[:20]))


def test_tables_of_boxes_are_read_and_faults_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "boxes.csv"
    file.write_text("file,class_name,x0,y0,x1,y1,note\na/one.jpg,cat,1,2,30,40,x\none.jpg,dog,0,0,5,5,\n")
    found = analyse.read_boxes(file)
    assert found == {"one.jpg": (analyse.Box("cat", 1, 2, 30, 40), analyse.Box("dog", 0, 0, 5, 5))}
    classes = tmp_path / "classes.csv"
    classes.write_text("class_name,imagenet_indices\ncat,281 282\n")
    assert analyse.read_classes(classes) == {"cat": (281, 282)}
    assert analyse.output_names((), {"cat": (281, 282)}) == {281: "cat", 282: "cat"}
    for text, words in [
        ("file,x0\na,1\n", "no column class_name, y0, x1, y1"),
        ("file,class_name,x0,y0,x1,y1\na.jpg,cat,1,2,zebra,4\n", "line 2: a side of the box is no number"),
        ("file,class_name,x0,y0,x1,y1\na.jpg,cat,9,2,3,4\n", "line 2: the box .* is empty"),
        ("file,class_name,x0,y0,x1,y1\n", "no rows"),
    ]:
        file.write_text(text)
        with pytest.raises(InvalidInput, match=words):
            analyse.read_boxes(file)
    with pytest.raises(InvalidInput, match="cannot be read"):
        analyse.read_boxes(tmp_path / "none.csv")
    classes.write_text("class_name,imagenet_indices\ncat,tabby\n")
    with pytest.raises(InvalidInput, match="line 2: 'tabby' names no outputs"):
        analyse.read_classes(classes)


def test_lengths_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(InvalidInput, match="classes: 1 for 2 samples"):
        analyse.context_use(torch.ones(2, 8, 8), MASK.expand(2, 8, 8), ["a"])
    with pytest.raises(InvalidInput, match="mask: shape"):
        analyse.context_use(torch.ones(2, 8, 8), MASK.expand(2, 8, 8)[:, :4], ["a", "a"])
