"""Merges that are kept while they have conflicts: continued, dropped, watched, killed."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import vcjax
from vcjax import Repository, merging
from vcjax.cli import main
from vcjax.errors import ConflictError, CorruptionError, MergeError

W = np.float32([1, 2, 3, 4])
BASE = {"p": {"a": W, "b": W, "c": W}, "q": W, "n": 1}
OURS = {"p": {"a": W + 1, "b": W + 1, "c": W}, "q": W + 1, "n": 2}
THEIRS = {"p": {"a": W + 3, "b": W + 3, "c": W + 3}, "q": W[:2], "n": 5}


@pytest.fixture
def fork(repo):
    """Branches "main" and "side" with four conflicts: three of numbers, one of structure."""
    repo.commit(BASE, "base")
    repo.branch("side")
    repo.commit(THEIRS, "theirs", branch="side")
    repo.commit(OURS, "ours")
    return repo


@pytest.fixture
def begun(fork):
    """The same with a merge under way."""
    with pytest.raises(ConflictError):
        fork.merge("main", "side", message="both", metrics={"loss": 1}, keep_conflicts=True)
    return fork


@pytest.fixture
def cli(capsys, monkeypatch):
    """Runs a command line: (exit code, stdout, stderr)."""

    def run(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    for name in ("VCJAX_REPO", "VCJAX_AUTHOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return run


def left(repo, branch=None):
    return list(repo.merge_progress(branch).left)


def test_a_merge_with_conflicts_is_kept_and_moves_nothing(fork):
    before = fork.branches
    with pytest.raises(ConflictError) as caught:
        fork.merge("main", "side", resolve={"p/a": "theirs"}, keep_conflicts=True)
    assert "vcjax merge --continue" in caught.value.hint
    assert fork.branches == before
    progress = Repository.open(fork.url).merge_progress()
    assert progress.settled == {"p/a": "theirs"}
    assert list(progress.left) == ["n", "p/b", "q"]
    assert progress.state.names == ("main", "side")
    assert not progress.has_moved


def test_without_being_asked_to_nothing_is_kept(fork):
    with pytest.raises(ConflictError) as caught:
        fork.merge("main", "side")
    assert "--continue" not in caught.value.hint
    assert fork.merge_progress() is None
    assert fork.merges.all() == []


def test_decisions_add_up(begun):
    with pytest.raises(ConflictError) as caught:
        begun.continue_merge(resolve={"p/*": "theirs", "n": "base"})
    assert [path.partition(":")[0] for path in caught.value.paths] == ["q"]
    again = Repository.open(begun.url)
    with pytest.raises(ConflictError):
        again.continue_merge(resolve={"p/a": "ours"})  # later ones go before
    commit = Repository.open(begun.url).continue_merge(resolve="ours")
    assert (commit.message, commit.metrics) == ("both", {"loss": 1.0})
    assert commit.parents == (commit.provenance["inputs"][0], begun.branches["side"])
    tree = begun.restore("main")
    np.testing.assert_array_equal(tree["p"]["a"], W + 1)
    np.testing.assert_array_equal(tree["p"]["b"], W + 3)
    np.testing.assert_array_equal(tree["p"]["c"], W + 3)
    np.testing.assert_array_equal(tree["q"], W + 1)
    assert tree["n"] == 1
    assert begun.merge_progress() is None
    assert begun.remerge(commit).is_same
    assert begun.fsck().ok


def test_a_method_settles_what_is_left(begun):
    with pytest.raises(ConflictError) as caught:
        begun.continue_merge(resolve={"p/a": "ours"}, method="average")
    assert [path.partition(":")[0] for path in caught.value.paths] == ["q"]
    commit = begun.continue_merge(resolve={"q": "theirs"})
    assert commit.provenance["decisions"] == {
        "n": "first",
        "p/a": "side",
        "p/b": "method",
        "p/c": "theirs",
        "q": "side",
    }
    np.testing.assert_array_equal(begun.restore()["p"]["b"], W + 2)


def test_rules_may_leave_some_leaves_to_the_method(begun):
    with pytest.raises(ConflictError) as caught:
        begun.continue_merge(resolve={"p/b": "method"}, method=merging.average())
    assert [path.partition(":")[0] for path in caught.value.paths] == ["n", "p/a", "q"]
    begun.continue_merge(resolve="ours")
    tree = begun.restore()
    np.testing.assert_array_equal(tree["p"]["a"], W + 1)
    np.testing.assert_array_equal(tree["p"]["b"], W + 2)


def test_what_makes_no_sense_is_not_kept(begun):
    state = begun.merges.get("refs/heads/main")
    with pytest.raises(MergeError, match="no side of a merge"):
        begun.continue_merge(resolve={"q": "mine"})
    with pytest.raises(MergeError, match="draws random numbers"):
        begun.continue_merge(method="dare_linear", resolve={"q": "ours"})
    assert begun.merges.get("refs/heads/main") == state
    commit = begun.continue_merge(method="dare_linear", resolve={"q": "ours"}, key=3)
    assert commit.provenance["key"] == 3
    assert begun.remerge().is_same


def test_dropping_a_merge(begun):
    before = begun.branches
    begun.abort_merge()
    assert begun.branches == before
    assert begun.merge_progress() is None
    with pytest.raises(MergeError, match="no merge into 'main' is under way"):
        begun.abort_merge()
    with pytest.raises(MergeError, match="no merge into 'main' is under way") as caught:
        begun.continue_merge()
    assert "begins one" in caught.value.hint
    begun.merge("main", "side", resolve="ours")


def test_a_second_merge_into_the_branch_is_refused(begun):
    begun.branch("third", "main~1")
    with pytest.raises(MergeError, match="a merge of side into 'main' is under way") as caught:
        begun.merge("main", "third", resolve="ours")
    assert "--abort" in caught.value.hint
    with pytest.raises(MergeError, match="under way"):
        Repository.open(begun.url).merge("main", "side", keep_conflicts=True)
    begun.merge("third", "side")  # into another branch


def test_each_branch_has_a_merge_of_its_own(begun):
    begun.branch("two", "main")
    with pytest.raises(ConflictError):
        begun.merge("two", "side", keep_conflicts=True)
    begun.switch("side")
    with pytest.raises(MergeError, match="into 'side'") as caught:
        begun.continue_merge()
    assert "main and two" in caught.value.hint
    assert begun.continue_merge("two", resolve="theirs").tree != begun.resolve("main").tree
    assert [p.state.short for p in begun.merges_under_way()] == ["main"]


def test_a_detached_head(begun):
    begun.abort_merge()
    begun.switch("main", detach=True)
    with pytest.raises(ConflictError):
        begun.merge("side", keep_conflicts=True)
    commit = begun.continue_merge(resolve="theirs")
    assert begun.head.commit == commit.digest
    assert begun.branches["main"] != commit.digest


def test_a_branch_that_has_moved(begun):
    begun.decide_merge(resolve={"p/a": "theirs", "q": "ours"})
    start = begun.resolve("main")
    moved = begun.commit({**OURS, "q": W + 9, "n": 1}, "meanwhile")
    with pytest.raises(ConflictError, match="'main' has moved to") as caught:
        begun.continue_merge(resolve="theirs")
    assert start.digest[:8] in caught.value.message
    assert "--replan" in caught.value.hint
    progress = begun.merge_progress()
    assert progress.has_moved
    assert progress.settled == {"p/a": "theirs", "q": "ours"}  # and nothing was added
    with pytest.raises(ConflictError, match="changed 1 leaf differently"):
        begun.continue_merge(replan=True)
    commit = begun.continue_merge(resolve="ours")
    assert commit.parents[0] == moved.digest
    np.testing.assert_array_equal(begun.restore()["q"], W + 9)
    np.testing.assert_array_equal(begun.restore()["p"]["a"], W + 3)
    assert begun.restore()["n"] == 5  # which is no conflict any more


def test_a_branch_that_is_gone(begun):
    begun.switch("side")
    begun.delete_branch("main")
    with pytest.raises(ConflictError, match="'main' has moved and is gone"):
        begun.continue_merge("main", resolve="ours")
    begun.abort_merge("main")


def test_a_process_that_died_after_the_branch_moved(begun, monkeypatch):
    monkeypatch.setattr(begun.merges, "drop", lambda target: False)
    commit = begun.continue_merge(resolve="ours")
    again = Repository.open(begun.url)
    assert again.merge_progress() is not None
    assert again.continue_merge() == commit
    assert again.merge_progress() is None


def test_two_that_go_on_with_one_merge(begun):
    other = Repository.open(begun.url)
    seen = other.merges.get("refs/heads/main")
    begun.decide_merge(resolve={"p/a": "ours"})
    with pytest.raises(MergeError, match="changed by somebody else"):
        other.merges.replace(seen, seen)
    with pytest.raises(MergeError, match="under way"):
        other.merges.start(seen)


def test_gc_keeps_what_a_merge_is_of(begun):
    begun.switch("main", detach=True)
    theirs = begun.resolve("side")
    for name in ("side", "main"):
        begun.delete_branch(name)
    for key in begun.store.keys("log/"):
        begun.store.delete([key])
    begun.refs.set_head(vcjax.history.Head("elsewhere"))
    plan = begun.gc(force=True)
    assert plan.commits == ()
    fresh = Repository.open(begun.url)
    np.testing.assert_array_equal(fresh.restore(theirs)["p"]["c"], W + 3)
    fresh.branch("main", fresh.merges.get("refs/heads/main").ours, force=True)
    fresh.continue_merge("main", resolve="theirs")
    assert fresh.fsck().ok


def test_prune_spares_what_a_merge_is_of(begun):
    theirs = begun.resolve("side")
    begun.commit(OURS, "further", branch="side")
    assert begun.prune([theirs], "test").spared == (theirs.digest,)
    begun.abort_merge()
    assert begun.prune([theirs], "test").commits == (theirs.digest,)


def test_a_damaged_state_is_found_and_can_be_dropped(begun):
    key = "merges/refs/heads/main"
    data = begun.store.read(key)
    assert data.endswith(b"}\n")
    assert json.loads(data)["names"] == ["main", "side"]
    begun.store.write(key, data.replace(b'"side"', b'"size"', 1))
    with pytest.raises(CorruptionError, match="merges/refs/heads/main is damaged"):
        begun.continue_merge()
    assert [problem.object for problem in begun.fsck().problems] == ["merges/refs/heads/main"]
    begun.abort_merge()
    assert begun.fsck().ok


KILLED = """
import os, sys, vcjax
from vcjax.repo import merging
repo = vcjax.Repository.open(sys.argv[1])
settle = merging.settle
def settled(*args):
    outcome = settle(*args)
    print("settled", flush=True)
    sys.stdin.read()
    return outcome
