"""The one-page table of a recipe, from whole, half-way and broken experiments."""

import json

import pytest

from speechlab.report import main
from speechlab.reporting.metrics import corpus_of
from speechlab.reporting.summary import HEAD, Figure, build, draw, markdown, write_summary
from speechlab.scoring import metric
from speechlab.scoring.metric import METRICS, Metric


def row(metric, value, method="ctc_greedy", test_set="test", **more):
    known = value is not None and metric != "RTF"
    return {"test_set": test_set, "method": method, "metric": metric, "value": value,
            "unit": "1" if metric == "RTF" else "%",
            "ci_low": value - 1 if known else None, "ci_high": value + 1.5 if known else None, "protocol": "p", "n": 40,
            "n_failed": 0, "list_hash": "0123", **more}


def make(recipe, name, rows, corpus="mini", parameters=2916498, seconds=696.4):
    exp = recipe / "exp" / name
    exp.mkdir(parents=True)
    (exp / "env.json").write_text(json.dumps({
        "parameters": parameters, "wall_seconds": seconds,
        "command": f"python -m speechlab.train conf/a.yaml --data 'data/{corpus}' --exp exp/{name}"}))
    (exp / "config.yaml").write_text("model: {class: 'm:C'}\ndata: {max_duration: 45.0}\n")
    if rows is not None:
        (exp / "results.json").write_text(json.dumps(rows))
        (exp / "decode").mkdir()
        (exp / "decode" / "methods.json").write_text(json.dumps(
            {row["method"]: {} for row in rows if isinstance(row, dict) and not row["method"].startswith("oracle")}))
    return exp


@pytest.fixture
def recipe(tmp_path):
    recipe = tmp_path / "toy_asr"
    make(recipe, "small", [row("CER", 25.0), row("SER", 12.0), row("RTF", 0.0015749), row("CER", 9.5, "oracle"),
                           row("SER", 2.0, "oracle"), row("CER", 22.0, test_set="test_2")], parameters=226514)
    make(recipe, "big", [row("CER", 18.734), row("SER", 7.8), row("CER", 17.0, "joint"), row("RTF", 0.25, "joint"),
                         row("CER", 9.5, "oracle"), row("CER", None, "failed", n_failed=40)])
    make(recipe, "words", [row("WER", 30.0), row("CER", 12.0)], corpus="an4")
    make(recipe, "half_way", None)
    return recipe


def table(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table(recipe):
    head, rule, *rows = table(markdown(recipe, build(recipe)))
    assert head == [*HEAD, "WER % (95 % interval)", "CER % (95 % interval)", "SER % (95 % interval)", "RTF"]
    assert all(set(cell) <= set("-:") for cell in rule)
    assert rows == [
        ["words", "2.92", "11.6", "an4", "test", "ctc_greedy", "30.00 (29.00 - 31.50)", "12.00 (11.00 - 13.50)", "",
         ""],
        ["(no model)", "", "", "mini", "test", "oracle", "", "9.50 (8.50 - 11.00)", "2.00 (1.00 - 3.50)", ""],
        ["big", "2.92", "11.6", "mini", "test", "joint", "", "17.00 (16.00 - 18.50)", "", "0.2500"],
        ["big", "2.92", "11.6", "mini", "test", "ctc_greedy", "", "18.73 (17.73 - 20.23)", "7.80 (6.80 - 9.30)", ""],
        ["small", "0.23", "11.6", "mini", "test", "ctc_greedy", "", "25.00 (24.00 - 26.50)", "12.00 (11.00 - 13.50)",
         "0.0016"],
        ["big", "2.92", "11.6", "mini", "test", "failed", "", "", "", ""],
        ["small", "0.23", "11.6", "mini", "test_2", "ctc_greedy", "", "22.00 (21.00 - 23.50)", "", ""],
    ]
    text = write_summary(recipe)
    assert (recipe / "results_table.md").read_text(encoding="utf-8") == text == write_summary(recipe)
    assert text.startswith("# Results of toy_asr\n") and "Without results yet: half_way." in text
    assert "mini test, big failed: 40 items failed" in text and "Warning" not in text


def test_columns_are_straight_with_hanzi_and_bars(tmp_path):
    from speechlab.scoring.layout import width

    make(tmp_path, "实验|1", [row("CER", 20.0)])
    make(tmp_path, "b", [row("CER", 21.0)])
    lines = [line for line in write_summary(tmp_path).splitlines() if line.startswith("|")]
    assert "实验\\|1" in lines[2] and len({width(line) for line in lines}) == 1


def test_lists_that_differ_are_told(recipe):
    make(recipe, "other", [row("CER", 1.0, list_hash="ffff")])
    assert "Warning: mini test: these systems were not decoded on one list" in write_summary(recipe)


def test_broken_experiments_are_passed_over(recipe):
    for name, content in (("x1", "{"), ("x2", '{"a": 1}'), ("x3", '[1, {"metric": "CER"}, null]')):
        make(recipe, name, None)
        (recipe / "exp" / name / "results.json").write_text(content)
    odd = make(recipe, "odd", [{"test_set": "test", "method": "m", "metric": "CER", "value": 50}], parameters="many")
    (odd / "env.json").write_bytes(b"\xff\xfe")
    (odd / "config.yaml").write_text("data: [unclosed")
    found = build(recipe)
    assert found.without == ["half_way", "x1", "x2", "x3"]
    (line,) = [line for line in found.lines if line.model == "odd"]
    assert (line.corpus, line.parameters, line.minutes) == ("", None, None)
    assert line.figures == {"CER": Figure(METRICS["cer"], 50, None, None)}
    assert table(markdown(recipe, found))[2][-3] == "50.00" and draw(recipe, found).exists()


def test_corpus(tmp_path):
    exp = make(tmp_path, "a", None, corpus="my corpus")
    assert corpus_of(exp) == "my corpus"
    (exp / "env.json").write_text('{"command": "train --data \'open"}')
    assert corpus_of(exp) == ""
    (exp / "config.yaml").write_text("data: {folder: ../data/aishell}\n")
    assert corpus_of(exp) == "aishell"
    (exp / "env.json").write_text('{"corpus": "mini"}')
    assert corpus_of(exp) == "mini"


def test_picture_holds_the_figures(recipe, monkeypatch):
    """What is drawn is looked at before matplotlib closes it."""
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    assert draw(recipe, build(recipe)).read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    monkeypatch.undo()
    an4, first, second = figure.axes
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["an4, test", "mini, test", "mini, test_2"]
    assert an4.get_xlabel() == "WER %, lower is better, empty: CER"
    assert first.get_xlabel() == "CER %, lower is better, empty: SER"
    assert [label.get_text() for label in first.get_yticklabels()] == [
        "(no model)  oracle", "big  joint", "big  ctc_greedy", "small  ctc_greedy"]
    assert first.get_ylim()[0] > first.get_ylim()[1] and first.get_xlim() == second.get_xlim()
    full = [line for line in first.lines if line.get_marker() == "o" and line.get_markersize() == 6]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in full] == [(9.5, 0), (17, 1), (18.734, 2), (25, 3)]
    bars = [list(line.get_xdata()) for line in first.lines if len(line.get_xdata()) == 2]
    assert [16.0, 18.5] in bars and [6.8, 9.3] in bars
    assert [text.get_text() for text in first.texts] == ["9.50", "17.00", "18.73", "25.00"]
    assert not pyplot.close(figure)


