"""From a directory that Orbax wrote to commits: one per step, read and written leaf by leaf."""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from vcjax.errors import FormatError, RevisionError, StepExistsError, VcjaxError
from vcjax.history import Commit
from vcjax.orbax.files.item_tree import SavedTree, as_dict, read_item
from vcjax.orbax.files.steps import SavedDirectory, SavedItem, SavedStep
from vcjax.orbax.items.record import DEFAULT_ITEM, ItemRecord, StepMetrics, StepRecord
from vcjax.repo import Repository

ORIGIN = "imported"
"""Where a commit's metadata tells which checkpoint it was made of."""


@dataclass(frozen=True)
class ImportPlan:
    """What an import will do.

    Attributes:
        source: the directory.
        branch: that the steps are committed to; None for the current one.
        steps: what is imported, ascending.
        skipped: what the branch has already.
        notices: what was passed over or cannot be taken apart, one line each.
    """

    source: SavedDirectory
    branch: str | None
    steps: tuple[SavedStep, ...]
    skipped: tuple[SavedStep, ...]
    notices: tuple[str, ...]


def plan_import(repo: Repository, source: SavedDirectory, branch: str | None = None) -> ImportPlan:
    """Which steps of a directory a branch does not have; reads no array and changes nothing.

    A step that was imported before is skipped: the branch has a commit with its
    number, and with the time at which Orbax saved it (or where it lies, of
    checkpoints older than that note).

    Args:
        repo: where the steps go.
        source: what `read_directory` found.
        branch: to commit to; the current one by default.

    Raises:
        StepExistsError: the branch has other commits with these steps.
    """
    known = list(_commits(repo, branch))
    numbers = {commit.step for commit in known if commit.step is not None}
    skipped = tuple(step for step in source.steps if any(_is_of(commit, step) for commit in known))
    steps = tuple(step for step in source.steps if step not in skipped)
    taken = [str(step.step) for step in steps if step.step in numbers]
    if taken:
        raise StepExistsError(
            f"{branch or 'the current branch'} has steps of its own with the numbers "
            f"{', '.join(taken[:10])}{' …' if len(taken) > 10 else ''}",
            hint="import into a repository of its own",
        )
    return ImportPlan(source, branch, steps, skipped, source.notices + tuple(_notices(steps)))


def _commits(repo: Repository, branch: str | None) -> Iterator[Commit]:
    """What the branch, or `HEAD` where it is still to be made, leads back to."""
    try:
        start = repo.resolve(branch if branch in repo.branches else "HEAD")
    except RevisionError:  # no commit yet
        return iter(())
    return repo.log(start, first_parent=True)


def _is_of(commit: Commit, step: SavedStep) -> bool:
    noted = commit.metadata.get(ORIGIN)
    if commit.step != step.step or not isinstance(noted, dict):
        return False
    if step.finished is not None:
        return noted.get("finished") == step.finished and noted.get("started") == step.started
    return noted.get("source") == str(step.folder)


def _notices(steps: tuple[SavedStep, ...]) -> Iterator[str]:
    for step in steps:
        for item in step.items:
            if item.kind == "files":
                by = f", which {item.handler.rpartition('.')[2]} wrote," if item.handler else ""
                yield f"{step.folder.name}: item {item.name!r}{by} is kept as its files"


def return_freed_memory() -> None:
    """Makes the C library give large buffers back to the system as soon as they are freed.

    glibc keeps them per thread otherwise, and TensorStore works on many threads: of
    a tree of 16 leaves of 16 MiB each, an import held 220 MiB, and 45 MiB with this, at a
    fifth more time. It is for the whole process, so only programs call it. Without
    effect where the C library is another one.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 256 * 1024)


_M_MMAP_THRESHOLD = -3
"""From glibc's malloc.h."""


def run_import(
    repo: Repository, plan: ImportPlan, author: str | None = None
) -> Iterator[tuple[SavedStep, Commit]]:
    """Commits the steps of a plan, one after the other; gives each as soon as it is durable.

    No more than two leaves of a step are in memory at a time, besides the chunks
    that TensorStore is decoding. What was yielded stays if a later step fails,
    and the import may be repeated.

    Args:
        repo: where the steps go.
        plan: as `plan_import` made it.
        author: "Name <address>"; this user by default.

    Raises:
        FormatError: a step is damaged; names its folder and leaf path.
    """
    for step in plan.steps:
        name = step.folder.name
        try:
            trees = {item.name: read_item(item) for item in step.items}
            roots = {item: saved.root for item, saved in trees.items()}
            root = roots[DEFAULT_ITEM] if step.is_single else as_dict(roots)
            repo.refresh(plan.branch)  # each step is a whole state, and follows whatever is there
            commit = repo.commit(
                root,
                f"import {name}" if step.step is None else f"step {step.step}",
                branch=plan.branch,
                metadata=_metadata(plan.source, step, trees),
                metrics=StepMetrics.of(step.metrics).numbers,
                author=author,
                rebase=False,
            )
        except FormatError as error:
            error.message = f"{name}: {error.message}"
            raise
        except VcjaxError as error:
            error.add_note(f"while importing {str(step.folder)!r}")
            raise
        yield step, commit


def _metadata(
    source: SavedDirectory, step: SavedStep, trees: Mapping[str, SavedTree]
) -> dict[str, object]:
    """As `CheckpointManager` writes it, and where the step comes from."""
    record = StepRecord(
        {item.name: _record(item, trees[item.name]) for item in step.items},
        step.is_single,
        StepMetrics.of(step.metrics).nested,
        dict(step.custom_metadata),
        dict(source.root_metadata),
    )
    origin = {"format": "orbax", "source": str(step.folder)}
    times = {"started": step.started, "finished": step.finished}
    origin |= {name: time for name, time in times.items() if time is not None}
    return {**record.encode(step.step), ORIGIN: origin}


def _record(item: SavedItem, saved: SavedTree) -> ItemRecord:
    kind = item.kind if item.kind in ("json", "files") else "tree"
    return ItemRecord(kind, item.handler, saved.custom_metadata, tuple(saved.shardings))
