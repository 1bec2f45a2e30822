"""Workloads and their ids."""

from dataclasses import replace

import pytest
from workloads import workload_of

from bench.errors import WorkloadError
from bench.timing.tasks import TASKS
from bench.timing.workload import Conditions, LoaderOutput, Workload


def test_ids_are_for_ever() -> None:
    """Dashboards key their series by these; a change here loses every user's history."""
    training = workload_of("training", "resnet34", "amp-nhwc-eager", 16, 224, 1000)
    assert training.id == "training/resnet34@amp-nhwc-eager/b16/s224/c1000/cpu"
    fed = workload_of("end_to_end", "resnet34", "amp-nhwc-eager", 16, 224, 1000, "dali", "sample", "cuda")
    assert fed.id == "end_to_end/resnet34@amp-nhwc-eager/b16/s224/c1000/dali/sample/cuda"
    assert (
        workload_of("loading", "dali", "float32-nhwc", 32, 224, data="x").id
        == "loading/dali@float32-nhwc/b32/s224/x/cpu"
    )
    assert (
        workload_of("kernel", "normalize", "torch-bfloat16", 8, 32).id == "kernel/normalize@torch-bfloat16/b8/s32/cpu"
    )


def test_everything_that_changes_the_number_is_in_the_id() -> None:
    base = workload_of("end_to_end", "m", "amp-nhwc-eager", 1, 2, 3, "l", "d", "cpu")
    changed = {
        "task": "training",
        "subject": "n",
        "configuration": "amp-nhwc-compile",
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
    workload = workload_of("inference", "lenet", "fp32-nchw-eager", 4, 32, 10)
    assert Workload.from_json(workload.to_json()) == workload
    with pytest.raises(WorkloadError, match=r"no bach; it has task, subject"):
        Workload.from_json({**workload.to_json(), "bach": 1})


@pytest.mark.parametrize(
    "workload",
    [
        workload_of("latency", "lenet", "fp32-nchw-eager", 1, 32, 10),
        workload_of("inference", "timm:vit_tiny_patch16_224", "bf16-nhwc-compile-freeze", 32, 224, 1000, device="cuda"),
        workload_of("training", "resnet34", "amp-nhwc-eager", 16, 224, 1000),
        workload_of("training", "m", "fp32-nchw-eager", 1, 1),
        workload_of("loading", "dali", "float32-nhwc", 32, 224, data="sample-2-1000"),
        workload_of("loading", "pil", "float32-nhwc-w4", 32, 224, data="c10"),
        workload_of("loading", "pil", "float32-nhwc-w4-p2-keep", 32, 224, data="c10"),
        workload_of("training", "resnet34", "amp-nhwc-eager-keep", 16, 224, 1000),
        workload_of("loading", "pil", "float32-nhwc", 32, 224, data="my data/b7"),
        workload_of("loading", "synthetic", "float32-nhwc", 32, 224),
        workload_of("end_to_end", "resnet34", "amp-nhwc-eager", 16, 224, 1000, "dali", "sample", "cuda"),
        workload_of("end_to_end", "resnet34", "amp-nhwc-eager", 16, 224, 1000, "dali", "c10"),
        workload_of("end_to_end", "resnet34", "amp-nhwc-eager", 16, 224, 1000, "synthetic"),
        workload_of("kernel", "normalize", "torch-bfloat16", 8, 32),
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
        "inferense/lenet@fp32-nchw-eager/b1/s2/c3/cpu",
        "inference/lenet/b1/s2/c3/cpu",
        "inference/lenet@fp32-nchw-eager/b1/s2/c3",
        "inference/lenet@fp32-nchw-eager/b1/s2/c3/tpu",
        "inference/lenet@fp32-nchw-eager/b01/s2/c3/cpu",
        "inference/lenet@fp32-nchw-eager/b1/s2/c0/cpu",
        "inference/lenet@fp32-nchw-eager/b1/s2/c3/more/cpu",
        "inference/lenet@fp32-nchw-eager/s2/b1/c3/cpu",
        "kernel/normalize@torch/b8/s32//cpu",
        "inference/lenet@fp32-nchw-eager/b1/s2/c3/cpu ",
    ],
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(WorkloadError, match="is no workload's id, which reads like 'training/resnet34@"):
        Workload.from_id(text)


@pytest.mark.parametrize(
    ("id", "why"),
    [
        ("inference/lenet@c/b1/s2/c3/cpu", "unknown lever"),
        ("inference/lenet@fast/b1/s2/c3/cpu", "fast is a preset"),
        ("loading/pil@fp32-nhwc/b1/s2/x/cpu", "a loader's configuration is"),
        ("kernel/normalize@torch-a-b/b1/s2/cpu", "a kernel's configuration is"),
    ],
)
def test_an_id_whose_configuration_means_nothing_says_why(id: str, why: str) -> None:
    with pytest.raises(WorkloadError, match=f"is no workload's id: {why}"):
        Workload.from_id(id)


def test_workloads_share_a_process_where_its_switches_are_equal() -> None:
    plain, kept = (workload_of("inference", "lenet", text, 1, 32, 10) for text in ("fp32", "bf16-nhwc-compile-keep"))
    alone = workload_of("loading", "pil", "float32-nhwc", 1, 32)
    feeding = replace(alone, configuration=LoaderOutput.feeding(kept.network))
    assert feeding.configuration.text == "bfloat16-nhwc-keep"
    assert plain.process_wide == alone.process_wide == ()
    assert kept.process_wide == feeding.process_wide == ("keep",)
    assert workload_of("kernel", "normalize", "torch", 1, 32).process_wide == ()
    assert (plain.keeps_memory, kept.keeps_memory, feeding.keeps_memory) == (False, True, True)


def test_a_frozen_network_with_kernels_is_known_to_be_frozen() -> None:
    frozen = Workload.from_id("inference/efficientnet_b0@amp-nhwc-compile-freeze-kernels/b1/s224/c1000/cuda").network
    assert (frozen.freeze, frozen.kernels, frozen.compiles) == (True, True, True)


def test_an_id_of_an_impossible_workload_is_refused() -> None:
    with pytest.raises(WorkloadError, match="at least 1"):
        Workload.from_id("inference/lenet@fp32-nchw-eager/b0/s2/c3/cpu")


def test_nonsense_is_refused() -> None:
    with pytest.raises(WorkloadError, match=", ".join(TASKS)):
        workload_of("inferense", "m", "fp32-nchw-eager", 1, 1)
    with pytest.raises(WorkloadError, match="at least 1"):
        workload_of("inference", "m", "fp32-nchw-eager", 0, 32)


@pytest.mark.parametrize(
    "workload",
    [
        workload_of("latency", "resnet34", "fp32-nchw-eager", 1, 224, 1000),
        workload_of("training", "vit_b_16", "amp-nhwc-compile", 16, 224, 10, device="cuda"),
        workload_of("loading", "dali", "bfloat16-nhwc-w2", 32, 64, data="sample-1-1000"),
        workload_of("end_to_end", "resnet18", "amp-nhwc-eager", 8, 64, 100, "pil", "my data/c10"),
        workload_of("kernel", "normalize", "torch-bfloat16", 32, 224),
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


def test_conditions_that_older_code_knows_are_told_in_its_words() -> None:
    assert "weights" not in Conditions(threads=2).to_json()
    assert Conditions(**Conditions(threads=2).to_json()) == Conditions(threads=2)
    assert Conditions(weights="a.pth").to_json()["weights"] == "a.pth"
