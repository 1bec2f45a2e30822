"""One comparison from words to a stored record, for the command line and for Python alike.

Operands -> plan -> processes -> turns -> figures -> record.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.comparing.comparison import Comparison
from bench.comparing.operands import look_up, over_from, parse_operands, spread
from bench.comparing.plan import check_over, open_device, settings_from
from bench.comparing.run_log import RunLog
from bench.machine.alone import measuring
from bench.machine.cpu import usable_cores
from bench.screen import Screen
from results.record import Record
from results.store import FOLDER, check_folder, refuse_taken, tagged_path


@dataclass(frozen=True)
class Measured:
    """What came of a comparison.

    Attributes:
        record: with a reason in the place of each number that could not be measured.
        closing: what its user is told at the end, a line each.
        whole: every number was measured, and the record stored where it was to be.
    """

    record: Record
    closing: tuple[str, ...]
    whole: bool


def measure(
    words: Sequence[str],
    options: Mapping[str, Any],
    command: str,
    screen: Screen,
    store: Path | None = None,
    stored: bool = True,
    again: str = "the same command with --resume goes on",
    tag: str = "",
) -> Measured:
    """Measure operands side by side; an interruption or an error keeps what was measured until then.

    Args:
        words: the operands, as on the command line.
        options: of `bench compare`, by name.
        command: that would do the same; it is part of the record.
        store: folder of stored runs; None is results.store.FOLDER.
        stored: whether anything is written there.
        again: how an interrupted comparison is continued, in words.
        tag: by which the stored result can be named later; "" for none.

    Raises:
        BenchError, DataError, ModelError, RecordError: nothing could be measured as asked.
    """
    begin = time.monotonic()
    if stored:
        check_folder(store or FOLDER)
    if tag and not options["resume"]:
        refuse_taken(tagged_path(tag, store or FOLDER))
    device = open_device(options["device"], options["force"])
    screen.progress("starting")
    found = look_up(words, options["threads"] or usable_cores())
    screen.clear()
    operands = parse_operands(words, device, found)
    if options.get("over"):
        key, values = over_from(options["over"])
        check_over(options, key)
        operands = spread(operands, key, values)
    settings, conditions = settings_from(operands, device, options, screen.say)
    labels = [operand.label for operand in operands]
    log = RunLog("compare", command, labels, asdict(settings), store, stored, again, tag)
    state = log.resume(screen.say) if options["resume"] else None
    comparison = Comparison(
        operands,
        settings,
        conditions,
        screen.row(log),
        screen.progress,
        screen.say,
        state,
        estimate=screen.estimate if screen.moving else None,
    )
    log.follow(comparison)
    with measuring(device, screen.say, force=options["force"]), log.kept(screen):
        comparison.run(options["budget"])
    where = f"stored in {log.path}" if stored and not log.failure else "not stored"
    closing = [f"{where}; took {time.monotonic() - begin:.0f} s"]
    if comparison.failures:
        closing.append(f"bench: no number for {', '.join(comparison.failures)}: see above")
    if failure := log.failure or log.taken:
        closing.append(f"bench: {failure}")
    return Measured(log.record(complete=True), tuple(closing), not comparison.failures and not failure)
