"""This process among those that torchrun started: its rank and device, and sums over all of them."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from models.errors import ModelError

STORE_TIMEOUT = timedelta(seconds=5)  # for a failing process to reach the others' store


def reported_by_another(message: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether another process of the same torchrun has already reported this message.

    The first process that has a message reports it, whatever its rank; so a message that only one process has is never
    lost, and no process waits for another. If the processes' store cannot be reached, all of them report.
    """
    if int(environ.get("WORLD_SIZE", 1)) == 1 or environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    run = environ.get("TORCHELASTIC_RUN_ID", ""), environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = "reported/" + hashlib.sha256("/".join((*run, message)).encode()).hexdigest()
    try:
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), is_master=False, timeout=STORE_TIMEOUT
        )  # fmt: skip
        return store.add(key, 1) > 1
    except (RuntimeError, KeyError, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class World:
    """Processes that train one network together.

    Attributes:
        rank: of this process; 0 writes files and reports.
        size: number of processes.
        local: index of this process on its machine, and of its GPU.
        restarts: how often torchrun has restarted the processes of this machine; another machine's may differ.
        launch: the name that the torchruns of all machines share (--rdzv-id), "" for none.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    restarts: int = 0
    launch: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "World":
        """As torchrun has set it; a single process without torchrun."""
        return cls(
            rank=int(environ.get("RANK", 0)),
            size=int(environ.get("WORLD_SIZE", 1)),
            local=int(environ.get("LOCAL_RANK", 0)),
            restarts=int(environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
            # torchrun says "none" where it was given none.
            launch=environ.get("TORCHELASTIC_RUN_ID", "").removeprefix("none"),
        )

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process: its own GPU for "cuda".

        Raises:
            ModelError: no such device, or fewer GPUs than processes.
        """
        if not name.startswith("cuda"):
            return torch.device(name)
        if not torch.cuda.is_available():
            raise ModelError("no CUDA device is available here; use --device cpu, or ask bench doctor")
        if self.local >= torch.cuda.device_count():
            raise ModelError(
                f"process {self.local} of this machine has no GPU of its own ({torch.cuda.device_count()} visible); "
                "start as many processes as there are GPUs"
            )
        device = torch.device(name if ":" in name or self.size == 1 else f"cuda:{self.local}")
        torch.cuda.set_device(device)
        return device

    def open(self, device: torch.device) -> None:
        """Connect with the other processes: NCCL on GPUs, gloo on CPUs. Nothing for a single process."""
        if self.size > 1 and not distributed.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            store, rank, size = next(rendezvous("env://"))
            # torchrun serves one store to all attempts: without a prefix of their own, restarted processes may read the
            # addresses of the earlier ones and try to connect to them until the timeout. On several machines the counts
            # of restarts may differ, so they cannot name the attempt.
            if self.restarts and int(os.environ.get("GROUP_WORLD_SIZE", 1)) == 1:
                store = PrefixStore(f"restart {self.restarts}", store)
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size)

    def close(self) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place; a single process changes nothing."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def agree(self, flag: bool, device: torch.device) -> bool:
        """Whether all processes have the same flag."""
        return int(self.sum(torch.tensor(float(flag), device=device))) == (self.size if flag else 0)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """DistributedDataParallel around a network that lies on its device in its final layout."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        if device.type == "cuda" and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            # Statistics over the whole batch, so that the result does not depend on how many GPUs share it.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        # Gradients live in the communication buckets: one copy less, in time and memory.
        wrapped: nn.Module = DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
        return wrapped
