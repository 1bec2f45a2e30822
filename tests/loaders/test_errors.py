import pytest

from loaders.errors import reason


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("decode_image, /a/b/csrc/io/decode_image.cpp:61, Unsupported image file.", "Unsupported image file."),
        ("[/a/b/decode_jpeg.cpp:7] Premature end\nmore", "Premature end"),
        ("cannot identify image file", "cannot identify image file"),
        ("", "RuntimeError"),
    ],
)
def test_a_decoder_s_own_source_files_are_left_out(said: str, told: str) -> None:
    assert reason(RuntimeError(said)) == told
