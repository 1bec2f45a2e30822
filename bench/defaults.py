"""Defaults that a command shows in its help and other code takes too: each is written once, here.

Imports nothing, so that help stays quick.
"""

BATCH = {"cpu": 32, "cuda": 256}  # images a step of inference or loading that is measured
TRAINING_BATCH = {"cpu": 8, "cuda": 256}  # images a training step that is measured
IMAGES = 1000  # files that loaders read, and those of the generated set
EVALUATION_BATCH = 128  # images a step of `bench evaluate`
MODELS = "resnet18,resnet34,resnet50,efficientnet_b0"  # measured by `pytest bench`
LOADER = "dali"  # feeds what is measured
CHECK_SECONDS = 300.0  # budget of `bench check`
LOWEST_RATE, HIGHEST_RATE, RATES = 1e-6, 10.0, 100  # learning rates of a range test
UPLOAD_MIB, UPLOAD_PIXELS = 20.0, 50_000_000  # largest image that `bench serve` takes
