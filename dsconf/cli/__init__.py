"""The command line: one file per command, imported only when that command is asked for."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from dsconf import __version__
from dsconf.errors import DsconfError, nearest

# The summaries stand here so that --help need not import the commands.
COMMANDS = {
    "recommend": "Choose the fastest config that fits; -o writes it.",
    "estimate": "Say what each GPU and each node will hold, byte by byte, and when.",
    "stages": "Compare ZeRO stages 0 to 3 side by side: what each shards, holds and sends.",
    "validate": "Check ds_config files against DeepSpeed's own rules; - reads standard input.",
    "check": "Prove the ds_config FILE by running a short real DeepSpeed training.",
    "bench": "Compare a single GPU, DDP, ZeRO stages and Accelerate on the same model and data, by running them.",
}

EPILOG = "Exit codes: 0 yes, 1 no (does not fit, invalid, the step failed), 2 wrong usage, 3 cannot be run here."


def _help_of(error: click.UsageError) -> str:
    return f"{error.ctx.command_path if error.ctx else 'dsconf'} --help"


class LazyGroup(click.Group):
    """Imports ``dsconf.cli.<command>`` when it is run, and lists summaries without importing."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; a person's mistake is one line on stderr and the right exit code, never a traceback."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.Abort:
            message, code = "stopped", 130
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help() if error.ctx else "")
            sys.exit(0)
        except click.UsageError as error:
            message, code = f"{error.format_message()} (see {_help_of(error)})", 2
        except click.ClickException as error:
            message, code = error.format_message(), error.exit_code
        except DsconfError as error:
            message, code = str(error), error.exit_code
        except OSError as error:
            message, code = f"cannot write the result: {error.strerror}", 2
        except MemoryError:
            message, code = "the memory of this process ran out; raise its limit, or ask for something smaller", 3
        else:
            sys.exit(code if isinstance(code, int) else 0)
        click.echo(f"dsconf: {message}", err=True)
        sys.exit(code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"dsconf.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"No such command {args[0]!r}{nearest(args[0], list(COMMANDS))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="dsconf", message="%(prog)s %(version)s")
def group() -> None:
    """Which DeepSpeed config trains this model on these GPUs fastest without running out of memory?"""


def _open_streams() -> None:
    """Stand in for streams that are closed, and write ``?`` for what the terminal's encoding does not have."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open to the end
        elif mode == "w" and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def main() -> None:
    """Run the ``dsconf`` script."""
    _open_streams()
    # A command is over before the first collection would pay; without it, importing the libraries is a tenth faster.
    gc.disable()
    group(prog_name="dsconf")
