"""Workloads and their ids."""

import pytest

from bench.errors import WorkloadError
from bench.timing.workload import TASKS, Workload


def test_ids_are_for_ever() -> None:
    """Dashboards key their series by these; a change here loses every user's history."""
    training = Workload("training", "resnet34", "amp-nhwc-eager", 16, 224, 1000)
    assert training.id == "training/resnet34@amp-nhwc-eager/b16/s224/c1000/cpu"
    fed = Workload("end_to_end", "resnet34", "amp-nhwc-eager", 16, 224, 1000, "dali", "sample", "cuda")
    assert fed.id == "end_to_end/resnet34@amp-nhwc-eager/b16/s224/c1000/dali/sample/cuda"
    assert (
        Workload("loading", "dali", "float32-nhwc", 32, 224, data="x").id == "loading/dali@float32-nhwc/b32/s224/x/cpu"
    )
    assert Workload("kernel", "normalize", "torch-bfloat16", 8, 32).id == "kernel/normalize@torch-bfloat16/b8/s32/cpu"


def test_everything_that_changes_the_number_is_in_the_id() -> None:
    base = Workload("end_to_end", "m", "c", 1, 2, 3, "l", "d", "cpu")
    changed = {
        "task": "training",
        "subject": "n",
        "configuration": "k",
        "batch": 9,
        "size": 8,
        "classes": 7,
        "loader": "x",
        "data": "y",
        "device": "cuda",
    }
    assert set(changed) == set(base.to_json())
    ids = {Workload.from_json({**base.to_json(), key: value}).id for key, value in changed.items()}
    assert len(ids) == len(changed)
    assert base.id not in ids


def test_json_round_trip_and_unknown_keys() -> None:
    workload = Workload("inference", "lenet", "fp32-nchw-eager", 4, 32, 10)
    assert Workload.from_json(workload.to_json()) == workload
    with pytest.raises(WorkloadError, match=r"no bach; it has task, subject"):
        Workload.from_json({**workload.to_json(), "bach": 1})


@pytest.mark.parametrize(
    "workload",
    [
        Workload("latency", "lenet", "fp32-nchw-eager", 1, 32, 10),
        Workload("inference", "timm:vit_tiny_patch16_224", "bf16-nhwc-compile-freeze", 32, 224, 1000, device="cuda"),
        Workload("training", "resnet34", "amp-nhwc-eager", 16, 224, 1000),
        Workload("training", "m", "c", 1, 1),
        Workload("loading", "dali", "float32-nhwc", 32, 224, data="sample-2-1000"),
        Workload("loading", "pil", "float32-nhwc-w4", 32, 224, data="c10"),
        Workload("loading", "pil", "float32-nhwc", 32, 224, data="my data/b7"),
        Workload("loading", "synthetic", "float32-nhwc", 32, 224),
        Workload("end_to_end", "resnet34", "amp-nhwc-eager", 16, 224, 1000, "dali", "sample", "cuda"),
        Workload("end_to_end", "resnet34", "amp-nhwc-eager", 16, 224, 1000, "dali", "c10"),
        Workload("end_to_end", "resnet34", "amp-nhwc-eager", 16, 224, 1000, "synthetic"),
        Workload("kernel", "normalize", "torch-bfloat16", 8, 32),
    ],
    ids=lambda workload: workload.id,
)
def test_an_id_reads_back(workload: Workload) -> None:
    assert Workload.from_id(workload.id) == workload


@pytest.mark.parametrize(
    "text",
    [
        "",
        "resnet34",
        "inferense/lenet@c/b1/s2/c3/cpu",
        "inference/lenet/b1/s2/c3/cpu",
        "inference/lenet@c/b1/s2/c3",
        "inference/lenet@c/b1/s2/c3/tpu",
        "inference/lenet@c/b01/s2/c3/cpu",
        "inference/lenet@c/b1/s2/c0/cpu",
        "inference/lenet@c/b1/s2/c3/more/cpu",
        "inference/lenet@c/s2/b1/c3/cpu",
        "kernel/normalize@torch/b8/s32//cpu",
        "inference/lenet@c/b1/s2/c3/cpu ",
    ],
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(WorkloadError, match="is no workload's id, which reads like 'training/resnet34@"):
        Workload.from_id(text)


def test_an_id_of_an_impossible_workload_is_refused() -> None:
    with pytest.raises(WorkloadError, match="at least 1"):
        Workload.from_id("inference/lenet@c/b0/s2/c3/cpu")


def test_nonsense_is_refused() -> None:
    with pytest.raises(WorkloadError, match=", ".join(TASKS)):
        Workload("inferense", "m", "c", 1, 1)
    with pytest.raises(WorkloadError, match="at least 1"):
        Workload("inference", "m", "c", 0, 32)


@pytest.mark.parametrize(
    "workload",
    [
        Workload("latency", "resnet34", "fp32-nchw-eager", 1, 224, 1000),
        Workload("training", "vit_b_16", "amp-nhwc-compile", 16, 224, 10, device="cuda"),
        Workload("loading", "dali", "bfloat16-nhwc-w2", 32, 64, data="sample-1-1000"),
        Workload("end_to_end", "resnet18", "amp-nhwc-eager", 8, 64, 100, "pil", "my data/c10"),
        Workload("kernel", "normalize", "torch-bfloat16", 32, 224),
    ],
    ids=lambda w: w.task,
)
def test_an_id_can_be_read_back(workload: Workload) -> None:
    assert Workload.from_id(workload.id) == workload


@pytest.mark.parametrize(
    "text",
    ["", "resnet34", "flying/a@b/b1/s1/cpu", "training/resnet34/b1/s1/cpu", "training/a@b/b01/s1/cpu", "a@b/b1/s1/cpu",
     "training/a@b/b0/s1/cpu"],
)  # fmt: skip
def test_text_that_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(WorkloadError):
        Workload.from_id(text)
