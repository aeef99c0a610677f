"""Commits that somebody else made: what their items and files are called leads nowhere else."""

import numpy as np
import orbax.checkpoint as ocp
import pytest

import vcjax
from vcjax.errors import CorruptionError, FormatError, VcjaxError

CONTENT = np.frombuffer(b"theirs", np.uint8)

NAMES = {
    "up": "../up",
    "parent": "..",
    "itself": ".",
    "empty": "",
    "below": "a/b",
    "nul": "a\0b",
    "long": "x" * 256,
    "long in bytes": "é" * 128,
    "no text": "\udc80",
}


def hostile(repo, tree, **items):
    """The digest of a commit whose metadata say what kind its items are of."""
    records = {name: {"kind": kind, "handler": "x.Y"} for name, kind in items.items()}
    return repo.commit(tree, "model", metadata={"step": 1, "orbax": {"items": records}})


@pytest.mark.parametrize("name", [*NAMES.values(), "/absolute"], ids=[*NAMES, "absolute"])
@pytest.mark.parametrize("depth", [1, 2])
def test_files_stay_in_their_folder(repo, tmp_path, export, name, depth):
    folder = {name: CONTENT} if depth == 1 else {"below": {name: CONTENT}}
    commit = hostile(repo, {"f": folder}, f="files")
    with pytest.raises(FormatError, match="cannot be the name of a file"):
        export(repo, commit, tmp_path / "out" / "1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_items_stay_in_their_step(repo, tmp_path, export, name):
    commit = hostile(repo, {name: {"w": CONTENT}, "ok": {"w": CONTENT}}, ok="tree")
    with pytest.raises(FormatError, match="cannot be the name of an item"):
        export(repo, commit, tmp_path / "out" / "1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "folder",
    [{"f": 5}, {"f": "text"}, {"f": [CONTENT]}, {"f": None}, CONTENT],
    ids=["number", "text", "list", "none", "no folder"],
)
def test_files_are_bytes_in_folders(repo, tmp_path, export, folder):
    with pytest.raises(FormatError, match="file"):
        export(repo, hostile(repo, {"f": folder}, f="files"), tmp_path / "1")
    assert not (tmp_path / "1").exists()


@pytest.mark.parametrize("name", ["../up", "..", "a\0b", "x" * 256])
def test_handlers_restore_into_their_folder(tmp_path, name):
    """A manager writes the files of an item to a temporary folder for their handler to read."""

    class Words(ocp.CheckpointHandler):
        def save(self, directory, args):
            (directory / "words").write_text("mine")

        def restore(self, directory, args=None):
            return sorted(path.name for path in directory.iterdir())

    repo = vcjax.Repository.init(tmp_path / "run")
    record = {"kind": "files", "handler": "x.Y"}
    repo.commit({name: CONTENT}, "x", metadata={"step": 1, "orbax": {"item": record}})
    with (
        vcjax.CheckpointManager(tmp_path / "run", item_handlers=Words()) as manager,
        pytest.raises(VcjaxError, match="cannot be the name of a file"),
    ):
        manager.restore(1)


def test_a_prefix_stays_in_the_directory(repo, tmp_path, export):
    commit = repo.commit({"w": np.ones(3)}, "x", metadata={"step": 1})
    with pytest.raises(FormatError, match="cannot be the name of a step"):
        export(repo, commit, tmp_path / "run", manager=True, prefix="../up")
    assert not list(tmp_path.glob("**/up*"))


@pytest.mark.parametrize("force", [False, True])
def test_a_target_that_is_a_link_is_left_alone(repo, tmp_path, export, force):
    commit = repo.commit({"w": np.ones(3)}, "x")
    there = export(repo, commit, tmp_path / "there")
    (tmp_path / "link").symlink_to(there)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for link in ("link", "nowhere"):
        with pytest.raises(FormatError, match="is a symbolic link to"):
            export(repo, commit, tmp_path / link, force=force)
        assert (tmp_path / link).is_symlink()
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"items": []},
        {"items": {"a": 5}},
        {"item": "tree"},
        {"item": {"handler": 5}},
        {"item": {"shardings": [5]}},
        {"custom_metadata": 5},
        {"root_metadata": [1]},
    ],
    ids=str,
)
def test_metadata_of_wrong_types_are_named(repo, tmp_path, export, fields):
    commit = repo.commit({"a": np.ones(3)}, "x", metadata={"step": 1, "orbax": fields})
    with pytest.raises(CorruptionError, match=commit.digest[:8]):
        export(repo, commit, tmp_path / "1")
