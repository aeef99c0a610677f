"""The commands on real files, in process."""

import json

import ml_dtypes
import numpy as np
import pytest

from vcjax import Repository, formats

pytestmark = pytest.mark.smoke


@pytest.fixture
def ok(cli):
    """Runs a command line that must succeed, quietly: its stdout."""

    def run(*words):
        code, out, err = cli(*words)
        assert (code, err) == (0, "")
        return out

    return run


@pytest.fixture
def document(cli):
    """Runs a command line with --json: its document."""

    def run(*words, code=0):
        found, out, _ = cli(*words, "--json")
        assert found == code
        return json.loads(out)

    return run


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "encoder.weight": rng.normal(size=(200, 96)).astype(ml_dtypes.bfloat16),
        "encoder.bias": np.array([np.nan, -0.0, np.inf], np.float32),
        "head.weight": rng.normal(size=(96, 10)).astype(np.float32),
        "steps": np.arange(3),
    }


def with_changes(tree, **changes):
    return {**tree, **{name.replace("_", "."): value for name, value in changes.items()}}


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        one, other = np.asarray(a[key]), np.asarray(b[key])
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


@pytest.fixture
def project(ok, tmp_path):
    """A repository with two branches that changed one leaf each and one leaf both."""
    base = weights()
    ours = with_changes(base, head_weight=base["head.weight"] + 1, steps=base["steps"] + 1)
    theirs = with_changes(base, head_weight=base["head.weight"] - 1)
    theirs["encoder.weight"] = -base["encoder.weight"]
    for name, tree in {"base": base, "ours": ours, "theirs": theirs}.items():
        formats.write(tmp_path / f"{name}.safetensors", tree, {"licence": "MIT"})
    ok("init")
    ok("commit", "base.safetensors", "-m", "base", "--metric=accuracy=0.5", "--step=1")
    ok("branch", "side")
    ok("commit", "ours.safetensors", "-m", "ours", "--metric=accuracy=0.75", "--step=2")
    ok("commit", "theirs.safetensors", "-m", "theirs", "--branch=side")
    return Repository.open(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "msgpack", "npz"])
def test_commit_and_checkout_give_the_file_back(ok, tmp_path, suffix):
    tree = weights()
    metadata = {} if suffix == "msgpack" else {"licence": "MIT", "note": "ünïcode"}
    formats.write(tmp_path / f"model.{suffix}", tree, metadata)
    ok("init")
    ok("commit", f"model.{suffix}", "-m", "first")
    ok("checkout", "HEAD", f"again.{suffix}")
    assert (tmp_path / f"again.{suffix}").read_bytes() == (
        tmp_path / f"model.{suffix}"
    ).read_bytes()


def test_checkout_into_another_format_keeps_the_leaves(ok, project, tmp_path):
    ok("checkout", "main", "model.npz")
    checkpoint = formats.read(tmp_path / "model.npz")
    same(checkpoint.tree, formats.read(tmp_path / "ours.safetensors").tree)
    assert checkpoint.metadata == {}


def test_checkout_of_some_leaves_and_by_format_name(ok, project, tmp_path):
    ok("checkout", "HEAD", "part.bin", "--format=npz", "--paths", "encoder.*,steps")
    part = formats.read(tmp_path / "part.bin", format="npz").tree
    assert sorted(part) == ["encoder.bias", "encoder.weight", "steps"]


def test_checkout_writes_neither_through_links_nor_over_what_is_read_only(
    cli, ok, project, tmp_path
):
    """Caches of content hand out links to files that others use, too, and make them read-only."""
    (tmp_path / "cache").mkdir()
    kept = tmp_path / "cache" / "ab12"
    kept.write_bytes(b"theirs")
    kept.chmod(0o444)
    for name, place in {"link": kept, "nowhere": tmp_path / "cache" / "gone"}.items():
        (tmp_path / f"{name}.npz").symlink_to(place)
        code, _, err = cli("checkout", "HEAD", f"{name}.npz")
        assert code == 1
        assert "is a symbolic link to" in err
    code, _, err = cli("checkout", "HEAD", "cache/ab12", "--format=npz")
    assert code == 1
    assert "is read-only" in err
    assert [path.name for path in kept.parent.iterdir()] == ["ab12"]
    assert kept.read_bytes() == b"theirs"
    ok("checkout", "HEAD", "link.npz", "--force")
    assert (tmp_path / "link.npz").is_symlink()
    assert "steps" in formats.read(kept).tree


