"""Killed before any of its operations on the store: earlier commits stay, and all goes on."""

import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

import vcjax
from vcjax.errors import ConflictError, PrunedError, RepositoryNotFoundError
from vcjax.objects.liveness import tips_of
from vcjax.objects.write import ArrayWriter
from vcjax.orbax.files.import_ import plan_import, run_import
from vcjax.orbax.files.steps import read_directory
from vcjax.storage import Store

from .stored import same

DATA = Path(__file__).parents[1] / "data"


class Killed(BaseException):
    """The process is gone: nothing that comes after has any effect."""


class Mortal:
    """Stores that do so many operations more, and then no other.

    What is written at once is written in one order or the other, since a process may be
    killed when any part of it is done.
    """

    def __init__(self, patch, reverse):
        self.left: int | None = None
        order = (lambda items: list(items)[::-1]) if reverse else list
        for name in ("write_many", "delete", "remove_leftovers"):
            patch.setattr(Store, name, self._each(getattr(Store, name), order))
        for name in ("compare_and_set", "make_folder"):
            patch.setattr(Store, name, self._whole(getattr(Store, name)))
        patch.setattr(ArrayWriter, "send", self._whole(ArrayWriter.send))
        patch.setattr(ArrayWriter, "land_all", self._whole(ArrayWriter.land_all))

    def step(self):
        if self.left is not None:
            if self.left <= 0:
                raise Killed
            self.left -= 1

    def _each(self, real, order):
        def call(store, items):
            for item in order(items):
                self.step()
                real(store, [item])

        return call

    def _whole(self, real):
        def call(*arguments, **options):
            self.step()
            return real(*arguments, **options)

        return call


def big(step):
    array = np.arange(1_100_000, dtype=np.float32)  # two chunks: the next is a difference
    array[0] = step
    return array


def tree(step):
    return {"big": big(step), "packed": np.full(200, step, np.float32), "step": step}


def made(folder):
    repo = vcjax.Repository.init(folder)
    for step in range(3):
        repo.commit(tree(step), f"step {step}", metadata={"step": step})
    repo.branch("side", "HEAD~1")
    repo.commit({**tree(1), "other": 1}, "side", branch="side")
    return repo


def with_conflict(folder):
    repo = made(folder)
    repo.commit({**tree(1), "step": 9}, "conflicts", branch="side")
    with suppress(ConflictError):
        repo.merge("main", "side", keep_conflicts=True)


def with_garbage(folder):
    repo = made(folder)
    repo.commit({"loose": np.arange(30_000)}, "loose", branch="loose")
    log = [f"log/refs/heads/loose@{number:012d}.json" for number in (1, 2)]
    repo.store.delete(["refs/heads/loose", *log])


def with_detached(folder):
    made(folder).switch("main", detach=True)


def of_version_1(folder):
    with zipfile.ZipFile(DATA / "repository_v1.zip") as archive:
        archive.extractall(folder)


def save_step(folder):
    options = vcjax.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with vcjax.CheckpointManager(folder, options=options) as manager:
        manager.save(7, tree(7))


def beside_checkpoints(folder):
    made(folder)
    with ocp.CheckpointManager(folder.parent / "orbax") as manager:
        for step in (7, 8):
            manager.save(step, args=ocp.args.StandardSave({"w": np.full(300, step)}))


def import_steps(folder):
    repo = vcjax.Repository.open(folder)
    plan = plan_import(repo, read_directory(folder.parent / "orbax"), "imported")
    list(run_import(repo, plan, "somebody <>"))


def on(call):
    return lambda folder: call(vcjax.Repository.open(folder))


WORK = {
    "init": (lambda folder: None, vcjax.Repository.init),
    "commit dense": (made, on(lambda repo: repo.commit({"w": np.ones(20_000)}))),
    "commit difference": (made, on(lambda repo: repo.commit(tree(5)))),
    "commit packed": (made, on(lambda repo: repo.commit({"a": np.ones(300), "b": 1}))),
    "commit to a new branch": (made, on(lambda repo: repo.commit({"a": 1}, branch="new"))),
    "merge": (made, on(lambda repo: repo.merge("main", "side"))),
    "resume": (with_conflict, on(lambda repo: repo.merges.resume(resolve="ours"))),
    "gc": (with_garbage, on(lambda repo: repo.gc(unsafe=True))),
    "prune": (made, on(lambda repo: repo.prune(["HEAD~2"], "a test"))),
    "upgrade": (of_version_1, on(lambda repo: repo.upgrade())),
    "tag": (made, on(lambda repo: repo.tag("v1"))),
    "move a tag": (made, on(lambda repo: repo.branch("side", "HEAD~2", force=True))),
    "delete a branch": (made, on(lambda repo: repo.delete_branch("side"))),
    "undo": (made, on(lambda repo: repo.undo())),
    "switch": (made, on(lambda repo: repo.switch("side"))),
    "detached commit": (with_detached, on(lambda repo: repo.commit({"a": 1}))),
    "save with retention": (made, save_step),
    "import": (beside_checkpoints, import_steps),
}
"""{what: (what was there before, what is killed)}."""

MAY_GO = {"prune": ["HEAD~2"], "save with retention": ["HEAD~1", "HEAD~2"]}
"""Revisions whose data the work itself lets go."""


def expected_after(folder, work):
    """{digest: tree} of what is there, without what the work may let go."""
    if not (folder / "vcjax.json").exists():
        return {}
    repo = vcjax.Repository.open(folder)
    gone = {repo.resolve(revision).digest for revision in MAY_GO.get(work, ())}
    found = {}
    for digest in tips_of(repo.refs, repo.kept_merges, 0.0):
        for commit in repo.log(digest):
            if commit.digest not in gone:
                with suppress(PrunedError):
                    found[commit.digest] = repo.restore(commit)
    assert len(found) >= 2
    return found


def check(folder, before):
    """Earlier commits are there, all heals, and the next commit works."""
    with suppress(RepositoryNotFoundError):
        repo = vcjax.Repository.open(folder)
        for digest, expected in before.items():
            assert same(repo.restore(digest), expected), digest
        assert not repo.repair().quarantined
        assert repo.fsck().problems == []
    repo = vcjax.Repository.init(folder, exist_ok=True)
    repo.refresh()
    later = repo.commit({**tree(6), "next": 1}, "next")
    repo.gc(unsafe=True)
    assert vcjax.Repository.open(folder).fsck().problems == []
    assert same(repo.restore(later), {**tree(6), "next": 1})


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "in reverse"])
@pytest.mark.parametrize("work", WORK)
def test_killed_before_any_operation(tmp_path, monkeypatch, work, reverse):
    prepare, act = WORK[work]
    prepare(tmp_path / "before")
    before = expected_after(tmp_path / "before", work)
    mortal = Mortal(monkeypatch, reverse)
    survived, finished = 0, False
    for survived in range(500):
        folder = tmp_path / f"{survived}"
        if (tmp_path / "before").exists():
            shutil.copytree(tmp_path / "before", folder)
        mortal.left = survived
        try:
            act(folder)
        except Killed:
            finished = False
        else:
            finished = True
        mortal.left = None
        check(folder, before)
        shutil.rmtree(folder)
        if finished:
            break
    assert finished
    assert survived > 0
