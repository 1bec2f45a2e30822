"""Measures image classifiers: the only package that knows models, loaders, kernels and results.

From Python, in a script or a notebook:

    import bench

    record = bench.compare("resnet18", "resnet50@naive", tasks="inference", batch=8)
    print(record)  # a notebook shows it as a table
    [cost] = bench.cost("resnet18")

`compare` and `cost` do what the commands of these names do, `Record` and `Cost` are what they give, and `BenchError` is
the root of what they raise. `import bench` alone imports nothing else.
"""

from typing import TYPE_CHECKING

__all__ = ["BenchError", "Cost", "Record", "compare", "cost"]

if TYPE_CHECKING:
    from bench.api import compare as compare
    from bench.api import cost as cost
    from bench.errors import BenchError as BenchError
    from bench.inspecting.cost import Cost as Cost
    from results.record import Record as Record
else:

    def __getattr__(name):
        """One of `__all__`, imported when it is first asked for."""
        import importlib

        homes = {"Cost": "bench.inspecting.cost", "Record": "results.record", "BenchError": "bench.errors"}
        if name not in __all__:
            raise AttributeError(f"module 'bench' has no attribute {name!r}; it has {', '.join(__all__)}")
        return getattr(importlib.import_module(homes.get(name, "bench.api")), name)

    def __dir__():
        return sorted({*globals(), *__all__})
