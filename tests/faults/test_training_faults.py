"""What happens to training runs: SIGTERM, a full disk, a second run, a clock that is set back."""

import signal
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

import vcjax
from vcjax.errors import StorageError
from vcjax.repo import commit as committing
from vcjax.storage.tensorstore_internals import TEMPORARY

TRAINING = """
    import signal, sys
    import numpy as np
    import vcjax
    folder, mode = sys.argv[1:]
    if mode == "handled":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    options = vcjax.CheckpointManagerOptions(enable_async_checkpointing=True, max_to_keep=3)
    manager = vcjax.CheckpointManager(folder, options)
    first = 0 if manager.latest_step() is None else manager.latest_step() + 1
    print("from", first, flush=True)
    for step in range(first, 100_000):
        manager.save(step, {"w": np.full(500_000, step, np.float32), "step": step})
        print("saving", step, flush=True)  # the step before is on disk, this one is under way
"""


def saved(folder):
    """The latest step, of which there is one, after a check that all is well."""
    repo = vcjax.Repository.open(folder)
    assert repo.fsck().ok
    manager = vcjax.CheckpointManager(folder)
    for step in manager.all_steps():
        tree = repo.restore(f"step:{step}")
        tree = tree.get("default", tree)
        assert tree["step"] == step
        assert (np.asarray(tree["w"]) == step).all()
    manager.close()
    latest = manager.latest_step()
    assert latest is not None
    return latest


@pytest.mark.parametrize("mode", ["default", "handled"])
def test_sigterm_during_a_save_in_the_background(tmp_path, processes, mode):
    """At once, all but the step under way is there; a handler that exits waits for that too."""
    begun = -1
    for _ in range(2 if mode == "default" else 1):
        process = processes.python(TRAINING, tmp_path, mode)
        assert process.read_line() == f"from {begun + 1}"
        for _ in range(4):
            begun = int(process.read_line().split()[1])
        process.send_signal(signal.SIGTERM)
        rest, _ = process.finish(0 if mode == "handled" else -signal.SIGTERM)
        begun = max([begun, *(int(line.split()[1]) for line in rest.splitlines())])
        if mode == "handled":
            assert saved(tmp_path) in (begun, begun + 1)  # a last one may not have been printed
        else:
            assert saved(tmp_path) in (begun - 1, begun, begun + 1)
        begun = saved(tmp_path)


FULL = """
    import resource, signal, sys
    import numpy as np
    import vcjax
    options = vcjax.CheckpointManagerOptions(enable_async_checkpointing=True, max_to_keep=2)
    manager = vcjax.CheckpointManager(sys.argv[1], options)
    tree = lambda step: {"w": np.full(500_000, step, np.float32), "step": step}
    for step in range(3):
        manager.save(step, tree(step))
    manager.wait_until_finished()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    manager.save(3, tree(3))
    try:
        manager.wait_until_finished()
    except vcjax.errors.StorageError as error:
        print("refused", "step 3" in str(error), bool(error.hint))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    print(manager.latest_step(), sorted(manager.all_steps())[-1])
    manager.save(4, tree(4))
    manager.wait_until_finished()
    manager.close()
"""


def test_a_disk_that_fills_up_in_the_background(tmp_path, processes):
    """The step is not listed, the error names it, and training goes on when there is room."""
    out, _ = processes.python(FULL, tmp_path).finish()
    assert out.splitlines() == ["refused True True", "2 2"]
    assert saved(tmp_path) == 4
    assert not [path for path in tmp_path.rglob(f"*{TEMPORARY}") if path.stat().st_size]


def test_a_manager_on_a_disk_without_room_for_anything(tmp_path, monkeypatch):
    """Not even the step before is lost, and `save` says so at once without threads."""
    manager = vcjax.CheckpointManager(
        tmp_path, vcjax.CheckpointManagerOptions(enable_async_checkpointing=False)
    )
    manager.save(0, {"w": np.zeros(500_000, np.float32), "step": 0})

    def full(*_, **__):
        raise StorageError("cannot write: No space left on device", hint="free space")

    with monkeypatch.context() as patch:
        patch.setattr(type(manager.repo.store), "compare_and_set", full)
        with pytest.raises(StorageError, match="No space left"):
            manager.save(1, {"w": np.ones(500_000, np.float32), "step": 1})
    assert manager.latest_step() == 0
    manager.save(1, {"w": np.ones(500_000, np.float32), "step": 1})
    manager.close()
    assert saved(tmp_path) == 1


SECOND = """
    import sys
    import numpy as np
    import vcjax
    folder, me = sys.argv[1], int(sys.argv[2])
    options = vcjax.CheckpointManagerOptions(enable_async_checkpointing=False)
    manager = vcjax.CheckpointManager(folder, options)
    print("ready", flush=True)
    sys.stdin.readline()
    taken = 0
    for step in range(30):
        try:
            w = np.full(30_000, step, np.float32)
            if manager.save(step, {"w": w, "step": step, "by": 2 * step + me}):
                print(step, flush=True)
        except (vcjax.errors.StepExistsError, vcjax.ConflictError):
            taken += 1  # the other one has it, or is faster at this moment
    manager.close()
    print("end", taken)
"""


