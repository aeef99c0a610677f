"""Taking care of a repository: collecting, pruning, repairing and upgrading it."""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from vcjax.objects.layout import COMMIT_SECONDS
from vcjax.repo import settings as settings_
from vcjax.repo.reader import Reader

if TYPE_CHECKING:
    from vcjax.objects import GcPlan, Pruner, PruneReport, RepairReport
    from vcjax.repo.upgrade import Upgrade


class Maintenance:
    """What deletes, heals and rewrites; `Repository` says what each call does.

    Args:
        repo: of which repository.
    """

    def __init__(self, repo: Reader):
        self._repo = repo

    def gc(self, dry_run: bool, grace: float, force: bool, unsafe: bool) -> "GcPlan":
        """Deletes what nothing leads to; see `Repository.gc`."""
        from vcjax import objects

        repo = self._repo
        parts = repo.refs, repo.history, repo.prunings, repo.objects
        if force:
            grace = min(grace, COMMIT_SECONDS)
        plan = objects.plan_gc(*parts, grace=float("-inf") if unsafe else grace)
        if not dry_run:
            objects.sweep(plan, *parts)
            self.__dict__.pop("_pruner", None)  # it knows of commits that are gone
        return plan

    def prune(self, commits: Iterable[str], policy: str) -> "PruneReport":
        """Lets the data of commits go; see `Repository.prune`."""
        return self._pruner.prune(commits, policy)

    @cached_property
    def _pruner(self) -> "Pruner":
        from vcjax import objects

        repo = self._repo
        return objects.Pruner(repo.refs, repo.history, repo.prunings, repo.objects)

    def repair(self, branch: str) -> "RepairReport":
        """Heals what can be healed; see `Repository.repair`."""
        from vcjax import objects

        repo = self._repo
        return objects.repair(repo.refs, repo.history, repo.prunings, repo.objects, branch)

    def upgrade(self, dry_run: bool) -> "Upgrade":
        """Takes the repository to the newest format; see `Repository.upgrade`."""
        from vcjax.repo.upgrade import upgrade

        repo = self._repo
        done = upgrade(repo.store, repo.settings, dry_run)
        if not dry_run:
            repo.settings = settings_.load(repo.store)
        return done
