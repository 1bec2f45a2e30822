"""Measuring processes that are started, warmed, taking turns and ended together."""

import os

from loaders.cache import cache_folder

# Seconds of warm-up at most. MEASURING asks for 30; where a step takes a second, three slices that agree within
# 1 % never come on a shared machine, and the whole comparison has four minutes. What is left after these shows as
# scatter between the rounds and is in the interval.
WARM_UP_CAP = {
    "latency": 1.0,
    "inference": 1.0,
    "training": 1.0,
    "end_to_end": 0.5,
    "loading": 1.0,
    "kernel": 1.0,
}


def worker_environment(threads: int) -> dict[str, str]:
    """Variables of a measuring process: compiled code is cached, and no thread pool is larger than asked for."""
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(cache_folder() / "inductor")
    return {
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
