"""A real S3 API on loopback: moto's server, through TensorStore's own S3 driver."""

import sys
import threading

import numpy as np
import pytest
import tensorstore as ts

import vcjax
from vcjax.storage import open_store

from ..subprocesses import PATIENCE, environment

pytestmark = pytest.mark.smoke

moto_server = pytest.importorskip("moto.server", reason="moto is not installed")

BUCKET = "models"


@pytest.fixture(scope="module")
def endpoint():
    """The URL of a server, with credentials in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        import boto3

        url = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket=BUCKET)
        yield url
        server.stop()


@pytest.fixture
def url(endpoint, request):
    return f"s3://{BUCKET}/{request.node.name}?endpoint={endpoint}&region=us-east-1"


def tree(value):
    return {"big": np.full(30_000, value, np.float32), "small": np.full(900, value), "n": value}


def test_commits_and_restores(url):
    repo = vcjax.Repository.init(url)
    first = repo.commit(tree(1), "one")
    repo.commit(tree(2), "two")
    fresh = vcjax.Repository.open(url)
    assert [commit.message for commit in fresh.log()] == ["two", "one"]
    for revision, value in (("HEAD", 2), (first.digest[:8], 1), ("main@{1}", 1)):
        restored = fresh.restore(revision)
        assert restored["n"] == value
        assert (restored["big"] == value).all()
        assert (restored["small"] == value).all()
    fresh.tag("v1")
    fresh.branch("side", at="HEAD~1")
    assert fresh.fsck().ok
    fresh.undo()
    assert fresh.resolve("HEAD").digest == first.digest
    with pytest.raises(vcjax.errors.RepositoryExistsError):
        vcjax.Repository.init(url)
    assert vcjax.Repository.open(fresh.url).resolve("v1").message == "two"


def test_nothing_but_what_we_say_is_printed(url, processes, tmp_path):
    """The library of S3 tells of each file of settings that is not there."""
    home = environment(HOME=str(tmp_path))
    started = processes.start(sys.executable, "-m", "vcjax.cli", "init", url, env=home)
    _, errors = started.finish()
    assert errors == ""


def test_nothing_is_there(url):
    with pytest.raises(vcjax.errors.RepositoryNotFoundError):
        vcjax.Repository.open(url)


def test_deleting_and_collecting(url):
    repo = vcjax.Repository.init(url)
    repo.commit(tree(1), "one")
    repo.branch("side")
    repo.delete_branch("side")
    assert set(repo.branches) == {"main"}
    repo.gc(unsafe=True)
    assert repo.fsck().ok


def test_compare_and_set_is_real_here(url):
    """If it were not, the races below would prove nothing."""
    store = open_store(url)
    absent = store.read_versioned("key")
    assert absent.value is None
    assert store.compare_and_set("key", b"1", absent)
    assert not store.compare_and_set("key", b"2", absent)
    present = store.read_versioned("key")
    assert store.compare_and_set("key", b"3", present)
    assert not store.compare_and_set("key", b"4", present)
    assert store.read("key") == b"3"


def test_a_ref_moves_once_for_one_expectation(url):
    repo = vcjax.Repository.init(url)
    commit = repo.commit({"w": 1}, "one")
    one, other = (vcjax.Repository.open(url) for _ in range(2))
    expected = one.refs.get("refs/heads/main")
    assert one.refs.set("refs/heads/main", commit.digest, "one", expected) is not None
    assert other.refs.set("refs/heads/main", commit.digest, "other", expected) is None
    ref = repo.refs.get("refs/heads/main")
    assert ref is not None
    assert ref.reason == "one"


def test_two_committers_race(url):
    """Each changes its own leaf: both end up in the branch, whoever was first."""
    base = vcjax.Repository.init(url)
    base.commit({"0": -1, "1": -1}, "base")
    barrier = threading.Barrier(2)
    done = [[], []]

    def work(me):
        repo = vcjax.Repository.open(url)
        mine = repo.restore()
        barrier.wait(timeout=PATIENCE)
        for i in range(5):
            mine[str(me)] = i
            done[me].append(repo.commit(mine, f"{me} {i}").digest)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=PATIENCE)
    fresh = vcjax.Repository.open(url)
    log = [commit.digest for commit in fresh.log()]
    assert [len(mine) for mine in done] == [5, 5]
    assert len(log) == 11
    assert set(log) >= {*done[0], *done[1]}
    assert fresh.restore() == {"0": 4, "1": 4}
    assert fresh.fsck().ok


def test_leaf_objects_open_with_plain_tensorstore(url, endpoint, request):
    repo = vcjax.Repository.init(url)
    repo.commit(tree(3), "one")
    digest = repo.manifest().leaves["big"].digest
    spec = {
        "driver": "zarr3",
        "kvstore": {
            "driver": "s3",
            "bucket": BUCKET,
            "path": f"{request.node.name}/leaves/{digest[:2]}/{digest}/",
            "endpoint": endpoint,
            "aws_region": "us-east-1",
        },
    }
    assert (ts.open(spec).result().read().result() == 3).all()


def test_a_bucket_that_does_not_exist(endpoint):
    url = f"s3://no-such-bucket/x?endpoint={endpoint}&region=us-east-1"
    with pytest.raises(vcjax.errors.RepositoryNotFoundError):
        vcjax.Repository.open(url)
