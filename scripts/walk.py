"""Prints the walk of a call: the files of vcjax that it runs through, in order.

    python scripts/walk.py
    python scripts/walk.py --walks=commit,restore --files
    python scripts/walk.py --json
    python scripts/walk.py --record

A file is on a walk if code of a function in it runs during the call, on whatever thread.
The call is the second of its kind, so neither imports nor what is done once count. Files come
in the order in which they are first entered; where threads work side by side that order may
change from run to run, the set does not. How many files of a walk the calling thread enters
is told besides: the others are entered by threads that write, read ahead or save in the
background.

`--record` writes the numbers into docs/architecture.md.
"""

import itertools
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports JAX: walks are of CPUs

import jax
import numpy as np
from absl import app, flags, logging

import vcjax
from vcjax import merging

PACKAGE = Path(vcjax.__file__).resolve().parent
DOCUMENT = PACKAGE.parent / "docs" / "architecture.md"
BEGIN, END = "<!-- walks: begin -->", "<!-- walks: end -->"

WALKS = flags.DEFINE_list("walks", [], "Only these walks; by default all.")
FILES = flags.DEFINE_boolean("files", False, "List the files of each walk too.")
JSON = flags.DEFINE_boolean("json", False, "Print one JSON document instead of text.")
RECORD = flags.DEFINE_boolean("record", False, "Write the table into docs/architecture.md.")

Call = Callable[[], object]


class Tracer:
    """A profile function that takes down files of vcjax while it is on.

    Attributes:
        on: whether it takes anything down.
        files: {path below vcjax/: whether the calling thread entered it}, in order.
    """

    def __init__(self) -> None:
        self.on = False
        self.files: dict[str, bool] = {}
        self._names: dict[str, str | None] = {}  # of code -> below vcjax/, or None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Is called by the interpreter for every call of a function, on every thread."""
        del argument
        if not self.on or event != "call" or frame.f_code.co_name == "<module>":
            return
        source = frame.f_code.co_filename
        if source not in self._names:
            path = Path(source)
            ours = path.is_relative_to(PACKAGE)
            self._names[source] = path.relative_to(PACKAGE).as_posix() if ours else None
        name = self._names[source]
        if name is not None:
            calling = threading.current_thread() is threading.main_thread()
            self.files[name] = self.files.get(name, False) or calling

    def walk(self, call: Call) -> dict[str, bool]:
        """The files that the second of two calls enters."""
        call()
        self.files = {}
        self.on = True
        try:
            call()
        finally:
            self.on = False
        return self.files


def tree(seed: int) -> dict[str, dict[str, jax.Array]]:
    """A small model: matrices that are stored by themselves, biases that share a pack."""
    random = np.random.default_rng(seed)
    shapes = {"kernel": (256, 256), "bias": (8,)}
    return {
        f"layer{i}": {
            name: jax.numpy.asarray(random.normal(size=shape), "float32")
            for name, shape in shapes.items()
        }
        for i in range(2)
    }


def repository(folder: str) -> vcjax.Repository:
    """A repository with one commit."""
    repo = vcjax.Repository.init(folder)
    repo.commit(tree(0), "base")
    return repo


def commit(folder: str) -> Call:
    """All leaves are new."""
    repo, seeds = repository(folder), itertools.count(1)
    return lambda: repo.commit(tree(next(seeds)), "next")


def restore(folder: str) -> Call:
    """All leaves, onto the shardings of a tree like it."""
    repo, like = repository(folder), tree(1)
    return lambda: repo.restore("HEAD", like=like)


def branches(repo: vcjax.Repository) -> list[tuple[str, str]]:
    """Two pairs of branches that changed all leaves of `main`, each its own way."""
    names = [f"side{i}" for i in range(4)]
    for seed, name in enumerate(names, start=1):
        repo.branch(name, at="main")
        repo.commit(tree(seed), name, branch=name)
    return [(names[0], names[1]), (names[2], names[3])]


