"""Finding who draws a diff. The reports stand above this package and register by name."""

from typing import TYPE_CHECKING

from vcjax.errors import VcjaxError

if TYPE_CHECKING:
    from vcjax.diffing.treediff import TreeDiff

GROUP = "vcjax.reports"
"""Entry points `NAME = module:function`; the function takes a `TreeDiff` and gives text."""


def render(name: str, diff: "TreeDiff", **options: object) -> str:
    """A diff as the report of some name.

    Args:
        name: "html", "markdown" or "notebook", or the name of a plug-in.
        diff: what to draw.
        options: for the report.

    Raises:
        VcjaxError: no installed package has such a report.
    """
    from importlib import metadata  # 0.02 s that looking at changes need not wait for

    found = metadata.entry_points(group=GROUP, name=name)
    if not found:
        known = ", ".join(sorted({point.name for point in metadata.entry_points(group=GROUP)}))
        raise VcjaxError(
            f"no report is called {name!r}",
            hint=f"installed: {known}" if known else "install vcjax again: it brings its reports",
        )
    return next(iter(found)).load()(diff, **options)
