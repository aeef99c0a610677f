"""The scripts that users copy, each in a process of its own."""

import signal
import sys

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

import vcjax
from vcjax import formats, merging

from .subprocesses import ROOT, TO_STDOUT, Processes

STEPS = 1200
TRAIN = ("--config=configs/digits.py", f"--config.steps={STEPS}", "--config.features=(32,)")


def start(processes, script, *words, **options):
    return processes.start(sys.executable, f"scripts/{script}.py", *words, cwd=ROOT, **options)


@pytest.fixture
def run(processes):
    """Runs a script to its end: (stdout, stderr)."""

    def to_its_end(script, *words, code=0):
        return start(processes, script, *words).finish(code)

    return to_its_end


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The repository of a whole run."""
    folder = tmp_path_factory.mktemp("whole")
    with Processes() as processes:
        start(processes, "train", *TRAIN, f"--workdir={folder}").finish()
    return vcjax.Repository.open(folder)


def test_training_saves_every_interval_and_learns(uninterrupted):
    commits = list(uninterrupted.log())
    assert [c.step for c in commits] == list(range(STEPS, 0, -50))
    assert commits[0].metrics["accuracy"] > 0.9
    assert commits[0].metrics["accuracy"] > commits[-1].metrics["accuracy"]
    assert uninterrupted.fsck().ok


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(
    tmp_path, uninterrupted, processes, run
):
    process = start(processes, "train", *TRAIN, f"--workdir={tmp_path}", stderr=TO_STDOUT)
    while "step 100: " not in process.read_line():
        pass  # by then step 50 is on disk
    process.kill()
    process.finish(-signal.SIGKILL)
    stopped = vcjax.Repository.open(tmp_path).resolve("HEAD")
    assert stopped.step in range(50, STEPS, 50)
    _, err = run("train", *TRAIN, f"--workdir={tmp_path}")
    assert f"continuing from step {stopped.step}" in err
    repo = vcjax.Repository.open(tmp_path)
    assert repo.resolve("HEAD").tree == uninterrupted.resolve("HEAD").tree
    assert [c.step for c in repo.log()] == [c.step for c in uninterrupted.log()]


@pytest.fixture
def two_lines(tmp_path):
    """A repository with a base and two branches, and their trees."""
    rng = np.random.default_rng(0)
    base = {"net": {"w": rng.normal(size=(20, 10)).astype(np.float32), "b": np.zeros(10)}}
    step = rng.normal(size=(20, 10)).astype(np.float32)
    one = {"net": {"w": base["net"]["w"] + step, "b": base["net"]["b"]}}
    other = {"net": {"w": base["net"]["w"] - 1, "b": np.ones(10)}}
    repo = vcjax.Repository.init(tmp_path / "repo")
    repo.commit(base, "base")
    for name, tree in (("a", one), ("b", other)):
        repo.branch(name, at="main")
        repo.commit(tree, name, branch=name)
    return repo, base, one, other


def test_revisions_are_merged_by_the_method_of_a_config(two_lines, run):
    repo, base, one, other = two_lines
    options = ("--config=configs/merge/ties.py", "--config.parameters.density=0.5")
    out, _ = run("merge", *options, f"--repo={repo.url}", "--ours=a", "--theirs=b")
    commit = repo.resolve("a")
    assert out.startswith(commit.digest[:8])
    assert commit.provenance["method"]["name"] == "ties"
    assert commit.provenance["method"]["parameters"]["density"] == 0.5
    expected = vcjax.merge([one, other], merging.ties(density=0.5), base)
    merged = repo.restore("a")
    np.testing.assert_allclose(merged["net"]["w"], expected["net"]["w"], rtol=1e-6)
    np.testing.assert_array_equal(merged["net"]["b"], other["net"]["b"])


def test_files_are_merged_by_the_method_of_a_config(tmp_path, two_lines, run):
    _, *trees = two_lines
    names = [str(tmp_path / f"{name}.safetensors") for name in ("base", "one", "other", "merged")]
    for name, tree in zip(names, trees, strict=False):
        formats.write(name, tree, {"made_by": "a test"})
    files = (f"--base={names[0]}", f"--inputs={names[1]},{names[2]}", f"--output={names[3]}")
    run("merge", "--config=configs/merge/dare_ties.py", "--seed=4", *files)
    merged = formats.read(names[3])
    assert merged.metadata == formats.read(names[1]).metadata
    inputs = [formats.read(name).tree for name in names[:3]]
    expected = vcjax.merge(inputs[1:], merging.dare_ties(), inputs[0], key=4)
    assert vcjax.diff(merged.tree, expected).counts["unchanged"] == 2


def test_a_mistake_is_told_without_a_traceback(tmp_path, run):
    _, err = run("merge", f"--repo={tmp_path}", "--theirs=b", code=1)
    assert err.splitlines()[-2].startswith("error: there is no repository")
    assert "Traceback" not in err


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # by ml_collections
@pytest.mark.parametrize("name", sorted(x.stem for x in (ROOT / "configs/merge").glob("*.py")))
def test_every_merge_config_makes_its_method(name):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(["test", f"--config={ROOT}/configs/merge/{name}.py"])
    method = merging.from_config(values.config.name, values.config.parameters.to_dict())
    assert method.name == name
