"""Which sides share a process, and what an interrupted comparison is known by."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from workloads import workload_of

from bench.comparing.operands import parse_operands
from bench.comparing.plan import Settings, chosen_tasks, homes, settings_from
from bench.errors import UsageError
from loaders.separable import make


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
