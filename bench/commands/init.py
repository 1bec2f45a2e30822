"""`bench init`: a repository's settings and its CI workflow, to begin with."""

import ast
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import click

from bench.errors import UsageError
from models.project import OWN_FILE, find

WORKFLOW = Path(".github/workflows/pixbench.yml")
SKIPPED = {"tests", "test", "build", "dist", "site-packages", "node_modules"}
FILES = 2000  # looked through for networks
SHOWN = 8  # networks named in the file

SETTINGS = """\
# Settings of pixbench for this repository. What is commented out shows a default or an example.

# data = "data/train"                # images for --data: a folder of a folder for each class

[models]                             # names for your networks, wherever bench takes a model
{models}

# [loaders]                          # functions of (batch, size, device) that return (images, labels) in batches
# mine = "mypackage.data:train_loader"

# [steps]                            # callables without arguments
# old = "mypackage.ops:old"

# [options.compare]                  # defaults of a command's options
# budget = 60

# [check]                            # only for code that has to be built: run once a side, before it is imported
# setup = "pip install --no-deps --target {{target}} ."

# What `bench check` guards and `pytest bench` measures.
{workloads}"""

WORKLOAD = """\
{mark}[[workloads]]
{mark}task = "{task}"{gap}# latency, inference, training, end_to_end, loading or step
{mark}model = "{model}"
{mark}batch = 8
{mark}# size = 224                       # pixels; default: the network's own
{mark}# configuration = "naive"          # default: fast
{mark}# margin = 0.05                    # smallest relative change that matters; default 0.02, loading 0.03
"""

CI = """\
name: pixbench
on: pull_request
permissions:
  contents: read
jobs:
  check:
    runs-on: ubuntu-latest             # better: a runner of your own that runs one job at a time
    timeout-minutes: 60
    steps:
      - uses: actions/checkout@v4
        with:
          fetch-depth: 0               # the base has to be there
          persist-credentials: false
      - uses: actions/setup-python@v5
        with:
          python-version: "3.13"
      # Where no package index has pixbench, write git+https://HOST/OWNER/pixbench in its place.
      - run: {install}
      - run: bench check --base "${{BASE:-HEAD~1}}"
        env:
          BASE: ${{{{ github.event.pull_request.base.sha }}}}
"""


@click.command()
def command() -> None:
    """Write pixbench.toml and a CI workflow for this repository, with the networks that are found in it.

    Nothing is imported and nothing that is there is overwritten.
    """
    here = Path.cwd()
    project = find(here)
    if project.file is not None:
        raise UsageError(f"{os.path.relpath(project.file)} is there already; edit it")
    networks = list(_networks(here))
    settings = here / OWN_FILE
    top = next((place for place in (here, *here.parents) if (place / ".git").exists()), here)
    workflow = top / WORKFLOW
    try:
        settings.write_text(_settings(networks), encoding="utf-8")
        written = [settings]
        if not workflow.exists():
            workflow.parent.mkdir(parents=True, exist_ok=True)
            workflow.write_text(CI.format(install=_install(top)), encoding="utf-8")
            written.append(workflow)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename}: {error.strerror}") from error
    click.echo(f"wrote {' and '.join(os.path.relpath(path) for path in written)}", err=True)
    name = next(iter(_named(networks)), "mine")
    if not networks:
        click.echo(f"no network was found: name yours in {OWN_FILE}, [models]", err=True)
    click.echo(
        f"next: bench compare {name} resnet18 --quick, then commit both files, and after a change: "
        "bench check --base HEAD",
        err=True,
    )


def _networks(folder: Path) -> Iterator[str]:
    """FILE.py:NAME of classes that look like whole networks: of torch's Module, told a number of classes."""
    for number, path in enumerate(_files(folder)):
        if number >= FILES:
            return
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and _is_network(node):
                yield f"{path.relative_to(folder).as_posix()}:{node.name}"


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith((".", "_")))
        # A virtual environment is somebody else's code.
        folders[:] = [name for name in folders if not (Path(place) / name / "pyvenv.cfg").exists()]
        yield from (Path(place) / name for name in sorted(files) if name.endswith(".py"))


def _is_network(node: ast.ClassDef) -> bool:
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    if not bases & {"Module", "LightningModule"}:
        return False
    made = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if made is None:
        return False
    words = {argument.arg for argument in (*made.args.args, *made.args.kwonlyargs)}
    needed = made.args.args[1 : len(made.args.args) - len(made.args.defaults)]
    lacking = {argument.arg for argument in needed} - {"classes", "num_classes"}
    return bool(words & {"classes", "num_classes"}) and not lacking


def _named(networks: list[str]) -> dict[str, str]:
    """A short name of each network, the first ones found first."""
    found: dict[str, str] = {}
    for network in networks[:SHOWN]:
        name = network.rpartition(":")[2].lower()
        found.setdefault(name, network)
    return found


def _settings(networks: list[str]) -> str:
    named = _named(networks)
    models = "\n".join(f'{name} = "{network}"' for name, network in named.items())
    mark = "" if named else "# "
    name = next(iter(named), "mine")
    workloads = [
        WORKLOAD.format(mark=mark, task=task, model=name, gap=" " * (28 - len(task) - len(mark)))
        for task in ("inference", "training")
    ]
    return SETTINGS.format(models=models or '# mine = "mypackage.nets:build[width=64]"', workloads="\n".join(workloads))


def _install(top: Path) -> str:
    own = ["-r", "requirements.txt"] if (top / "requirements.txt").is_file() else []
    with contextlib.suppress(OSError):
        own += ["."] if (top / "pyproject.toml").is_file() or (top / "setup.py").is_file() else []
    return " ".join(["python -m pip install pixbench", *own])
