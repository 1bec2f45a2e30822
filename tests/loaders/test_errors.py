import pytest

from loaders.errors import reason, unknown


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("decode_image, /a/b/csrc/io/decode_image.cpp:61, Unsupported image file.", "Unsupported image file."),
        ("[/a/b/decode_jpeg.cpp:7] Premature end\nmore", "Premature end"),
        ("cannot identify image file", "cannot identify image file"),
        ("", "RuntimeError"),
    ],
)
def test_a_decoder_s_own_source_files_are_left_out(message: str, expected: str) -> None:
    assert reason(RuntimeError(message)) == expected


def test_an_unknown_name_is_told_a_similar_one_and_all_known() -> None:
    assert (
        str(unknown("loader", "dalli", ("dali", "pil"))) == "unknown loader dalli; did you mean dali? Known: dali, pil"
    )
    assert str(unknown("loader", "x", ("dali",), "Say dali.")) == "unknown loader x. Say dali."
