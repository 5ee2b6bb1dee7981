"""``anbox completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

VARIABLE = "_ANBOX_COMPLETE"
"""How click's completion scripts ask the program; ``main`` answers them."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete this command: its subcommands, options and the names of instances.

    \b
    bash:  anbox completion bash > ~/.local/share/bash-completion/completions/anbox
    zsh:   anbox completion zsh > ~/.zfunc/_anbox       (with ~/.zfunc in fpath, before compinit)
    fish:  anbox completion fish > ~/.config/fish/completions/anbox.fish
    """
    from anbox_tw.cli._main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "anbox", VARIABLE).source())
