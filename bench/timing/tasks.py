"""Names of the tasks: one vocabulary for ids, options and lists, and the words that options also take."""

from collections.abc import Sequence

from bench.errors import UsageError

# task -> one line; the names also stand in ids.
TASKS: dict[str, str] = {
    "latency": "one image at a time: from input on the host to result on the host, queue empty",
    "inference": "forward passes of a whole batch, queue full",
    "training": "forward, loss, backward and optimiser update on a constant batch",
    "loading": "JPEG files on disk to an augmented batch on the device, no network",
    "end_to_end": "JPEG files on disk to optimiser update: loading and training joined",
    "kernel": "one kernel of kernels/ on a batch of images",
    "step": "one call of a callable of the user's",
}
SYNONYMS = {"infer": "inference", "train": "training", "endtoend": "end_to_end"}

# Of a model, in the order in which bench compare measures them: the cheapest and most asked for first.
MODEL_TASKS = ("latency", "inference", "loading", "training", "end_to_end")
TUNED_TASKS = ("inference", "latency", "training", "loading")  # in the order in which bench tune takes them
PROFILED_TASKS = ("training", "inference", "latency", "end_to_end")


def named(text: str, known: Sequence[str]) -> list[str]:
    """The tasks that a comma-separated `--tasks` names, each once and under its own name, as in SYNONYMS.

    Raises:
        UsageError: one is not among `known`.
    """
    tasks = [SYNONYMS.get(word, word) for word in map(str.strip, text.split(",")) if word]
    for task in tasks:
        if task not in known:
            raise UsageError(f"--tasks has no {task!r}; there are {', '.join(known)}")
    return list(dict.fromkeys(tasks))
