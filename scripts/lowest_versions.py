"""Prints the lowest release of every package that setup.cfg declares, as constraints for pip.

    python scripts/lowest_versions.py [EXTRA ...] > lowest.txt
    uv pip install '.[plots]' --constraints lowest.txt

`.ci/lowest` installs them and runs a smoke suite, so that what setup.cfg declares is true.
Needs nothing but Python: it runs before anything is installed.
"""

import configparser
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"


def requirements(extras: Sequence[str]) -> Iterator[str]:
    """The lines of setup.cfg that declare packages.

    Args:
        extras: of these extras besides what is always installed.

    Raises:
        ValueError: there is no such extra.
    """
    declared = configparser.ConfigParser()
    declared.read(SETUP)
    optional = declared["options.extras_require"]
    unknown = [name for name in extras if name not in optional]
    if unknown:
        raise ValueError(f"setup.cfg has no extra {unknown[0]!r}, only {', '.join(optional)}")
    texts = [declared["options"]["install_requires"], *(optional[name] for name in extras)]
    for text in texts:
        yield from filter(None, map(str.strip, text.splitlines()))


def lowest(requirement: str) -> str:
    """`name==version` for `name>=version`; what stands in brackets is left out.

    Raises:
        ValueError: no lowest version is declared.
    """
    match = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)", requirement)
    if match is None:
        raise ValueError(f"setup.cfg: {requirement!r} is not of the form name>=version")
    return f"{match[1]}=={match[2]}"


def main(extras: Sequence[str]) -> None:
    """Prints the constraints, or ends with what is wrong."""
    try:
        print(*map(lowest, requirements(extras)), sep="\n")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
