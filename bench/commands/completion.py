"""`bench completion`: the completion of commands and options, where a shell looks for it."""

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from bench.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
def command(shell: str | None) -> int:
    """Install the completion of commands and options for SHELL; default: the shell you use ($SHELL).

    It writes one file where the shell looks for completions of this user, and says what else is needed.
    """
    from bench.cli import app
    from results.errors import RecordError
    from results.store import write_whole

    if shell is None:
        shell = Path(os.environ.get("SHELL", "")).name
        if shell not in SHELLS:
            raise UsageError(f"SHELL={shell or '(not set)'} has no completion; name one: {', '.join(SHELLS)}")
    kind = get_completion_class(shell)
    assert kind is not None
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    own = data / "bash-completion/completions/bench"
    place, needs = {
        "bash": (own, f"where bash-completion is not installed, also add this to ~/.bashrc: . {own}"),
        "zsh": (
            data / "zsh/site-functions/_bench",
            f"add this to ~/.zshrc, before compinit, unless it is there: fpath=({data}/zsh/site-functions $fpath)",
        ),
        "fish": (settings / "fish/completions/bench.fish", ""),
    }[shell]
    try:
        write_whole(place, kind(app, {}, "bench", "_BENCH_COMPLETE").source().encode())
    except RecordError as error:
        raise UsageError(str(error)) from error
    click.echo(f"wrote {place}; new shells complete bench")
    if needs:
        click.echo(needs)
    return 0
