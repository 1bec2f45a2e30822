"""The words after '@'."""

from pathlib import Path

import pytest

from models.configuration import LEVERS, PRESETS, Configuration, Device, parse, preset
from models.errors import ModelError

BF16 = Device("cpu", bf16=True, compiler=True)
PLAIN = Device("cpu", bf16=False, compiler=True)
BARE = Device("cpu", bf16=True, compiler=False)
GPU = Device("cuda", bf16=True, compiler=True)


@pytest.mark.parametrize(
    ("device", "inference", "training"),
    [
        (BF16, "bf16-nhwc-compile-freeze", "amp-nhwc-eager"),
        (PLAIN, "fp32-nhwc-compile-freeze", "fp32-nhwc-eager"),
        (BARE, "bf16-nhwc-eager-freeze", "amp-nhwc-eager"),
        (GPU, "amp-nhwc-autotune-freeze", "amp-nhwc-graphs"),
        (Device("cuda", bf16=False, compiler=True), "fp16-nhwc-autotune-freeze", "fp16-nhwc-autotune"),
        (Device("cuda", bf16=True, compiler=False), "amp-nhwc-eager-freeze", "amp-nhwc-eager"),
    ],
)
def test_fast_looks_at_the_device(device: Device, inference: str, training: str) -> None:
    assert parse("fast", device, training=False).text == inference
    assert parse("fast", device, training=True).text == training


def test_naive_is_what_a_first_script_does() -> None:
    assert parse("naive", GPU, training=True) == Configuration()
    assert Configuration().text == "fp32-nchw-eager"


def test_levers_change_naive_and_presets() -> None:
    assert parse("compile", BF16, False).text == "fp32-nchw-compile"
    assert parse("nhwc-bf16", BF16, False).text == "bf16-nhwc-eager"
    assert parse("fast-fp32", BF16, False).text == "fp32-nhwc-compile-freeze"
    assert parse("fp32-nchw-eager", BF16, True) == parse("naive", BF16, True)


def test_every_configuration_reads_back_its_own_text() -> None:
    for device in (BF16, PLAIN, BARE, GPU):
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
        ("onnxruntime-bf16", BF16, False, "runs here in fp32, not bf16"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(text: str, device: Device, training: bool, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse(text, device, training)


def test_every_lever_is_a_field() -> None:
    for field, value, line in LEVERS.values():
        assert hasattr(Configuration(), field)
        assert Configuration(**{field: value}) is not None
        assert line


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
