"""Measures vcjax against its peers, side by side, and writes docs/benchmarks.md.

    python scripts/benchmark.py --suite=save
    python scripts/benchmark.py --suite=save --rounds=5 --record
    python scripts/benchmark.py --suite=hash

A suite is a module with `CONTENDERS` (ours first, then the peer that targets
refer to, then others), `CASES` {name: description}, `TARGETS` {(case, figure):
ratio to the peer, or `MoreThan` it}, `run(contender, folder)` -> {case: {figure:
number}}, and, where its figures are not those of `UNITS`, its own `UNITS`. A case or
figure that a contender does not have is left empty.

Every contender runs in a process of its own; the contenders take turns, round
by round, so that a busy machine hurts them alike. Figures are medians over the
rounds; targets are ratios to the peer in the same run.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

from absl import app, flags
from suites.measure import MoreThan

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
UNITS = {"wall": ("s", 1.0), "cpu": ("s", 1.0), "peak": ("MB", 1e-6), "disk": ("MB", 1e-6)}

FLAGS = flags.FLAGS
flags.DEFINE_string("suite", "save", "Which suite to run; a file in scripts/suites.")
flags.DEFINE_integer("rounds", 3, "How often each contender runs.", lower_bound=1)
flags.DEFINE_bool("record", False, "Write the table into docs/benchmarks.md.")
flags.DEFINE_string("folder", "", "Where to write the data; the temporary folder by default.")
flags.DEFINE_list("cases", [], "Only these cases of the suite; by default all.")
flags.DEFINE_string("contender", "", "Run one contender in this process and print JSON.")


def main(argv: list[str]) -> None:
    """Runs a suite, or one contender of it."""
    del argv
    suite = import_module(f"suites.{FLAGS.suite}")
    if FLAGS.cases:
        vars(suite)["CASES"] = {name: suite.CASES[name] for name in FLAGS.cases}
    if FLAGS.contender:
        print(json.dumps(suite.run(FLAGS.contender, FLAGS.folder)))
        return
    rounds: dict[str, list[dict]] = {name: [] for name in suite.CONTENDERS}
    for number in range(FLAGS.rounds):
        for name in suite.CONTENDERS:
            print(f"round {number + 1} of {FLAGS.rounds}: {name}", file=sys.stderr)
            rounds[name].append(_run_in_process(name))
    table = render(suite, rounds)
    print(table)
    if FLAGS.record:
        record(FLAGS.suite, table)


def _run_in_process(contender: str) -> dict:
    command = [sys.executable, __file__, f"--suite={FLAGS.suite}", f"--contender={contender}"]
    if FLAGS.cases:
        quoted = ",".join(f'"{case}"' for case in FLAGS.cases)  # names may hold commas
        command.append(f"--cases={quoted}")
    if FLAGS.folder:
        command.append(f"--folder={FLAGS.folder}")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def medians(rounds: list[dict], case: str) -> dict[str, float]:
    """Median of every figure of a case over the rounds; empty if the case was not run."""
    rows = [outcome[case] for outcome in rounds if case in outcome]
    return (
        {figure: statistics.median(row[figure] for row in rows) for figure in rows[0]}
        if rows
        else {}
    )


def render(suite, rounds: dict[str, list[dict]]) -> str:
    """The results as Markdown."""
    names = suite.CONTENDERS
    lines = [
        _environment(rounds),
        "",
        f"| case | figure | {' | '.join(names)} | ratio | target |",
        f"| --- | --- |{' ---: |' * len(names)} ---: | --- |",
    ]
    for case in suite.CASES:
        figures = [medians(rounds[name], case) for name in names]
        for figure, (unit, scale) in getattr(suite, "UNITS", UNITS).items():
            values = [row.get(figure) for row in figures]
            if any(value is not None for value in values):
                cells = ["" if value is None else f"{value * scale:.3f}" for value in values]
                cells += _judged(values, unit, suite.TARGETS.get((case, figure)))
                lines.append(f"| {case} | {figure}, {unit} | {' | '.join(cells)} |")
    lines += ["", *(f"- *{case}*: {text}." for case, text in suite.CASES.items())]
    return "\n".join(lines)


def _judged(values: list[float | None], unit: str, target: float | MoreThan | None) -> list[str]:
    """The ratio of our figure to the peer's, and whether it meets the target.

    Of rates, whose units end in "/s", more is better; of all else less.
    """
    ours, peer = values[:2]
    if ours is None or not peer:
        return ["", ""]
    ratio, rate = ours / peer, unit.endswith("/s")
    if target is None:
        return [f"{ratio:.3f}", ""]
    if isinstance(target, MoreThan):
        more, met = ours - peer, ours - peer <= target.most
        return [f"{ratio:.3f}", f"{more:.3f} {unit} more, ≤ {target.most} {'✓' if met else '✗'}"]
    met = ratio >= target if rate else ratio <= target
    return [f"{ratio:.3f}", f"{'≥' if rate else '≤'} {target} {'✓' if met else '✗'}"]


def _environment(rounds: dict[str, list[dict]]) -> str:
    packages = ("jax", "orbax-checkpoint", "tensorstore", "numpy", "blake3")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    count = len(next(iter(rounds.values())))
    return (
        f"Medians of {count} rounds. Python {platform.python_version()}, {versions}; "
        f"{len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.machine()}."
    )


def record(name: str, table: str) -> None:
    """Puts a table between the markers of its suite in docs/benchmarks.md."""
    text = DOCUMENT.read_text()
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if begin not in text:
        raise SystemExit(f"{DOCUMENT.name} has no place for the suite {name}: add {begin} {end}")
    head, tail = text.partition(begin)[0], text.partition(end)[2]
    DOCUMENT.write_text(f"{head}{begin}\n{table}\n{end}{tail}")


if __name__ == "__main__":
    app.run(main)
