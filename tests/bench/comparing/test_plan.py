"""Which sides share a process, and what an interrupted comparison is known by."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from workloads import workload_of

from bench.comparing.operands import Operand, parse_operands
from bench.comparing.plan import Settings, check_over, chosen_tasks, homes, impossible, network_workloads, settings_from
from bench.errors import UsageError
from bench.machine.tuned import Resolved
from loaders.separable import make
from models.configuration import Choice, Configuration


def placed(task: str, *configurations: str, device: str = "cpu", subject: str = "lenet") -> list[int | None]:
    """For each side the number of the process that it is in, None for one of its own."""
    sides = {
        f"{number}": workload_of(task, subject, text, 2, 32, 10, device=device)
        for number, text in enumerate(configurations)
    }
    found = homes(sides)
    order = list(dict.fromkeys(found.values()))
    return [order.index(found[side]) if side in found else None for side in sides]


@pytest.mark.parametrize(
    ("device", "configurations", "processes"),
    [
        ("cpu", ("fp32", "amp-nhwc", "bf16-compile"), [0, 0, 0]),
        # Whether freed memory is kept is the whole process's, and cannot be taken back.
        ("cpu", ("fp32", "fp32-keep", "bf16", "amp-keep"), [0, 1, 0, 1]),
        ("cuda", ("amp", "tf32", "fp16"), [0, 1, 0]),
        # Torch's own defaults are not what everything else has.
        ("cuda", ("fp32-nchw-eager", "fp32-nhwc"), [0, 1]),
        # A foreign engine has a team of threads of its own.
        ("cpu", ("fp32", "openvino-fp32", "nhwc"), [0, None, 0]),
    ],
)
def test_sides_share_a_process_unless_a_switch_of_it_differs(
    device: str, configurations: tuple[str, ...], processes: list[int | None]
) -> None:
    assert placed("inference", *configurations, device=device) == processes


def test_loaders_have_processes_of_their_own_and_kernels_share_one() -> None:
    assert placed("loading", "float32-nhwc", "float32-nhwc-w2-p2", subject="pil") == [None, None]
    assert placed("kernel", "torch-float32", "torch-float32", subject="normalize") == [0, 0]


OPTIONS = {
    "loader": "synthetic", "batch": None, "size": 32, "classes": 0, "threads": 1, "seed": 0, "images": 4, "data": None,
}  # fmt: skip


def test_a_file_that_takes_batches_of_one_size_decides_them() -> None:
    operands = [Operand("lenet", "lenet", Choice("fast")), Operand("a.onnx", "a.onnx", Choice(file=".onnx"), batch=3)]
    said: list[str] = []
    settings, _ = settings_from(operands, "cpu", OPTIONS, said.append, False)
    assert (settings.batch, said) == (3, ["--batch 3: a.onnx takes no other"])
    with pytest.raises(UsageError, match="a.onnx takes batches of 3: give --batch 3, or export it with --dynamic-b"):
        settings_from(operands, "cpu", {**OPTIONS, "batch": 8}, said.append, False)
    assert network_workloads(operands[1], ("latency",), settings, Resolved({"latency": Configuration()}), {}) == ()
    assert impossible(operands[1], "latency", Resolved({}), {}) == "a.onnx takes batches of 3, not single images"
    # Files alone are asked for nothing but what they can do.
    settings, _ = settings_from(operands[1:], "cpu", OPTIONS, said.append)
    assert settings.tasks == "latency,inference"
    with pytest.raises(UsageError, match="an exported file only infers: --tasks latency,inference"):
        settings_from(operands[1:], "cpu", {**OPTIONS, "tasks": "training"}, said.append)


def test_weights_are_a_condition_and_go_to_what_has_none() -> None:
    options = {**OPTIONS, "weights": "w.pth"}
    settings, conditions = settings_from([Operand("lenet", "lenet", Choice())], "cpu", options, print, False)
    assert settings.weights == conditions.weights == "w.pth"
    with pytest.raises(UsageError, match="networks that come without weights; a.onnx needs none"):
        settings_from([Operand("a.onnx", "a.onnx", Choice(file=".onnx"))], "cpu", options, print)


def test_a_comparison_goes_on_with_the_same_images_whatever_their_folder_is_called(tmp_path: Path) -> None:
    options = {"loader": "pil", "batch": 2, "size": 32, "classes": 0, "threads": 1, "seed": 0, "images": 4}

    def settings(folder: Path) -> Settings:
        return settings_from(parse_operands(("pil",), "cpu"), "cpu", {**options, "data": folder}, lambda text: None)[0]

    for seed, root in enumerate(("one", "other")):
        make(tmp_path / root / "pets", "folder", 24, seed, 3)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    first = settings(tmp_path / "one" / "pets")
    assert first.data == "pets/train"
    assert len(first.data_fingerprint) == 16
    assert settings(tmp_path / "copy" / "pets") == first
    assert replace(settings(tmp_path / "other" / "pets"), data_fingerprint=first.data_fingerprint) == first
    assert settings(tmp_path / "other" / "pets") != first


def test_tasks_that_an_operand_cannot_do_are_refused_where_no_others_are_asked_for() -> None:
    operands = parse_operands(["lenet@freeze", "lenet"], "cpu")
    for tasks in ("training", "loading,end_to_end"):
        with pytest.raises(UsageError, match=rf"lenet@freeze can do none of --tasks {tasks}: .* cannot be trained"):
            chosen_tasks(tasks, operands, "cpu")
    assert chosen_tasks("training,inference", operands, "cpu") == "inference,training"
    assert chosen_tasks("training", operands[1:], "cpu") == "training"


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"batch": 4}, "batch", "--over batch and --batch contradict"),
        ({"training_batch": 4}, "batch", "--over batch and --training-batch contradict"),
        ({"threads": 1}, "threads", "--over threads and --threads contradict"),
        ({"size": 32}, "size", "--over size and --size contradict"),
        ({"tasks": "latency,inference"}, "batch", "latency is of one image at a time"),
    ],
)
def test_what_is_varied_is_not_fixed_as_well(options: dict[str, object], key: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_over(options, key)
    check_over(options, "size" if key != "size" else "batch")


@pytest.mark.parametrize(
    ("key", "changed"),
    [("batch", {"batch": 7, "training_batch": 7}), ("size", {"size": 7}), ("threads", {"threads": 7})],
)
def test_each_operand_has_its_value_of_what_is_varied(key: str, changed: dict[str, int]) -> None:
    settings = Settings("cpu", 32, 16, 0, 0, "synthetic", 1, 0, 0, "data")
    assert settings.at(Operand("a 7", "lenet", Choice("fast"), over=(key, 7))) == replace(settings, **changed)
    assert settings.at(Operand("a", "lenet", Choice("fast"))) is settings
