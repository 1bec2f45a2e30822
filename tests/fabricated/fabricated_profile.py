"""A profile with round numbers."""

from typing import Any

from results.profile import Module, Operator, Profile

MEMORY: dict[str, Any] = {
    **dict.fromkeys(("weights", "gradients", "optimizer", "inputs", "workspace", "slack"), 1024),
    **{"engine": 0, "peak": 6144, "counted": True, "peaks": [], "process": 1 << 30, "residue": (1 << 30) - 6144},
    "processes": [1 << 29, 1 << 30, 1 << 31],
}


def profile(**changes: Any) -> Profile:
    given: dict[str, Any] = {
        "label": "resnet50@fast",
        "workload": "training/resnet50@amp-nhwc-eager/b8/s224/c1000/cpu",
        "batch": 8,
        "seconds": 0.1,
        "low": 0.09,
        "high": 0.11,
        "profiled_seconds": 0.12,
        # At the ceilings: 1 GFLOP takes 10 ms, 1 GB takes 100 ms.
        "operators": (
            Operator("aten::native_batch_norm_backward", 50, 0.06, None, 0.3e9),
            Operator("aten::convolution", 53, 0.03, 2e9, 0.01e9),
            Operator("aten::relu_", 49, 0.01, None, 0.05e9),
        ),
        "modules": (
            Module("conv1", "Conv2d", 0.01, 0.02, 1e9, 0.1e9),
            Module("layer1", "Sequential", 0.0, 0.0),
            Module("layer1.0.conv", "Conv2d", 0.02, 0.02, 1e9, 0.1e9),
            Module("layer1.0.bn", "BatchNorm2d", 0.01, 0.01, None, 0.1e9),
            Module("(optimiser)", "", 0.01, 0.0),
        ),
        "precision": "amp",
        "flops_ceiling": 1e11,
        "bandwidth": 1e10,
        "roof_fraction": 0.61,
        "mfu": 0.3,
        "launches": 400.0,
        "idle": None,
        "graphs": None,
        "recompiles": None,
        "breaks": (),
        "memory": MEMORY,
        "stalls": None,
        "notes": ("a note",),
        "machine": {"fingerprint": {"device": "fake"}},
        "command": "bench profile resnet50",
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Profile(**{**given, **changes})
