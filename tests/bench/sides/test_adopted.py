"""Two trees in one process: each runs its own code, whichever way it imports, and this tree's stays as it was."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from workloads import workload_of

import models.zoo
from bench.checking.sides import open_host
from bench.errors import WorkerError, WorkloadError
from bench.processes import SOURCE
from bench.sides.adopted import PACKAGES, adopt
from bench.sides.process import Worker
from bench.timing.duel import Asked, Rounds, SlicePlan
from bench.timing.workload import Conditions
from models import imports

LENET = workload_of("inference", "lenet", "fp32-nchw-eager", 2, 32, 10)
CONDITIONS = Conditions(threads=1)

# Every way to import, at the head of a module and inside a function.
SESSION = """
import importlib
import json
from importlib import import_module

import models.whose
import models.whose as renamed
from models import whose
from models.whose import WHO


class Session:
    def told(self):
        import loaders.whose
        import models.sub.whose as deep
        from models.sub import whose as deeper
        from results.whose import WHO as third
        from .. import whose as above

        assert json.dumps({}) == "{}"
        return [
            WHO, whose.WHO, models.whose.WHO, renamed.WHO, loaders.whose.WHO, deep.WHO, deeper.WHO, third, above.WHO,
            importlib.import_module("models.whose").WHO, import_module("kernels.whose").WHO,
            import_module(".whose", "models.sub").WHO, whose.late(),
        ]
"""
NAMES = """
WHO = "{who}"


def late():
    from models.sub.whose import WHO
    return WHO
"""


@pytest.fixture(autouse=True)
def _imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What adopting changes in this process is as before afterwards."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(importlib, "import_module", importlib.import_module)
    monkeypatch.setattr(imports, "_beside", {})
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def tree(place: Path, who: str, session: str = "bench/sides/session.py") -> Path:
    """A tree of the five packages with little in them."""
    for package in (*PACKAGES, "models/sub", "bench/sides"):
        (place / package).mkdir(parents=True)
        (place / package / "__init__.py").touch()
        (place / package / "whose.py").write_text(NAMES.format(who=who))
    (place / session).write_text(SESSION)
    return place


def test_each_tree_imports_its_own_modules_in_every_way(tmp_path: Path) -> None:
    sessions = {who: adopt(who, tree(tmp_path / who, who)) for who in ("base", "head")}
    for _ in range(2):
        for who, session in sessions.items():
            assert set(session.told()) == {who}


def test_this_trees_own_modules_and_everybody_elses_stay_the_same(tmp_path: Path) -> None:
    ours = sys.modules["models"], sys.modules["models.zoo"]
    session = adopt("base", tree(tmp_path / "base", "base"))
    session.told()
    assert (sys.modules["models"], sys.modules["models.zoo"]) == ours
    from models import zoo

    assert zoo is models.zoo is importlib.import_module("models.zoo") is ours[1]
    assert "models.whose" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("models.whose")
    assert sys.modules["base.models.whose"].WHO == "base"
    # What is no package of the tree is shared.
    assert sys.modules["base.bench.sides.session"].json is sys.modules["json"]


def test_an_older_tree_keeps_its_session_in_another_place(tmp_path: Path) -> None:
    session = adopt("base", tree(tmp_path, "base", "bench/worker.py"))
    assert type(session).__module__ == "base.bench.worker"


def test_what_cannot_share_a_process_is_refused(tmp_path: Path) -> None:
    place = tree(tmp_path, "base")
    (place / "bench" / "sides" / "session.py").unlink()
    with pytest.raises(WorkloadError, match="cannot share a process: it has no session"):
        adopt("base", place)
    for name in ("base", "not a name", "json"):
        with pytest.raises(WorkloadError, match="no folder can be imported as"):
            adopt(name, place)


# Two copies of this code in a real process.

FAILING = '''

def failing(call):
    """Fails at its fifth step."""
    done = 0

    def step():
        nonlocal done
        done += 1
        if done == 5:
            raise RuntimeError("no such luck")
        return call()

    return step
'''


def changed(place: Path, file: str, old: str, new: str, more: str = "") -> None:
    text = (place / file).read_text()
    assert old in text
    (place / file).write_text(text.replace(old, new) + more)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A process that holds this tree's code three times: as it is, with a smaller LeNet, and with steps that fail."""
    folder = tmp_path_factory.mktemp("trees")
    for name in ("base", "head", "bad"):
        for package in PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", "published")
            shutil.copytree(SOURCE / package, folder / name / package, ignore=ignored)
    changed(
        folder / "head", "models/lenet.py", "hidden: Sequence[int] = (120, 84)", "hidden: Sequence[int] = (100, 84)"
    )
    line = "        lambda: forward(images),\n"
    changed(folder / "bad", "bench/timing/step.py", line, "        failing(lambda: forward(images)),\n", FAILING)
    needs = {"models": ["lenet"], "loaders": [], "training": False, "compiler": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        worker = open_host(1)
    with closing(worker):
        worker.greet(needs)
        worker.greeted()
        for side in ("base", "head", "bad"):
            worker.ask("adopt", 120, side=side, root=str(folder / side))
            seat = worker.seat(side)
            seat.source = folder / side
            seat.greet(needs)
            # Raises where another tree's code would run.
            seat.greeted()
        with closing(worker.fork("forked")) as forked:
            yield forked


def parameters(worker: Worker) -> int:
    cost: dict[str, Any] = worker.ask("cost", 300, model="lenet", classes=10, size=32)
    return int(cost["params"])


def test_sides_of_one_process_run_the_code_of_their_trees(host: Worker) -> None:
    counted = {side: parameters(host.seat(side) if side else host) for side in ("", "base", "head")}
    # Twenty units fewer, each with 400 weights and a bias, and 84 weights behind.
    assert counted == {"": 61706 + 300, "base": 61706 + 300, "head": 61706 + 300 - 20 * (401 + 84)}
    for side in ("base", "head"):
        host.seat(side).build([LENET], CONDITIONS)
        # Of the weights that it runs with.
        assert host.seat(side).ask("memory", 300, id=LENET.id)["weights"] == 4 * counted[side]


def test_their_steps_alternate_and_one_that_fails_is_named(host: Worker) -> None:
    for side in ("base", "head", "bad"):
        host.seat(side).build([LENET], CONDITIONS)
    asked = [Asked(side, side, LENET.id, SlicePlan(1)) for side in ("base", "head", "bad")]
    assert len(host.turns(asked[:2], Rounds.exactly(10), seed=0)) == 10
    with pytest.raises(WorkerError, match="RuntimeError: no such luck") as caught:
        host.turns(asked, Rounds.exactly(10), seed=0)
    assert caught.value.side == "bad"
    # The others go on.
    assert len(host.turns(asked[:2], Rounds.exactly(2), seed=0)) == 2


def test_what_a_user_can_mend_is_known_from_every_tree(host: Worker) -> None:
    with pytest.raises(WorkloadError, match="unknown model"):
        host.seat("head").build([workload_of("inference", "lenett", "fp32-nchw-eager", 2, 32, 10)], CONDITIONS)
    with pytest.raises(WorkloadError, match="no folder can be imported as 'base'"):
        host.ask("adopt", 60, side="base", root="/anywhere")
