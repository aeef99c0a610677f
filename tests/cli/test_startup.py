"""How fast the command line starts, and what it does not load."""

import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from vcjax import Repository


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """As users have it: with compiled modules, and without settings of vcjax."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("VCJAX_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    cache = str(tmp_path_factory.mktemp("compiled"))
    path = os.pathsep.join(filter(None, sys.path))
    return {**kept, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": cache}


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A repository with more than 1,000 commits, one of them a merge."""
    folder = tmp_path_factory.mktemp("history")
    repo = Repository.init(folder / ".vcjax")
    tip = repo.commit({"w": np.zeros(4)}, "step 0", metrics={"loss": 1.0})

    def follow(message, *parents):
        generation = 1 + max(parent.generation for parent in parents)
        digests = tuple(parent.digest for parent in parents)
        fresh = replace(tip, parents=digests, generation=generation, message=message)
        return repo.history.write_commit(fresh)

    for step in range(1, 1000):
        tip = follow(f"step {step}", tip)
    side = follow("on the side", tip)
    repo.branch("main", follow("merge", follow("on the line", tip), side), force=True)
    repo.branch("words", follow("naïve → 😀", tip))
    return folder


@pytest.fixture
def python(processes, history, environment):
    """Runs some Python beside the history: what it prints."""

    def run(code, **changes):
        return processes.python(code, cwd=history, env={**environment, **changes}).finish()[0]

    return run


LIGHT = {
    "log": ("jax", "flax", "optax", "orbax", "rich"),
    "log --graph --oneline --metrics=loss -n20": ("jax", "flax", "optax", "orbax", "rich"),
    "log --oneline -n20 -- w": ("jax", "flax", "optax", "orbax", "rich"),
    "blame --chunks": ("jax", "flax", "optax", "orbax", "rich"),
    "show": ("jax", "flax", "optax", "orbax", "rich"),
    "ls": ("jax", "flax", "optax", "orbax", "rich"),
    "branch": ("jax", "flax", "optax", "orbax", "rich"),
    "undo --help": ("jax", "flax", "numpy", "tensorstore", "rich"),
    "help": ("jax", "flax", "numpy", "tensorstore", "rich"),
    "nonsense": ("jax", "flax", "numpy", "tensorstore", "rich"),
}


@pytest.mark.parametrize("words", LIGHT)
def test_what_a_command_does_not_load(words, python):
    code = f"""
import sys
from vcjax.cli import main
main({words.split()!r})
print("loaded:", *sorted(set(sys.modules) & set({LIGHT[words]!r})))
"""
    assert python(code).splitlines()[-1] == "loaded:"


def test_the_log_of_a_thousand_commits(python):
    code = "import sys; from vcjax.cli import main; sys.exit(main(['log']))"
    assert python(code).count("commit ") >= 1000


def test_the_limit_of_a_log_is_read_and_no_more(python):
    code = """
from vcjax.cli import main
from vcjax.history.database import History
read = History.commit
count = 0
def counted(self, digest):
    global count
    count += 1
    return read(self, digest)
History.commit = counted
main(["log", "-n5", "--oneline"])
print(count)
"""
    assert int(python(code).split()[-1]) < 30


def test_output_in_another_encoding(python):
    code = "from vcjax.cli import main; main(['log', '-n1', '--oneline', 'words'])"
    shown = python(code, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "na\\xefve \\u2192 \\U0001f600" in shown