def test_commit_records_what_the_flags_say(ok, project, monkeypatch):
    monkeypatch.setenv("VCJAX_AUTHOR", "Ada <ada@example.org>")
    ok("commit", "base.safetensors", "--metadata", "lr=0.1", "--metadata=note=as text")
    commit = project.resolve("HEAD")
    assert (commit.message, commit.author) == ("base.safetensors", "Ada <ada@example.org>")
    assert commit.metadata["lr"] == 0.1
    assert commit.metadata["note"] == "as text"
    assert commit.metadata["file"] == {"format": "safetensors", "metadata": {"licence": "MIT"}}
    ok("commit", "ours.safetensors", "-m", "x", "--author=Bob <b@b>")
    assert project.resolve("HEAD").author == "Bob <b@b>"


def test_log_in_one_line_each_with_metrics(ok, project):
    side, main, base = (project.resolve(name).digest[:8] for name in ("side", "main", "main~1"))
    assert ok("log", "--graph", "--oneline", "--all", "--metrics=accuracy") == (
        "  accuracy\n"
        f"            * {side} (side) theirs\n"
        f"      0.75  | * {main} (HEAD -> main) ours\n"
        "            |/\n"
        f"       0.5  * {base} base\n"
    )


def test_log_in_full(ok, project):
    ok("tag", "v1")
    text = ok("log", "-n1", "--graph")
    assert f"* commit {project.resolve('HEAD').digest} (HEAD -> main, tag: v1)\n" in text
    assert "| Step:    2\n" in text
    assert "| Metrics: accuracy=0.75\n" in text
    assert "|     ours\n" in text


@pytest.mark.parametrize("limit", ["-n1", "-n=1", "--limit=1", "--limit 1", "-n 1"])
def test_the_spellings_of_a_flag(ok, project, limit):
    assert len(ok("log", "--oneline", *limit.split()).splitlines()) == 1
    assert len(ok("--json", "log", *limit.split(), "side").splitlines()) > 1


def test_log_of_a_merge_and_its_first_parents(ok, project):
    ok("merge", "side", "--resolve=ours")
    assert ok("log", "--graph", "--oneline").startswith("*   ")
    assert len(ok("log", "--oneline", "--first-parent").splitlines()) == 3
    assert "Merge:   " in ok("log", "-n", "1")


def test_reflog(ok, project, document):
    ok("merge", "side", "--resolve=theirs")
    ok("undo")
    lines = ok("log", "--reflog").splitlines()
    assert [line.split()[1] for line in lines] == [f"main@{{{i}}}" for i in range(4)]
    assert lines[0].endswith("undo: merge: Merge side into HEAD")
    ok("branch", "gone")
    ok("branch", "--delete", "gone")
    assert document("log", "--reflog", "gone")["states"][0]["commit"] == project.branches["main"]


def test_show(ok, project, document):
    text = ok("show", "HEAD")
    assert "Changes: 2 changed, 2 unchanged\n" in text
    assert 'file:    {"format": "safetensors", "metadata": {"licence": "MIT"}}\n' in text
    assert "the first commit" in ok("show", "HEAD~1")
    assert document("show")["changes"]["changed"] == 2
    ok("merge", "side", "--resolve=ours")
    text = ok("show")
    assert '    "side": 1,\n' in text or '    "side": 1\n' in text
    assert "head.weight" not in text
    assert document("show")["commit"]["provenance"]["decisions"]["head.weight"] == "side"
    assert document("show", "main~2")["changes"] is None


def test_ls(ok, project, document):
    assert ok("ls").splitlines()[1].split()[:3] == ["encoder.bias", "float32", "[3]"]
    assert len(ok("ls", "encoder.*").splitlines()) == 4
    assert ok("ls", "side", "steps").startswith("leaf   dtype")
    leaves = document("ls", "main~1")["leaves"]
    assert [leaf["path"] for leaf in leaves] == sorted(weights())
    assert leaves[1]["nbytes"] == 200 * 96 * 2


def test_diff_of_commits(ok, cli, project, document):
    assert "2 changed, 2 unchanged" in ok("diff")
    assert ok("diff", "main~1", "main", "steps", "--no-stats").splitlines()[1:] == [
        f"~  steps  {weights()['steps'].dtype}[3] [0, 1, 2] → [1, 2, 3]",
        "1 changed",
    ]
    assert "~~~~" in ok("diff", "--stat")
    assert cli("diff", "--exit_code")[0] == 1
    assert cli("diff", "main", "main", "--exit-code")[0] == 0
    found = document("diff", "main", "side")
    changed = [change["path"] for change in found["changes"]]
    assert changed == ["encoder.weight", "head.weight", "steps"]
    assert found["changes"][0]["stats"]["cosine"] == pytest.approx(-1)
    assert found["old"] == {"name": "main", "commit": project.branches["main"]}