merging.settle = settled
repo.continue_merge(resolve="theirs", method="average")
"""


def test_killed_between_deciding_and_publishing(begun):
    before = begun.branches
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, begun.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "settled\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = Repository.open(begun.url)
    assert again.branches == before
    assert left(again) == []
    commit = again.continue_merge()
    assert commit.provenance["rules"] == [["**", "theirs"], ["**", "method"]]
    assert again.fsck().ok


# -- the command line -------------------------------------------------------------


def test_commands(fork, cli):
    run = lambda *words: cli(*words, f"--repo={fork.url}")  # noqa: E731
    code, out, err = run("merge", "side")
    assert (code, out) == (1, "")
    assert "vcjax merge --continue" in err
    code, _, err = run("merge", "side", "--resolve=ours")
    assert code == 1
    assert "a merge of side into 'main' is under way" in err
    code, out, _ = run("status")
    assert code == 0
    assert "Merging side into main: 4 of 4 conflicts left" in out
    assert "p/a" in out
    assert run("log", "--oneline")[2] == "a merge into main is under way: `vcjax status`\n"
    document = json.loads(run("status", "--json")[1])
    assert document["merges"][0]["conflicts"] == ["n", "p/a", "p/b", "q"]
    code, out, err = run("merge", "--continue", "--rule=p/**=theirs")
    assert code == 1
    assert "changed 2 leaves differently" in err
    document = json.loads(run("merge", "--continue", "--rule=n=base", "--json")[1])
    assert (document["outcome"], document["conflicts"]) == ("conflict", ["q"])
    code, out, err = run("merge", "--continue", "--ours")
    assert (code, err) == (0, "")
    assert out.startswith("Merged: ")
    assert run("merge", "--rerun=HEAD")[1].startswith("The same: ")
    assert json.loads(run("merge", "--rerun=HEAD", "--json")[1])["same"] is True
    assert "no merge into 'main' is under way" in run("merge", "--abort")[2]
    assert "Merging" not in run("status")[1]


def test_abort_and_several_sides(fork, cli):
    run = lambda *words: cli(*words, f"--repo={fork.url}")  # noqa: E731
    fork.branch("third", "main~1")
    fork.commit({**BASE, "n": 7}, "third", branch="third")
    code, out, _ = run("merge", "main", "side", "third", "--dry-run", "--rule=n=third")
    assert code == 1
    assert re.search(r"p/c +side\n", out)
    assert re.search(r"p/b +conflict, open\n", out)
    assert run("merge", "main", "side", "third", "--rule=n=third")[0] == 1
    assert "Merging side and third into main: 3 of 4" in run("status")[1]
    code, out, _ = run("merge", "--abort")
    assert (code, out) == (0, "Dropped the merge into main, which is where it was\n")
    code, out, _ = run("merge", "main", "side", "third", "--rule=n=third", "--theirs")
    assert code == 1  # of three sides none is "theirs"
    code, out, _ = run(
        "merge", "main", "side", "third", "--rule=n=third", "--rule=q=base", "--ours"
    )
    assert code == 0
    assert fork.restore("main")["n"] == 7
    assert len(fork.resolve("main").parents) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--continue --abort", "exclude each other"),
        ("--continue side", "takes no revisions"),
        ("--replan", "--replan is for --continue"),
        ("side --ours --theirs", "cannot be settled by ours and by theirs"),
        ("side --interactive", "needs a terminal"),
        ("side --rule=q=third", "'third' is no side"),
        ("", "one or more revisions"),
    ],
)
def test_command_lines_that_make_no_sense(fork, cli, words, message):
    code, _, err = cli("merge", *words.split(), f"--repo={fork.url}")
    assert code == 2
    assert message in err
    assert fork.merge_progress() is None


# -- on a terminal ----------------------------------------------------------------


class Terminal:
    """A command that runs on a pseudo-terminal."""

    # As from an interactive shell: what a script starts with `&` ignores SIGINT.
    RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from vcjax.cli import main
sys.exit(main(sys.argv[1:]))
"""

    def __init__(self, *words):
        self.fd, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.RUN, *map(str, words)],
            stdin=other,
            stdout=other,
            stderr=other,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        )
        os.close(other)
        self.text = ""

    def _read(self, deadline):
        """What comes next; nothing when the other end was closed."""
        while not select.select([self.fd], [], [], 0.2)[0]:
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"nothing more after:\n{self.text}")
        try:
            return os.read(self.fd, 65536).decode()
        except OSError:  # the other end was closed
            return ""

    def expect(self, text, timeout=60):
        """Reads until a text appears; what was read."""
        start, deadline = len(self.text), time.monotonic() + timeout
        while text not in self.text[start:]:
            data = self._read(deadline)
            assert data, self.text
            self.text += data
        return self.text[start:]

    def answer(self, text):
        os.write(self.fd, f"{text}\n".encode())

    def finish(self, timeout=60):
        """Reads to the end; (exit code, all that was written)."""
        deadline = time.monotonic() + timeout
        while data := self._read(deadline):
            self.text += data
        os.close(self.fd)
        return self.process.wait(timeout), self.text


