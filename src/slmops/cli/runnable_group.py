"""A command that does its work itself and has further commands below it.

``slmops build blueprint.yaml`` builds; ``slmops build show`` shows. The first word
decides: the name of a command below calls that, anything else is parsed as if there were
none. A file called ``show`` is still built as ``slmops build ./show``. The alternative,
``slmops build run blueprint.yaml``, would break what people and scripts type today for
the sake of two commands that are used less.
"""

from typing import Any

import click


class RunnableGroup(click.Group):
    """A group whose own callback, options and arguments are a command."""

    allow_extra_args = False
    allow_interspersed_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command's own words, or leave all to the command that is named."""
        if args and args[0] in self.commands:
            ctx.args = list(args)
            return ctx.args
        return click.Command.parse_args(self, ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click's
        """Run the command that was named, or the group's own."""
        if not ctx.args:
            return click.Command.invoke(self, ctx)
        name, command, rest = self.resolve_command(ctx, ctx.args)
        assert command is not None  # noqa: S101 - parse_args found it
        # Below the group's parent: its own argument is no part of how this is called.
        path = f"{ctx.info_name} {name}"
        with command.make_context(path, rest, parent=ctx.parent) as inner:
            return command.invoke(inner)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the usage of the command itself; those below have their own section."""
        return click.Command.collect_usage_pieces(self, ctx)