def merge(folder: str) -> Call:
    """Both sides changed every leaf, and `ties` settles them."""
    repo, method = repository(folder), merging.ties()
    pairs = iter(branches(repo))
    return lambda: repo.merge(*next(pairs), method=method)


def merge_whole(folder: str) -> Call:
    """Two commits and their base, by `ties`, into a commit."""
    repo, method = repository(folder), merging.ties()
    pairs = iter(branches(repo))
    return lambda: repo.merge_models(next(pairs), method, base="main")


def manager(folder: str) -> vcjax.CheckpointManager:
    """A manager with a step that is saved."""
    made = vcjax.CheckpointManager(folder)
    made.save(0, tree(0))
    made.wait_until_finished()
    return made


def manager_save(folder: str) -> Call:
    """In the background, as is the default, and to its end."""
    made, steps = manager(folder), itertools.count(1)

    def save() -> None:
        step = next(steps)
        made.save(step, tree(step))
        made.wait_until_finished()

    return save


def manager_restore(folder: str) -> Call:
    """The latest step."""
    made, like = manager(folder), tree(1)
    return lambda: made.restore(like=like)


def diff(folder: str) -> Call:
    """Two commits that differ in every leaf, with figures."""
    repo = repository(folder)
    repo.commit(tree(1), "next")
    return lambda: repo.diff("HEAD~1", "HEAD")


def log(folder: str) -> Call:
    """All commits of a branch."""
    repo = repository(folder)
    return lambda: list(repo.log())


CALLS: dict[str, Callable[[str], Call]] = {
    "commit": commit,
    "restore": restore,
    "merge by a method": merge,
    "whole-model merge": merge_whole,
    "manager.save": manager_save,
    "manager.restore": manager_restore,
    "diff": diff,
    "log": log,
}
"""{walk: makes, in an empty folder, the call that is made twice}."""


def measure(names: list[str]) -> dict[str, dict[str, bool]]:
    """{walk: {file: whether the calling thread entered it}} of some walks."""
    tracer = Tracer()
    threading.setprofile(tracer)  # pools live on: their threads must have it from the start
    sys.setprofile(tracer)
    try:
        found = {}
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                found[name] = tracer.walk(CALLS[name](folder))
        return found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]  # typeshed forgets None


def table(found: dict[str, dict[str, bool]]) -> str:
    """The numbers as Markdown."""
    rows = [f"| {name} | {len(files)} | {sum(files.values())} |" for name, files in found.items()]
    return "\n".join(["| walk | files | in the calling thread |", "| --- | ---: | ---: |", *rows])


def record(text: str) -> None:
    """Puts the table between its markers in docs/architecture.md."""
    page = DOCUMENT.read_text()
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{DOCUMENT.name} has no place for the table: add {BEGIN} and {END}")
    DOCUMENT.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main(argv: list[str]) -> None:
    """Prints the walks that the flags name."""
    unknown = sorted(set(WALKS.value) - set(CALLS))
    if unknown or len(argv) > 1:
        raise app.UsageError(f"{', '.join(unknown or argv[1:])}: the walks are {', '.join(CALLS)}")
    if RECORD.value and WALKS.value:
        raise app.UsageError("--record is of all walks: leave --walks out")
    logging.set_verbosity(logging.WARNING)  # Orbax tells of each handler that it makes
    found = measure(WALKS.value or [*CALLS])
    if RECORD.value:
        record(table(found))
    if JSON.value:
        counts = {
            name: {"files": [*files], "number": len(files), "calling_thread": sum(files.values())}
            for name, files in found.items()
        }
        print(json.dumps({"format": "vcjax.walks.1", "walks": counts}, indent=2))
        return
    print(table(found))
    for name, files in found.items() if FILES.value else ():
        print("", name, *(f"  {file}" for file in files), sep="\n")


if __name__ == "__main__":
    app.run(main)
