"""Curves and the parameter table, from whole, half-way and broken experiments."""

import csv
import json
import math

import pytest

from speechlab.report import main
from speechlab.reporting.curves import draw, smoothed
from speechlab.reporting.metrics import judged_by, read_metrics, series
from speechlab.reporting.table import CORE, RUN, build, write_table
from speechlab.scoring import metric
from speechlab.scoring.metric import Metric


def make(recipe, name, lr=1e-3, epochs=3, layers=6):
    exp = recipe / "exp" / name
    exp.mkdir(parents=True)
    lines = []
    for epoch in range(1, epochs + 1):
        for step in range(epoch * 10 - 9, epoch * 10 + 1):
            lines.append({"kind": "step", "step": step, "epoch": epoch, "loss": 50 / step, "lr": lr * min(1, step / 8),
                          "grad_norm": 2.0, "items_per_s": 30.0, "seconds": 0.5, "memory_gb": 1.0})
        lines.append({"kind": "epoch", "epoch": epoch, "step": epoch * 10, "train_loss": 5 / epoch,
                      "valid_loss": 6 / epoch, "valid_cer": 100.0 / epoch, "lr": lr, "seconds": 40.0 * epoch,
                      **({"phase": "all blank"} if epoch == 1 else {})})
    (exp / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (exp / "config.yaml").write_text(
        f"task: asr\nmodel:\n  class: speechlab.models.asr:Conformer\n  layers: {layers}\n"
        f"optim: {{name: adamw, lr: {lr}}}\ndata: {{max_duration: 60}}\ntrain: {{epochs: {epochs}, seed: 0}}\n")
    env = {"device": "cpu", "engine": "none", "gpus": 0, "versions": {"torch": "2.11.0+cpu"}, "parameters": 2400000,
           "wall_seconds": 3725.4, "memory_gb": 2.5, "memory_sum_gb": 4.25}
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
        "test/oracle/CER": "", "grad_norm": "2", "parameters": "2400000", "wall_time": "1:02:05", "memory_gb": "4.25",
        "device": "cpu", "gpus": "0", "torch": "2.11.0+cpu", "engine": "none", "model.layers": "4"}
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


@pytest.fixture
def panels(monkeypatch):
    """draw(exp) and the panels that it drew, looked at before matplotlib closes them."""
    from matplotlib import pyplot

    drawn, close = [], pyplot.close
    monkeypatch.setattr(pyplot, "close", drawn.append)

    def look(exp):
        assert draw(exp) == exp / "curves.png"
        assert (exp / "curves.png").read_bytes().startswith(b"\x89PNG")
        return drawn[-1].axes

    yield look
    for figure in drawn:
        close(figure)


def texts(panel):
    return [text.get_text() for text in panel.get_legend().get_texts()]


def test_curves_hold_the_figures(tmp_path, panels):
    loss, rate, lr, norm = panels(make(tmp_path, "实验 1"))
    assert list(loss.lines[0].get_ydata()) == pytest.approx([50 / step for step in range(1, 31)])
    assert list(loss.lines[2].get_ydata()) == [6, 3, 2]
    assert list(rate.lines[0].get_ydata()) == pytest.approx([100, 50, 100 / 3])
    assert texts(rate) == ["CER (best 33.33)"] and rate.get_ylabel() == "%, lower is better"
    assert rate.get_title() == "Validation CER" and rate.get_ylim() == (0, 105)
    assert {text.get_text() for panel in (loss, rate, lr, norm) for text in panel.texts} == {"warm-up", "all blank"}
    (blank,) = [text for text in rate.texts if text.get_text() == "all blank"]
    assert blank.get_position()[0] == 5, "half of the first epoch's ten steps"
    assert max(lr.lines[0].get_ydata()) == pytest.approx(1e-3) and "median 2" in norm.get_title()
    assert "实验 1" in rate.figure.get_suptitle()


def judged(exp, values, own=(), phases=()):
    """An experiment with nothing but epochs: ``values`` of each key."""
    exp.mkdir(parents=True)
    count = len(next(iter(values.values())))
    (exp / "metrics.jsonl").write_text("".join(json.dumps({
        "kind": "epoch", "epoch": e + 1, "step": 10 * (e + 1), **{key: found[e] for key, found in values.items()},
        **({"phase": phases[e]} if e < len(phases) else {})}) + "\n" for e in range(count)))
    if own:
        metric.write(exp, own)
    return exp


@pytest.mark.parametrize("key, own, label, unit, best", [
    ("valid_secs", (), "SECS (best 0.900)", "higher is better", 0.9),
    ("valid_recall", (), "recall (best 0.90)", "%, higher is better", 0.9),
    ("valid_auc", (), "AUC (best 0.900)", "higher is better", 0.9),
    ("valid_si_sdr", (), "SI-SDR (best 0.90)", "dB, higher is better", 0.9),
    ("valid_eer", (), "EER (best 0.50)", "%, lower is better", 0.5),
    ("valid_pitch", (Metric("pitch", "Hz", lower=False),), "pitch (best 0.90)", "Hz, higher is better", 0.9),
    ("valid_mystery", (), "mystery", "", None)])
