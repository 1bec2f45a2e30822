"""Studies on a true cluster of three nodes, some of which are killed: tests/cluster/slurm.sh starts one and calls this.

    python tests/cluster/scenario.py slurm|ray FOLDER [OPTION...]

For Ray the cluster is started here. Options are added to every `bench study --on ENGINE`. Prints what happened, and
fails where a run was lost, was trained twice, or ended with other weights than those of an undisturbed study on this
machine.
"""

import contextlib
import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from loaders import separable

EPOCHS, IMAGES = 25, 12000
LIMIT = 4  # minutes; Slurm says so 90 s before, and looks once a minute
STUDY = ("four-families-lenet", "--over", "lr=0.02,0.01,0.005", "--over", f"epochs={EPOCHS}", "--over", "batch=32")
NAME, RUNS = "four-families-lenet-lr", ("lr-0.02", "lr-0.01", "lr-0.005")


class Scenario:
    """Commands on one cluster, each study in a folder of its own."""

    def __init__(self, engine: str, folder: Path, options: list[str]) -> None:
        self.engine, self.folder, self.options = engine, folder, options
        self.data = folder / "data" / "cifar10"
        if not self.data.exists():
            separable.make(self.data, "cifar10", IMAGES, 0, None)

    def words(self, runs: str, *more: str) -> list[str]:
        where = ["--data", str(self.data), "--runs", str(self.folder / runs), "--device", "cpu", "--threads", "1"]
        return [sys.executable, "-m", "bench", "study", *STUDY, *where, "--no-charts", *more]

    def start(self, runs: str, *more: str) -> subprocess.Popen[str]:
        words = self.words(runs, "--on", self.engine, *self.options, *more)
        return subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def text(self, runs: str, path: str) -> str:
        return (self.folder / runs / NAME / path).read_text()

    def end(self, process: subprocess.Popen[str], code: int) -> str:
        """What a command said on stderr, shown."""
        _, said = process.communicate(timeout=900)
        print("    " + said.strip().replace("\n", "\n    "), flush=True)
        assert process.returncode == code, (process.returncode, said)
        return said

    def undisturbed(self) -> None:
        subprocess.run(self.words("undisturbed", "--devices", "2"), check=True, capture_output=True)

    def trained(self, runs: str, run: str) -> int:
        """Epochs in a run's history."""
        with contextlib.suppress(OSError), (self.folder / runs / NAME / run / "history.csv").open() as file:
            return len(list(csv.DictReader(file)))
        return 0

    def until_trained(self, runs: str, epochs: int, process: subprocess.Popen[str]) -> str:
        """The first run that has so many epochs and is not at its end."""
        while process.poll() is None:
            for place in sorted((self.folder / runs / NAME).glob("lr-*/")):
                if epochs <= self.trained(runs, place.name) < EPOCHS - 3:
                    return place.name
            time.sleep(0.2)
        raise AssertionError(self.end(process, 0))

    def claims(self, runs: str, run: str) -> list[str]:
        """Names of the jobs of a run."""
        places = sorted((self.folder / runs / NAME / ".tasks" / run).glob("*.json"))
        return [json.loads(path.read_text())["name"] for path in places]

    def compare(self, runs: str, claims: int) -> None:
        """Every run is whole and ended with the weights of the undisturbed one; so many jobs were asked for."""
        made = 0
        for run in RUNS:
            first, weights = [], []
            for each in ("undisturbed", runs):
                place = self.folder / each / NAME
                weights.append(hashlib.sha256((place / run / "last.safetensors").read_bytes()).hexdigest()[:12])
                found = json.loads(self.text(each, "results.json"))["runs"]
                first.append(next(row["top1"] for row in found if row["name"] == run))
            log = self.text(runs, f"{run}.log")
            began, resumed = log.count("lenet@fp32"), re.findall(r"resuming after epoch (\d+)", log)
            made += len(self.claims(runs, run))
            print(
                f"  {run}: {self.trained(runs, run)} epochs, {len(self.claims(runs, run))} claims, {began} processes, "
                f"resumed after epoch {', '.join(resumed) or '-'}; top-1 {100 * first[1]:.2f} % (undisturbed "
                f"{100 * first[0]:.2f} %), weights {weights[1]} (undisturbed {weights[0]})",
                flush=True,
            )
            assert self.trained(runs, run) == EPOCHS
            assert began == 1 + len(resumed), log
            assert weights[0] == weights[1]
            assert first[0] == first[1]
        assert made == claims, made


KillNode = Callable[[str, bool], str]
"""Ends the node on which the job of this name runs, and all that ran there, and has one take its place later; with True
the cluster is forbidden to queue the job again by itself. Returns what it did."""


