"""Curves and the parameter table, from whole, half-way and broken experiments."""

import csv
import json
import math

import pytest

from speechlab.report import main
from speechlab.reporting.curves import draw, smoothed
from speechlab.reporting.metrics import read_metrics, series
from speechlab.reporting.table import CORE, RUN, build, write_table


def make(recipe, name, lr=1e-3, epochs=3, layers=6):
    exp = recipe / "exp" / name
    exp.mkdir(parents=True)
    lines = []
    for epoch in range(1, epochs + 1):
        for step in range(epoch * 10 - 9, epoch * 10 + 1):
            lines.append({"kind": "step", "step": step, "epoch": epoch, "loss": 50 / step, "lr": lr * min(1, step / 8),
                          "grad_norm": 2.0, "items_per_s": 30.0, "seconds": 0.5, "memory_gb": 1.0})
        lines.append({"kind": "epoch", "epoch": epoch, "step": epoch * 10, "train_loss": 5 / epoch,
                      "valid_loss": 6 / epoch, "valid_cer": 100.0 / epoch, "lr": lr, "seconds": 40.0 * epoch})
    (exp / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (exp / "config.yaml").write_text(
        f"task: asr\nmodel:\n  class: speechlab.models.asr:Conformer\n  layers: {layers}\n"
        f"optim: {{name: adamw, lr: {lr}}}\ndata: {{max_duration: 60}}\ntrain: {{epochs: {epochs}, seed: 0}}\n")
    env = {"device": "cpu", "engine": "none", "gpus": 0, "versions": {"torch": "2.11.0+cpu"}, "parameters": 2400000,
           "wall_seconds": 3725.4}
    (exp / "env.json").write_text(json.dumps(env))
    (exp / "results.json").write_text(json.dumps([
        {"test_set": "test", "method": "ctc_greedy", "metric": "CER", "value": 23.456},
        {"test_set": "test", "method": "oracle", "metric": "CER", "value": None}]))
    return exp


def test_table_of_two_experiments(tmp_path):
    make(tmp_path, "b", lr=2e-3)
    make(tmp_path, "a", layers=4)
    with open(write_table(tmp_path), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figures = ["test/ctc_greedy/CER", "test/oracle/CER"]
    assert list(rows[0]) == [*CORE, *figures, *RUN, "model.layers"], "seed and epochs are alike: no column"
    assert [row["experiment"] for row in rows] == ["a", "b"]
    assert rows[0] == {
        "experiment": "a", "model": "speechlab.models.asr:Conformer", "optimiser": "adamw", "learning_rate": "0.001",
        "batch": "60", "epochs": "3", "first_loss": "50", "last_loss": "1.667", "test/ctc_greedy/CER": "23.46",
        "test/oracle/CER": "", "grad_norm": "2", "parameters": "2400000", "wall_time": "1:02:05", "device": "cpu",
        "gpus": "0", "torch": "2.11.0+cpu", "engine": "none", "model.layers": "4"}
    assert (rows[1]["learning_rate"], rows[1]["model.layers"]) == ("0.002", "6")


def test_broken_and_half_way_experiments_have_a_row_with_what_there_is(tmp_path):
    make(tmp_path, "whole")
    half = make(tmp_path, "half")
    for name in ("results.json", "env.json"):
        (half / name).unlink()
    with open(half / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "step": 31, "lo')
    broken = tmp_path / "exp" / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_text("model: [unclosed\n")
    (broken / "env.json").write_bytes(b"\xff\xfe\x00")
    (broken / "results.json").write_text('{"not": "a list"}')
    (broken / "metrics.jsonl").write_text(
        '{"kind": "step", "step": 1, "loss": NaN}\n[1, 2]\nnull\n{"kind": "other", "step": 1}\n')
    (tmp_path / "exp" / "empty").mkdir()
    (tmp_path / "exp" / "a_file").write_text("x")

    columns, rows = build(tmp_path)
    assert [row["experiment"] for row in rows] == ["broken", "half", "whole"]
    assert not set(columns) & {"model.layers", "train.epochs"}, "a config that can't be read makes no key differ"
    assert {value for key, value in rows[0].items() if key not in ("experiment", "epochs")} == {""}
    assert rows[1]["wall_time"] == "0:02:00" and rows[1]["last_loss"] == "1.667" and rows[1]["device"] == ""
    assert [draw(tmp_path / "exp" / row["experiment"]).exists() for row in rows] == [True] * 3


def test_metrics_of_a_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"kind": "step", "step": step, "loss": loss} for step, loss in [(1, 9.0), (2, 8.0), (3, 7.0), (2, 5.0)]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps, epochs = read_metrics(path)
    assert series(steps, "loss") == ([1, 2, 3], [9.0, 5.0, 7.0]) and epochs == []
    assert series([{"step": 1, "loss": math.nan}, {"step": 2}, {"step": 3, "loss": 1}], "loss") == ([3], [1.0])


def test_smoothing():
    assert smoothed([4.0] * 10, 5) == pytest.approx([4.0] * 10)
    assert smoothed([1.0, 5.0, 2.0], 1) == smoothed([1.0, 5.0, 2.0], 0) == [1.0, 5.0, 2.0]
    rough = [0.0, 10.0] * 50
    assert max(smoothed(rough, 20)[40:]) < 6 and min(smoothed(rough, 20)[40:]) > 4


def test_curves_hold_the_figures(tmp_path, monkeypatch):
    """What is drawn is looked at before matplotlib closes it."""
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    exp = make(tmp_path, "实验 1")
    assert draw(exp) == exp / "curves.png"
    assert (exp / "curves.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    monkeypatch.undo()
    loss, rate, lr, norm = figure.axes
    assert list(loss.lines[0].get_ydata()) == pytest.approx([50 / step for step in range(1, 31)])
    assert list(loss.lines[2].get_ydata()) == [6, 3, 2]
    assert list(rate.lines[0].get_ydata()) == pytest.approx([100, 50, 100 / 3])
    assert "CER (best 33.33)" in [text.get_text() for text in rate.get_legend().get_texts()]
    assert {text.get_text() for panel in figure.axes for text in panel.texts} == {"warm-up", "all blank"}
    assert max(lr.lines[0].get_ydata()) == pytest.approx(1e-3) and "median 2" in norm.get_title()
    assert "实验 1" in figure.get_suptitle() and not pyplot.close(figure)


def test_nothing_to_draw(tmp_path):
    assert draw(tmp_path) is None and not list(tmp_path.iterdir())


def test_report_command(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1 and "no experiment in" in capsys.readouterr().err
    make(tmp_path, "one")
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "exp/one/curves.png").exists() and (tmp_path / "params_table.csv").exists()
