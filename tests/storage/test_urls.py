"""Places of repositories: paths and URLs as users write them."""

import os
import socket
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vcjax
from vcjax.errors import StorageError, VcjaxError
from vcjax.storage import Versioned, open_store, parse_url
from vcjax.storage.tensorstore_internals import TEMPORARY

UP = Path("..")


@pytest.fixture(autouse=True)
def below(tmp_path, monkeypatch):
    """The working folder: one with another above it that has a link to a third."""
    (tmp_path / "work").mkdir()
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        ("runs", "work/runs"),
        ("./a/../runs", "work/runs"),
        ("../runs", "runs"),
        (UP / "runs", "runs"),
        (b"runs", "work/runs"),
        ("~/runs", "runs"),
        ("a b", "work/a b"),
        ("größe/模型", "work/größe/模型"),
        ("100%", "work/100%"),
        ("what?#1", "work/what?#1"),
        ("../link/runs", "link/runs"),
        ("../link/../runs", "far/runs"),
        ("file://{}/a%20b", "a b"),
        ("file:{}/runs", "runs"),
        ("file://localhost{}/runs", "runs"),
        ("file://{}/work/../runs", "runs"),
        ("file://{}/what?#1", "what?#1"),
    ],
    ids=str,
)
def test_paths_are_as_other_programs_take_them(below, place, folder):
    given = place.format(below) if isinstance(place, str) else place
    vcjax.Repository.init(given).commit({"n": 1}, "x")
    assert (below / folder / "vcjax.json").is_file()
    assert vcjax.Repository.open(given).restore() == {"n": 1}
    assert vcjax.Repository.open(below / folder).restore() == {"n": 1}


def test_a_repository_is_found_through_a_link(below):
    vcjax.Repository.init("../link/runs").commit({"n": 1}, "x")
    vcjax.Repository.open("../far/away/runs").commit({"n": 2}, "y")
    assert vcjax.Repository.open("../link/runs").restore() == {"n": 2}


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("~nobody-of-this-name/runs", "home folder"),
        ("~nobody]", "home folder"),
        ("runs\0more", "NUL"),
        ("memory://a\0b", "NUL"),
        ("file:///a%00b", "NUL"),
        ("", "empty"),
        ("C:\\runs", "backslash"),
        (os.fsdecode(b"\xff"), "UTF-8"),
        ("s3://", "no bucket"),
        ("s3://b/run?regoin=x", "regoin"),
        ("s3://b/run#1", "#"),
        ("gs://b/run?region=x", "region"),
        ("s3://b/run?timeout=soon", "no seconds"),
        ("gs://b/run?timeout=0", "no seconds"),
        ("s3://UPPER CASE/x", "cannot open"),
        ("https://x/y", "unknown scheme"),
        ("file://host/x", "another host"),
        ("s3://[", "no URL"),
        (f"runs{TEMPORARY}", "cannot open"),
    ],
)
def test_places_that_cannot_be_are_refused(below, place, problem):
    for call in (vcjax.Repository.open, vcjax.Repository.init):
        with pytest.raises(StorageError, match=problem):
            call(place)
    assert os.listdir() == []


def test_a_bucket_that_does_not_answer_is_an_error(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and that is all
        at = f"endpoint=http://127.0.0.1:{silent.getsockname()[1]}&region=us-east-1"
        assert parse_url(f"s3://models/run?{at}").timeout_s == 30
        store = open_store(f"s3://models/run?{at}&timeout=0.2")
        seen = Versioned(None, b"")
        for call in (
            lambda: store.read("x"),
            lambda: store.read_versioned("x"),
            lambda: store.keys("x"),
            lambda: store.write("x", b"1"),
            lambda: store.compare_and_set("x", b"1", seen),
            lambda: store.delete(["x"]),
            lambda: vcjax.Repository.open(store.url),
        ):
            with pytest.raises(StorageError, match="there is no answer") as caught:
                call()
            assert "credentials" in (caught.value.hint or "")


@given(
    st.sampled_from(
        ["", "file://", "memory://", "s3://", "gs://", "~", "file:/", "s3://b/?", "x://"]
    ),
    st.text(string.printable + "\0é\udc80", max_size=12),
)
def test_any_place_is_opened_or_refused(scheme, rest):
    try:
        location = open_store(scheme + rest).location
    except VcjaxError:
        return
    assert parse_url(location.url) == location or location.spec["driver"] != "file"