def interrupted(it: Scenario, kill_node: KillNode) -> None:
    print("1. the command twice, Ctrl-C, --attach, and a node killed meanwhile", flush=True)
    requeues = it.engine == "slurm"
    first = it.start("interrupted")
    it.until_trained("interrupted", 1, first)
    second = it.start("interrupted")
    assert "another command is at work" in it.end(second, 2)
    first.send_signal(signal.SIGINT)
    assert f"go on in {it.engine}" in it.end(first, 130)
    watching = it.start("interrupted", "--attach")
    run = it.until_trained("interrupted", 2, watching)
    killed = kill_node(it.claims("interrupted", run)[-1], False)
    print(f"  {killed}; {run} had {it.trained('interrupted', run)} epochs", flush=True)
    if requeues:
        it.end(watching, 0)
    else:
        assert "the same command without --attach submits it again" in it.end(watching, 2)
        it.end(it.start("interrupted"), 0)
    it.compare("interrupted", len(RUNS) + (not requeues))
    assert it.end(it.start("interrupted"), 0).count("finished before") == len(RUNS)


def lost(it: Scenario, kill_node: KillNode) -> None:
    print("2. a node killed, whose job the cluster does not queue again", flush=True)
    first = it.start("lost")
    run = it.until_trained("lost", 2, first)
    print(f"  {kill_node(it.claims('lost', run)[-1], True)}; {run} had {it.trained('lost', run)} epochs", flush=True)
    assert f"run {run}: its job was lost" in it.end(first, 0)
    it.compare("lost", len(RUNS) + 1)


def killed(it: Scenario, kill_node: KillNode) -> None:
    print("3. the command killed as soon as it has claimed a run; given again, twice", flush=True)
    first = it.start("killed")
    while not it.claims("killed", RUNS[0]):
        time.sleep(0.01)
    first.kill()
    first.communicate()
    print(f"  killed with {sum(len(it.claims('killed', run)) for run in RUNS)} claims", flush=True)
    both = it.start("killed"), it.start("killed")
    for process in both:
        it.end(process, process.wait())
    assert sorted(process.returncode for process in both) == [0, 2]
    # The first job is submitted again where the kill came before its submission, or before submitit had its task.
    again = len(it.claims("killed", RUNS[0])) - 1
    assert again in (0, 1)
    it.compare("killed", len(RUNS) + again)


def limited(it: Scenario, kill_node: KillNode) -> None:
    if it.engine == "slurm":
        print("4. a time limit that no run keeps", flush=True)
        it.end(it.start("limited", "--job", f"time={LIMIT}"), 0)
        it.compare("limited", len(RUNS))


def play(it: Scenario, kill_node: KillNode) -> None:
    print(f"undisturbed, on this machine: {len(RUNS)} runs of {EPOCHS} epochs", flush=True)
    it.undisturbed()
    for part in (interrupted, lost, killed, limited):
        part(it, kill_node)


def kill_slurm_node(name: str, for_good: bool) -> str:
    """End slurmd, its steps and all that they run, as a power cut would; start another slurmd a minute later."""
    asked = ["squeue", "--noheader", f"--name={name}", "--format=%i %N"]
    job, node = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    if for_good:
        subprocess.run(["scontrol", "update", f"JobId={job}", "Requeue=0"], check=True)
    os.kill(int((Path(os.environ["SLURM_CONF"]).parent / f"{node}.pid").read_text()), signal.SIGKILL)
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mine = f"SLURMD_NODENAME={node}".encode() in (path / "environ").read_bytes().split(b"\0")
            if mine or f"slurmstepd: [{job}.".encode() in (path / "cmdline").read_bytes():
                os.kill(int(path.name), signal.SIGKILL)
    subprocess.Popen(["sh", "-c", f"sleep 60; slurmd -N {node}"])
    return f"killed node {node} with job {job}"


def _processes(name: str) -> list[int]:
    """The processes that have a job's name in their command line, and their children."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    known = [line.split(maxsplit=2) for line in lines.splitlines()[1:]]
    named = [pid for pid, _, words in known if name in words]
    return [int(pid) for pid, parent, _ in known if pid in named or parent in named]


def play_on_ray(folder: Path, options: list[str]) -> None:
    from ray.cluster_utils import Cluster
    from ray.job_submission import JobSubmissionClient

    small = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": 8265, **small},
    )
    for _ in range(3):
        cluster.add_node(num_cpus=1, **small)
    address = f"http://{cluster.head_node.webui_url}"
    client = JobSubmissionClient(address)

    def kill_node(name: str, for_good: bool) -> str:
        where = client.get_job_info(name).driver_node_id
        node = next(node for node in cluster.worker_nodes if node.node_id == where)
        # What a job started lives on where only Ray's own processes are killed.
        family = _processes(name)
        cluster.remove_node(node, allow_graceful=False)
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        cluster.add_node(num_cpus=1, **small)
        return f"killed node {where[:8]} with job {name}"

    try:
        play(Scenario("ray", folder, ["--job", f"address={address}", *options]), kill_node)
    finally:
        cluster.shutdown()


def main() -> None:
    engine, folder, *options = sys.argv[1:]
    place = Path(folder).absolute()
    place.mkdir(parents=True, exist_ok=True)
    if engine == "ray":
        play_on_ray(place, options)
    else:
        play(Scenario(engine, place, options), kill_slurm_node)
    print("all as it should be")


if __name__ == "__main__":
    main()
