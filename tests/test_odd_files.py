"""docs/images.md has what every reader makes of every kind of file; `make texts` writes it.

All readers have to see the same 8-bit RGB pixels, or to refuse the file. evaluate, predict and serve are compared by
the answers of a network that knows colours only, the engines by every pixel.
"""

import os
import re
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/fabricated")]

from odd_files import SIDE, Odd, all_files  # noqa: E402

from bench.errors import UsageError  # noqa: E402
from bench.runs import predicting  # noqa: E402
from bench.runs.predicting import Predictor, predict  # noqa: E402
from bench.runs.serving import Limits, Network, RefusedError, classify  # noqa: E402
from bench.runs.sources import evaluation_options  # noqa: E402
from loaders import engines  # noqa: E402
from loaders.datasets import Dataset, open_dataset  # noqa: E402
from loaders.errors import DataError  # noqa: E402
from loaders.file_formats import FORMATS, format_of  # noqa: E402
from loaders.images import check  # noqa: E402
from loaders.options import LoaderOptions  # noqa: E402
from models.configuration import Device, parse  # noqa: E402
from models.predict import Classifier  # noqa: E402
from models.training.checkpoint import Card  # noqa: E402

PAGE = ROOT / "docs/images.md"
BLOCK = re.compile(r"(<!--table-->\n).*?(<!--/table-->)", re.DOTALL)
ENGINES = ("resident", "torchvision", "packed", "pil", "dali", "spdl")
COMMANDS = ("data check", "evaluate", "predict", "serve")
READERS = (*ENGINES, *COMMANDS)
RIGHT, REFUSED, READABLE, UNTRIED = "right", "refused", "readable", "not tried"
TOLERANCE = 3.0  # grey levels, mean of an image: what decoders may differ by; FFmpeg's colours differ most
CLASSES = tuple(f"{colour} {place}" for colour in ("red", "green", "blue") for place in range(4))
FILES = {odd.name: odd for odd in all_files()}


def colours(images: Tensor) -> Tensor:
    """A network: the mean red, green and blue of the quarters of images of 0..1, as logits [B, 12]."""
    return adaptive_avg_pool2d(images.float(), 2).flatten(1)


@cache
def predictor(exif: str) -> Predictor:
    card = Card("lenet", CLASSES, SIDE, mean=(0.0,) * 3, std=(1.0,) * 3, evaluation="whole", exif=exif)
    configuration = parse("naive", Device.from_cpu(), True)
    unused: Any = None
    classifier = Classifier(card, unused, colours)
    options = evaluation_options(card, configuration, "cpu", 1, 1)
    return Predictor(classifier, configuration, torch.device("cpu"), options)


def place(odd: Odd, folder: Path) -> Path:
    path = folder / "class" / f"file{odd.ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(odd.content)
    return path


def one(path: Path) -> Dataset:
    return Dataset("odd", str(path.parent), "all", (str(path),), (0,), CLASSES)


def as_stored(engine: str) -> LoaderOptions:
    """Images that are neither resized nor normalised."""
    return LoaderOptions(
        batch=1,
        size=SIDE,
        threads=0 if engine in ("pil", "torchvision") else 1,
        train=False,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        eval_margin=1.0,
    )


def decoded(engine: str, path: Path, exif: str) -> np.ndarray[Any, Any]:
    """What an engine makes of a file: [SIDE, SIDE, 3] in grey levels."""
    with closing(engines.build(engine, one(path), replace(as_stored(engine), exif=exif))) as loader:
        ((images, _),) = list(loader)
    return np.asarray(255 * images[0].permute(1, 2, 0))


def answered(command: str, path: Path, exif: str) -> dict[str, float]:
    """Class -> probability; of evaluate only the likeliest."""
    chosen = predictor(exif)
    if command == "evaluate":
        evaluation = chosen.evaluate(one(path))
        return {CLASSES[int(evaluation.predicted[0])]: float(evaluation.confidence[0])}
    if command == "predict":
        return dict(predict(chosen, [path], len(CLASSES)).predictions[0].top)
    with closing(Network("colours", chosen)) as network:
        return dict(classify([network], path.read_bytes(), Limits())[0].top)


def judged(reader: str, odd: Odd, path: Path) -> str:
    """What a reader makes of a file, in a word or two."""
    if reader == "data check":
        return READABLE if not check([str(path)], 1) else REFUSED
    try:
        if reader in ENGINES:
            seen = decoded(reader, path, odd.exif)
            if odd.pixels is None:
                return "accepted"
            difference = float(np.abs(seen - odd.pixels).mean())
            return RIGHT if difference <= TOLERANCE else f"off by {difference:.0f}"
        found = answered(reader, path, odd.exif)
    except (DataError, UsageError, RefusedError) as error:
        # The upload of serve has no name; the others have to say which file it is.
        named = reader == "serve" or path.name in str(error)
        return REFUSED if named and "Traceback" not in str(error) else "refused without its name"
    if odd.pixels is None:
        return "accepted"
    logits = colours(torch.from_numpy(odd.pixels.copy()).permute(2, 0, 1)[None] / 255)
    expected = dict(zip(CLASSES, logits.softmax(1)[0].tolist(), strict=True))
    close = all(abs(expected[name] - value) < 0.002 for name, value in found.items())
    return RIGHT if close else "off"


