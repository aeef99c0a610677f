"""The report "csv": one row for each leaf that is not as it was."""

import csv
import io

from vcjax import TreeDiff


def csv_report(diff: TreeDiff) -> str:
    """A diff as CSV: leaf path, status, and how far the leaf went relative to what it was."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["leaf", "status", "relative"])
    for change in diff.changes:
        if change.status != "unchanged":
            rows.writerow([change.path, change.status, (change.stats or {}).get("relative_l2")])
    return text.getvalue()
