"""Networks in files and packages of the user's: imported as theirs, built as they want, and what goes wrong said."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from models import code, imports, zoo
from models.errors import ModelError
from models.names import Name
from models.project import rooted
from models.summary import on_meta

NET = """
from torch import nn

from {blocks} import WIDTH

print("imported")


class Net(nn.Module):
    def __init__(self, num_classes=7, width=WIDTH):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))


def build(classes, width=WIDTH):
    return Net(classes, width)


def passes_on(**options):
    return Net(**options)


ready = Net(3)
"""


@pytest.fixture(autouse=True)
def _process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What importing changes in this process is as before afterwards."""
    monkeypatch.chdir(tmp_path)
    for holder in (code._aliases, code._loaded, code._failed, code._facts):
        monkeypatch.setattr(code, next(name for name, value in vars(code).items() if value is holder), {})
    monkeypatch.setattr(imports, "_beside", {})
    monkeypatch.setattr(importlib, "import_module", importlib.import_module)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        file = getattr(sys.modules[name], "__file__", None) or str(tmp_path)
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


def put(path: str, text: str) -> None:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def width(name: str, classes: int | None = None) -> tuple[int, int]:
    """Channels and logits of a network made from NET."""
    network = zoo.build(name, classes)
    assert isinstance(network.stem, nn.Conv2d)
    assert isinstance(network.head, nn.Linear)
    return network.stem.out_channels, network.head.out_features


def test_a_file_is_imported_as_a_script_of_its_folder_would_import_it(capsys: pytest.CaptureFixture[str]) -> None:
    put("nets/mine.py", NET.format(blocks="widths"))
    put("nets/widths.py", "WIDTH = 5")
    assert width("nets/mine.py:Net") == (5, 7)
    assert width("nets/mine.py:Net", 4) == (5, 4)
    assert width("nets/mine.py:build[width=6]", 9) == (6, 9)
    assert width("nets/mine.py:ready") == (5, 3)
    # stdout is for data.
    assert capsys.readouterr() == ("", "imported\n")


def test_packages_with_relative_imports_by_file_and_by_module() -> None:
    put("package/__init__.py", "")
    put("package/sub/__init__.py", "")
    put("package/sub/nets.py", NET.format(blocks="..widths"))
    put("package/widths.py", "WIDTH = 8")
    assert width("package/sub/nets.py:Net") == (8, 7)
    assert width("package.sub.nets:build[classes=2]") == (8, 2)


def test_a_package_in_src_is_found() -> None:
    put("src/shipped/__init__.py", NET.format(blocks=".widths"))
    put("src/shipped/widths.py", "WIDTH = 3")
    assert width("shipped:Net") == (3, 7)


def test_what_was_built_for_the_repository_goes_before_its_source() -> None:
    for place, channels in ((".", 3), (".pixbench", 4)):
        put(f"{place}/shipped/__init__.py", NET.format(blocks=".widths"))
        put(f"{place}/shipped/widths.py", f"WIDTH = {channels}")
    assert width("shipped:Net") == (4, 7)


def test_names_that_are_taken_are_imported_beside_what_has_them() -> None:
    # Our own package, one of Python's, and two files of one name.
    put("models/__init__.py", "from models.nets import *")
    put("models/nets.py", NET.format(blocks="utils.types"))
    put("utils/types.py", "import random\nWIDTH = random.WIDTH")
    put("random.py", "WIDTH = 9")
    put("other/nets.py", NET.format(blocks="widths"))
    put("other/widths.py", "WIDTH = 2")
    put("third/nets.py", NET.format(blocks="widths"))
    put("third/widths.py", "WIDTH = 4")
    ours = sys.modules["models"]
    assert width("models:Net") == width("models/nets.py:Net") == (9, 7)
    assert width("other/nets.py:Net") == (2, 7)
    assert width("third/nets.py:Net") == (4, 7)
    assert sys.modules["models"] is ours
    assert not hasattr(sys.modules["random"], "WIDTH")


def test_a_name_that_another_has_left_in_this_process_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixbench_code", ModuleType("pixbench_code"))
    put("models/nets.py", NET.format(blocks="models.widths"))
    put("models/widths.py", "WIDTH = 6")
    assert width("models/nets.py:Net") == (6, 7)


def test_a_file_finds_the_modules_of_the_folder_that_bench_is_started_in() -> None:
    put("models/nets.py", NET.format(blocks="models.widths"))
    put("models/widths.py", "from settings import WIDTH")
    put("settings.py", "WIDTH = 6")
    assert width("models/nets.py:Net") == (6, 7)


