"""A process is killed in the middle of a save: the others say so in time, nothing is lost."""

import pytest

import vcjax

TIMEOUT = 2.0
"""How long a process may be silent, seconds."""

NAMES = ["rows", "columns", "pack", "inline", "step", "host", "rate"]
"""Leaves with several chunks, in parts of several processes, and small ones."""


@pytest.fixture(scope="module")
def survivors(start):
    """A group that nobody is killed of: the fresh start, of two processes whatever there were."""
    return start(2)


def check_intact(url, kept, group):
    """The repository is as it was, and all processes, started afresh, go on."""
    repo = vcjax.Repository.open(url)
    assert repo.resolve("HEAD").digest == kept
    report = repo.fsck()
    assert report.ok, report.problems
    for each in group.call("restore", url=url, shape=group.shape, seed=0, names=NAMES):
        assert each["wrong"] == []
    group.call("commit", url=url, shape=group.shape, seed=1, names=NAMES)
    repo.gc(unsafe=True)
    report = repo.fsck()  # reads and digests everything
    assert report.ok, report.problems
    assert repo.restore()["step"] == 8
    assert [commit.message for commit in repo.log()] == ["saved", "saved"]


@pytest.mark.parametrize(
    ("count", "victim", "where", "background"),
    [
        (2, 1, "write", False),
        (4, 2, "write", True),
        pytest.param(2, 1, "exchange", False, marks=pytest.mark.slow),
        pytest.param(4, 3, "exchange", True, marks=pytest.mark.slow),
    ],
)
def test_a_process_is_killed(start, survivors, url, count, victim, where, background):
    doomed = start(count)
    doomed.call("init", url=url)
    [saved, *_] = doomed.call("commit", url=url, shape=doomed.shape, names=NAMES)
    doomed.start(
        "kill",
        url=url,
        shape=doomed.shape,
        victim=victim,
        where=where,
        timeout=TIMEOUT,
        names=NAMES,
        background=background,
    )
    answers = doomed.answers()
    assert answers.pop(victim) is None
    for answer in answers:
        assert answer is not None, "JAX ended it"
        assert "result" in answer, answer.get("trace")
        result = answer["result"]
        assert result["kind"] in ("ProcessTimeoutError", "ProcessError"), result
        assert "restart all" in result["hint"]
    check_intact(url, saved["digest"], survivors)


@pytest.mark.parametrize(
    ("count", "where"),
    [(2, "publish"), pytest.param(4, "write", marks=pytest.mark.slow)],
)
def test_process_0_is_killed(start, survivors, url, count, where):
    """JAX's coordination service dies with it, and JAX then ends the others itself."""
    doomed = start(count)
    doomed.call("init", url=url)
    [saved, *_] = doomed.call("commit", url=url, shape=doomed.shape, names=NAMES)
    save = {"url": url, "shape": doomed.shape, "names": NAMES}
    doomed.start("kill", victim=0, where=where, timeout=TIMEOUT, **save)
    first, *others = doomed.answers()
    assert first is None
    for answer in others:  # nothing, if JAX was faster than the error
        assert answer is None or answer["result"]["kind"] == "ProcessError"
    check_intact(url, saved["digest"], survivors)