def test_a_run_that_was_started_twice(tmp_path, processes):
    """Both save the same steps to one folder: each step is somebody's, whole, and in the log."""
    vcjax.CheckpointManager(tmp_path).close()
    runs = [processes.python(SECOND, tmp_path, me) for me in range(2)]
    for process in runs:
        assert process.read_line() == "ready"
    for process in runs:
        process.write_line("go")
    outputs = [process.finish()[0] for process in runs]
    acknowledged = [[int(line) for line in out.splitlines()[:-1]] for out in outputs]
    assert saved(tmp_path) == 29
    repo = vcjax.Repository.open(tmp_path)
    # Nothing that was acknowledged is lost: every save of either run is a commit on the branch.
    found = {0: [], 1: []}
    for commit in repo.log():
        tree = repo.restore(commit)
        tree = tree.get("default", tree)
        assert tree["step"] == commit.metadata["step"]
        assert (np.asarray(tree["w"]) == tree["step"]).all()
        found[int(tree["by"]) % 2].append(int(tree["step"]))
    assert [sorted(found[me]) for me in (0, 1)] == acknowledged
    assert set(found[0]) | set(found[1]) == set(range(30))


@pytest.mark.parametrize("background", [False, True])
def test_whole_states_of_two_writers_are_not_mixed(repo, background):
    """A leaf that one writer left as it was is not taken over from the other one's state."""
    repo.commit({"w": 0, "seed": 1}, "base")
    one, other = (vcjax.Repository.open(repo.url) for _ in range(2))
    one.restore()
    other.restore()
    theirs = other.commit({"w": 1, "seed": 2}, "theirs", rebase=False)
    tree = {"w": 1, "seed": 1}
    if background:
        mine = one.commit_async(tree, "mine", rebase=False).result()
    else:
        mine = one.commit(tree, "mine", rebase=False)
    assert mine.parents == (theirs.digest,)
    assert repo.restore("main") == {"w": 1, "seed": 1}
    assert repo.restore("main~1") == {"w": 1, "seed": 2}
    one.commit({"w": 5, "seed": 1}, "and on", rebase=False)
    assert repo.restore("main") == {"w": 5, "seed": 1}


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set: `clock.ahead` in seconds."""

    class Clock:
        ahead = 0.0

    real_time = time.time

    class Shifted(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz or UTC) + timedelta(seconds=Clock.ahead)

    monkeypatch.setattr(time, "time", lambda: real_time() + Clock.ahead)
    monkeypatch.setattr(committing, "datetime", Shifted)
    return Clock


DAY = 24 * 3600.0


def test_a_clock_that_is_set_back_does_not_turn_history_round(repo, clock):
    commits = []
    for days in (0, 3, -400, 2, -1):
        clock.ahead = days * DAY
        commits.append(repo.commit({"w": len(commits)}, str(days), metadata={"step": len(commits)}))
    times = [commit.time for commit in commits]
    assert times != sorted(times), "the clock did go backwards"
    assert [commit.digest for commit in repo.log()] == [c.digest for c in reversed(commits)]
    for back, commit in enumerate(reversed(commits)):
        assert repo.resolve(f"HEAD~{back}").digest == commit.digest
        assert repo.resolve(f"main@{{{back}}}").digest == commit.digest
    fresh = vcjax.Repository.open(repo.url)
    assert fresh.restore("step:2") == {"w": 2}
    repo.undo()
    assert repo.resolve("main").digest == commits[-2].digest
    assert repo.resolve("main@{1}").digest == commits[-1].digest
    assert repo.fsck().ok


def test_a_manager_whose_clock_is_set_back(tmp_path, clock):
    options = vcjax.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    manager = vcjax.CheckpointManager(tmp_path, options)
    for step, days in enumerate((0, 5, -5, -300, 1)):
        clock.ahead = days * DAY
        manager.save(step, {"w": np.full(50_000, step, np.float32), "step": step})
        assert manager.latest_step() == step
    assert vcjax.CheckpointManager(tmp_path).latest_step() == 4
    assert list(manager.all_steps()) == [3, 4]
    assert not manager.save(4, {"w": np.zeros(3), "step": 4})
    manager.close()
    assert saved(tmp_path) == 4


@pytest.mark.parametrize("days", [-300, 300])
def test_no_clock_makes_gc_collect_what_is_in_use(repo, clock, days):
    """Written by a clock that was ahead, collected by one that is right, and the reverse."""
    clock.ahead = days * DAY
    for value in range(3):
        repo.commit({"w": np.full(50_000, value, np.float32)}, str(value))
    repo.tag("kept", "HEAD~1")
    clock.ahead = 0.0
    repo.commit({"w": np.full(50_000, 3.0, np.float32)}, "3")
    fresh = vcjax.Repository.open(repo.url)
    fresh.gc()
    assert fresh.fsck().ok
    for back in range(4):
        assert fresh.restore(f"HEAD~{back}")["w"][0] == 3 - back
    # By a clock 300 days behind, all states but the last were replaced 300 days ago.
    assert fresh.restore("main@{1}" if days < 0 else "main@{2}")["w"][0] == (2 if days < 0 else 1)


def test_what_a_clock_ahead_wrote_is_young_for_the_collector(repo, clock, monkeypatch):
    """Nothing refers to it yet, and its age is negative: it may be a commit in progress."""
    repo.commit({"w": 0}, "base")

    def crash(*_):
        raise RuntimeError("killed")

    clock.ahead = 5 * DAY
    with monkeypatch.context() as patch:
        patch.setattr(repo.refs, "set", crash)
        with pytest.raises(RuntimeError, match="killed"):
            repo.commit({"w": np.ones(50_000)}, "in progress")
    clock.ahead = 0.0
    plan = repo.gc()
    assert (plan.commits, plan.objects) == ((), ())
    forced = repo.gc(unsafe=True)
    assert (len(forced.commits), len(forced.objects)) == (1, 1)
    assert repo.fsck().ok