def test_diff_of_files(ok, project, document, tmp_path, monkeypatch):
    assert "4 unchanged" in ok("diff", "ours.safetensors")
    assert document("diff", "base.safetensors")["old"]["name"] == "HEAD"
    assert document("diff", "side", "theirs.safetensors")["counts"]["unchanged"] == 4
    mixed = document("diff", "base.safetensors", "main")
    assert mixed["counts"] == {**mixed["counts"], "changed": 2, "unchanged": 2}
    monkeypatch.chdir("/")
    files = [tmp_path / f"{name}.safetensors" for name in ("base", "ours")]
    assert "2 changed" in ok("diff", *files)


def test_diff_of_figures_that_json_lacks(ok, document, tmp_path):
    formats.write(tmp_path / "zero.npz", {"w": np.zeros(9, np.float32)})
    formats.write(tmp_path / "one.npz", {"w": np.ones(9, np.float32)})
    assert document("diff", "zero.npz", "one.npz")["changes"][0]["stats"]["relative_l2"] == (
        "Infinity"
    )
    assert "from 0" in ok("diff", "zero.npz", "one.npz")
    assert "~~~" in ok("diff", "zero.npz", "one.npz", "--stat")


def test_merge_conflicts_change_nothing(cli, project, document):
    before = project.branches
    code, out, err = cli("merge", "side")
    assert (code, out) == (1, "")
    assert err.startswith("error: HEAD and side changed ")
    assert "\n  head.weight: " in err
    assert "\nhint: " in err
    assert document("merge", "--continue", code=1)["conflicts"] == ["head.weight"]
    assert document("merge", "--abort")["outcome"] == "aborted"
    assert document("merge", "side", code=1)["conflicts"] == ["head.weight"]
    assert cli("merge", "side", "--dry_run")[0] == 1
    assert project.branches == before


def test_merge_by_rules(ok, project, document, tmp_path):
    plan = document("merge", "side", "--dry_run", "--rule=head.*=theirs")
    assert plan["settled"] == {"head.weight": "rule"}
    assert plan["conflicts"] == []
    merged = document("merge", "main", "side", "--rule=head.*=theirs", "-m", "both")
    assert merged["outcome"] == "merged"
    assert merged["commit"]["message"] == "both"
    assert merged["decisions"]["head.weight"] == "side"
    ok("checkout", "main", "merged.npz")
    tree = formats.read(tmp_path / "merged.npz").tree
    theirs = formats.read(tmp_path / "theirs.safetensors").tree
    same(tree, {**theirs, "steps": weights()["steps"] + 1})


METHODS = {
    "average": ["--method=average"],
    "linear": ["--method=linear", "--weights=3,1"],
    "ties": ["--method=ties(density=0.5)"],
    "task_arithmetic": ["--method=task_arithmetic", "--method_args=scale=0.5"],
    "dare_ties": ["--method=dare_ties", "--seed=1"],
}


@pytest.mark.parametrize("name", METHODS)
def test_merge_by_method(ok, project, document, tmp_path, name):
    plan = document("merge", "side", "--dry_run", *METHODS[name])
    assert (plan["settled"], plan["conflicts"]) == ({"head.weight": name}, [])
    merged = document("merge", "side", *METHODS[name])
    assert merged["decisions"] == {
        "encoder.weight": "theirs",
        "head.weight": "method",
        "steps": "ours",
    }
    ok("checkout", "main", "merged.npz")
    tree = formats.read(tmp_path / "merged.npz").tree
    base, head = weights(), tree.pop("head.weight")
    expected = {"average": 0, "linear": 0.5}.get(name)
    if expected is not None:
        np.testing.assert_allclose(head, base["head.weight"] + expected, atol=1e-6)
    assert np.abs(head - base.pop("head.weight")).max() < 3
    changed = {"encoder.weight": -base["encoder.weight"], "steps": base["steps"] + 1}
    same(tree, {**base, **changed})
    assert ok("fsck").endswith("all is well\n")


def test_merge_of_nested_leaves_by_method(ok, tmp_path):
    ok("init")
    for name, value in {"base": 0, "ours": 1, "theirs": 3}.items():
        tree = {"params": {"a/b": np.full((2, 3), value, np.float32)}}
        formats.write(tmp_path / f"{name}.msgpack", tree)
    ok("commit", "base.msgpack")
    ok("branch", "side")
    ok("commit", "ours.msgpack")
    ok("commit", "theirs.msgpack", "--branch=side")
    assert " 1 method\n" in ok("merge", "side", "--method=average")
    ok("checkout", "HEAD", "merged.msgpack")
    merged = formats.read(tmp_path / "merged.msgpack").tree["params"]["a/b"]
    np.testing.assert_array_equal(merged, np.full((2, 3), 2, np.float32))


