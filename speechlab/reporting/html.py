"""report.html: one experiment, or all experiments of a recipe, on a page that needs only a browser.

The page is one file. page.css, views.js and page.js are put into it; pictures and sounds are ``data:`` addresses; and
its security policy forbids all requests. Tables are plain HTML (page_tables.py). The scripts draw curves and the views
of mistakes from one block of JSON, which is called the page here. Its entries:

    kind        "experiment" or "recipe"
    runs        name, selected, axes {"steps"|"epochs": {"step", "epoch", "minutes"}}, decoded (mistakes.py), pictures
                (after epochs), config and environment as [key, value] rows; of a recipe, the best run first
    charts      title, unit, log, lower (is better: true, false, null), series: run, axis, label, colour, light, y
    media       the address of each picture and sound, by its key
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from speechlab.files import write_text
from speechlab.reporting.experiment import Experiment
from speechlab.reporting.metrics import corpus_of, label, number, series, told, unit, wide
from speechlab.reporting.mistakes import embed
from speechlab.reporting.page_tables import duration, esc, experiments_table, options, results_table
from speechlab.reporting.table import experiments, sweep_status
from speechlab.scoring.metric import Metric, find
from speechlab.scoring.views import BYTES

_HERE = Path(__file__).parent
_SELECTED = 8  # experiments whose curves are shown when the page opens
_RECIPE_BYTES = 400_000  # bytes of pictures and sounds in a recipe's page; each experiment has its own page for more


def write(exp: Path) -> None:
    """Write ``exp/report.html``, and the recipe's report.html if ``exp`` lies in a recipe."""
    exp = Path(exp).resolve()
    write_text(exp / "report.html", experiment_page(exp))
    # A sweep writes its recipe's page once, at its end.
    if exp.parent.name == "exp" and not os.environ.get("SPEECHLAB_IN_SWEEP"):
        write_recipe(exp.parent.parent)


def write_recipe(recipe: Path) -> Path:
    """Write ``recipe/report.html`` and return its path."""
    path = Path(recipe).resolve() / "report.html"
    write_text(path, recipe_page(path.parent))
    return path


def experiment_page(exp: Path) -> str:
    """The HTML of an experiment's page."""
    one = Experiment(exp, points=500, shown=120, with_pictures=True)
    page = {"kind": "experiment", "runs": [one.data()], "charts": _charts_of_one(one),
            "media": embed(one.decoded, BYTES)}
    status = sweep_status(exp)
    facts = [*((told(figure.metric, figure.value), figure.title) for figure in one.figures),
             *([(told(one.find(one.metric), one.best), f"best {one.metric}")] if one.best is not None else []),
             *([(f"{one.env['parameters'] / 1e6:.2f} M", "parameters")] if number(one.env.get("parameters")) else []),
             *([(str(len(one.epochs)), "epochs")] if one.epochs else []),
             *([(duration(one.seconds), "training")] if one.seconds else [])]
    recipe = exp.parent.parent
    up = f'<a href="../../report.html">{esc(recipe.name)}</a>' if exp.parent.name == "exp" else esc(exp.parent.name)
    about = [part for part in (corpus_of(exp), str(one.env.get("device") or ""), status) if part]
    body = [_head(one.name, f"An experiment of {up}. {esc(', '.join(about))}"), _facts(facts)]
    if one.results:
        body.append(_section("results", "Results", results_table([one])))
    if page["charts"]:
        body.append(_section("curves", "Curves", _controls() + '<div class="charts" id="charts"></div>'))
    body.append(_one())
    return _whole(f"{one.name}, {recipe.name}", body, page)


def recipe_page(recipe: Path) -> str:
    """The HTML of a recipe's page."""
    folders = experiments(recipe)
    shown = 24 if len(folders) <= 30 else 10
    runs = sorted((Experiment(path, points=200, shown=shown, with_pictures=False) for path in folders),
                  key=lambda one: one.rank)
    page: dict[str, Any] = {"kind": "recipe", "runs": [one.data() for one in runs], "charts": _charts(runs),
                            "media": embed([each for one in runs for each in one.decoded], _RECIPE_BYTES)}
    drawn = [i for i, one in enumerate(runs) if one.epochs][:_SELECTED]  # not those that failed before an epoch's end
    for i, data in enumerate(page["runs"]):
        data["selected"] = i in drawn
    corpora = sorted({corpus_of(path) for path in folders} - {""})
    count = f"{len(runs)} experiment{'s' * (len(runs) != 1)}" + (f" on {esc(', '.join(corpora))}" if corpora else "")
    body = [_head(recipe.name, count + ". The best first.")]
    if not runs:
        return _whole(recipe.name, [*body, "<p>Nothing was run yet: ./run.sh</p>"], page)
    body.append(_section("experiments", "Experiments", experiments_table(recipe, runs, drawn)))
    if page["charts"]:
        body.append(_section("curves", "Curves", _controls() + '<div class="charts" id="charts"></div>'))
    if any(one.results for one in runs):
        body.append(_section("results", "Results", results_table(runs)))
    choice = f'<select id="run">{options([one.name for one in runs])}</select>'
    body.append(_section("one", "One experiment", f'<div class="controls"><label>Experiment {choice}</label></div>'))
    body.append(_one())
    return _whole(f"{recipe.name}: experiments", body, page)


# -- curves ---------------------------------------------------------------------------------------------------------