def test_a_star_on_the_best_epoch(tmp_path, panels, key, own, label, unit, best):
    _, rate, _, _ = panels(judged(tmp_path / "x", {key: [0.7, 0.9, 0.5, 0.8]}, own))
    assert texts(rate) == [label] and rate.get_ylabel() == unit
    assert [line.get_ydata()[0] for line in rate.lines if line.get_marker() == "*"] == ([] if best is None else [best])


def test_metrics_of_other_units_have_panels_of_their_own(tmp_path, panels):
    exp = judged(tmp_path / "x", {"valid_stoi": [0.5, 0.6], "valid_secs": [0.2, 0.1], "valid_pesq": [1.5, 2.0],
                                  "valid_what": [7, 8]}, (metric.declared("STOI"),))
    loss, first, second, third, lr, norm = panels(exp)
    assert [panel.get_title() for panel in (first, second, third)] == [
        "Validation STOI, SECS", "Validation PESQ", "Validation what"]
    assert texts(first) == ["STOI (best 0.600)", "SECS (best 0.200)"]
    assert (lr.get_title(), norm.get_title()) == ("Learning rate", "Gradient norm")


def test_a_figure_that_is_another_turned_over_is_left_out(tmp_path, panels):
    _, rate, _, _ = panels(judged(tmp_path / "x", {"valid_accuracy": [90.0, 99.5], "valid_error": [10.0, 0.5]}))
    assert texts(rate) == ["error (best 0.50)"]
    _, error, accuracy, _, _ = panels(judged(tmp_path / "y", {"valid_accuracy": [80.0, 99], "valid_error": [10.0, 1]}))
    assert texts(error) == ["error (best 1.00)"] and texts(accuracy) == ["accuracy (best 99.00)"]


@pytest.mark.parametrize("phases, shaded", [
    (["silence", "silence", None, "silence"], 20), (["silence", "noise"], 10), ([None, "silence"], None),
    ([], None), ([3], None), (["silence"] * 4, 40)])
def test_the_first_phase_is_shaded(tmp_path, panels, phases, shaded):
    _, rate, _, _ = panels(judged(tmp_path / "x", {"valid_cer": [100.0, 99, 50, 40]}, phases=phases))
    assert [text.get_text() for text in rate.texts] == (["silence"] if shaded else [])
    assert [patch.get_x() + patch.get_width() for patch in rate.patches] == ([shaded] if shaded else [])


def test_what_epochs_are_judged_by(tmp_path):
    def by(values, own=()):
        exp = judged(tmp_path / str(len(list(tmp_path.iterdir()))), values, own)
        return judged_by(exp, read_metrics(exp / "metrics.jsonl")[1])

    assert by({"valid_loss": [1], "valid_ser": [1], "valid_cer": [1]}) == "valid_cer"
    assert by({"valid_loss": [1], "valid_accuracy": [1]}) == "valid_accuracy", "figures of merit before a loss"
    assert by({"valid_cer": [1], "valid_pitch": [1]}, [Metric("pitch")]) == "valid_pitch", "what the task declares"
    assert by({"train_loss": [1], "valid_loss": [1], "valid_what": [1]}) == "valid_loss", "before what nobody knows"
    assert by({"train_loss": [1], "valid_what": [1]}) == "valid_what" and by({"train_loss": [1]}) == "train_loss"
    exp = judged(tmp_path / "told", {"valid_cer": [1], "valid_loss": [1]})
    (exp / "env.json").write_text('{"metric": "valid_loss"}')
    assert judged_by(exp, read_metrics(exp / "metrics.jsonl")[1]) == "valid_loss"


class TestMetric:
    def test_order(self):
        names = ["RTF", "what", "SER", "valid_loss", "CER", "SER", "accuracy"]
        assert metric.order(names) == ["CER", "SER", "accuracy", "valid_loss", "what", "RTF"]
        assert metric.order(names, [Metric("what"), Metric("SER")])[:3] == ["what", "SER", "CER"]
        assert metric.main(names) == "CER" and metric.main(["RTF"]) == "" and metric.main(["what", "RTF"]) == "what"
        assert metric.main(["CER", "SER"], [Metric("CER", merit=False)]) == "SER"

    def test_what_has_no_direction_ranks_all_alike(self):
        assert metric.find("what").rank(1) == metric.find("what").rank(2) == 0
        assert metric.find("CER").rank(1) < metric.find("CER").rank(2)
        assert metric.find("SI-SDR").rank(-3) > metric.find("SI-SDR").rank(-2)

    def test_what_was_noted_is_read_again(self, tmp_path):
        own = (Metric("tone", "Hz", False, 1, "of the voice"), metric.declared("CER"))
        metric.write(tmp_path, own)
        assert metric.read(tmp_path) == own and metric.find("valid_tone", own) is own[0]

    @pytest.mark.parametrize("broken", ["", "{", "3", '{"a": 1}', "[1]", "[{}]", '[{"name": 3}]',
                                        '[{"name": "a", "decimals": "two"}]', '[{"name": "a", "lower": "yes"}]'])
    def test_what_is_broken_is_not_there(self, tmp_path, broken):
        (tmp_path / metric.FILE).write_text(broken)
        assert metric.read(tmp_path) == ()


def test_nothing_to_draw(tmp_path):
    assert draw(tmp_path) is None and not list(tmp_path.iterdir())


def test_report_command(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1 and "no experiment in" in capsys.readouterr().err
    make(tmp_path, "one")
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "exp/one/curves.png").exists() and (tmp_path / "params_table.csv").exists()