def test_torchs_compiler_follows_imports_inside_a_function() -> None:
    put("models/__init__.py", "")
    put("models/nets.py", "def forward(x):\n    from models.late import double\n    import models.late\n"
        "    return double(x) + models.late.double(x)\n")  # fmt: skip
    put("models/late.py", "def double(x):\n    return x * 2\n")
    forward = code.load("models/nets.py:forward")
    assert callable(forward)
    compiled = torch.compile(forward, backend="eager", fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [4.0, 4.0]


def test_two_roots_have_a_module_of_one_name_each() -> None:
    found = []
    for place, channels in (("base", 3), ("head", 4)):
        put(f"{place}/shipped/__init__.py", NET.format(blocks="shipped.widths"))
        put(f"{place}/shipped/widths.py", f"WIDTH = {channels}")
    for place in ("base", "head", "base"):
        with rooted(Path(place).absolute()):
            found.append(width("shipped:Net")[0])
    assert found == [3, 4, 3]


def test_arguments_of_names_in_the_table() -> None:
    assert zoo.default_size("res_512_d[activation=gelu]") == 32
    assert any(isinstance(one, nn.GELU) for one in zoo.build("res_512_d[activation=gelu]").modules())
    with pytest.raises(ModelError, match=r"unknown argument of res_512_d 'activatoin'; did you mean activation"):
        zoo.build("res_512_d[activatoin=gelu]")
    with pytest.raises(ModelError, match=r"block_dropout of res_512_d is 'much'; give a number"):
        zoo.build("res_512_d[block_dropout=much]")


@pytest.mark.parametrize(
    ("body", "classes", "size"),
    [
        ("return Net(num_classes, 4)", 7, 224),
        ("return Net(num_classes, 4)  # image_size=48", 7, 224),
        ("one = Net(5, 4); one.img_size = (48, 48); return one", 7, 48),
        ("one = Net(5, 4); one.default_cfg = {'input_size': (3, 96, 96)}; return one", 7, 96),
    ],
)
def test_size_and_classes_are_found_out(body: str, classes: int, size: int) -> None:
    put("mine.py", NET.format(blocks="widths") + f"\n\ndef made(num_classes=7):\n    {body}\n")
    put("widths.py", "WIDTH = 5")
    assert code.facts(Name("mine.py:made")) == code.Facts(classes, size)


def test_classes_are_counted_where_nothing_says_them() -> None:
    put("mine.py", NET.format(blocks="widths") + "\n\ndef made(image_size=64):\n    return Net(6)\n")
    put("widths.py", "WIDTH = 5")
    assert code.facts(Name("mine.py:made")) == code.Facts(6, 64)
    assert code.facts(Name("mine.py:passes_on")) == code.Facts(7, 224)
    # A function that hands on what it does not know is told a number of classes only where its own will not do.
    assert width("mine.py:passes_on", 7) == (5, 7)
    assert width("mine.py:passes_on", 4) == (5, 4)


def test_classes_are_counted_at_a_size_that_it_takes() -> None:
    put("mine.py", "from torch import nn\n\n\ndef made():\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(1800, 3))\n")  # fmt: skip
    assert code.facts(Name("mine.py:made")) == code.Facts(3, 224)


def test_a_network_that_cannot_run_without_weights_is_given_them() -> None:
    put("mine.py", NET.format(blocks="widths") + "\n\nclass Asks(Net):\n    def forward(self, x):\n"
        "        return super().forward(x) if x.sum().item() < 1e9 else x\n")  # fmt: skip
    put("widths.py", "WIDTH = 5")
    network, _, size = on_meta("mine.py:Net", None, None)
    assert size == 224
    assert next(network.parameters()).is_meta
    network, _, _ = on_meta("mine.py:Asks", None, 32)
    assert not next(network.parameters()).is_meta


HEAD = "from torch import nn\nimport torch\n\n\nclass Conv(nn.Module):\n    def __init__(self, channels=3):\n" \
    "        super().__init__()\n        self.c = nn.Conv2d(channels, 4, 3)\n\n"  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (
            "print('so far')\n1 / 0",
            "x",
            r"mine.py cannot be imported: ZeroDivisionError: .*line 2\); it printed: so far",
        ),
        ("import sys\nsys.exit('bye')", "x", r"it called exit\('bye'\) \(.*mine.py, line 2\)"),
        ("def f(:", "x", r"SyntaxError: .*mine.py, line 1\)"),
        ("import no_such_package", "x", r"No module named 'no_such_package'"),
        ("import time\ntime.sleep(30)", "x", r"it took more than 0.3 s \(.*mine.py, line 2\)"),
        ("Nett = 3", "Net", r"unknown name in mine.py: 'Net'; did you mean Nett"),
        (HEAD + "Net = Conv", "Net.forward", r"mine.py:Net.forward is a method; name its class"),
        ("Net = 3", "Net", r"mine.py:Net is of type int, not a class or a function"),
        ("Net = dict", "Net", r"gives something of type dict, not a network"),
        ("def Net(): return {}", "Net", r"gives something of type dict, not a network"),
        ("def Net(width): pass", "Net", r"needs width: write 'mine.py:Net\[width=...\]'"),
        ("def Net(): raise KeyError('depth')", "Net", r"Net\(\) failed: KeyError: 'depth' \(.*line 1\)"),
        ("from torch import nn\nNet = lambda: nn.Sequential(nn.LazyConv2d(8, 3))", "Net", r"Net has lazy layers"),
        (HEAD + "Net = torch.compile(Conv())", "Net", r"is compiled already; give the network itself"),
        (
            HEAD + "import warnings\nwarnings.simplefilter('ignore')\nNet = torch.jit.script(Conv())",
            "Net",
            r"TorchScript",
        ),
    ],
)
def test_what_is_no_network_says_why(monkeypatch: pytest.MonkeyPatch, text: str, name: str, message: str) -> None:
    if "sleep" in text:
        monkeypatch.setattr(code, "IMPORT_SECONDS", 0.3)
    put("mine.py", text)
    for _ in range(2):
        with pytest.raises(ModelError, match=message):
            zoo.build(f"mine.py:{name}")


