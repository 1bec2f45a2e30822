"""Which workloads the matrix holds."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import WorkloadError
from bench.matrix import Matrix, kernels_for
from bench.plugin import NUMBERS, OPTIONS
from bench.timing.images import data_name
from bench.timing.tasks import TASKS
from kernels import catalogue
from loaders.errors import DataError
from models.configuration import Device
from models.errors import ModelError

MATRIX = Matrix(
    models=("resnet18", "lenet"),
    configurations=("fast", "naive"),
    loaders=("synthetic", "dali"),
    device=Device("cpu", bf16=True, compiler=True),
    batch=32,
    training_batch=16,
    size=0,
    data="pictures",
)


def test_ids_are_for_ever() -> None:
    assert [w.id for w in MATRIX.workloads("latency")] == [
        "latency/resnet18@bf16-nhwc-compile-freeze-keep/b1/s224/c1000/cpu",
        "latency/resnet18@fp32-nchw-eager/b1/s224/c1000/cpu",
        "latency/lenet@bf16-nhwc-compile-freeze-keep/b1/s32/c10/cpu",
        "latency/lenet@fp32-nchw-eager/b1/s32/c10/cpu",
    ]
    assert [w.id for w in MATRIX.workloads("training")][:2] == [
        "training/resnet18@amp-nhwc-eager-keep/b16/s224/c1000/cpu",
        "training/resnet18@fp32-nchw-eager/b16/s224/c1000/cpu",
    ]
    assert MATRIX.workloads("end_to_end")[0].id == (
        "end_to_end/resnet18@amp-nhwc-eager-keep/b16/s224/c1000/dali/pictures/cpu"
    )
    assert [w.id for w in MATRIX.workloads("loading")] == [
        "loading/synthetic@float32-nhwc-keep/b32/s224/pictures/cpu",
        "loading/dali@float32-nhwc-keep/b32/s224/pictures/cpu",
    ]
    assert [w.id for w in MATRIX.workloads("kernel")] == [
        f"kernel/{name}@torch-bfloat16/b32/s224/cpu" for name in catalogue.names()
    ]


def test_arguments_of_a_name_do_not_part_it() -> None:
    option = {name: int(default) if name in NUMBERS else default for name, (default, *_) in OPTIONS.items()}
    models = "resnet18, narrow_resnet34[widths=(8, 16, 24, 32),se_ratio=2]"
    found = Matrix.from_options({**option, "models": models, "device": "cpu"}, smoke=True)
    assert found.models == ("resnet18", "narrow_resnet34[widths=(8, 16, 24, 32),se_ratio=2]")


def test_every_task_has_workloads() -> None:
    # Only a repository's settings list steps.
    assert all(MATRIX.workloads(task) or task == "step" for task in TASKS)


def test_presets_that_mean_the_same_are_measured_once() -> None:
    plain = replace(MATRIX, configurations=("naive", "fp32-nchw-eager"))
    assert len(plain.workloads("inference")) == len(plain.models)


def test_what_cannot_train_is_left_out_of_training_only() -> None:
    frozen = replace(MATRIX, configurations=("bf16-nhwc-freeze",))
    assert len(frozen.workloads("inference")) == 2
    assert frozen.workloads("training") == []


def test_size_replaces_each_models_own() -> None:
    assert {w.size for w in replace(MATRIX, size=64).workloads("inference")} == {64}


def test_triton_is_measured_where_it_runs() -> None:
    assert kernels_for("cpu") == tuple((name, "torch") for name in catalogue.names())
    ways = ("torch", "compiled", "triton")
    assert kernels_for("cuda") == tuple((name, way) for name in catalogue.names() for way in ways)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"models": ("resnet35",)}, ModelError, "resnet34"),
        ({"configurations": ("fasst",)}, ModelError, "fast"),
        ({"configurations": ("graphs",)}, ModelError, "CUDA"),
        ({"loaders": ("dally",)}, DataError, "dali"),
        ({"models": ()}, WorkloadError, "at least one"),
    ],
)
def test_words_that_mean_nothing(changes: dict[str, tuple[str, ...]], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        replace(MATRIX, **changes).check()  # type: ignore[arg-type]


def test_name_of_the_data(tmp_path: Path) -> None:
    assert data_name(None, 64).endswith("-64")
    with pytest.raises(DataError, match="nowhere"):
        data_name(tmp_path / "nowhere", 64)


def test_name_of_the_generated_set_is_what_its_folder_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loaders.datasets import open_dataset
    from loaders.sample import default_sample

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_dataset(default_sample(12), "train").name == data_name(None, 12)
