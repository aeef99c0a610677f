"""What a command is given: its flags and arguments, the repository and the output."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vcjax import repo as repo_
from vcjax.cli.output import Output

if TYPE_CHECKING:
    from vcjax.repo import Repository


@dataclass
class Session:
    """One run of a command.

    Attributes:
        flags: the values of its flags (absl's `FlagValues`).
        args: its positional arguments.
        out: where it writes.
        after: those of its positional arguments that follow a `--`.
    """

    flags: Any
    args: list[str] = field(default_factory=list)
    out: Output = field(default_factory=Output)
    after: list[str] = field(default_factory=list)

    def argument(self, index: int, default: str) -> str:
        """A positional argument, or its default where fewer were given."""
        return self.args[index] if index < len(self.args) else default

    @property
    def url(self) -> str | None:
        """The repository that `--repo` or VCJAX_REPO names."""
        return self.flags.repo or os.environ.get("VCJAX_REPO") or None

    @property
    def author(self) -> str | None:
        """Whom VCJAX_AUTHOR names."""
        return os.environ.get("VCJAX_AUTHOR") or None

    @cached_property
    def repo(self) -> "Repository":
        """The repository, opened on first use.

        Raises:
            RepositoryNotFoundError: there is none.
        """
        if self.url is not None:
            return repo_.Repository.open(self.url)
        return repo_.Repository.find()