def wanted(reader: str, odd: Odd) -> str:
    if odd.pixels is None:
        return REFUSED
    return READABLE if reader == "data check" else RIGHT


def tried(reader: str) -> bool:
    return reader in COMMANDS or engines.missing(reader) is None


@pytest.fixture(autouse=True)
def _few_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads the times of predict here, nor what packed keeps."""
    monkeypatch.setattr(predicting, "WARM", predicting.FEWEST)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", FILES)
def test_all_readers_see_the_same_pixels_or_refuse_the_file(name: str, reader: str, tmp_path: Path) -> None:
    if not tried(reader):
        pytest.skip(f"{reader} is not installed")
    odd = FILES[name]
    assert judged(reader, odd, place(odd, tmp_path)) == wanted(reader, odd)


def test_many_odd_files_in_one_set_keep_their_order(tmp_path: Path) -> None:
    """Also beside plain files, and in a pipeline that has batches on the way when it meets the first odd one."""
    good = [odd for odd in FILES.values() if odd.pixels is not None and odd.exif == "ignore"]
    paths = []
    for number, odd in enumerate(good):
        path = tmp_path / f"{number:03d}{odd.ending}"
        path.write_bytes(odd.content)
        paths.append(str(path))
    dataset = Dataset("odd", str(tmp_path), "all", tuple(paths), tuple(range(len(paths))), tuple(map(str, paths)))
    for engine in ENGINES:
        if not tried(engine):
            continue
        with closing(engines.build(engine, dataset, replace(as_stored(engine), batch=4))) as loader:
            for _ in range(2):
                batches = list(loader)
                assert torch.cat([labels for _, labels in batches]).tolist() == list(range(len(good)))
                images = 255 * torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1).numpy()
                errors = {odd.name: np.abs(seen - odd.pixels).mean() for odd, seen in zip(good, images, strict=True)}
                assert {name for name, error in errors.items() if error > TOLERANCE} == set()


def test_what_folders_list_is_what_can_be_read(tmp_path: Path) -> None:
    """Every format has a file above, whose first bytes tell it, and every ending is taken for an image."""
    good = [odd for odd in FILES.values() if odd.pixels is not None]
    found = {kind.name for odd in good if (kind := format_of(odd.content[:12])) is not None}
    assert found == {kind.name for kind in FORMATS}
    for ending in {odd.ending for odd in good}:
        (tmp_path / "class").mkdir(exist_ok=True)
        (tmp_path / "class" / f"file{ending.upper()}").write_bytes(b"")
    assert len(open_dataset(tmp_path)) == len({odd.ending for odd in good})


def rows() -> list[str]:
    """The table in Markdown: a line a file, and how often a reader was right."""
    predicting.WARM = predicting.FEWEST
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for number, (name, odd) in enumerate(FILES.items()):
            path = place(odd, Path(folder) / str(number))
            found[name] = [judged(reader, odd, path) if tried(reader) else UNTRIED for reader in READERS]
    lines = [f"| file | rule | {' | '.join(READERS)} |", "|---" * (len(READERS) + 2) + "|"]
    lines += [f"| {name} | {FILES[name].rule} | {' | '.join(cells)} |" for name, cells in found.items()]
    counts = []
    for place_of, reader in enumerate(READERS):
        cells = Counter(
            UNTRIED if cells[place_of] == UNTRIED else cells[place_of] == wanted(reader, FILES[name])
            for name, cells in found.items()
        )
        counts.append(UNTRIED if cells[UNTRIED] else f"{cells[True]} of {len(FILES)}")
    return [*lines, f"| **as the rule says** | | {' | '.join(counts)} |"]


def test_the_page_names_every_file_and_no_reader_that_is_wrong() -> None:
    block = BLOCK.search(PAGE.read_text("utf-8"))
    assert block is not None
    written = [[cell.strip() for cell in line.strip("|").split("|")] for line in block[0].splitlines()[3:-2]]
    assert [line[:2] for line in written] == [[odd.name, odd.rule] for odd in FILES.values()], (
        "docs/images.md is out of date: python tests/test_odd_files.py"
    )
    for name, _, *cells in written:
        expected = [wanted(reader, FILES[name]) for reader in READERS]
        assert [cell for cell, right in zip(cells, expected, strict=True) if cell not in (right, UNTRIED)] == []


def main() -> None:
    """Write the table of docs/images.md."""
    table = "\n".join(rows())
    PAGE.write_text(BLOCK.sub(lambda found: found[1] + table + "\n" + found[2], PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
