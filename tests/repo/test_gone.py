"""A folder that was unmounted, moved or deleted under an open repository is no damaged one."""

import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

import vcjax
from vcjax.errors import RepositoryExistsError, RepositoryNotFoundError

TREE = {"large": np.arange(50_000.0), "small": np.arange(500.0), "n": 1}

CALLS = {
    "commit": lambda repo: repo.commit({"n": 2}, "y"),
    "commit of arrays": lambda repo: repo.commit(
        {"large": np.ones(50_000), "small": np.ones(500)}, "y"
    ),
    "restore": lambda repo: repo.restore("HEAD"),
    "commit by a digest": lambda repo: repo.resolve("abcd"),
    "log": lambda repo: list(repo.log()),
    "branches": lambda repo: repo.branches,
    "tag": lambda repo: repo.tag("v1", "HEAD"),
    "gc": lambda repo: repo.gc(),
    "fsck": lambda repo: repo.fsck(),
    "undo": lambda repo: repo.undo(),
}


@pytest.fixture
def folder(tmp_path):
    vcjax.Repository.init(tmp_path / "run").commit(TREE, "x")
    return tmp_path / "run"


@pytest.mark.parametrize("how", ["moved", "deleted", "unmounted"])
@pytest.mark.parametrize("call", CALLS)
def test_a_folder_that_is_gone_is_told(folder, how, call):
    repo = vcjax.Repository.open(folder)
    if how == "moved":
        folder.rename(folder.with_name("elsewhere"))
    else:
        shutil.rmtree(folder)
    if how == "unmounted":
        folder.mkdir()  # a mount point is there all the same
    with pytest.raises(RepositoryNotFoundError, match="is not there any more"):
        CALLS[call](repo)
    assert not folder.exists() or not any(path.is_file() for path in folder.rglob("*"))


def test_it_goes_on_once_the_folder_is_back(folder):
    repo = vcjax.Repository.open(folder)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(RepositoryNotFoundError):
        repo.commit({"n": 2}, "y")
    folder.with_name("elsewhere").rename(folder)
    repo.commit({"n": 2}, "y")
    assert repo.restore("HEAD~1")["n"] == 1
    assert not repo.fsck().problems


def test_a_manager_tells_it_too(tmp_path):
    with vcjax.CheckpointManager(tmp_path / "run") as manager:
        manager.save(0, args=ocp.args.StandardSave({"w": np.ones(3)}))
        manager.wait_until_finished()
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        with pytest.raises(RepositoryNotFoundError, match="is not there any more"):
            manager.restore(0)
        (tmp_path / "elsewhere").rename(tmp_path / "run")


@pytest.mark.parametrize("within", ["100", "leaves/ab"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_manager_within_a_run_is_refused(tmp_path, within, read_only):
    """A slip in a path: training would begin anew, in an empty run."""
    with vcjax.CheckpointManager(tmp_path / "run") as manager:
        manager.save(100, args=ocp.args.StandardSave({"w": np.ones(3)}))
    inner = tmp_path / "run" / within
    with pytest.raises(RepositoryNotFoundError) as caught:
        vcjax.Repository.open(inner)
    assert str(tmp_path / "run") in (caught.value.hint or "")
    options = ocp.CheckpointManagerOptions(read_only=read_only)
    with pytest.raises(RepositoryExistsError, match="lies within the repository in"):
        vcjax.CheckpointManager(inner, options=options)
    assert not (inner / "vcjax.json").exists()
    vcjax.Repository.init(inner)  # who wants one there says so
    vcjax.CheckpointManager(inner).close()


def test_a_manager_beside_the_steps_of_a_run_is_told(tmp_path, monkeypatch):
    vcjax.Repository.init(tmp_path / "run")
    said = []
    monkeypatch.setattr("absl.logging.warning", lambda text, *args: said.append(text % args))
    vcjax.CheckpointManager(tmp_path / "run" / "evaluation").close()
    assert any(str(tmp_path / "run") in text for text in said)
