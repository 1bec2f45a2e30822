"""What stands on a command line."""

from pathlib import Path

import pytest
from fabricated_machine import FabricatedNvml, Gpu

from bench.comparing.operands import Found, over_from, parse_operands, spread
from bench.comparing.words import MEASURED, RUN, files, only_kind
from bench.errors import UsageError, WorkloadError
from bench.machine.devices import choose_device, refuse_used_gpu
from bench.timing.workload import KernelVariant
from loaders.errors import DataError
from models.configuration import Device
from models.errors import ModelError


def test_models_loaders_and_kernels_are_told_apart() -> None:
    assert [o.kind for o in parse_operands(["resnet34", "resnet34@naive"])] == ["model", "model"]
    assert [o.configuration.text for o in parse_operands(["resnet34", "resnet34@naive"])] == ["fast", "naive"]
    assert [o.configuration.text for o in parse_operands(["pil", "pil@bfloat16-nchw"])] == [
        "float32-nhwc",
        "bfloat16-nchw",
    ]
    kernel = parse_operands(["normalize", "normalize@torch-float32"])
    assert [o.kind for o in kernel] == ["kernel", "kernel"]
    assert kernel[1].configuration == KernelVariant("torch", "float32")


def test_what_is_varied_makes_an_operand_of_each_value() -> None:
    assert over_from("batch=8,1,8,2") == ("batch", (1, 2, 8))
    points = spread(parse_operands(["resnet34", "resnet34"]), *over_from("threads=1,2"))
    assert [point.label for point in points] == [
        f"{name} threads={n}" for name in ("resnet34", "resnet34#2") for n in (1, 2)
    ]
    assert [point.over for point in points] == [("threads", 1), ("threads", 2)] * 2
    assert {point.subject for point in points} == {"resnet34"}
    assert points[0].varies(points[1])
    assert not points[0].varies(parse_operands(["resnet18"])[0])


@pytest.mark.parametrize(
    "text", ["batch", "depth=1,2", "batch=1", "batch=1,1", "batch=0,1", "batch=1,x", "batch=", "=1,2"]
)
def test_what_cannot_be_varied_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--over {text}: .*such as batch=1,4,16"):
        over_from(text)


def test_a_thing_against_itself_gets_two_columns() -> None:
    assert [o.label for o in parse_operands(["lenet", "lenet", "lenet"])] == ["lenet", "lenet#2", "lenet#3"]


def test_exported_files_run_in_their_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "a.xml", "a.pt2"):
        Path(name).touch()
    device = Device("cpu", bf16=True, compiler=False)

    def configured(word: str) -> str:
        [operand] = parse_operands([word], "cpu", {word: Found(batch=4)})
        assert operand.batch == (0 if "@" in word else 4)
        with pytest.raises(ModelError, match="an exported file only infers"):
            operand.choice.on(device, training=True)
        return operand.choice.on(device, training=False).text

    assert only_kind(["a.onnx", "a.onnx@openvino", "a.xml", "lenet"]) == MEASURED
    assert configured("a.onnx") == "onnxruntime-fp32"
    assert configured("a.onnx@openvino-fp32") == "openvino-fp32"
    assert configured("a.xml@fp32") == "openvino-fp32"
    # Without a compiler, fast would freeze by folding layers, which a program has not.
    assert configured("a.pt2") == "bf16-nhwc-eager-keep"
    for word, words in (
        ("a.onnx@nhwc", "onnxruntime decides nhwc itself"),
        ("a.onnx@naive", "a .onnx file runs in onnxruntime or openvino"),
        ("a.xml@onnxruntime", "a .xml file runs in openvino"),
        ("a.pt2@openvino", "a program of torch; leave out openvino"),
        ("a.pt2@eager-freeze", "no layers to fold"),
        ("b.onnx", "b.onnx does not exist; this folder has a.onnx"),
    ):
        with pytest.raises(ModelError, match=words):
            parse_operands([word], "cpu")


