"""`bench check`: did a change make anything slower, bigger or wrong?"""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from bench.commands.options import Number
from bench.defaults import CHECK_SECONDS
from bench.errors import UsageError
from bench.output import check_output, write
from results.store import FOLDER

FORMATS = ("text", "markdown", "json", "junit")


@click.command()
@click.option("--base", metavar="REF", help="Commit, branch or tag that the working tree is compared with.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="A stored check of this machine in place of --base; of a folder the newest.",
)
@click.option(
    "--base-env",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Virtual environment that runs the base; default: this interpreter and its packages.",
)
@click.option(
    "--workloads",
    multiple=True,
    metavar="NAME,...|FILE",
    help="What is timed: ids, parts of them (training, lenet), patterns ('*/b8/*'), or a file of one a line; default: "
    "what pixbench.toml lists, else inference, training step and loading around resnet18 and efficientnet_b0.",
)
@click.option("--exact", is_flag=True, help="Only what has no noise: counted facts and what is computed. Seconds.")
@click.option(
    "--allow",
    multiple=True,
    metavar="NAME",
    help="A fact (state_dict, operators, output) or verdict (VANISHED) that may differ; repeatable.",
)
@click.option(
    "--looks",
    type=click.IntRange(1, 4),
    default=4,
    show_default=True,
    help="How many looks at the blocks measured so far there may be; fewer end sooner.",
)
@click.option(
    "--budget",
    type=Number(0),
    default=CHECK_SECONDS,
    show_default=True,
    help="Seconds. No further look is begun that would end later; what is in doubt by then is UNSURE.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; default: every usable core.")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="JPEGs for loaders in place of generated.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order of turns.")
@click.option("--format", type=click.Choice(FORMATS), default="text", show_default=True, help="How it is written.")
@click.option("-o", "--output", default="-", metavar="FILE", show_default=True, help="Write here; - is stdout.")
@click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help=f"Folder of the history, to which the result is appended. Default: {FOLDER}",
)
@click.option("--no-store", is_flag=True, help="Append nothing.")
@click.option("--fail-on-unsure", is_flag=True, help="Exit code 1 also where nothing could be shown.")
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Wait while another command measures or trains here."
)
def command(
    base: str | None,
    baseline: Path | None,
    base_env: Path | None,
    workloads: tuple[str, ...],
    exact: bool,
    allow: tuple[str, ...],
    looks: int,
    budget: float,
    device: str,
    threads: int,
    data: Path | None,
    seed: int,
    format: str,
    output: str,
    store: Path | None,
    no_store: bool,
    fail_on_unsure: bool,
    wait: bool,
) -> int:
    """Say whether the working tree is slower or bigger than a base, or computes something else.

    Counted facts are compared exactly, then fresh processes of both sides take turns, and what looks slower
    or faster is measured a second time. Exit codes: 0 fine or not sure, 1 worse, 2 no answer.
    """
    from bench.checking.baseline import check_against, find, stored_values
    from bench.checking.check import check, record_of, refuse_unknown, subjects
    from bench.checking.sides import only_one
    from bench.checking.trees import is_ours, top_of, trees
    from bench.machine.cpu import usable_cores
    from bench.machine.devices import choose_device
    from bench.machine.facts import describe
    from bench.screen import Screen
    from models import project
    from results import gate_report, tables
    from results import store as records
    from results.errors import RecordError
    from results.verdict import LOOKS

    if (base is None) == (baseline is None):
        raise UsageError("name either --base REF or --baseline FILE|DIR" + (", not both" if base else ""))
    if baseline is not None and (exact or base_env):
        raise UsageError("--exact and --base-env go with --base: a stored run holds times only")
    check_output(output)
    refuse_unknown(allow)
    screen = Screen()
    place = choose_device(device)
    if base is not None and not (workloads or project.find().workloads or is_ours(top_of(Path.cwd()))):
        raise UsageError("this repository lists no workloads: write some with bench init, or name some: --workloads")
    how: dict[str, Any] = {
        "allow": allow,
        "fail_on_unsure": fail_on_unsure,
        "looks": LOOKS[:looks],
        "seed": seed,
        "budget": budget,
        "say": screen.progress if screen.moving else screen.say,
    }
    if baseline is not None:
        here = describe(with_torch=False, device=place)["fingerprint"]
        path, record = find(baseline, screen.say, here)
        # Without workloads of one's own, everything that the baseline timed.
        workloads = workloads or tuple(stored_values(path, record))
    subject = subjects(workloads, place, threads or usable_cores(), data, seed, screen.say)
    chosen, conditions, how["margins"] = subject.workloads, subject.conditions, subject.margins
    with only_one(place, wait, screen.say):
        if baseline is not None:
            report, extra = check_against(path, record, chosen, conditions, **how)
        else:
            assert base is not None
            screen.progress("writing both sides' files")
            with trees(Path.cwd(), base, base_env) as (old, new):
                report, extra = check(old, new, chosen, conditions, exact_only=exact, **how)
    screen.clear()
    failure = ""
    if report.machine and not no_store:
        try:
            kept = record_of(report, extra, shlex.join(["bench", *sys.argv[1:]]))
            screen.say(f"stored in {records.save(kept, records.new_path('check', store or records.FOLDER))}")
        except RecordError as error:
            # Said after what was found: that something is worse matters more.
            failure = str(error)
    write(gate_report.as_text(report, format, output == "-" and tables.coloured(sys.stdout)), output)
    warning = gate_report.summary_file(report, os.environ)
    if warning:
        screen.say(warning)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # Commands to the runner are read from either stream; stdout stays data.
        for annotation in gate_report.annotations(report):
            screen.say(annotation)
    if failure:
        screen.say(f"bench: {failure}")
    return report.exit_code or (2 if failure else 0)
