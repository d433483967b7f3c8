"""report.html: what stands on the page, from whole and broken experiments; and the page opened in a real browser."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
import zlib

import numpy as np
import pytest
from browser import browse, needs_chromium

from speechlab.report import main as report
from speechlab.reporting import html
from speechlab.reporting import mistakes as kept
from speechlab.reporting.experiment import Experiment, epoch_pictures
from speechlab.scoring import metric
from speechlab.scoring.metric import Metric
from speechlab.scoring.views import FILE, Mistakes, png

CLASSES = ["zero", "one", "<two>"]


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


IMAGES = np.arange(20 * 16, dtype=np.int64).astype(np.uint8).reshape(20, 4, 4, 1)


def make(recipe, name, error=20.0, lr=0.1, epochs=4):
    """An experiment on pictures of three classes; every fifth of twenty is wrong."""
    exp = recipe / "exp" / name
    steps = [{"kind": "step", "step": s, "epoch": 1 + (s - 1) // 10, "loss": 3 / s, "lr": lr, "grad_norm": 1.5,
              "grad_norm/conv1": 1 / s, "seconds": 6.0 * s} for s in range(1, 10 * epochs + 1)]
    judged = [{"kind": "epoch", "step": 10 * e, "epoch": e, "train_loss": 1 / e, "valid_loss": 1.1 / e,
               "valid_error": error + 10 / e, "seconds": 60.0 * e, "dead/conv1": 0.1 * e} for e in range(1, epochs + 1)]
    lines(exp / "metrics.jsonl", steps + judged)
    (exp / "config.yaml").write_text(f"task: image\nmodel: {{class: 'm.images:CNN', width: 8}}\noptim: {{lr: {lr}}}\n")
    (exp / "env.json").write_text(json.dumps({"parameters": 12345, "wall_seconds": 240.0, "data": "data/mini",
                                              "metric": "valid_error", "versions": {"torch": "2.11"}}))
    row = {"test_set": "test", "method": "plain", "metric": "error", "value": error, "ci_low": error - 1,
           "ci_high": error + 2, "unit": "%", "protocol": "top-1", "n": 20, "n_failed": 0, "list_hash": "0"}
    (exp / "results.json").write_text(json.dumps([row, {**row, "metric": "accuracy", "value": 100 - error}]))
    answers = [{"id": f"test-{i}", "ref": CLASSES[i % 3], "hyp": CLASSES[(i + (i % 5 == 0)) % 3],
                "prob": 0.5 + i / 50, "prob_ref": 0.5 + i / 50 if i % 5 else 0.1} for i in range(20)]
    counts = [[sum(a["ref"] == r and a["hyp"] == h for a in answers) for h in CLASSES] for r in CLASSES]
    found = Mistakes()
    cards = [{**answers[i], **found.picture(f"test-{i}", IMAGES[i])} for i in (15, 10, 5, 0)]
    pairs = [["zero", "one", 2], ["one", "<two>", 1], ["<two>", "zero", 1]]
    found.add("test", "plain", "classes", classes=CLASSES, counts=counts, pairs=pairs, n=20, errors=4, cards=cards)
    found.write(exp)
    return exp


def speech(recipe, name):
    exp = recipe / "exp" / name
    exp.mkdir(parents=True)
    (exp / "env.json").write_text("{}")
    found = Mistakes()
    found.add("test", "ctc_greedy", "aligned", items=[
        {"title": "1. hsk_1 CER 75.0 %", "pairs": [["屏", "评", True], ["幕", "", True], ["上", "上", False],
                                                  ["", "<b>", True]]}])
    found.write(exp)
    return exp


def tone(hertz, seconds=0.3, rate=8000):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def all_views(recipe, name="views"):
    """An experiment with a set of each view, and sounds in each."""
    exp = recipe / "exp" / name
    found = Mistakes()
    found.add("a", "m", "classes", classes=["yes", "no"], counts=[[9, 1], [0, 10]], pairs=[["yes", "no", 1]], n=20,
              errors=1, cards=[{"id": "x", "ref": "yes", "hyp": "no", "prob": 0.9, "text": "speaker 7",
                                **found.sound("x", tone(300), 8000)}])
    found.add("b", "m", "aligned", items=[{"title": "1. u", "pairs": [["a", "b", True], ["c", "c", False]],
                                           **found.sound("u", tone(400), 8000)}])
    found.add("c", "m", "trials", edges=[-2, -1, 0, 1, 2], nontarget=[50, 40, 10, 0], target=[0, 1, 4, 5],
              threshold=0.2, det=[[0, 90], [5, 40], [20, 20], [60, 5], [100, 0]],
              cards=[{"id": "p q", "score": -0.7, "target": True, "clips": [
                  found.clip(key, tone(hertz), 8000)["clip"] for key, hertz in (("p", 200), ("q", 210))]}])
    clean = {"name": "clean", **found.sound("clean", tone(500), 8000)}
    noisy = {"name": "noisy", **found.sound("noisy", tone(500) + 0.1 * tone(1234), 8000)}
    found.add("d", "m", "audio", items=[{"title": "fair", "figures": {"PESQ": 2.0, "SI-SDR": 5.0}},
                                        {"title": "bad", "figures": {"PESQ": 1.5, "SI-SDR": -3.0},
                                         "tracks": [noisy, clean]},
                                        {"title": "unknown", "figures": {}},
                                        {"title": "good", "figures": {"PESQ": 1.0, "SI-SDR": 9.0}}])
    found.write(exp)
    metric.write(exp, [metric.declared("SI-SDR")])
    (exp / "env.json").write_text("{}")
    return exp


@pytest.fixture
def recipe(tmp_path):
    recipe = tmp_path / "a 语音 recipe"
    recipe.mkdir()
    make(recipe, "good_a", 20.0)
    make(recipe, "worse_b", 30.0, lr=0.5)
    return recipe


def page(path):
    """The block of JSON that page.js draws from."""
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_experiment(recipe):
    html.write(recipe / "exp" / "good_a")
    path = recipe / "exp" / "good_a" / "report.html"
    data, text = page(path), path.read_text(encoding="utf-8")
    (run,) = data["runs"]
    titles = [chart["title"] for chart in data["charts"]]
    assert titles[:3] == ["Loss", "Validation error", "Learning rate"]
    assert "Grad norm by layer" in titles and "Dead by layer" in titles
    error = next(chart for chart in data["charts"] if chart["title"] == "Validation error")
    assert error["lower"] and error["series"][0]["y"] == [30, 25, 23.333, 22.5]
    assert run["axes"]["epochs"] == {"step": [10, 20, 30, 40], "epoch": [1, 2, 3, 4], "minutes": [1, 2, 3, 4]}
    assert run["axes"]["steps"]["epoch"][4] == 0.5 and run["axes"]["steps"]["minutes"][4] == 0.5
    assert ["optim.lr", "0.1"] in run["config"] and ["versions.torch", "2.11"] in run["environment"]
    assert "20.00 %" in text and "19.00 - 22.00" in text and 'href="../../report.html"' in text
    assert (recipe / "report.html").exists(), "the recipe's page is brought up to date as well"


def test_mistakes_with_their_pictures(recipe):
    one = Experiment(recipe / "exp" / "good_a", 10, 3, with_pictures=False)
    (found,) = one.decoded
    assert (found["name"], found["view"], found["n"], found["errors"]) == ("test, plain", "classes", 20, 4)
    assert [item["id"] for item in found["cards"]] == ["test-15", "test-10", "test-5"], "three at most"
    assert found["cards"][0]["ref"] == "zero" and found["cards"][0]["prob_ref"] == 0.1
    assert found["pairs"][0] == ["zero", "one", 2] and sum(map(sum, found["counts"])) == 20
    media = kept.embed(one.decoded, 10_000)
    assert [media[item["picture"]] for item in found["cards"]] == [png(IMAGES[i]) for i in (15, 10, 5)]


def test_the_audio_view_begins_with_the_worst(tmp_path):
    one = kept.read(all_views(tmp_path), 100, [metric.declared("SI-SDR")])[3]
    assert [item["title"] for item in one["items"]] == ["bad", "fair", "good", "unknown"], "by SI-SDR: higher is better"
    assert [(c["label"], c["unit"], c["lower"]) for c in one["columns"]] == [("SI-SDR", "dB", False),
                                                                              ("PESQ", "MOS", False)]
    assert [track["name"] for track in one["items"][0]["tracks"]] == ["noisy", "clean"]
    undeclared = kept.read(tmp_path / "exp" / "views", 100)[3]
    assert undeclared["columns"][0]["label"] == "PESQ", "the field's order"


def test_too_much_media_leaves_the_cards(tmp_path):
    """Sounds go before pictures, and the last ones of each set before its first."""
    def sets():
        return [{"cards": [{"id": f"{name}{i}", "picture": f"P{name}{i}" + 8 * ".", "clip": f"C{name}{i}" + 16 * "."}
                           for i in range(3)]} for name in "ab"]

    whole = sets()
    assert len(kept.embed(whole, 1000)) == 12 and whole[0]["cards"][0].keys() == {"id", "picture", "clip"}
    less = sets()
    media = kept.embed(less, 6 * 11 + 19 * 2)  # all pictures, two sounds
    assert [[sorted(card) for card in one["cards"]] for one in less] == 2 * [
        [["clip", "id", "picture"], ["id", "picture"], ["id", "picture"]]]
    assert media[less[1]["cards"][0]["clip"]].startswith("Cb0")
    few = sets()
    kept.embed(few, 23)
    assert [[len(card) for card in one["cards"]] for one in few] == 2 * [[2, 1, 1]], "a picture each"
    twice = [{"cards": [{"picture": "same"}]}, {"items": [{"tracks": [{"picture": "same", "clip": "x"}]}]}]
    assert len(kept.embed(twice, 5)) == 2 and twice[1]["items"][0]["tracks"][0].keys() == {"picture", "clip"}


def test_a_recipes_page_has_a_bound(tmp_path, monkeypatch):
    for name in "abc":
        found = Mistakes()
        noise = np.random.default_rng(ord(name)).standard_normal((6, 24000))
        found.add("test", "m", "audio", items=[{"title": str(i), "figures": {}, "tracks": [
            {"name": "noisy", **found.sound(f"{i}", row, 8000)}]} for i, row in enumerate(noise)])
        found.write(tmp_path / "exp" / name)
        (tmp_path / "exp" / name / "env.json").write_text("{}")
    assert len((tmp_path / "exp" / "a" / FILE).read_text()) > 100_000
    monkeypatch.setattr(html, "_RECIPE_BYTES", 100_000)
    text = html.recipe_page(tmp_path)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert sum(map(len, data["media"].values())) <= 100_000
    assert [len(run["decoded"][0]["items"]) for run in data["runs"]] == [6, 6, 6]
    first = [run["decoded"][0]["items"][0]["tracks"][0] for run in data["runs"]]
    assert all("picture" in track for track in first), "each run has some"


@pytest.mark.parametrize("broken", [
    "[", "3", "[1]", '{"sets": 3}', '{"sets": [1, null, {"view": ["x"]}, {"view": "none"}, {"view": "classes"}]}',
    '{"sets": [{"view": "aligned", "items": [{"pairs": 3}, {"pairs": [["a"]]}]}], "media": [1]}',
    '{"sets": [{"view": "trials", "edges": [1, 0], "target": [1], "nontarget": [2], "det": [[NaN, 2], [1, 101]]}]}',
    '{"sets": [{"view": "audio", "items": [{"figures": {"x": 1}}, 7]}]}'])
def test_broken_mistakes_are_none(tmp_path, broken):
    (tmp_path / FILE).write_text(broken)
    assert kept.read(tmp_path, 9) == []


def test_damage_costs_no_more_than_what_is_damaged(tmp_path):
    (tmp_path / FILE).write_text(json.dumps({
        "sets": [{"test_set": "t", "method": 5, "view": "classes", "classes": ["a"], "counts": [[1, 2]], "n": "many",
                  "cards": [{"ref": "a", "hyp": "b", "prob": math.nan, "picture": "x", "clip": "y"}, {"ref": "a"}, 3]},
                 {"test_set": "t", "method": "m", "view": "audio",
                  "items": [{"title": "u", "figures": {"PESQ": math.inf, "STOI": 0.5}, "clip": "p",
                             "tracks": [{"clip": ["p"]}, {"name": "n", "clip": "p", "picture": "p"}]}]}],
        "media": {"x": "https://example.org/x.png", "y": "data:text/html;base64,AA==",
                  "p": "data:audio/wav;base64,AA=="}}))
    classes, audio = kept.read(tmp_path, 9)
    assert classes["cards"] == [{"id": "", "ref": "a", "hyp": "b", "prob": None, "prob_ref": None}]
    assert (classes["classes"], classes["counts"], classes["n"], classes["name"]) == (None, None, None, "t, 5")
    assert audio["items"] == [{"title": "u", "figures": {"STOI": 0.5}, "clip": "data:audio/wav;base64,AA==", "tracks": [
        {"name": ""}, {"name": "n", "clip": "data:audio/wav;base64,AA=="}]}], "a sound is no picture"


@pytest.mark.parametrize("shape", [(5, 7, 1), (4, 4, 3)])
def test_png_is_read_back(tmp_path, shape):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = base64.b64decode(png(pixels).partition(",")[2])
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")).reshape(shape), pixels)
    assert struct.unpack(">I", data[29:33])[0] == zlib.crc32(data[12:29])


def test_aligned_utterances(tmp_path):
    (one,) = kept.read(speech(tmp_path, "s"), 5)
    assert one["items"] == [{"title": "1. hsk_1 CER 75.0 %", "pairs": [
        ["屏", "评", True], ["幕", "", True], ["上", "上", False], ["", "<b>", True]]}]


def test_pictures_of_epochs_keep_the_first_and_the_last(tmp_path):
    for name in ("alignments", "layers"):
        (tmp_path / name).mkdir()
        for epoch in (1, 2, 3, 10, 11):
            (tmp_path / name / f"epoch-{epoch:02d}.png").write_bytes(bytes([epoch]))
    alignments, layers = epoch_pictures(tmp_path, most=3)
    assert (alignments["name"], layers["name"]) == ("alignments", "layers")
    assert [epoch for epoch, _ in layers["epochs"]] == [1, 3, 11]
    assert base64.b64decode(layers["epochs"][2][1].partition(",")[2]) == b"\x0b"


def rated(recipe, name, metric_name, values, unit="1", methods=None, own=(), key=None):
    """An experiment whose epochs and test sets are judged by ``metric_name``; ``values``: of each method."""
    exp = recipe / "exp" / name
    exp.mkdir(parents=True)
    key = key or f"valid_{metric_name}"
    first = next(iter(values.values()))
    lines(exp / "metrics.jsonl", [{"kind": "epoch", "step": e, "epoch": e, "train_loss": 1 / e, key: first + d}
                                  for e, d in ((1, -1.0), (2, 1.0), (3, 0.0))])
    (exp / "results.json").write_text(json.dumps([
        {"test_set": "test", "method": method, "metric": metric_name, "value": value, "unit": unit,
         "ci_low": value - 1, "ci_high": value + 1, "n": 9} for method, value in values.items()]))
    if own:
        metric.write(exp, own)
    if methods is not None:
        (exp / "decode").mkdir()
        (exp / "decode" / "methods.json").write_text(json.dumps({method: {} for method in methods}))
    return exp


PITCH = Metric("pitch match", "%", lower=False)


@pytest.mark.parametrize("name, higher, own", [
    ("SECS", True, ()), ("recall", True, ()), ("AUC", True, ()), ("SI-SDR", True, ()), ("EER", False, ()),
    ("minDCF", False, ()), ("pitch match", True, (PITCH,)), ("pitch error", False, (Metric("pitch error", "Hz"),))])
def test_directions(tmp_path, name, higher, own):
    """Experiments, their best figures and epochs, and the bars: the right way up, also below zero."""
    key = "valid_" + name.lower().replace("-", "_").replace(" ", "_")
    for run, value in (("low", -4.0), ("high", 6.0), ("middle", 2.0)):
        rated(tmp_path, run, name, {"m": value}, metric.find(name, own).unit, own=own, key=key)
    ranked = ["high", "middle", "low"] if higher else ["low", "middle", "high"]
    text = html.recipe_page(tmp_path)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [run["name"] for run in data["runs"]] == ranked
    assert [chart["lower"] for chart in data["charts"]][0] is not higher
    rows = re.findall(r'<tr data-run="\d+">.*?</tr>', text)
    assert ["num best" in row for row in rows] == [True, False, False]
    assert ('data-first="down"' in text) is higher
    best = Experiment(tmp_path / "exp" / "middle", 9, 9, with_pictures=False).best
    assert best == (3.0 if higher else 1.0)
    bars = re.findall(r'<div class="bar">(.*?)</div>', text)
    assert [re.search(r'<b style="left:(.*?)%', bar)[1] for bar in bars] == [
        {"low": "8.3", "high": "91.7", "middle": "58.3"}[run] for run in ranked], "from -5 to 7, the ends of intervals"
    assert all('<u style="left:41.7%"></u>' in bar for bar in bars), "where zero is"
    shown = metric.find(name, own)
    assert (f"test {name}, {shown.unit}<" in text) is (shown.unit != "1")
    assert data["charts"][0]["unit"] == ("" if shown.unit == "1" else shown.unit)


def test_what_has_no_direction_ranks_nothing(tmp_path):
    for run, value in (("b", 3.0), ("a", 9.0), ("c", 1.0)):
        rated(tmp_path, run, "mystery", {"m": value})
    text = html.recipe_page(tmp_path)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [run["name"] for run in data["runs"]] == ["a", "b", "c"] and "num best" not in text
    assert "test mystery" in text and "9.0000" in text and "best valid_mystery" not in text
    chart = next(chart for chart in data["charts"] if chart["title"] == "valid_mystery")
    assert chart["lower"] is None and len(chart["series"]) == 3
    rated(tmp_path, "two", "mystery", {"m": 1.0, "n": 2.0})
    assert Experiment(tmp_path / "exp" / "two", 9, 9, with_pictures=False).figures == []


def test_an_oracle_is_not_the_experiments_best(tmp_path):
    values = {"oracle": 1.0, "beam": 7.0, "greedy": 9.0}
    old = Experiment(rated(tmp_path, "old", "CER", values), 9, 9, with_pictures=False)
    assert [figure.value for figure in old.figures] == [1.0], "without methods.json all are the model's"
    new = Experiment(rated(tmp_path, "new", "CER", values, methods=["beam", "greedy"]), 9, 9, with_pictures=False)
    assert [(figure.title, figure.value) for figure in new.figures] == [("test CER", 7.0)]
    page_text = html.recipe_page(tmp_path)
    assert page_text.count("<td>oracle</td>") == 1, "the old one's"
    assert "<td>oracle</td>" in html.experiment_page(tmp_path / "exp" / "new"), "its own page tells all"


def test_speed_is_no_merit(tmp_path):
    exp = rated(tmp_path, "x", "RTF", {"m": 0.5})
    one = Experiment(exp, 9, 9, with_pictures=False)
    assert one.main == "" and one.figures == []
    rows = json.loads((exp / "results.json").read_text())
    (exp / "results.json").write_text(json.dumps([*rows, {**rows[0], "metric": "STOI", "value": 0.9}]))
    text = html.experiment_page(exp)
    assert text.index("<td>STOI</td>") < text.index("<td>RTF</td>") and "0.900" in text


def test_curves_are_thinned_by_means(tmp_path):
    lines(tmp_path / "metrics.jsonl", [{"kind": "step", "step": s, "loss": float(s) if s != 7 else math.inf}
                                       for s in range(1, 11)])
    one = Experiment(tmp_path, 4, 1, with_pictures=False)
    assert one.curve("loss", 0, "steps", "a", 0)["y"] == [2, 5, 8.5, 10]
    assert one.curve("lr", 0, "steps", "a", 0) is None
    assert one.thin([]) == [] and one.thin([None, 2.0]) == [None, 2.0]


def test_recipe_marks_what_differs(recipe):
    (recipe / "exp" / "failed_c").mkdir()
    (recipe / "exp" / "failed_c" / "sweep.json").write_text('{"status": "failed", "reason": "out <of> memory"}')
    text = html.recipe_page(recipe)
    rows = re.findall(r'<tr data-run="\d+">.*?</tr>', text)
    assert [re.search(r'data-sort="(.*?)"', row)[1] for row in rows] == ["good_a", "worse_b", "failed_c"]
    assert 'data-key="learning_rate" title="0.1">0.1</td>' in rows[0] and "diff" not in rows[0]
    assert 'data-key="learning_rate" title="0.5" class="diff">0.5</td>' in rows[1]
    assert "failed: out &lt;of&gt; memory" in rows[2] and ">done<" not in rows[0]
    assert 'href="exp/good_a/report.html"' in rows[0] and 'class="num best">20.00' in rows[0].replace(
        ' data-sort="20.0" class', " class")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [run["selected"] for run in data["runs"]] == [True, True, False]
    assert data["charts"][0]["title"] == "valid_error" and len(data["charts"][0]["series"]) == 2
    assert len(data["media"]) == 4, "a picture that both have wrong is there once"


def test_nothing_can_be_fetched_or_broken_out_of(recipe):
    exp = recipe / "exp" / "good_a"
    (exp / "config.yaml").write_text("model: {note: '</script><script>alert(1)</script>'}\n")
    text = html.experiment_page(exp)
    assert text.count("</script>") == 2
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
    assert policy == ("default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
                      "script-src 'unsafe-inline'")
    outside = [address for address in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s)>]+)""", text)
               if not address.startswith(("data:", "../", "exp/"))]
    assert [address for address in outside if re.match(r"\w+:|//", address)] == []


