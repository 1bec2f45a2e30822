"""The action and the workflows: what they may say, and what the action's check does with what it is given."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fabricated_check as made
import pytest
import yaml

from results.gate_report import to_json_text

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
HOSTILE = "x; touch owned; $(touch owned) `touch owned` \"'"


def load(path: Path) -> Any:
    # YAML 1.1, which GitHub does not read, takes the key `on` for true.
    return {"on" if key is True else key: value for key, value in yaml.safe_load(path.read_text("utf-8")).items()}


ACTION = load(ROOT / "action.yml")
STEPS = {step.get("name", step.get("uses")): step for step in ACTION["runs"]["steps"]}


# ---- what is written ----


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_read_and_end(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in workflow["on"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            # Whatever a pull request can choose must not become part of a script.
            assert not re.search(r"\$\{\{.*(head_ref|title|body|head\.ref)", step.get("run", ""))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_give_the_action_what_it_takes(path: Path) -> None:
    for job in load(path)["jobs"].values():
        steps = job["steps"]
        for i, step in enumerate(steps):
            if step.get("uses") == "./":
                assert set(step.get("with", {})) <= set(ACTION["inputs"])
                assert steps[i - 1]["with"]["fetch-depth"] == 0
                assert all(isinstance(value, str) for value in step.get("with", {}).values())


def test_this_repository_is_checked() -> None:
    used = [
        step["with"].get("exact") for job in load(ROOT / ".github" / "workflows" / "check.yml")["jobs"].values()
        for step in job["steps"] if step.get("uses") == "./"
    ]  # fmt: skip
    assert used == ["true", None]


def test_the_action_is_composite_and_documented() -> None:
    assert ACTION["runs"]["using"] == "composite"
    for entry in (*ACTION["inputs"].values(), *ACTION["outputs"].values()):
        assert entry["description"]
    for entry in ACTION["inputs"].values():
        # GitHub hands every input over as text.
        assert isinstance(entry["default"], str)


def test_no_expression_reaches_a_script() -> None:
    for step in ACTION["runs"]["steps"]:
        if "run" in step:
            assert step["shell"] == "bash"
            assert "${{" not in step["run"]


def test_every_input_is_used() -> None:
    text = (ROOT / "action.yml").read_text("utf-8")
    for name in ACTION["inputs"]:
        assert f"inputs.{name}" in text


def test_the_documentation_names_what_exists() -> None:
    text = (ROOT / "docs/guard.md").read_text("utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        for step in re.findall(r"uses: \S*pixbench\S*\n\s+with:\n((?:\s+[\w-]+:.*\n)+)", block):
            assert set(re.findall(r"^\s+([\w-]+):", step, re.MULTILINE)) <= set(ACTION["inputs"])
        assert yaml.safe_load(block)


def test_documented_options_exist() -> None:
    from bench.commands.check import command

    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for path in ("docs/guard.md", "action.yml"):
        text = (ROOT / path).read_text("utf-8")
        for line in re.findall(r"bench check.*", text):
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)) <= known, line


# ---- what is done ----


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository of two commits, and a `bench` that notes its arguments and leaves the report it is told to."""
    repository, programs = tmp_path / "repository", tmp_path / "programs"
    for folder in (repository, programs, tmp_path / "temporary"):
        folder.mkdir()
    for words in (
        ["init", "--quiet"],
        *(["commit", "--quiet", "--allow-empty", "--no-gpg-sign", "-m", text] for text in ("one", "two")),
    ):
        git(repository, *words)
    bench = (
        "#!/bin/bash\n"
        f'printf "%s\\n" "$@" > {tmp_path}/arguments\n'
        f'[ ! -f {tmp_path}/report ] || cp {tmp_path}/report "${{@: -1}}"\n'
        'exit "${CODE:-0}"\n'
    )
    for name, text in (("bench", bench), ("python", f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')):
        (programs / name).write_text(text, "utf-8")
        (programs / name).chmod(0o755)
    return tmp_path


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


def check(place: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """The action's step with these inputs, as the runner starts it."""
    step = STEPS["Check"]
    given = {name: entry["default"] for name, entry in ACTION["inputs"].items()}
    given |= {name.replace("_", "-"): value for name, value in inputs.items() if name.islower()}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    for name, value in step["env"].items():
        found = re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", value)
        environment[name] = given[found[1]] if found else ""
    environment |= {
        "PATH": f"{place / 'programs'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RUNNER_TEMP": str(place / "temporary"),
        "GITHUB_OUTPUT": str(place / "output"),
        "GITHUB_REF": "refs/heads/main",
        "GITHUB_SHA": git(place / "repository", "rev-parse", "HEAD"),
        **{name: value for name, value in inputs.items() if name.isupper()},
    }
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=place / "repository",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def arguments(place: Path) -> list[str]:
    """What `bench` was called with, without where its report goes."""
    words = (place / "arguments").read_text("utf-8").splitlines()
    assert words[0] == "check"
    assert words[-4:-1] == ["--format", "json", "--output"]
    return words[1:-4]


def output(place: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (place / "output").read_text("utf-8").splitlines())


def test_by_default_the_parent_is_the_base(place: Path) -> None:
    done = check(place)
    assert (done.returncode, done.stderr) == (0, "")
    assert arguments(place) == ["--base=HEAD~1"]


def test_inputs_are_arguments_and_nothing_else(place: Path) -> None:
    lines = f"{HOSTILE}\n--allow=state_dict"
    done = check(place, workloads=f"a,b\n\n{HOSTILE}", arguments=lines, exact="true", fail_on_unsure="true")
    assert done.returncode == 0
    assert arguments(place) == [
        *("--base=HEAD~1", "--workloads=a,b", f"--workloads={HOSTILE}", "--exact", "--fail-on-unsure", HOSTILE),
        "--allow=state_dict",
    ]
    assert not list(place.rglob("owned"))


@pytest.mark.parametrize("base", ["no-such-branch", "--upload-pack=x", HOSTILE, "main\n::set-env name=A::b"])
def test_a_base_that_is_not_there_is_one_clear_line(place: Path, base: str) -> None:
    done = check(place, base=base)
    assert done.returncode == 2
    [line] = done.stdout.splitlines()
    assert line.startswith("::error title=bench check::the base ")
    assert line.endswith("is not in this checkout; give actions/checkout fetch-depth: 0")
    assert not (place / "arguments").exists()
    assert not list(place.rglob("owned"))


def test_a_shallow_checkout_says_what_to_do(place: Path) -> None:
    source, shallow = place / "repository", place / "shallow"
    git(place, "clone", "--quiet", "--depth", "1", f"file://{source}", str(shallow))
    source.rename(place / "source")
    shallow.rename(source)
    done = check(place)
    assert done.returncode == 2
    assert "HEAD~1 is not in this checkout; give actions/checkout fetch-depth: 0" in done.stdout


def test_of_a_pull_request_s_merge_the_base_is_what_it_was_merged_onto(place: Path) -> None:
    old = git(place / "repository", "rev-parse", "HEAD~1")
    check(place, PULL_REQUEST_BASE=old, GITHUB_REF="refs/pull/7/merge")
    assert arguments(place) == ["--base=HEAD~1"]
    # The pull request's own last commit was checked out instead: its parent is not the base.
    check(place, PULL_REQUEST_BASE=old, GITHUB_REF="refs/pull/7/merge", GITHUB_SHA=old)
    assert arguments(place) == [f"--base={old}"]
    check(place, PULL_REQUEST_BASE=old, GITHUB_REF="refs/heads/main")
    assert arguments(place) == [f"--base={old}"]
    check(place, base="HEAD", PULL_REQUEST_BASE=old)
    assert arguments(place) == ["--base=HEAD"]


@pytest.mark.parametrize("inputs", [{"exact": "yes"}, {"fail_on_unsure": ""}, {"no_answer": "ignore"}])
def test_other_words_are_refused(place: Path, inputs: dict[str, str]) -> None:
    done = check(place, **inputs)
    assert done.returncode == 2
    assert done.stdout.startswith("::error title=bench check::the input")


def test_the_report_in_every_form_and_the_exit_code(place: Path) -> None:
    found = made.report(rows=(made.REGRESSED_ROW,))
    (place / "report").write_text(to_json_text(found), "utf-8")
    done = check(place, CODE="1")
    assert done.returncode == 1
    assert done.stdout.startswith("REGRESSED: ")
    said = output(place)
    assert (said["verdict"], said["exit-code"]) == ("REGRESSED", "1")
    folder = Path(said["report"])
    assert sorted(path.name for path in folder.iterdir()) == ["check.json", "check.md", "check.xml"]
    assert json.loads((folder / "check.json").read_text("utf-8"))["verdict"] == "REGRESSED"


def test_no_answer_may_be_a_warning(place: Path) -> None:
    (place / "report").write_text(to_json_text(made.report(self_test=made.FAILED)), "utf-8")
    done = check(place, CODE="2", no_answer="warn")
    assert done.returncode == 0
    assert "::warning title=bench check::no answer (VOID)" in done.stdout
    assert output(place)["exit-code"] == "2"


@pytest.mark.parametrize(
    "also", [{"facts": made.CHANGED_FACTS}, {"rows": (made.ERROR_ROW,)}, {"self_test": None, "rows": (made.ERROR_ROW,)}]
)
def test_what_no_busy_machine_explains_is_never_a_warning(place: Path, also: dict[str, Any]) -> None:
    (place / "report").write_text(to_json_text(made.report(**{"self_test": made.FAILED, **also})), "utf-8")
    done = check(place, CODE="2", no_answer="warn")
    assert done.returncode == 2
    assert "::warning" not in done.stdout


@pytest.mark.parametrize(("code", "no_answer"), [("2", "fail"), ("2", "warn"), ("130", "warn"), ("1", "warn")])
def test_what_could_not_run_fails(place: Path, code: str, no_answer: str) -> None:
    done = check(place, CODE=code, no_answer=no_answer)
    assert done.returncode == int(code)
    assert output(place)["verdict"] == ""


def test_install_takes_requirements_or_the_action_or_the_checkout(place: Path) -> None:
    script = STEPS["Install"]["run"]
    (place / "programs" / "python").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {place}/pip\n', "utf-8")
    repository = place / "repository"
    (repository / "constraints.txt").touch()
    ours = ["--constraint", "constraints.txt", "--editable", "."]
    theirs = ["/action", "--requirement", "requirements.txt"]
    expected = [
        (HOSTILE, [HOSTILE]),
        (f"pixbench\n\n-r {HOSTILE}\n", ["pixbench", "--requirement", HOSTILE]),
        ("", theirs[:1]),
        ("", theirs),
        ("", ours),
    ]
    for requirement, words in expected:
        if words == theirs:
            (repository / "requirements.txt").touch()
        if words == ours:
            (repository / "bench").mkdir()
            (repository / "bench" / "worker.py").touch()
        programs = f"{place / 'programs'}:{os.environ['PATH']}"
        subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=repository,
            env={"PATH": programs, "REQUIREMENT": requirement, "GITHUB_ACTION_PATH": "/action"},
            check=True,
            timeout=30,
        )
        assert (place / "pip").read_text("utf-8").splitlines()[4:] == words
    assert not list(place.rglob("owned"))
