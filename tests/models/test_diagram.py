"""The picture: blocks in order with shapes, parameters and shortcuts, all of it inside the page, as SVG and PNG."""

from xml.etree import ElementTree

import pytest

from models import diagram
from models.blocks import blocks
from models.errors import ModelError
from models.summary import on_meta

NAMES = ["res_512_d", "vit_b_32"]


@pytest.fixture(scope="module", params=NAMES)
def drawn(request):
    network = on_meta(request.param, None, None, None)
    figure = diagram.draw(*network)
    figure.draw_without_rendering()
    return blocks(*network), figure


def test_a_picture_shows_blocks_in_order_with_shapes_and_parameters(drawn):
    found, figure = drawn
    texts = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    places = [texts.index(block.heading) for block in found]
    assert places == sorted(places)
    for block in found:
        assert "×".join(map(str, block.output_shape)) in texts
        assert set(block.lines) <= set(texts)
        assert f"{block.params:,} parameters" in " ".join(texts) or not block.params
    shortcuts = [cut.label for block in found for cut in block.shortcuts]
    assert [text for text in texts if text in shortcuts] == shortcuts


def test_everything_lies_inside_the_page_and_words_inside_their_boxes(drawn):
    found, figure = drawn
    page = figure.bbox
    (axes,) = figure.axes
    for part in (*axes.texts, *axes.lines, *axes.patches):
        extent = part.get_window_extent()
        assert page.x0 <= extent.x0 <= extent.x1 <= page.x1
        assert page.y0 <= extent.y0 <= extent.y1 <= page.y1
    boxes = [patch.get_window_extent() for patch in axes.patches if patch.get_zorder() == 2]
    words = {line for block in found for line in (block.heading, *block.lines)}
    for text in axes.texts:
        if text.get_text() in words:
            extent = text.get_window_extent()
            assert any(box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 for box in boxes)


def test_tall_networks_get_columns():
    figure = diagram.draw(*on_meta("efficientnet_b0", None, None, None))
    corners = {patch.get_x() for patch in figure.axes[0].patches if patch.get_facecolor()[:3] != (0.0, 0.0, 0.0)}
    assert len({round(corner / 100) for corner in corners}) >= 2
    assert figure.get_figwidth() < 2 * figure.get_figheight()


def test_parameters_outside_of_blocks_are_named():
    figure = diagram.draw(*on_meta("vit_b_32", None, None, None))
    assert "39,168 of them belong to no block" in [text.get_text() for text in figure.axes[0].texts]


def test_svg_holds_words_and_is_the_same_every_time_and_png_is_written(tmp_path):
    for name in ("a.svg", "b.svg"):
        diagram.write(tmp_path / name, "lenet")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"conv1", "5×5 Conv 6 · ReLU", "6×14×14", "456 parameters"} <= texts
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    diagram.write(tmp_path / "m.png", "lenet", classes=3)
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"an \.svg or \.png file, not 'm.pdf'"):
        diagram.write(tmp_path / "m.pdf", "lenet")
    with pytest.raises(ModelError, match="cannot write the diagram"):
        diagram.write(tmp_path / "none" / "m.svg", "lenet")
