"""The picture: valid SVG, blocks from top to bottom, shapes and shortcuts in it, PNG from the same strokes."""

from xml.etree import ElementTree

import pytest
from torch import nn

from models import diagram
from models.blocks import blocks
from models.errors import ModelError

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ["res_512_d", "lenet", "efficientnet_b0", "cifar_densenet121"]


def words(document):
    return [text.text for text in ElementTree.fromstring(document.encode()).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", NAMES)
def test_svg_shows_blocks_in_order_with_shapes_and_parameters(name):
    document = diagram.svg(name)
    found = blocks(name)
    texts = words(document)
    places = [texts.index(block.heading) for block in found]
    assert places == sorted(places)
    for block in found:
        assert "×".join(map(str, block.output_shape)) in texts
        assert all(line in texts for line in block.lines)
        assert f"{block.params:,}" in " ".join(texts)
    shortcuts = [cut.label for block in found for cut in block.shortcuts]
    assert [text for text in texts if text in set(shortcuts)] == shortcuts


@pytest.mark.parametrize("name", NAMES)
def test_everything_lies_inside_the_picture(name):
    root = ElementTree.fromstring(diagram.svg(name).encode())
    width, height = float(root.get("width")), float(root.get("height"))
    for text in root.iter(f"{SVG}text"):
        # Half an em a character is about what the usual fonts take.
        assert 0 <= float(text.get("x")) + len(text.text) * float(text.get("font-size")) * 0.5 <= width
        assert 0 <= float(text.get("y")) <= height
    for line in root.iter(f"{SVG}polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_boxes_do_not_overlap_and_tall_networks_get_columns():
    root = ElementTree.fromstring(diagram.svg("efficientnet_b0").encode())
    faces = [rect for rect in root.iter(f"{SVG}rect") if rect.get("fill") in (diagram._PLAIN, diagram._RESIDUAL)]
    columns: dict[float, float] = {}
    for face in faces:
        x, y, height = (float(face.get(key)) for key in ("x", "y", "height"))
        assert y > columns.get(x, 0)
        columns[x] = y + height
    assert len(faces) == len(blocks("efficientnet_b0"))
    assert len(columns) == 3
    assert float(root.get("height")) < 1.5 * diagram._TALLEST


def test_the_same_network_is_the_same_document():
    assert diagram.svg("res_block") == diagram.svg("res_block")


def test_parameters_outside_of_blocks_and_untraced_blocks_are_named():
    assert "39,168 of them belong to no block" in words(diagram.svg("vit_b_32"))

    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.one(x) if x.shape[0] > 0 else x

    texts = words(diagram.svg(nn.Sequential(Choosy(), nn.Flatten()), size=8))
    assert "not followed inside, shortcuts not shown: Choosy" in texts


def test_svg_and_png_are_written(tmp_path):
    diagram.write(tmp_path / "m.svg", "lenet")
    assert (tmp_path / "m.svg").read_text(encoding="utf-8") == diagram.svg("lenet")
    diagram.write(tmp_path / "m.png", "lenet", classes=3)
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"an \.svg or \.png file, not 'm.pdf'"):
        diagram.write(tmp_path / "m.pdf", "lenet")
    with pytest.raises(ModelError, match="cannot write the diagram"):
        diagram.write(tmp_path / "none" / "m.svg", "lenet")
