"""`vcjax demo`, whole but short, and the commands that it recommends."""

import json
import re
import shlex

import jax
import numpy as np
import pytest

import vcjax
from vcjax.cli import main
from vcjax.cli.command import UsageError
from vcjax.cli.commands import demo

STEPS = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "digits"


@pytest.fixture(scope="module")
def document(folder):
    """The document of one short demo, which all tests of this file look at."""
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("sys.stdout.write", printed.append, raising=False)
        assert main(["demo", f"--folder={folder}", f"--steps={STEPS}", "--seed=3", "--json"]) == 0
    return json.loads("".join(printed))


@pytest.fixture
def repo(document, folder):
    return vcjax.Repository.open(folder)


def test_the_document_has_its_fields_and_they_agree_with_the_repository(document, repo):
    assert document["format"] == "vcjax.demo.1"
    assert set(document) == {
        *("format", "folder", "repository", "commits", "diffs", "merge", "accuracy"),
        *("storage", "verified", "next", "seconds"),
    }
    assert {c["digest"] for c in document["commits"]} == {
        c.digest for c in repo.log(*repo.branches)
    }
    assert document["verified"]["fsck"] is repo.fsck().ok is True
    assert document["verified"]["restored"] == dict.fromkeys(
        ("base", "faded", "tilted", "merged"), True
    )


def test_the_branches_start_at_the_base_and_meet_in_a_merge_of_two_parents(repo, document):
    base = repo.resolve("base")
    assert base.metadata["step"] == STEPS
    merge = repo.resolve("HEAD~1")
    assert document["merge"]["digest"] == merge.digest
    assert merge.parents == (repo.branches["tilted"], repo.branches["faded"])
    assert merge.provenance["method"]["name"] == "average"
    for task in demo.TASKS:
        line = [c.digest for c in repo.log(task, first_parent=True)]
        assert line.index(base.digest) == demo.SAVES
        assert repo.resolve(task).metadata["step"] == STEPS + STEPS // 2
    assert [c.step for c in repo.log("main")] == [80, 64, 48, 32, 16, 0]


def test_frozen_layers_are_unchanged_and_stored_once(repo, document):
    statuses = {c.path: c.status for c in repo.diff("base", "faded", paths=["params/**"]).changes}
    frozen = {path for path in statuses if path.split("/")[1] in demo.FROZEN}
    assert len(frozen) == 4
    assert {p for p, status in statuses.items() if status == "unchanged"} == frozen
    assert document["diffs"]["faded"]["counts"]["changed"] == 4
    changes = document["diffs"]["tilted"]["changes"]
    assert len(changes) == 8
    assert all(change["stats"]["relative_l2"] > 0 for change in changes)


def test_the_merge_averages_what_both_changed_and_takes_the_rest(repo):
    ours, theirs, merged = (
        repo.restore(name, paths="params/**")["params"] for name in ("tilted", "faded", "merged")
    )
    for layer, leaves in merged.items():
        for name, leaf in leaves.items():
            one, other = np.asarray(ours[layer][name]), np.asarray(theirs[layer][name])
            expected = one if layer in demo.FROZEN else (one + other) / 2
            np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-8)


def test_the_accuracies_are_those_of_the_stored_models(repo, document):
    from vcjax.cli.commands import demo_training as training

    digits, like = training.load_digits(3), training.create_state(3)
    for name in ("base", "tilted", "merged"):
        state = repo.restore(name, like=like)
        for view, expected in document["accuracy"][name].items():
            images, labels = digits[view].test
            scores = state.apply_fn({"params": state.params}, images)
            assert np.mean(np.argmax(scores, -1) == labels) == pytest.approx(expected, abs=1e-6)


def test_the_merge_is_better_over_both_tasks_than_either_branch(document):
    accuracy = document["accuracy"]
    best = max(demo.mean_over_tasks(accuracy[name]) for name in ("base", *demo.TASKS))
    assert demo.mean_over_tasks(accuracy["merged"]) > best
    for task in demo.TASKS:
        assert accuracy[task][task] > accuracy["base"][task] + 0.05


def test_the_held_out_digits_are_not_trained_on():
    from vcjax.cli.commands import demo_training as training

    views = training.load_digits(0)
    for view in views.values():
        train = {image.tobytes() for image in view.train[0]}
        assert not train & {image.tobytes() for image in view.test[0]}
        np.testing.assert_array_equal(view.test[1], views["plain"].test[1])


def test_less_is_stored_than_full_copies(document, folder):
    storage = document["storage"]
    assert storage["stored_bytes"] < storage["logical_bytes"]
    assert storage["ratio"] == pytest.approx(storage["logical_bytes"] / storage["stored_bytes"])
    files = [path for path in (folder / demo.REPOSITORY).rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_size for path in files)
    assert storage["stored_bytes"] == pytest.approx(on_disk, rel=0.01)


def test_every_command_it_recommends_works(document, folder, monkeypatch, capsys):
    monkeypatch.delenv("VCJAX_REPO", raising=False)
    head, *commands = document["next"]
    assert head == f"cd {folder}"
    monkeypatch.chdir(folder)
    for command in commands:
        words = shlex.split(re.sub(r"\s+#.*", "", command))
        assert words[0] == "vcjax"
        code = main(words[1:])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, ""), command
        assert captured.out


def test_it_replaces_its_own_folder_and_no_other(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    demo.prepare(mine)
    (mine / demo.REPOSITORY).mkdir()
    assert demo.prepare(mine) == mine
    assert not (mine / demo.REPOSITORY).exists()
    vcjax.Repository.init(other)
    before = sorted(other.rglob("*"))
    with pytest.raises(UsageError, match="not the demo's"):
        demo.prepare(other)
    assert sorted(other.rglob("*")) == before
    (mine / "notes.txt").write_text("precious")
    demo.prepare(mine)
    assert (mine / "notes.txt").read_text() == "precious"
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(UsageError, match="not the demo's"):
        demo.prepare(file)


def test_a_batch_depends_on_the_step_alone():
    from vcjax.cli.commands import demo_training as training

    digits, state = training.load_digits(0)["plain"], training.create_state(0)
    once = training.train_step(state, *digits.train, jax.random.key(0))
    again = training.train_step(state, *digits.train, jax.random.key(0))
    assert vcjax.diff(once, again).is_empty
    assert not vcjax.diff(once.params, state.params).is_empty
