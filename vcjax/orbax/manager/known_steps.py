"""The steps on a branch as a manager knows them, the same on all processes of a program.

What process 0 finds in the repository is told to the others (`Group.agree`), so that
they never act on different branch tips, notes of prunings or verdicts of `best_fn`. What
follows from a commit, which never changes, each process reads itself.
"""

import json
import threading
from collections.abc import Callable, Mapping
from typing import NotRequired, TypedDict, TypeVar

import orbax.checkpoint as ocp
from absl import logging

from vcjax.errors import RepositoryNotFoundError, RevisionError, VcjaxError
from vcjax.history import Commit
from vcjax.history.refnames import HEAD, HEADS
from vcjax.orbax.items.record import metrics_of
from vcjax.orbax.manager import run_metadata
from vcjax.orbax.manager.policies import rate
from vcjax.orbax.manager.step import Step, StepIndex
from vcjax.repo import Repository
from vcjax.repo.settings import load

_T = TypeVar("_T")


class Survey(TypedDict):
    """All that a process has to be told to know the steps of a branch, as MessagePack types.

    `dropped` are steps, `scores` are by commit, `root` is JSON text of the run's metadata.
    """

    tip: str | None
    dropped: list[int]
    scores: dict[str, float | None]
    root: str
    is_there: bool


class News(TypedDict):
    """What has to be told to know what others have committed: as little as will do.

    `spared` are commits of steps to be listed again; `tip` and `scores` are of commits that
    follow the known ones; `survey` is in their place where they do not.
    """

    spared: list[str]
    tip: NotRequired[str | None]
    scores: NotRequired[dict[str, float | None]]
    survey: NotRequired[Survey]


