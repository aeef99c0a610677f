"""Revisions: the strings that name a commit anywhere a commit is asked for.

HEAD, @               the current commit
main, heads/main      a branch; likewise tags, aliases, remote-tracking branches
ab12cd34              a commit by its digest or a unique prefix of 4 or more digits
step:1200             the newest commit with that step in its metadata
best:accuracy         the commit with the best value of a metric;
                      best:score:min or best:score:max says which end is good
latest                the newest commit of the current branch
REV~3  REV^  REV^2    third first-parent ancestor; first parent; second parent
main@{1}              what main was before its last change
HEAD@{1}              the same of the current branch; of HEAD itself while detached

A range names several: A..B are the commits that lead to B and not to A, and an end
that is left out is HEAD.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vcjax.errors import RevisionError
from vcjax.history import ancestry
from vcjax.history.commit import Commit
from vcjax.history.metadata import best_value, lower_is_better
from vcjax.history.refnames import ALIASES, HEAD, HEADS, REMOTES, TAGS, is_name
from vcjax.history.refs import Refs

_STEPS_BACKWARDS = re.compile(r"(?:[0-9]{0,18}[~^])*")
"""From the end: forwards, every place of a long name would be tried as the beginning of steps."""

_STATE = re.compile(r"@\{([0-9]{1,18})\}\Z")
_STEP = re.compile(r"([~^])([0-9]*)")
_STATE_LENGTH = len("@{}") + 18
_NUMBER = re.compile(r"[0-9]{1,18}")
_HEX = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True)
class Resolver:
    """Finds the commit that a revision names.

    Attributes:
        refs: the refs of the repository.
        lookup: digest -> Commit.
        find_prefix: digest prefix -> digests of all commits that begin with it.
    """

    refs: Refs
    lookup: Callable[[str], Commit]
    find_prefix: Callable[[str], list[str]]

    def resolve(self, revision: str) -> Commit:
        """The commit that `revision` names.

        Raises:
            RevisionError: it names none, or more than one.
        """
        if not isinstance(revision, str):
            raise RevisionError(
                f"{revision!r} is not a revision but {type(revision).__name__}",
                hint="a revision is text: 'main', 'HEAD~2', 'step:5' for step 5",
            )
        backwards = _STEPS_BACKWARDS.match(revision[::-1])
        end = len(revision) - (backwards.end() if backwards else 0)
        name, steps = revision[:end], revision[end:]
        state = _STATE.search(name, max(0, end - _STATE_LENGTH))
        if state is not None:
            name = name[: state.start()]
            commit = self._earlier(name or "@", int(state[1]), revision)
        else:
            commit = self._base(name)
        for sign, digits in _STEP.findall(steps):
            count = int(digits or 1)
            if sign == "^":
                commit = self._parent(commit, count, revision) if count else commit
                continue
            for _ in range(count):
                commit = self._parent(commit, 1, revision)
        return commit

    def resolve_range(self, text: str) -> tuple[Commit, Commit] | None:
        """The commits at the ends of a range `A..B`; None for a text that is no range.

        Raises:
            RevisionError: an end names no commit.
        """
        start, separator, stop = text.partition("..")
        if not separator:
            return None
        if stop.startswith("."):
            raise RevisionError(
                f"{text!r}: ranges with three dots are not known",
                hint="`A..B` are the commits that lead to B and not to A",
            )
        return self.resolve(start or "HEAD"), self.resolve(stop or "HEAD")

    def _parent(self, commit: Commit, number: int, revision: str) -> Commit:
        if number > len(commit.parents):
            raise RevisionError(
                f"{revision!r}: commit {commit.digest[:8]} has {len(commit.parents)} parent(s)",
                hint="`vcjax log --graph` shows how the commits hang together",
            )
        return self.lookup(commit.parents[number - 1])

    def _base(self, name: str) -> Commit:
        if name in ("HEAD", "@", "latest"):
            return self.lookup(self.head_digest())
        if name.startswith("step:"):
            return self._step(name)
        if name.startswith("best:"):
            return self._best(name)
        ref_name = self.ref_name(name)
        if ref_name is not None:
            ref = self.refs.get(ref_name)
            if ref is not None:
                return self.lookup(ref.commit)
        if _HEX.fullmatch(name):
            found = self.find_prefix(name)
            if len(found) == 1:
                return self.lookup(found[0])
            if found:
                listed = ", ".join(digest[:12] for digest in found[:5])
                raise RevisionError(
                    f"{name!r} is the beginning of {len(found)} commits: {listed}",
                    hint="give more digits",
                )
        raise self._unknown(name)

    def head_digest(self) -> str:
        """The digest of the current commit.

        Raises:
            RevisionError: the current branch has no commit yet.
            CorruptionError: the current branch was lost.
        """
        head = self.refs.head()
        if head.commit:
            return head.commit
        ref = self.refs.get(f"{HEADS}{head.branch}")
        if ref is None:
            self.refs.refuse_lost(f"{HEADS}{head.branch}")
            raise RevisionError(
                f"branch {head.branch!r} has no commit yet",
                hint="make one with `repo.commit(tree, message)`",
                shell_hint="make one with `vcjax commit FILE`",
            )
        return ref.commit

    def ref_name(self, name: str) -> str | None:
        """The full name of the ref that a short one stands for, or None.

        Raises:
            RevisionError: it stands for a branch and a tag at once.
        """
        found = [full for full in _candidates(name) if self.refs.get(full) is not None]
        if len(found) > 1:
            raise RevisionError(
                f"{name!r} could be {' or '.join(found)}",
                hint=f"write {found[0].removeprefix('refs/')!r}",
            )
        return found[0] if found else None

    def _earlier(self, name: str, count: int, revision: str) -> Commit:
        if name in ("HEAD", "@"):
            head = self.refs.head()
            full: str | None = HEAD if head.branch is None else f"{HEADS}{head.branch}"
        else:
            full = self.ref_name(name) or self._deleted_name(name)
        if full is None:
            raise RevisionError(f"no ref is called {name!r}", hint=self._suggestion(name))
        states = self.refs.log(full)
        if count >= len(states):
            raise RevisionError(
                f"{revision!r}: {name!r} has had {len(states)} state(s)",
                hint="`vcjax log --reflog` lists them",
            )
        return self.lookup(states[count].commit)

    def _deleted_name(self, name: str) -> str | None:
        """The full name of the ref, deleted by now, that a short name stood for, or None."""
        logged = self.refs.logged_names()
        return next((full for full in _candidates(name) if full in logged), None)

    def _reachable(self) -> Iterator[Commit]:
        """Commits of the current branch first, newest first, then those of all other refs."""
        seen = set()
        heads = [[ref.commit for ref in self.refs.under("refs/").values()]]
        head = self.refs.head()
        current = self.refs.get(f"{HEADS}{head.branch}") if head.branch else None
        start = head.commit or (current and current.commit)
        if start:
            heads.insert(0, [start])
        for group in heads:
            for commit in ancestry.walk(group, self.lookup):
                if commit.digest not in seen:
                    seen.add(commit.digest)
                    yield commit

    def _step(self, revision: str) -> Commit:
        text = revision.removeprefix("step:")
        if not _NUMBER.fullmatch(text):
            raise RevisionError(f"{revision!r}: {text!r} is no step", hint="write step:1200")
        steps = set()
        for commit in self._reachable():
            if commit.step == int(text):
                return commit
            if commit.step is not None:
                steps.add(commit.step)
        near = sorted(sorted(steps), key=lambda step: abs(step - int(text)))[:4]
        hint = f"the nearest are {', '.join(map(str, near))}" if near else "no commit has a step"
        raise RevisionError(f"no commit has step {text}", hint=hint)

    def _best(self, revision: str) -> Commit:
        metric = revision.removeprefix("best:")
        minimise = lower_is_better(metric)
        if metric.endswith((":min", ":max")):
            metric, _, mode = metric.rpartition(":")
            minimise = mode == "min"
        commits = list(self._reachable())
        values = {c.digest: c.metrics[metric] for c in commits if metric in c.metrics}
        best = best_value(values, minimise)
        if best is None:
            known = sorted({name for commit in commits for name in commit.metrics})
            hint = f"metrics recorded here: {', '.join(known)}" if known else "none was recorded"
            raise RevisionError(f"no commit has the metric {metric!r}", hint=hint)
        return next(commit for commit in commits if commit.digest == best)

    def _unknown(self, name: str) -> RevisionError:
        if ".." in name:
            hint = "it reads as a range, and one commit is asked for"
            return RevisionError(f"no commit is called {name!r}", hint=hint)
        return RevisionError(f"no commit is called {name!r}", hint=self._suggestion(name))

    def _suggestion(self, name: str) -> str:
        shorts = [ref.short for ref in self.refs.under("refs/").values()]
        close = difflib.get_close_matches(name, shorts, n=3, cutoff=0.5)
        if close:
            return f"did you mean {' or '.join(close)}?"
        return "`vcjax branch`, `vcjax tag` and `vcjax log` list what there is"


def _candidates(name: str) -> list[str]:
    """Full names of the refs that a short one may stand for."""
    if not is_name(name):
        return []
    full = [name, f"refs/{name}", HEADS + name, TAGS + name, ALIASES + name, REMOTES + name]
    return [one for one in full if one.startswith((HEADS, TAGS, REMOTES, ALIASES))]
