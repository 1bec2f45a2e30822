import pytest

from loaders.errors import DataError, reason, unknown, without_traceback


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("decode_image, /a/b/csrc/io/decode_image.cpp:61, Unsupported image file.", "Unsupported image file."),
        ("[/a/b/decode_jpeg.cpp:7] Premature end\nmore", "Premature end"),
        ("Failed to open it. (Invalid data) (/a/b/ctx.cpp:145)", "Failed to open it. (Invalid data)"),
        ("/a/b/file_io.cpp:52, [Errno 2] No such file: 'x.jpg'", "[Errno 2] No such file: 'x.jpg'"),
        ("[/a/b/file.cc:52]: (7) lost", "(7) lost"),
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


def test_a_workers_error_is_told_whole() -> None:
    said = "cannot decode DataError: 1.png: [Errno 2] gone"
    assert str(without_traceback(DataError(f"Traceback:\n  in f\nloaders.errors.DataError: {said}\n"))) == said
    assert str(without_traceback(DataError(said))) == said
