"""Other Python processes: for tests to kill, to race, to limit, and to watch to their end."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import vcjax

ROOT = Path(vcjax.__file__).parents[1]


def run(code, *arguments, **options):
    """Runs some Python with vcjax and these sources importable."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