def test_asking_on_a_terminal(fork):
    terminal = Terminal("merge", "main", "side", "--interactive", f"--repo={fork.url}")
    shown = terminal.expect("[q]uit [?]: ")
    assert "(1/4) n" in shown
    assert "[m]ethod" in shown  # which takes ours of an integer
    terminal.answer("x")
    assert "a letter settles this conflict" in terminal.expect("[q]uit [?]: ")
    terminal.answer("b")
    shown = terminal.expect("[q]uit [?]: ")
    assert "(2/4) p/a" in shown
    assert "cosine of the changes of ours and theirs: 1" in shown
    assert "relative L2 0.365" in shown  # |1| / |(1, 2, 3, 4)| = 2 / sqrt(30)
    assert "relative L2 1.09" in shown
    terminal.answer("M")
    terminal.expect("method [average]: ")
    terminal.answer("avrage")
    assert "no merge method 'avrage'" in terminal.expect("method [average]: ")
    terminal.answer("")
    shown = terminal.expect("[q]uit [?]: ")
    assert "(4/4) q" in shown  # p/b is below the same prefix
    assert "[m]ethod" not in shown.partition("(4/4) q")[2]
    terminal.answer("t")
    code, text = terminal.finish()
    assert code == 0, text
    assert "Merged: " in text
    tree = fork.restore("main")
    np.testing.assert_array_equal(tree["p"]["a"], W + 2)
    np.testing.assert_array_equal(tree["p"]["b"], W + 2)
    np.testing.assert_array_equal(tree["q"], W[:2])
    assert tree["n"] == 1
    assert fork.merge_progress() is None


def test_answers_are_kept_when_one_quits_or_is_interrupted(fork):
    terminal = Terminal("merge", "main", "side", "-i", f"--repo={fork.url}")
    terminal.expect("[q]uit [?]: ")
    terminal.answer("s")
    terminal.expect("(2/4) p/a")
    terminal.answer("T")
    terminal.expect("(4/4) q")
    terminal.answer("q")
    code, text = terminal.finish()
    assert code == 1
    assert "changed 2 leaves differently" in text
    assert left(fork) == ["n", "q"]
    terminal = Terminal("merge", "--continue", "-i", f"--repo={fork.url}")
    terminal.expect("(1/2) n")
    terminal.expect("[q]uit [?]: ")
    terminal.answer("o")
    terminal.expect("(2/2) q")
    terminal.expect("[q]uit [?]: ")
    terminal.process.send_signal(signal.SIGINT)
    code, text = terminal.finish()
    assert code == 130
    assert left(fork) == ["q"]
    fork.continue_merge(resolve="base")
    assert fork.restore()["n"] == 2
    np.testing.assert_array_equal(fork.restore()["p"]["b"], W + 3)
