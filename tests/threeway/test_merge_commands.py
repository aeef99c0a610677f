"""`vcjax merge` with conflicts: its options, and what it asks on a terminal."""

import functools
import json
import re

import numpy as np
import pytest

from .sides import BASE, W


def test_commands(fork, cli_in):
    run = functools.partial(cli_in, fork)
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


def test_abort_and_several_sides(fork, cli_in):
    run = functools.partial(cli_in, fork)
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
def test_command_lines_that_make_no_sense(fork, cli_in, words, message):
    code, _, err = cli_in(fork, "merge", *words.split())
    assert code == 2
    assert message in err
    assert fork.merges.get() is None


# -- on a terminal ----------------------------------------------------------------


def test_asking_on_a_terminal(fork, processes):
    terminal = processes.terminal("merge", "main", "side", "--interactive", f"--repo={fork.url}")
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
    assert "Merged: " in terminal.read_to_end()
    tree = fork.restore("main")
    np.testing.assert_array_equal(tree["p"]["a"], W + 2)
    np.testing.assert_array_equal(tree["p"]["b"], W + 2)
    np.testing.assert_array_equal(tree["q"], W[:2])
    assert tree["n"] == 1
    assert fork.merges.get() is None


def test_answers_are_kept_when_one_quits_or_is_interrupted(fork, processes):
    terminal = processes.terminal("merge", "main", "side", "-i", f"--repo={fork.url}")
    terminal.expect("[q]uit [?]: ")
    terminal.answer("s")
    terminal.expect("(2/4) p/a")
    terminal.answer("T")
    terminal.expect("(4/4) q")
    terminal.answer("q")
    assert "changed 2 leaves differently" in terminal.read_to_end(1)
    assert list(fork.merges.get().left) == ["n", "q"]
    terminal = processes.terminal("merge", "--continue", "-i", f"--repo={fork.url}")
    terminal.expect("(1/2) n")
    terminal.expect("[q]uit [?]: ")
    terminal.answer("o")
    terminal.expect("(2/2) q")
    terminal.expect("[q]uit [?]: ")
    terminal.interrupt(130)
    assert list(fork.merges.get().left) == ["q"]
    fork.merges.resume(resolve="base")
    assert fork.restore()["n"] == 2
    np.testing.assert_array_equal(fork.restore()["p"]["b"], W + 3)