def test_a_run_is_measured_where_a_configuration_or_another_operand_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "runs/b"):
        Path(name).mkdir(parents=True)
        Path(name, "last.safetensors").touch()
    Path("runs/empty").mkdir()
    assert only_kind(["runs/a", "runs/b"]) == RUN
    assert only_kind(["runs/a@fast", "runs/b"]) == MEASURED
    assert only_kind(["runs/a", "lenet"]) == MEASURED
    assert only_kind(["runs/a/last.safetensors", "lenet"]) == MEASURED
    with pytest.raises(UsageError, match="runs/empty is a training run and lenet is something to measure"):
        only_kind(["runs/empty", "lenet"])


def test_stored_results_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    for path in ("a.json", "x/b"):
        Path(path).touch()
    assert files(["a.json", "x/b"]) == [Path("a.json"), Path("x/b")]
    assert files(["resnet34"]) == []
    with pytest.raises(UsageError, match="a.json is a stored result and resnet34 is something to measure"):
        files(["a.json", "resnet34"])


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["resnet43"], ModelError, "resnet34"),
        (["resnet34@bf61"], ModelError, "bf16"),
        (["resnet34@"], ModelError, "empty configuration"),
        (["resnet34", "dali"], UsageError, "one kind"),
        (["dali@fp32"], WorkloadError, "DTYPE-LAYOUT"),
        (["normalize@cuda"], WorkloadError, "no implementation 'cuda'"),
    ],
)
def test_mistakes_are_answered_before_a_process_starts(words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_operands(words)


def test_what_the_device_cannot_do_is_answered_before_a_process_starts() -> None:
    assert parse_operands(["lenet@graphs", "lenet@openvino"])
    for word, device in (("lenet@graphs", "cpu"), ("lenet@tf32", "cpu"), ("lenet@openvino", "cuda")):
        with pytest.raises(ModelError, match=r"CPU"):
            parse_operands([word], device)


@pytest.mark.parametrize(
    ("word", "configuration"),
    [
        ("pil@w0", "float32-nhwc-w0"),
        ("pil@bfloat16", "bfloat16-nhwc"),
        ("pil@nchw-w4", "float32-nchw-w4"),
        ("pil@bfloat16-nchw", "bfloat16-nchw"),
    ],
)
def test_a_loader_takes_what_its_batches_are_and_its_workers(word: str, configuration: str) -> None:
    assert parse_operands([word])[0].configuration.text == configuration


def test_an_unknown_loader_name_is_taken_for_a_model_and_refused() -> None:
    with pytest.raises((ModelError, DataError)):
        parse_operands(["dalli"])


def test_a_gpu_is_chosen_if_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.machine.devices.DRIVER", tmp_path / "nvidiactl")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("bench.machine.gpu.open_nvml", lambda: object())
    monkeypatch.setattr("bench.machine.gpu.visible_handles", lambda nvml, environ: [object()])
    assert choose_device("auto") == "cuda"
    assert choose_device("cpu") == "cpu"
    monkeypatch.setattr("bench.machine.gpu.open_nvml", lambda: None)
    assert choose_device("auto") == "cpu"
    with pytest.raises(WorkloadError, match="no GPU is visible"):
        choose_device("cuda")
    # The driver is there and its NVML is not: measured without telemetry, not on the CPU without a word.
    (tmp_path / "nvidiactl").touch()
    assert (choose_device("auto"), choose_device("cuda")) == ("cuda", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device("auto") == "cpu"


def test_a_gpu_that_others_use_is_refused_and_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FabricatedNvml(Gpu(processes=(41, 42)))
    monkeypatch.setattr("bench.machine.gpu.open_nvml", lambda: nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(
        UsageError, match="in use by process 41, 42; wait until it ends, or measure anyway with --force"
    ):
        refuse_used_gpu()
    nvml.gpus = [Gpu()]
    refuse_used_gpu()