def test_nothing_to_draw_and_too_much(tmp_path):
    make(tmp_path, "a", None)
    text = write_summary(tmp_path)
    assert "Without results yet: a." in text and "picture" not in text
    assert not (tmp_path / "results_table.png").exists()
    make(tmp_path, "b", [row("CER", float(i), f"m{i:02}") for i in range(45)])
    assert draw(tmp_path, build(tmp_path)).exists()


def test_images_have_figures(tmp_path):
    """Error and accuracy are columns; accuracy, which points the other way, is no empty dot."""
    for name, error in (("a", 3.0), ("b", 0.27)):
        make(tmp_path, name, [row("accuracy", 100 - error, "plain"), row("error", error, "plain")])
    text = write_summary(tmp_path)
    head, _, *rows = table(text)
    assert head[len(HEAD):] == ["error % (95 % interval)", "accuracy % (95 % interval)"]
    assert [cells[0] for cells in rows] == ["b", "a"]
    assert rows[1][-2:] == ["3.00 (2.00 - 4.50)", "97.00 (96.00 - 98.50)"]
    assert "the picture is `results_table.png`" in text and (tmp_path / "results_table.png").exists()


@pytest.mark.parametrize("name, unit, own, higher", [
    ("SECS", "1", (), True), ("recall", "%", (), True), ("AUC", "1", (), True), ("SI-SDR", "dB", (), True),
    ("EER", "%", (), False), ("pitch", "Hz", (Metric("pitch", "Hz", lower=False),), True), ("what", "1", (), None)])
def test_directions(tmp_path, monkeypatch, name, unit, own, higher):
    from matplotlib import pyplot

    for run, value in (("b", -4.0), ("c", 6.0), ("a", 2.0)):
        exp = make(tmp_path, run, [row(name, value, unit=unit), row("RTF", 0.5, unit="1")])
        if own:
            metric.write(exp, own)
    ranked = {True: ["c", "a", "b"], False: ["b", "a", "c"], None: ["a", "b", "c"]}[higher]
    text = write_summary(tmp_path)
    head, _, *rows = table(text)
    assert [cells[0] for cells in rows] == ranked
    assert head[len(HEAD)] == f"{name} {'' if unit == '1' else unit + ' '}(95 % interval)" and head[-1] == "RTF"
    assert any("-4." in cell and " to " in cell for cells in rows for cell in cells), "-5.00 to -2.50"
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    draw(tmp_path, build(tmp_path))
    monkeypatch.undo()
    (panel,) = drawn[0].axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [f"{run}  ctc_greedy" for run in ranked]
    assert panel.get_xlim()[0] < -5 and panel.get_xlim()[1] > 7.5
    said = {True: "higher is better", False: "lower is better", None: ""}[higher]
    assert panel.get_xlabel() == " ".join(filter(None, [name, ", ".join(filter(None, [unit.strip("1"), said]))]))
    pyplot.close(drawn[0])


def test_without_matplotlib_the_text_is_there(recipe, monkeypatch):
    import sys

    from speechlab.errors import UserError

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        write_summary(recipe)
    text = (recipe / "results_table.md").read_text(encoding="utf-8")
    assert "18.73" in text and "picture" not in text


def test_report_command(recipe, capsys):
    assert main([str(recipe)]) == 0
    out = capsys.readouterr().out
    assert "| big " in out and str(recipe / "results_table.md") in out and (recipe / "results_table.png").exists()
