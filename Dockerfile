# docker build -t pixbench .
# docker run --rm --gpus all --ipc=host pixbench bench compare resnet34 efficientnet_b0
ARG BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
FROM ${BASE}

# torch.compile and Triton build C++ at run time: they need a compiler and Python's headers.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make python3-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/pixbench
COPY . .

# The image brings its own torch: pinning ours would download a second one. --ipc=host (or --shm-size) is for
# loader processes, which hand batches over in shared memory.
RUN grep --invert-match --extended-regexp '^(torch|torchvision|triton|numpy)==' constraints.txt > /tmp/constraints.txt \
    && PIP_BREAK_SYSTEM_PACKAGES=1 python -m pip install --no-cache-dir --constraint /tmp/constraints.txt --editable '.[dev]' \
    && rm /tmp/constraints.txt

CMD ["bench", "doctor"]