class KnownSteps:
    """The steps on the current branch.

    Args:
        repo: the repository; of a read-only manager it may be none yet.
        options: the manager's, for `best_fn`.

    Attributes:
        index: the steps that can be restored.
        dropped: {step: commit whose data were let go}.
        root_metadata: of the run.
        is_stale: whether this process may know other steps than the others.
    """

    def __init__(self, repo: Repository, options: ocp.CheckpointManagerOptions):
        self.repo = repo
        self.index = StepIndex()
        self.dropped: dict[int, str] = {}
        self.root_metadata: dict[str, object] = {}
        self._options = options
        self._rated: dict[str, float | None] = {}  # by commit
        self._tip: str | None = None  # the commit that the steps were read from
        self._spared: list[Step] = []  # on process 0: steps to be listed again, as a ref has them
        self._is_there = False  # whether there is a repository, as far as is known
        self.is_stale = False
        self._lock = threading.RLock()  # of `index`, `dropped` and `_spared`

    @property
    def leads(self) -> bool:
        """Whether this process acts for all: it is alone, or process 0."""
        if not self.repo.processes.is_shared:
            return True
        import jax

        return jax.process_index() == 0

    # -- all of them -------------------------------------------------------------

    def reload(self, root_metadata: Mapping[str, object] | None = None) -> None:
        """Reads all steps anew; all processes together.

        Args:
            root_metadata: of the run from now on, if it has none yet.
        """
        commits: dict[int, Commit] = {}

        def find(_: object) -> Survey:
            return self._survey(commits, root_metadata)

        self._adopt(self.repo.processes.agree(find, self._ready), commits)

    def _ready(self) -> None:
        """What has to be over before the steps are read."""

    def _survey(
        self, commits: dict[int, Commit], given: Mapping[str, object] | None = None
    ) -> Survey:
        """What there is on the branch; fills in {step: commit}."""
        tip = self._read_tip()
        commits.update(self._commits(tip))
        pruned = self.repo.prunings.all()
        dropped = [step for step, commit in commits.items() if commit.digest in pruned]
        kept = [commit for commit in commits.values() if commit.digest not in pruned]
        latest = self.repo.history.commit(tip) if tip is not None else None
        root = run_metadata.stored(self.repo.store, latest)
        if root is None and given is not None:
            root = run_metadata.keep(self.repo.store, given)
        return Survey(
            tip=tip,
            dropped=dropped,
            scores=self._scores(kept),
            root=json.dumps(root),
            is_there=self._is_there,
        )

    def _commits(self, tip: str | None) -> dict[int, Commit]:
        """{step: its latest commit}."""
        commits: dict[int, Commit] = {}
        for commit in () if tip is None else self.repo.log(tip, first_parent=True):
            if commit.step is not None:
                commits.setdefault(commit.step, commit)
        return commits

    def _adopt(self, told: Survey, commits: Mapping[int, Commit]) -> None:
        """Knows the steps of a survey from now on.

        Args:
            commits: as `_survey` filled it in; empty on other processes.
        """
        if told["is_there"]:
            self.repo.refresh()
        self._tip = told["tip"]
        commits = commits or self._commits(self._tip)
        self.root_metadata = json.loads(told["root"]) or self.root_metadata
        self._rated.update(told["scores"])
        dropped = set(told["dropped"])
        with self._lock:
            kept = [commit for step, commit in commits.items() if step not in dropped]
            self.index = StepIndex(map(self._step_of, kept))
            self.dropped = {step: commits[step].digest for step in dropped}
            self._spared = []
        self.is_stale = False

    # -- what is new -------------------------------------------------------------

    def news(self, is_stale: bool) -> News:
        """On process 0: what has to be told to know what others have committed.

        Costs as much as there are new commits, unless the branch has gone elsewhere.

        Args:
            is_stale: whether some process may know other steps than this one.
        """
        with self._lock:
            spared, self._spared = self._spared, []
            for step in spared:
                self._rated[step.commit] = step.score
        told = News(spared=[step.commit for step in spared])
        tip = self._read_tip()
        if not is_stale and tip == self._tip:
            return told
        new = None if is_stale else self._since(tip)
        if new is None:
            told["survey"] = self._survey({})
        else:
            told["tip"], told["scores"] = tip, self._scores(new)
        return told

    def take(self, told: News) -> None:
        """On all processes: takes note of `news`."""
        if "survey" in told:
            self._adopt(told["survey"], {})
        elif "tip" in told:
            self._rated.update(told.get("scores", {}))
            self._follow(told["tip"])
        with self._lock:
            for digest in told["spared"]:
                self._add(self.repo.history.commit(digest))

    def _follow(self, tip: str | None) -> bool:
        """Adds the steps of the commits that lead from the known tip to a new one, if they do."""
        new = self._since(tip)
        if new is None:
            return False
        self.repo.refresh()
        self._tip = tip
        with self._lock:
            for commit in reversed(new):
                self._add(commit)
        return True

    def _since(self, tip: str | None) -> list[Commit] | None:
        """The commits after the known tip, newest first; None if they do not follow it."""
        if tip is None or self._tip is None:
            return None
        new: list[Commit] = []
        known = self.repo.history.commit(self._tip).generation
        for commit in self.repo.log(tip, first_parent=True):
            if commit.digest == self._tip:
                return new
            if commit.generation <= known:
                break
            new.append(commit)
        return None

    def _add(self, commit: Commit) -> None:
        if commit.step is not None:
            self.index.add(self._step_of(commit))
            self.dropped.pop(commit.step, None)

    def beside(self, number: int) -> Step | None:
        """A step that is on the branch by now though not known here; forgotten again at once.

        Raises:
            PrunedError: a policy has let its data go already.
        """
        tip = self._read_tip()
        if tip is None or tip == self._tip:
            return None
        for commit in self.repo.log(tip, first_parent=True):
            if commit.step == number:
                self.repo.require_data(commit)
                return self._step_of(commit)
        return None

    def _read_tip(self) -> str | None:
        try:
            if not self._is_there:
                load(self.repo.store)
                self._is_there = True
            return self.repo.resolve("HEAD").digest
        except RepositoryNotFoundError:
            return None
        except RevisionError:  # the branch has no commit yet
            return None

    @property
    def _branch(self) -> str:
        """The full name of the current branch; HEAD if it is detached."""
        branch = self.repo.head.branch
        return HEAD if branch is None else HEADS + branch

    def _pointers(self, besides: str) -> dict[str, str | None]:
        """{ref: the commit that it points to}, but for one of them."""
        refs = self.repo.refs
        states = {**refs.under("refs/"), **refs.under("aliases/")}
        return {ref.name: ref.commit for ref in states.values() if ref.name != besides}

    # -- ranks -------------------------------------------------------------------

    def _step_of(self, commit: Commit) -> Step:
        metrics = metrics_of(commit)
        number = commit.metadata["step"]
        return Step(number, commit.time, metrics, commit.digest, self._rate(commit, metrics))

    def _scores(self, commits: list[Commit]) -> dict[str, float | None]:
        """What `best_fn` makes of commits; nothing without it."""
        if self._options.best_fn is None:
            return {}
        return {
            commit.digest: self._rate(commit, metrics_of(commit))
            for commit in commits
            if commit.step is not None
        }

    def _rate(self, commit: Commit, metrics: object) -> float | None:
        """The score of a stored step; None, with a warning, if `best_fn` cannot tell."""
        if commit.digest not in self._rated:
            try:
                score = rate(commit.step or 0, metrics, self._options)
            except VcjaxError as error:
                logging.warning("%s has no rank: %s", commit, error.message)
                score = None
            self._rated[commit.digest] = score
        return self._rated[commit.digest]

    def after_adding(self, step: Step, find: Callable[[], _T]) -> _T:
        """What a function finds while a step is among the others, which it is not yet."""
        with self._lock:
            before = self.index.get(step.step)
            self.index.add(step)
            try:
                return find()
            finally:
                self.index.remove(step.step)
                if before is not None:
                    self.index.add(before)
