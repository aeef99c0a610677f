"""How commits are named: revisions, and branches and tags, their names and what moves them."""

import itertools
from datetime import UTC, datetime

import pytest

from vcjax.errors import RefError, RevisionError
from vcjax.history import Commit
from vcjax.history.refnames import check_name


@pytest.fixture
def story(repo):
    """base ─ two ─ merge on main, with a side branch; commits by message."""
    commits = {}

    def commit(message, tree, **options):
        commits[message] = repo.commit(tree, message, **options)

    commit("base", {"a": 0, "b": 0}, metadata={"step": 1}, metrics={"val_loss": 0.5, "accuracy": 1})
    repo.branch("side")
    commit("two", {"a": 1, "b": 0}, metadata={"step": 2}, metrics={"val_loss": 0.2, "accuracy": 2})
    commit("left", {"a": 0, "b": 1}, branch="side", metrics={"val_loss": 0.9, "accuracy": 9})
    commits["merge"] = repo.merge("main", "side", message="merge")
    repo.tag("v1.0", at="main~1")
    return repo, commits


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("HEAD", "merge"),
        ("@", "merge"),
        ("latest", "merge"),
        ("main", "merge"),
        ("heads/main", "merge"),
        ("refs/heads/main", "merge"),
        ("side", "left"),
        ("v1.0", "two"),
        ("tags/v1.0", "two"),
        ("HEAD~", "two"),
        ("HEAD~1", "two"),
        ("HEAD~0", "merge"),
        ("HEAD^0", "merge"),
        ("HEAD~2", "base"),
        ("HEAD^", "two"),
        ("HEAD^1", "two"),
        ("HEAD^2", "left"),
        ("HEAD^2~1", "base"),
        ("HEAD^2^", "base"),
        ("main^^", "base"),
        ("main@{0}", "merge"),
        ("main@{1}", "two"),
        ("main@{1}~1", "base"),
        ("@{1}", "two"),
        ("HEAD@{1}", "two"),
        ("step:2", "two"),
        ("step:1", "base"),
        ("best:val_loss", "two"),
        ("best:val_loss:max", "left"),
        ("best:accuracy", "left"),
        ("best:accuracy:min", "base"),
    ],
)
def test_revisions(story, revision, message):
    repo, _ = story
    assert repo.resolve(revision).message == message


def test_digests_and_prefixes(story):
    repo, commits = story
    for commit in commits.values():
        assert repo.resolve(commit.digest) == commit
        assert repo.resolve(commit.digest[:12]) == commit
        assert repo.resolve(commit) is commit


@pytest.mark.parametrize(
    ("revision", "text"),
    [
        ("mian", "did you mean main"),
        ("sidr~1", "did you mean side"),
        ("HEAD~9", "parent"),
        ("HEAD^3", "2 parent"),
        ("main@{7}", "3 state"),
        ("nobody@{1}", "no ref"),
        ("step:77", "nearest are 2, 1"),
        ("step:x", "step:1200"),
        ("best:f1", "accuracy, val_loss"),
        ("0123456789", "no commit is called"),
        ("abc", "no commit is called"),
        ("", "no commit is called"),
        ("../../etc/passwd", "no commit is called"),
        ("refs/heads/../../HEAD", "no commit is called"),
        ("main/x", "no commit is called"),
        ("a\0b", "no commit is called"),
        ("\udcff", "no commit is called"),
        ("^", "no commit is called"),
        ("HEAD" + "^" * 5000, "parent"),
        ("HEAD~99999999999999999999", "no commit is called"),
    ],
)
def test_bad_revisions(story, revision, text):
    repo, _ = story
    with pytest.raises(RevisionError) as caught:
        repo.resolve(revision)
    assert text in str(caught.value)
    assert caught.value.hint


def test_ambiguous_prefix(repo):
    seen, numbers = {}, itertools.count()

    def encoded():
        message = str(next(numbers))
        return Commit("00" * 32, "00" * 32, (), "a", datetime.now(UTC), message).encode()

    while (data := encoded())[0][:4] not in seen:
        seen[data[0][:4]] = data
    for name, content in (data, seen[data[0][:4]]):
        repo.store.write(f"commits/{name[:2]}/{name}.msgpack", content)
    with pytest.raises(RevisionError, match="beginning of 2 commits") as caught:
        repo.resolve(data[0][:4])
    assert "more digits" in str(caught.value.hint)
    assert repo.resolve(data[0]).digest == data[0]


def test_a_branch_and_a_tag_of_one_name(story):
    repo, _ = story
    repo.tag("side", at="main")
    with pytest.raises(RevisionError, match="could be"):
        repo.resolve("side")
    assert repo.resolve("heads/side").message == "left"
    assert repo.resolve("tags/side").message == "merge"


def test_detached_head(story):
    repo, commits = story
    repo.switch("v1.0", detach=True)
    assert repo.head.branch is None
    assert repo.resolve("HEAD") == commits["two"]
    commit = repo.commit({"a": 9, "b": 9}, "loose")
    assert commit.parents == (commits["two"].digest,)
    assert repo.resolve("HEAD").digest == commit.digest
    assert repo.resolve("main") == commits["merge"]
    for refused in (repo.undo, lambda: repo.switch("v1.0")):
        with pytest.raises(RefError):
            refused()
    assert repo.resolve("HEAD@{1}") == commits["two"]
    with pytest.raises(RevisionError):
        repo.resolve("HEAD@{2}")
    repo.branch("kept")
    repo.switch("kept")
    assert repo.head.branch == "kept"


GOOD = ["main", "a/b/c", "v1.1", "naïve", "x_y-z", "a.b", "1", "feature/été", "n" * 200]


BAD = [
    *("", "HEAD", "@", "a b", "a~b", "a^b", "a:b", "a?b", "a*b", "a[b", "a\\b", "a@b", "a..b"),
    *("a//b", "/a", "a/", ".a", "a/.b", "-a", "a/-b", "a.", "a.lock", "a.lock/b", "a\0b", "a\x7f"),
    *("a\nb", "../a", "n" * 201, "é" * 101, "\udcff"),
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names(story, name):
    repo, commits = story
    repo.tag(name, at="side")
    assert repo.tags[name] == commits["left"].digest
    repo.delete_tag(name)


@pytest.mark.parametrize("name", BAD)
def test_bad_names(story, name):
    repo, _ = story
    for action in (repo.branch, repo.tag, check_name):
        with pytest.raises(RefError, match="not a valid name"):
            action(name)


def test_no_ref_is_a_folder_of_another(story):
    repo, _ = story
    repo.branch("x/y")
    for name in ("x", "x/y/z", "main/x"):
        with pytest.raises(RefError, match="beside"):
            repo.branch(name)
    repo.delete_branch("x/y")
    repo.branch("x")
    assert "x" in repo.branches


def test_refs_are_not_moved_by_mistake(story):
    repo, commits = story
    with pytest.raises(RefError, match="exists already"):
        repo.branch("side")
    repo.branch("side", force=True)
    assert repo.branches["side"] == commits["merge"].digest
    with pytest.raises(RefError, match="current branch"):
        repo.delete_branch("main")
    with pytest.raises(RefError, match="did you mean side"):
        repo.delete_branch("sid")
    with pytest.raises(RefError, match="did you mean side"):
        repo.switch("sidee")
