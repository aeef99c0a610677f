"""Draws how well merges do against a coefficient, on the models of `vcjax demo`.

    vcjax demo --folder=vcjax-demo
    python scripts/sweep_merge.py --config=configs/sweep.py --repo=vcjax-demo/.vcjax \\
        --output=sweep.png

Every method of the config is a curve: all its merges are one compiled call
(`vcjax.merging.sweep`). A level line shows what AdaMerging reaches, which learns its
coefficients from held-out images without their labels. The picture needs matplotlib,
from the extra `plots`: `pip install "vcjax[plots]"`.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags

import vcjax
from vcjax import merging
from vcjax.cli.commands import demo_training

CONFIG = config_flags.DEFINE_config_file("config", "configs/sweep.py", "What to sweep.")
REPO = flags.DEFINE_string("repo", "vcjax-demo/.vcjax", "Repository that `vcjax demo` made.")
OUTPUT = flags.DEFINE_string("output", "sweep.png", "Picture to write (png, svg, pdf).")
NUMBERS = flags.DEFINE_string("numbers", None, "JSON file to write the curves to.")

Config = Any
"""An `ml_collections.ConfigDict`, of which every field has a type of its own."""

Tree = Any


def predict(params: Tree, images: Any) -> Any:
    """Scores `[n, 10]` of the demo's network."""
    return demo_training.Network().apply({"params": params}, images)


def load(config: Config, url: str) -> tuple[Tree, list[Tree]]:
    """The parameters of the base and of the models."""
    repo = vcjax.Repository.open(url)
    base, *models = (
        repo.restore(revision, paths="params/**")["params"]
        for revision in (config.base, *config.models)
    )
    return base, models


def sweep_methods(
    config: Config, base: Tree, models: list[Tree], digits: Mapping[str, demo_training.Digits]
) -> dict[str, dict[str, np.ndarray]]:
    """`{method: {view of the digits: accuracies along the grid}}`."""
    grid = {config.parameter: np.linspace(config.low, config.high, config.number).tolist()}

    def evaluate(params: Tree) -> dict[str, Any]:
        return {view: accuracy(params, digits[view]) for view in config.models}

    curves = {}
    for name, parameters in config.methods.items():
        method = merging.from_config(name, parameters.to_dict())
        key = config.seed if method.random else None
        found = merging.sweep(method, grid, evaluate, models, base, key=key, batch=config.batch)
        curves[name] = found.values
    return curves


def accuracy(params: Tree, view: demo_training.Digits) -> Any:
    """Share of the held-out digits that are recognised."""
    images, labels = view.test
    return (predict(params, images).argmax(axis=-1) == labels).mean()


def learn(
    config: Config, base: Tree, models: list[Tree], digits: Mapping[str, demo_training.Digits]
) -> dict[str, float]:
    """What AdaMerging reaches on each view, from its held-out images alone."""
    random = np.random.default_rng(config.seed)

    def batches() -> Iterator[list[np.ndarray]]:
        while True:
            images = (digits[view].test[0] for view in config.models)
            yield [x[random.integers(len(x), size=config.adamerging_batch)] for x in images]

    found = merging.adamerge(
        models,
        base,
        predict,
        batches(),
        steps=config.adamerging_steps,
        learning_rate=config.adamerging_rate,
    )
    merged = vcjax.merge(models, found.method, base)
    return {view: float(accuracy(merged, digits[view])) for view in config.models}


def draw(
    config: Config,
    curves: Mapping[str, Mapping[str, np.ndarray]],
    learned: Mapping[str, float] | None,
    output: str,
) -> None:
    """One panel per view and one of their mean; a line per method."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit('error: pictures need matplotlib\n  hint: pip install "vcjax[plots]"')
    panels = (*config.models, "mean")
    figure = Figure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
    scales = np.linspace(config.low, config.high, config.number)
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        for name, views in curves.items():
            line = mean_of(views) if panel == "mean" else views[panel]
            axes.plot(scales, line, label=name, linewidth=1.5)
        if learned is not None:
            level = mean_of(learned) if panel == "mean" else learned[panel]
            axes.axhline(level, color="black", linestyle="--", linewidth=1, label="adamerging")
        axes.set(title=panel, xlabel=config.parameter)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy on held-out digits")
    figure.axes[-1].legend(fontsize="small")
    figure.savefig(output, dpi=150)


def mean_of(views: Mapping[str, Any]) -> Any:
    """The mean over the views of the digits."""
    return np.mean([np.asarray(x) for x in views.values()], axis=0)


def main(argv: list[str]) -> None:
    """Sweeps, learns, prints the best of each method, and draws."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    config = CONFIG.value
    try:
        base, models = load(config, REPO.value)
        digits = demo_training.load_digits(config.seed)
        curves = sweep_methods(config, base, models, digits)
        learned = learn(config, base, models, digits) if config.adamerging_steps else None
    except vcjax.VcjaxError as error:
        sys.exit(f"error: {error}")
    scales = np.linspace(config.low, config.high, config.number)
    for name, views in curves.items():
        mean = mean_of(views)
        best = int(mean.argmax())
        print(f"{name}: {100 * mean[best]:.1f} % at {config.parameter} {scales[best]:.3g}")
    if learned is not None:
        print(f"adamerging: {100 * float(mean_of(learned)):.1f} % without labels")
    if NUMBERS.value:
        document = {
            "parameter": config.parameter,
            "values": scales.tolist(),
            "accuracy": {
                name: {view: np.asarray(x).tolist() for view, x in views.items()}
                for name, views in curves.items()
            },
            "adamerging": learned,
        }
        Path(NUMBERS.value).write_text(json.dumps(document, indent=1) + "\n")
    draw(config, curves, learned, OUTPUT.value)
    print(OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
