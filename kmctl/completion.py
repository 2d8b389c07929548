"""`kmctl completion`: the script that has a shell complete kmctl's commands, options and settings."""

import sys

import click
from click.shell_completion import get_completion_class

from kmctl.options import home_option

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_KMCTL_COMPLETE"
PLACES = {
    "bash": "~/.local/share/bash-completion/completions/kmctl",
    "zsh": "a file '_kmctl' in a folder of your fpath",
    "fish": "~/.config/fish/completions/kmctl.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@home_option
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """
    Print the script with which a shell completes kmctl.

    \b
    Example:
      kmctl completion bash > ~/.local/share/bash-completion/completions/kmctl
      kmctl completion zsh > ~/.zfunc/_kmctl
      kmctl completion fish > ~/.config/fish/completions/kmctl.fish
    """
    known = get_completion_class(shell)
    assert known is not None  # noqa: S101 - click has these three
    click.echo(known(ctx.find_root().command, {}, "kmctl", VARIABLE).source())
    if sys.stdout.isatty():
        click.echo(f"put this into {PLACES[shell]}, and start a new shell", err=True)
    return 0