def test_merge_that_needs_no_commit(ok, project):
    assert ok("merge", "main~1").startswith("Up to date already: ")
    ok("branch", "behind", "main~1")
    ok("switch", "behind")
    assert ok("merge", "main").startswith("Fast-forward: ")
    assert project.branches["behind"] == project.branches["main"]


def test_branches_tags_and_switch(ok, project, document):
    assert ok("branch").splitlines()[0].startswith("* main")
    ok("branch", "third", "main~1")
    assert ok("branch", "--force", "third", "main").startswith("branch third is at ")
    ok("branch", "-d", "third")
    assert [row["name"] for row in document("branch")["branches"]] == ["main", "side"]
    ok("tag", "v1", "side")
    assert document("tag")["tags"][0]["commit"] == project.branches["side"]
    ok("tag", "--delete", "v1")
    assert document("tag") == {"format": "vcjax.tags.1", "tags": []}
    assert ok("switch", "--create", "new") == "HEAD is now on branch new\n"
    assert ok("switch", "--detach", "main~1").startswith("HEAD is now on commit ")
    assert document("switch", "side")["branch"] == "side"


def test_undo(ok, project):
    first = project.resolve("HEAD~1").digest
    assert ok("undo").startswith(f"branch main is back at {first[:8]} base\n")
    ok("branch", "--force", "main", "main@{1}")
    assert project.resolve("HEAD").message == "ours"


def test_care(ok, cli, project, document, tmp_path):
    assert ok("fsck").endswith("all is well\n")
    assert "Would delete 0 commits" in ok("gc", "--dry_run")
    stray = tmp_path / ".vcjax/manifests/00"
    stray.mkdir()
    (stray / f"{'0' * 64}.msgpack").write_bytes(b"x")
    assert document("gc", "--grace=1")["manifests"] == []
    assert document("gc", "--unsafe")["manifests"] == ["0" * 64]
    assert not list(stray.glob("*"))
    counts = document("stats")
    assert (counts["commits"], counts["leaves"]) == (3, 12)
    assert counts["logical_bytes"] == sum(c.nbytes for c in project.log("main", "side"))
    assert counts["stored_bytes"] == sum(kind["nbytes"] for kind in counts["kinds"].values())
    assert "times as much as is stored" in ok("stats")


def test_fsck_names_what_is_damaged(cli, project, document, tmp_path):
    victim = next((tmp_path / ".vcjax/packs").glob("*/*/c/*"))
    victim.write_bytes(bytes(victim.stat().st_size))
    report = document("fsck", code=1)
    assert not report["ok"]
    assert any("'head.weight'" in problem["object"] for problem in report["problems"])
    code, out, _ = cli("fsck")
    assert code == 1
    assert out.startswith("problem leaf ")


def test_doctor(ok, document, tmp_path):
    ok("init")
    found = document("doctor")
    assert found["ok"]
    names = [finding["name"] for finding in found["findings"]]
    assert {"jax", "tensorstore", "hashing cpu", "compare-and-set", "format npz"} <= set(names)
    assert not (tmp_path / ".vcjax/probe").exists()
    assert ok("fsck").endswith("all is well\n")


def test_doctor_outside_a_repository(cli, tmp_path):
    code, out, _ = cli("doctor")
    assert code == 0
    assert "hint: make one with `vcjax init`" in out
    assert list(tmp_path.iterdir()) == []


def test_the_ways_to_name_the_repository(ok, project, tmp_path, monkeypatch):
    line = ok("log", "--oneline", "-n1")
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    assert ok("log", "--oneline", "-n1") == line
    monkeypatch.chdir("/")
    assert ok("--repo", tmp_path, "log", "--oneline", "-n1") == line
    assert ok("log", "--oneline", "-n1", f"--repo={tmp_path}/.vcjax") == line
    monkeypatch.setenv("VCJAX_REPO", str(tmp_path))
    assert ok("log", "--oneline", "-n1") == line


def test_init_elsewhere(ok, document, tmp_path):
    made = document("init", "models", "--branch=trunk", "--compress")
    assert made["url"] == str(tmp_path / "models")
    assert (made["branch"], made["compress"]) == ("trunk", True)
    assert (tmp_path / "models/vcjax.json").is_file()
