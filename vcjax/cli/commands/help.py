"""`vcjax help`: what commands there are, or how to use one."""

from vcjax.cli import command_table as registry
from vcjax.cli.command import Command
from vcjax.cli.session import Session


def run(session: Session) -> int:
    """Prints the overview, or the help text of a command."""
    session.out.raw(registry.load(session.args[0]).help() if session.args else overview())
    return 0


def overview() -> str:
    """What `vcjax help` prints."""
    width = 2 + max(map(len, registry.names()))
    lines = ["usage: vcjax COMMAND [flags] [arguments]", "", "Version control for JAX PyTrees."]
    for heading, names in registry.GROUPS.items():
        lines += ["", heading]
        lines += [f"  {name:<{width}}{registry.load(name).summary}" for name in names]
    lines += ["", "`vcjax COMMAND --help` explains one. `vcjax --version` tells the version."]
    lines += ["A revision (REV) is a branch, a tag, a digest or its beginning, HEAD, HEAD~2,"]
    lines += ["HEAD^2, main@{1}, step:1200, best:accuracy. REV is HEAD where it is left out."]
    return "\n".join(lines)


COMMAND = Command(
    name="help",
    summary="List the commands, or explain one",
    usage="[COMMAND]",
    run=run,
    arguments=(0, 1),
    reports=False,
)