def test_broken_and_missing_files_leave_the_rest(tmp_path):
    whole = make(tmp_path, "whole")
    for name, broken in (("x1", "{"), ("x2", "[1, 2]"), ("x3", '{"sets": [[1]], "media": ["a", "b"]}'), ("x4", "")):
        exp = make(tmp_path, name)
        (exp / "decode").mkdir()
        for file in ("env.json", "config.yaml", "results.json", "metrics.jsonl", "sweep.json", FILE, metric.FILE,
                     "decode/methods.json"):
            (exp / file).write_text(broken)
    (make(tmp_path, "x5") / FILE).write_bytes(b"\xff\n{}\n[]\n")
    assert report([str(tmp_path)]) == 0
    data = page(tmp_path / "report.html")
    assert [run["name"] for run in data["runs"]][0] in ("whole", "x5") and len(data["runs"]) == 6
    (one,) = page(whole / "report.html")["runs"][0]["decoded"]
    assert one["errors"] == 4 and page(tmp_path / "exp" / "x5" / "report.html")["runs"][0]["decoded"] == []
    assert page(tmp_path / "exp" / "x1" / "report.html")["charts"] == []


def test_no_experiments(tmp_path):
    assert "Nothing was run yet" in html.recipe_page(tmp_path)


@needs_chromium
class TestInABrowser:
    @pytest.mark.parametrize("width", [360, 1280])
    def test_experiment(self, recipe, tmp_path, width):
        (recipe / "exp" / "good_a" / "layers").mkdir()
        (recipe / "exp" / "good_a" / "layers" / "epoch-01.png").write_bytes(
            base64.b64decode(png(np.zeros((40, 2000, 1), np.uint8)).partition(",")[2]))  # wider than any screen
        saw = browse(html.experiment_page(recipe / "exp" / "good_a"), width, tmp_path)
        assert saw["fault"] == "" and saw["wide"] <= 0, "the page itself does not scroll sideways"
        assert saw["charts"] == saw["log"] == 6 and saw["lines"] == 3
        assert saw["cells"] == 9 and saw["cards"] == 4 and saw["pictures"]
        assert saw["chosen"] == 1 and saw["note"].startswith("one taken for <two>: 1 of 7")
        assert {saw["theme"], saw["turnedTheme"]} == {"light", "dark"}
        assert "train" in saw["tip"]

    @pytest.mark.parametrize("width", [360, 1280])
    def test_recipe(self, recipe, tmp_path, width):
        speech(recipe, "words_" + "long_" * 12 + "n" + "a" * 80 + "me")
        saw = browse(html.recipe_page(recipe), width, tmp_path)
        assert saw["fault"] == "" and saw["wide"] <= 0
        assert (saw["lines"], saw["without"], saw["all"]) == (2, 1, 2)
        assert saw["marked"] >= 1 and saw["turned"] == "0.1", "marked against another experiment"
        assert "good_a" in saw["tip"] and "worse_b" in saw["tip"]

    def test_a_click_puts_the_best_on_top(self, tmp_path):
        for name, value in (("a", -2.0), ("b", 11.0), ("c", 3.0)):
            rated(tmp_path, name, "SI-SDR", {"m": value}, "dB")
        saw = browse(html.recipe_page(tmp_path), 1280, tmp_path)
        assert saw["fault"] == "" and saw["tops"] == ["b", "a"], "of what is better when it is higher"

    def test_speech(self, tmp_path):
        saw = browse(html.experiment_page(speech(tmp_path, "s")), 360, tmp_path)
        assert saw["fault"] == "" and saw["wide"] <= 0 and saw["pairs"] == 3 and saw["charts"] == 0

    @pytest.mark.parametrize("width", [360, 1280])
    def test_all_views(self, tmp_path, width):
        saw = browse(html.experiment_page(all_views(tmp_path)), width, tmp_path)
        assert saw["fault"] == "" and saw["wide"] <= 0
        classes, aligned, trials, audio = saw["views"]
        assert all(one["wide"] <= 0 for one in saw["views"]), "the page itself does not scroll sideways"
        assert (classes["cells"], classes["cards"], classes["players"], classes["pictures"]) == (4, 1, 1, 1)
        assert (aligned["pairs"], aligned["players"], aligned["pictures"]) == (1, 1, 1)
        assert (trials["histograms"], trials["det"], trials["cards"], trials["players"]) == (2, 1, 1, 2)
        assert (audio["players"], audio["pictures"]) == (2, 2)
        assert audio["orders"] == [["bad", "fair", "good", "unknown"], ["good", "fair", "bad", "unknown"],
                                   ["good", "bad", "fair", "unknown"]], "then SI-SDR's best, then PESQ's worst"
        assert saw["paused"] == 1, "one sound at a time"
        # None: this machine was too busy to read a sound in time; a sound that the policy forbids gives a message.
        assert saw["lasts"] is None or saw["lasts"] == pytest.approx(0.3, abs=0.1)

    def test_a_failed_script_shows(self, recipe, tmp_path):
        text = html.experiment_page(recipe / "exp" / "good_a").replace("theme();\nif (page", "nothing();\nif (page")
        assert "nothing is not defined" in browse(text, 800, tmp_path)["fault"]