@pytest.mark.parametrize(
    ("forward", "channels", "message"),
    [
        ("return {'logits': self.c(x), 'aux': x}", 3, r"gives a dict of logits, aux; what is measured here gives one"),
        ("return x, x", 3, r"gives a tuple of 2"),
        ("return self.c(x)", 3, r"gives a tensor \[1, 4, 222, 222\] for one image"),
        ("return self.c(x).mean((2, 3)).to(torch.complex64)", 3, r"gives numbers of type complex64; what is measured"),
        ("raise SystemExit(0)", 3, r"mine.py:Conv.* called exit\(0\) when it was given an image"),
        ("return self.c(x).mean((2, 3)) + torch.ones(x.shape[2] // 100 - 2)", 3, r"it takes .*: --size"),
        ("raise ValueError('one\\ntwo')", 3, r"\(ValueError: one two \(.*mine.py, line \d+\)\)"),
        ("return self.c(x)", 1, r"expected input.* to have 1 channels.*and none of the usual sizes"),
    ],
)
def test_an_answer_that_is_no_logits_says_so(forward: str, channels: int, message: str) -> None:
    put("mine.py", HEAD + f"    def forward(self, x):\n        {forward}\n")
    with pytest.raises(ModelError, match=message):
        on_meta(f"mine.py:Conv[channels={channels}]", None, 224)


def test_what_code_sets_for_its_whole_process_does_not_last() -> None:
    put(
        "mine.py",
        "import os, torch\ntorch.set_num_threads(3)\n"
        "def Net():\n"
        "    os.chdir('/')\n    torch.set_default_dtype(torch.float64)\n    torch.set_grad_enabled(False)\n"
        "    return torch.nn.Linear(2, 2)\n",
    )
    before = Path.cwd(), torch.get_num_threads(), torch.get_default_dtype()
    assert zoo.build("mine.py:Net").weight.dtype is torch.float64
    assert (Path.cwd(), torch.get_num_threads(), torch.get_default_dtype()) == before
    assert torch.is_grad_enabled()


def test_a_network_in_place_of_a_class_takes_no_arguments() -> None:
    put("mine.py", NET.format(blocks="widths"))
    put("widths.py", "WIDTH = 5")
    with pytest.raises(ModelError, match="is a network already, so it takes no arguments"):
        zoo.build("mine.py:ready[width=3]")
    assert zoo.build("mine.py:ready") is not zoo.build("mine.py:ready")


def test_a_module_that_is_nowhere_says_where_was_looked() -> None:
    with pytest.raises(ModelError, match=r"no module is called nowhere: .* nor installed"):
        zoo.build("nowhere.nets:Net")
    with pytest.raises(ModelError, match=r"mine.py is a file; say what of it is meant: mine.py:NAME"):
        zoo.check("mine.py")
