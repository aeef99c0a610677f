"""Commits as text and as JSON."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vcjax.history import Commit, Head, Pruning, Ref
from vcjax.history.refnames import HEADS, TAGS, prefix_of
from vcjax.report.figures import format_bytes, format_number, format_time
from vcjax.report.lines import Line, Span, line
from vcjax.report.saved_items import item_fields

PRUNED = Span("(pruned)", "red")
"""What stands beside a commit whose data a retention policy let go."""

METRIC_WIDTH = 10
"""Characters of a metric's column: the longest that `format_number` writes."""


def decorations(head: Head, refs: Iterable[Ref]) -> dict[str, list[str]]:
    """What to write beside commits: {digest: ["HEAD -> main", "tag: v1", …]}."""
    found: dict[str, list[str]] = {}
    if head.commit is not None:
        found[head.commit] = ["HEAD"]
    order = {HEADS: 0, TAGS: 1}
    for ref in sorted(refs, key=lambda ref: (order.get(prefix_of(ref.name), 2), ref.name)):
        names = found.setdefault(ref.commit, [])
        if ref.name == f"{HEADS}{head.branch}":
            names.insert(0, f"HEAD -> {ref.short}")
        else:
            names.append(f"tag: {ref.short}" if prefix_of(ref.name) == TAGS else ref.short)
    return found


def full_names(refs: Iterable[Ref]) -> dict[str, list[str]]:
    """The full names of the refs that point to each commit: {digest: ["refs/heads/main", …]}."""
    found: dict[str, list[str]] = {}
    for ref in sorted(refs, key=lambda ref: ref.name):
        found.setdefault(ref.commit, []).append(ref.name)
    return found


def oneline(
    commit: Commit,
    names: Sequence[str],
    change: str | None = None,
    pruning: Pruning | None = None,
) -> Line:
    """A commit in one line: digest, refs, whether it has no data, message, what it changed."""
    shown = [] if change is None else ["  ", Span(change, "cyan")]
    mark = [] if pruning is None else [" ", PRUNED]
    head = Span(commit.digest[:8], "yellow")
    return line(head, *_names(names), *mark, " ", commit.summary, *shown)


def touched(fields: Mapping[str, Any]) -> str:
    """What a commit did to some leaves, in words: "2 changed, 1.2 MB, l2 0.1".

    Args:
        fields: `Touch.to_dict`, and "l2" where that was asked for.
    """
    words = [f"{n:,} {status}" for status, n in fields["counts"].items() if n]
    words.append(format_bytes(fields["nbytes"]))
    if fields.get("l2") is not None:
        words.append(f"l2 {format_number(fields['l2'])}")
    return ", ".join(words)


def _names(names: Sequence[str]) -> list[str | Span]:
    if not names:
        return []
    parts: list[str | Span] = [" ", Span("(", "yellow")]
    for i, name in enumerate(names):
        kind = "cyan" if name.startswith("HEAD") else "yellow" if ":" in name else "green"
        parts += [Span(", ", "yellow")] if i else []
        parts.append(Span(name, f"bold {kind}"))
    return [*parts, Span(")", "yellow")]


def entry(
    commit: Commit,
    names: Sequence[str],
    change: str | None = None,
    pruning: Pruning | None = None,
) -> list[Line]:
    """A commit in several lines, as `git log` shows it; an empty line ends it.

    Args:
        commit: the commit.
        names: the refs that point to it.
        change: what it changed of the leaves that are asked about, in words.
        pruning: why it has no data any more, if so.
    """
    fields = [("Author:", commit.author), ("Date:", format_time(commit.time))]
    if len(commit.parents) > 1:
        fields.insert(0, ("Merge:", " ".join(parent[:8] for parent in commit.parents)))
    if commit.step is not None:
        fields.append(("Step:", str(commit.step)))
    if commit.metrics:
        pairs = (f"{name}={format_number(value)}" for name, value in commit.metrics.items())
        fields.append(("Metrics:", " ".join(pairs)))
    if change is not None:
        fields.append(("Changed:", change))
    if pruning is not None:
        fields.append(("Data:", str(pruning)))
    lines = [line(Span(f"commit {commit.digest}", "yellow"), *_names(names))]
    lines += [line(f"{label:<9}{text}") for label, text in fields]
    lines += [line(), *(line("    ", text) for text in commit.message.splitlines()), line()]
    return lines


def details(
    commit: Commit,
    names: Sequence[str],
    counts: Mapping[str, int] | None,
    pruning: Pruning | None = None,
) -> list[Line]:
    """All of a commit but its leaves.

    Args:
        commit: the commit.
        names: the refs that point to it.
        counts: {status: number of leaves} against its first parent; None for a root.
        pruning: why it has no data any more, if so.
    """
    lines = entry(commit, names, pruning=pruning)
    fields = [
        ("Parents:", " ".join(parent[:8] for parent in commit.parents) or "none"),
        ("Tree:", commit.tree[:8]),
        ("Leaves:", f"{commit.leaves:,} ({format_bytes(commit.nbytes)})"),
        ("Changes:", _counts(counts)),
    ]
    metadata = {key: value for key, value in commit.metadata.items() if key != "step"}
    for key, value in metadata.items():
        fields += item_fields(value) if key == "orbax" else [(f"{key}:", json.dumps(value))]
    width = max(len(label) for label, _ in fields) + 1
    lines += [line(f"{label:<{width}}{text}") for label, text in fields]
    if commit.provenance is not None:
        lines += [line(), line("Provenance:")]
        text = json.dumps(_without_leaves(commit.provenance), indent=2)
        lines += [line("  ", part) for part in text.splitlines()]
    return lines


def _without_leaves(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance with the decisions of a merge counted, not listed: there is one per leaf."""
    counted = {
        name: dict(Counter(_word(value) for value in provenance[name].values()))
        for name in ("decisions", "sides")
        if isinstance(provenance.get(name), dict)
    }
    return {**provenance, **counted}


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _counts(counts: Mapping[str, int] | None) -> str:
    if counts is None:
        return "none to compare with: the first commit of its line"
    return ", ".join(f"{n:,} {status}" for status, n in counts.items() if n) or "no leaves"


def metric_headings(names: Sequence[str]) -> Line:
    """The heading of the metric columns that `metric_cells` fills."""
    return line(*(Span(f"{name:>{_width(name)}}  ", "bold") for name in names))


def metric_cells(commit: Commit | None, names: Sequence[str]) -> list[str | Span]:
    """The metrics of a commit in columns; blanks for None, or for what it lacks."""
    if not names:
        return []
    metrics = commit.metrics if commit else {}
    texts = (format_number(metrics[name]) if name in metrics else "" for name in names)
    cells = zip(names, texts, strict=True)
    return [Span(f"{text:>{_width(name)}}  ", "magenta") for name, text in cells]


def _width(name: str) -> int:
    return max(METRIC_WIDTH, len(name))


def commit_document(
    commit: Commit, names: Sequence[str] = (), pruning: Pruning | None = None
) -> dict[str, Any]:
    """A commit as JSON types.

    `Commit.to_dict`, its generation, the full names of its refs, and why and when its
    data were let go: "pruned", null for a commit that has them.
    """
    pruned = None if pruning is None else pruning.to_dict()
    place = {"generation": commit.generation, "refs": list(names)}
    return {**commit.to_dict(), **place, "pruned": pruned}
