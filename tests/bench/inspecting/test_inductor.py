"""What inductor is told while a step is compiled again for the profile."""

import pytest

from bench.inspecting.inductor import compile_again
from bench.timing.step import Step
from bench.timing.workload import Workload


@pytest.mark.parametrize(
    ("configuration", "frozen"),
    [
        ("amp-nhwc-compile", False),
        ("amp-nhwc-compile-freeze", True),
        ("amp-nhwc-compile-freeze-kernels", True),
        ("amp-nhwc-compile-kernels", False),
    ],
)
def test_a_network_is_profiled_as_frozen_as_it_is_timed(configuration: str, frozen: bool) -> None:
    from torch._inductor import config

    seen: list[bool] = []
    workload = Workload.from_id(f"inference/lenet@{configuration}/b1/s32/c10/cuda")
    assert compile_again(Step(workload, lambda: seen.append(config.freezing), 1)) == []
    assert set(seen) == {frozen}
