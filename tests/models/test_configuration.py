"""The words after '@'."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models.configuration import PRECISIONS, PRESETS, Choice, Configuration, Device, Precision, levers, parse, preset
from models.errors import ModelError

BF16 = Device("cpu", bf16=True, compiler=True)
PLAIN = Device("cpu", bf16=False, compiler=True)
BARE = Device("cpu", bf16=True, compiler=False)
OTHER_LIBC = Device("cpu", bf16=True, compiler=True, glibc=False)
GPU = Device("cuda", bf16=True, compiler=True)


@pytest.mark.parametrize(
    ("device", "inference", "training"),
    [
        (BF16, "bf16-nhwc-compile-freeze-keep", "amp-nhwc-eager-keep"),
        (PLAIN, "fp32-nhwc-compile-freeze-keep", "fp32-nhwc-eager-keep"),
        (BARE, "bf16-nhwc-eager-freeze-keep", "amp-nhwc-eager-keep"),
        (OTHER_LIBC, "bf16-nhwc-compile-freeze", "amp-nhwc-eager"),
        (GPU, "amp-nhwc-graphs-freeze", "amp-nhwc-graphs"),
        (Device("cuda", bf16=False, compiler=True), "fp16-nhwc-graphs-freeze", "fp16-nhwc-compile"),
        (Device("cuda", bf16=True, compiler=False), "amp-nhwc-eager-freeze", "amp-nhwc-eager"),
    ],
)
def test_fast_looks_at_the_device(device: Device, inference: str, training: str) -> None:
    assert parse("fast", device, training=False).text == inference
    assert parse("fast", device, training=True).text == training


def test_naive_is_what_a_first_script_does() -> None:
    assert parse("naive", GPU, training=True) == Configuration()
    assert Configuration().text == "fp32-nchw-eager"


def test_what_belongs_to_the_whole_process() -> None:
    plain, kept, frozen = map(Configuration.from_text, ("fp32", "keep", "bf16-nhwc-compile-freeze-keep"))
    assert plain.process_wide("cpu") == ()
    assert kept.process_wide("cpu") == frozen.process_wide("cpu") == ("keep",)
    assert (plain.plain, kept.plain, frozen.plain) == (True, True, False)
    ways = [Configuration.from_text(text).process_wide("cuda") for text in ("fp32", "nhwc", "amp", "tf32")]
    assert ways == [("defaults",), (), (), ("tf32",)]


def test_levers_change_naive_and_presets() -> None:
    assert parse("compile", BF16, False).text == "fp32-nchw-compile"
    assert parse("nhwc-bf16", BF16, False).text == "bf16-nhwc-eager"
    assert parse("fast-fp32", BF16, False).text == "fp32-nhwc-compile-freeze-keep"
    assert parse("fp32-nchw-eager", BF16, True) == parse("naive", BF16, True)


def test_every_configuration_reads_back_its_own_text() -> None:
    for device in (BF16, PLAIN, BARE, OTHER_LIBC, GPU):
        for name in set(PRESETS) - {"tuned"}:
            for training in (False, True):
                configuration = preset(name, device, training)
                assert parse(configuration.text, device, training) == configuration


def test_what_was_tuned_is_known_of_a_model_and_not_here() -> None:
    with pytest.raises(ModelError, match="bench tune"):
        parse("tuned", BF16, False)


def test_a_peer_takes_the_precision_it_is_best_in() -> None:
    assert parse("openvino", BF16, False).text == "openvino-bf16"
    assert parse("openvino", PLAIN, False).text == "openvino-fp32"
    assert parse("openvino-fp32", BF16, False).text == "openvino-fp32"
    assert parse("onnxruntime", BF16, False).text == "onnxruntime-fp32"


@pytest.mark.parametrize(
    ("text", "device", "training", "message"),
    [
        ("bf61", BF16, False, "did you mean bf16"),
        ("", BF16, False, "empty configuration"),
        ("fp32-bf16", BF16, False, "says both fp32 and bf16"),
        ("graphs", BF16, False, "graphs replays CUDA graphs"),
        ("tf32", BF16, False, "tf32 is a mode of CUDA"),
        ("tensorrt", BF16, False, "TensorRT needs a CUDA device"),
        ("openvino", GPU, False, "OpenVINO runs on CPUs"),
        ("compile", BARE, False, r"needs a C\+\+ compiler"),
        ("freeze", BF16, True, "frozen weights cannot be trained"),
        ("fp16", BF16, True, "fp16 training needs a CUDA device"),
        ("openvino", BF16, True, "only runs inference"),
        ("openvino-nhwc", BF16, False, "decides nhwc itself"),
        ("openvino-keep", BF16, False, "decides keep itself"),
        ("keep", GPU, True, "torch keeps a CUDA device's memory anyway; leave out keep"),
        ("keep", OTHER_LIBC, False, "keep is a setting of glibc"),
        ("onnxruntime-bf16", BF16, False, "runs here in fp32, not bf16"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(text: str, device: Device, training: bool, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse(text, device, training)


def test_every_lever_is_a_field() -> None:
    for field, value, line in levers().values():
        assert hasattr(Configuration(), field)
        assert Configuration(**{field: value}) is not None
        assert line


@pytest.mark.parametrize(
    "text",
    ["fp32-nchw-eager", "bf16-nhwc-compile-freeze", "amp-nhwc-graphs-kernels", "fp32-nhwc-eager-freeze-keep"],
)
def test_an_id_s_text_is_read_without_a_device(text: str) -> None:
    assert Configuration.from_text(text).text == text
    assert Configuration.from_text(text).freeze == ("freeze" in text)


def test_an_id_names_levers_and_no_preset() -> None:
    with pytest.raises(ModelError, match="fast is a preset"):
        Configuration.from_text("fast-fp32")
    assert Configuration.from_text("openvino-bf16") == Configuration("bf16", peer="openvino")


def test_a_choice_keeps_what_was_written() -> None:
    choice = Choice.from_text("fast-fp32-nchw")
    assert (choice.preset, choice.levers, choice.text) == ("fast", ("fp32", "nchw"), "fast-fp32-nchw")
    assert choice.on(BF16, training=True).text == "fp32-nchw-eager-keep"


@pytest.mark.parametrize(
    "values",
    [{"precision": "fp8"}, {"layout": "chwn"}, {"compile": "jit"}, {"peer": "tvm"}],
    ids=lambda v: next(iter(v)),
)
def test_a_value_that_stands_in_no_table_is_an_error(values: dict[str, str]) -> None:
    [(field, value)] = values.items()
    with pytest.raises(ModelError, match=f"no {field} is called '{value}'; there are "):
        Configuration(**values)


def test_a_precision_is_one_line_in_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads it, feeds it, casts it, searches it and computes its roof follows from that line."""
    from bench.comparing.tuning import challengers
    from bench.inspecting.roofline import Ceilings, fraction
    from bench.timing.workload import LoaderOutput, Workload
    from models.prepare import prepare

    with pytest.raises(ModelError, match="fp64"):
        parse("fp64", BF16, False)
    line = Precision("64-bit floats everywhere", ("float64", None), ("float64", None), searched=("cpu",))
    monkeypatch.setitem(PRECISIONS, "fp64", line)
    configuration = parse("fp64", BF16, False)
    assert configuration.text == "fp64-nchw-eager"
    assert LoaderOutput.feeding(configuration).dtype == "float64"
    id = "inference/lenet@fp64-nchw-eager/b2/s32/c10/cpu"
    assert Workload.from_id(id).network == configuration
    assert configuration in challengers(Configuration(), BF16, training=False)
    prepared = prepare(nn.Linear(3, 2), configuration, torch.device("cpu"), False, (1, 3))
    assert prepared.forward(torch.ones(1, 3, dtype=prepared.dtype)).dtype == torch.float64
    cost = SimpleNamespace(activations=1000, weight_bytes=4000, flops=1)
    shares = [fraction(cost, Ceilings(name, 1e12, 1e9), 1.0, 1, False) for name in ("fp64", "fp32")]
    assert shares[0] == pytest.approx(2 * shares[1])


def test_cpu_facts_come_from_its_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name : X\nflags\t\t: fpu avx2 avx512_bf16\n")
    assert Device.from_cpu(cpuinfo).bf16
    cpuinfo.write_text("flags\t\t: fpu avx2 avx512f\n")
    assert not Device.from_cpu(cpuinfo).bf16
    assert not Device.from_cpu(tmp_path / "missing").bf16


def test_gpu_facts_come_from_its_capability() -> None:
    assert Device.from_cuda((9, 0)).bf16
    assert not Device.from_cuda((7, 5)).bf16