def _charts_of_one(one: Experiment) -> list[dict[str, Any]]:
    """Loss, validation figures, learning rate, gradient norm, speed; then a chart for each family of layers."""
    charts = []

    def add(title: str, *parts: tuple[str, str, str, bool], judge: Metric | None = None, log: bool = False) -> None:
        found = [one.curve(key, 0, axis, name, place, light) for place, (key, axis, name, light) in enumerate(parts)]
        if lines := [line for line in found if line]:
            charts.append(_chart(title, judge, log, lines))

    keys = list(dict.fromkeys(key for record in one.epochs for key in record))
    losses = [*series(one.steps, "loss")[1], *series(one.epochs, "valid_loss")[1]]
    add("Loss", ("loss", "steps", "train, steps", True), ("train_loss", "epochs", "train, epochs", False),
        ("valid_loss", "epochs", "validation", False), judge=one.find("loss"), log=wide(losses))
    for key in sorted((key for key in keys if key.startswith("valid_") and key != "valid_loss"),
                      key=lambda key: key != one.metric):
        judge = one.find(key)
        add(f"Validation {label(judge)}", (key, "epochs", key, False), judge=judge,
            log=judge.lower is True and wide(series(one.epochs, key)[1]))
    add("Learning rate", ("lr", "steps" if one.steps else "epochs", "lr", False))
    norms = series(one.steps, "grad_norm")[1]
    add("Gradient norm, before clipping", ("grad_norm", "steps", "grad_norm", False), log=wide(norms))
    families: dict[str, tuple[str, list[str]]] = {}  # keys such as dead/conv1; taken from steps if they are there
    for axis, records in (("steps", one.steps), ("epochs", one.epochs)):
        for key in dict.fromkeys(key for record in records for key in record if "/" in key):
            kept, members = families.setdefault(key.partition("/")[0], (axis, []))
            if kept == axis:
                members.append(key)
    for family, (axis, members) in families.items():
        records = one.steps if axis == "steps" else one.epochs
        log = family.startswith("grad") and wide([v for key in members for v in series(records, key)[1]])
        add(f"{family.replace('_', ' ').capitalize()} by layer",
            *((key, axis, key.partition("/")[2], False) for key in members), log=log)
    add("Items a second", ("items_per_s", "steps", "items_per_s", False))
    return charts


def _charts(runs: Sequence[Experiment]) -> list[dict[str, Any]]:
    """One chart per figure, with one line per run. The figure that runs are judged by comes first."""
    judged = dict.fromkeys(one.metric for one in runs if one.metric)
    valid = dict.fromkeys(key for one in runs for record in one.epochs for key in record if key.startswith("valid_"))
    own = [measure for one in runs for measure in one.measures]
    charts = []
    for key, axis in [*((key, "epochs") for key in dict.fromkeys([*judged, *valid, "train_loss"])),
                      ("loss", "steps"), ("lr", "steps"), ("grad_norm", "steps"), ("items_per_s", "steps")]:
        lines = [line for i, one in enumerate(runs) if (line := one.curve(key, i, axis, one.name, i))]
        if lines:
            judge = find(key, own)
            falls = judge.lower is True or key == "grad_norm"  # such figures may change by factors
            log = falls and wide([value for line in lines for value in line["y"] if value is not None])
            charts.append(_chart(key + (", steps" if axis == "steps" else ""), judge, log, lines))
    return charts


def _chart(title: str, judge: Metric | None, log: bool, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """An entry of ``charts``."""
    return {"title": title, "unit": unit(judge) if judge else "", "log": log, "lower": judge.lower if judge else None,
            "series": lines}


# -- HTML -----------------------------------------------------------------------------------------------------------


def _head(title: str, about: str) -> str:
    return (f'<header><div><h1>{esc(title)}</h1><p class="soft">{about}</p></div>'
            '<button type="button" id="theme" title="light or dark">&#9680;</button></header>')


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<li><b>{esc(value)}</b><span>{esc(name)}</span></li>" for value, name in facts)
    return f'<ul class="figures">{items}</ul>'


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{esc(title)}</h2>{content}</section>'


def _controls() -> str:
    buttons = "".join(f'<button type="button" data-x="{x}" aria-pressed="{str(x == "epoch").lower()}">{x}</button>'
                      for x in ("epoch", "step", "minutes"))
    return (f'<div class="controls"><span>over {buttons}</span><label>smooth steps <input type="range" id="smooth" '
            'min="1" max="50" value="1"></label><label><input type="checkbox" id="log"> log scale</label></div>'
            "<noscript><p>Curves and pictures are drawn by this page's script, which is switched off.</p></noscript>")


def _one() -> str:
    """The empty place in which page.js shows one experiment."""
    return ('<section id="mistakes" hidden><h2>Mistakes</h2><div class="controls"><label>Test set, method '
            '<select id="decoded"></select></label></div><div class="card" id="decoding"></div></section>'
            '<section id="pictures" hidden><h2>Pictures after each epoch</h2><div class="card"></div></section>'
            '<section><h2>Config and environment</h2><details open><summary>Config</summary><div class="card" '
            'id="config"></div></details><details><summary>Environment</summary><div class="card" id="environment">'
            "</div></details></section>")


def _whole(title: str, body: Sequence[str], page: dict[str, Any]) -> str:
    """The document. ``</`` is escaped in the JSON, so that it can't end its element. The security policy allows nothing
    from elsewhere."""
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    script = "".join((_HERE / name).read_text(encoding="utf-8") for name in ("views.js", "page.js"))
    data = json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return "\n".join([
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; media-src data:; "
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<title>{esc(title)}</title>",
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>", *body,
        '<p class="soft">Made by <code>python -m speechlab.report</code> from the files that each run left.</p>',
        f'</main>\n<script type="application/json" id="data">{data}</script>\n<script>\n{script}</script>\n</body>',
        "</html>\n"])
