"""Ancestry: merge bases and the order of the log, on random graphs and with a bad clock."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from vcjax.history import Commit, is_ancestor, merge_bases, walk


def graph(edges):
    """Commits by name from {name: parents}; times run backwards."""
    commits = {}
    for i, (name, parents) in enumerate(edges.items()):
        time = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(hours=i)
        generation = 1 + max((commits[p].generation for p in parents), default=0)
        commits[name] = Commit(
            "", "", tuple(parents), "", time, name, generation=generation, digest=name
        )
    return commits


def naive_ancestors(commits, name):
    found = {name}
    for parent in commits[name].parents:
        found |= naive_ancestors(commits, parent)
    return found


@st.composite
def graphs(draw):
    edges = {}
    for i in range(draw(st.integers(1, 14))):
        names = list(edges)
        parents = draw(st.lists(st.sampled_from(names), max_size=3, unique=True)) if names else []
        edges[f"{i:02}"] = parents
    return graph(edges)


@settings(max_examples=300, deadline=None)
@given(graphs(), st.data())
def test_merge_bases_are_what_they_are_defined_to_be(commits, data):
    one, other = (data.draw(st.sampled_from(sorted(commits))) for _ in range(2))
    reach = {name: naive_ancestors(commits, name) for name in commits}
    common = reach[one] & reach[other]
    best = {c for c in common if not any(c in reach[d] for d in common - {c})}
    assert sorted(merge_bases(one, other, commits.__getitem__)) == sorted(best)
    assert is_ancestor(one, other, commits.__getitem__) == (one in reach[other])


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_walk_shows_children_before_parents(commits):
    order = [commit.digest for commit in walk(commits, commits.__getitem__)]
    assert sorted(order) == sorted(commits)
    for name in order:
        for parent in commits[name].parents:
            assert order.index(name) < order.index(parent)


def test_log_of_a_clock_that_goes_backwards(repo, monkeypatch):
    import vcjax.repo.commit as committing

    times = iter(datetime(2026, 1, 1, tzinfo=UTC) - timedelta(days=i) for i in range(9))

    class Clock:
        @staticmethod
        def now(_):
            return next(times)

    monkeypatch.setattr(committing, "datetime", Clock)
    for i in range(4):
        repo.commit({"w": i}, str(i))
    assert [commit.message for commit in repo.log()] == ["3", "2", "1", "0"]
    assert [commit.message for commit in repo.log(limit=2)] == ["3", "2"]
    assert repo.fsck().ok
