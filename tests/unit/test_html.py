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
from speechlab.reporting.experiment import Experiment
from speechlab.reporting.mistakes import aligned, decodings, layers, png

CLASSES = ["zero", "one", "<two>"]


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def pack(recipe, n=20):
    images = np.arange(n * 16, dtype=np.int64).astype(np.uint8).reshape(n, 4, 4, 1)
    (recipe / "data" / "mini").mkdir(parents=True)
    np.save(recipe / "data" / "mini" / "test.images.npy", images)
    return images


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
    answers = [{"id": f"test-{i}", "index": i, "ref": CLASSES[i % 3], "hyp": CLASSES[(i + (i % 5 == 0)) % 3],
                "prob": 0.5 + i / 50, "prob_ref": 0.5 + i / 50 if i % 5 else 0.1} for i in range(20)]
    lines(exp / "decode" / "plain" / "test" / "pred.jsonl", answers)
    counts = [[sum(a["ref"] == r and a["hyp"] == h for a in answers) for h in CLASSES] for r in CLASSES]
    confusion = {"classes": CLASSES, "counts": counts}
    (exp / "decode" / "plain" / "test" / "confusion.json").write_text(json.dumps(confusion))
    return exp


def speech(recipe, name):
    exp = recipe / "exp" / name
    folder = exp / "decode" / "ctc_greedy" / "test"
    folder.mkdir(parents=True)
    (exp / "env.json").write_text("{}")
    (folder / "hyp.jsonl").write_text('{"id": "a", "ref": "x", "hyp": "y"}\n')
    (folder / "worst.txt").write_text(
        "1. hsk_1  CER 75.0 %  S 1  D 1  I 1  of 3\n"
        "REF 屏 幕 上 **\nHYP 评 ** 上 <b>\n    S  D     I\n\n2. cut\nREF a\n", encoding="utf-8")
    return exp


@pytest.fixture
def recipe(tmp_path):
    recipe = tmp_path / "a 语音 recipe"
    recipe.mkdir()
    pack(recipe)
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


def test_mistakes_are_the_surest_first_with_their_pictures(recipe):
    pictures = {}
    (one,) = decodings(recipe / "exp" / "good_a", 3, pictures)
    assert (one["name"], one["n"], one["errors"]) == ("test, plain", 20, 4)
    assert [item["id"] for item in one["wrong"]] == ["test-15", "test-10", "test-5"]
    assert one["wrong"][0]["ref"] == "zero" and one["wrong"][0]["prob_ref"] == 0.1
    assert sum(count for _, _, count in one["pairs"]) == 4 and sum(map(sum, one["counts"])) == 20
    images = np.load(recipe / "data" / "mini" / "test.images.npy")
    assert [pictures[item["picture"]] for item in one["wrong"]] == [png(images[i]) for i in (15, 10, 5)]


@pytest.mark.parametrize("shape", [(5, 7, 1), (4, 4, 3)])
def test_png_is_read_back(tmp_path, shape):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = base64.b64decode(png(pixels).partition(",")[2])
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")).reshape(shape), pixels)
    assert struct.unpack(">I", data[29:33])[0] == zlib.crc32(data[12:29])


def test_aligned_utterances(tmp_path):
    speech(tmp_path, "s")
    assert aligned(tmp_path / "exp" / "s" / "decode" / "ctc_greedy" / "test" / "worst.txt", 5) == [
        {"title": "1. hsk_1 CER 75.0 % S 1 D 1 I 1 of 3",
         "pairs": [["屏", "评", True], ["幕", "", True], ["上", "上", False], ["", "<b>", True]]}]
    assert aligned(tmp_path / "none.txt", 5) == []


def test_layers_keep_the_first_and_the_last(tmp_path):
    folder = tmp_path / "layers"
    folder.mkdir()
    for epoch in (1, 2, 3, 10, 11):
        (folder / f"epoch-{epoch:02d}.png").write_bytes(bytes([epoch]))
    (found,) = layers(tmp_path, most=3)
    assert found["name"] == "layers" and [epoch for epoch, _ in found["epochs"]] == [1, 3, 11]
    assert base64.b64decode(found["epochs"][2][1].partition(",")[2]) == b"\x0b"


def test_curves_are_thinned_by_means(tmp_path):
    lines(tmp_path / "metrics.jsonl", [{"kind": "step", "step": s, "loss": float(s) if s != 7 else math.inf}
                                       for s in range(1, 11)])
    one = Experiment(tmp_path, 4, 1, {}, with_layers=False)
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
    assert len(data["pictures"]) == 4, "a picture that both have wrong is there once"


def test_nothing_can_be_fetched_or_broken_out_of(recipe):
    exp = recipe / "exp" / "good_a"
    (exp / "config.yaml").write_text("model: {note: '</script><script>alert(1)</script>'}\n")
    text = html.experiment_page(exp)
    assert text.count("</script>") == 2 and "default-src 'none'" in text
    outside = [address for address in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s)>]+)""", text)
               if not address.startswith(("data:", "../", "exp/"))]
    assert [address for address in outside if re.match(r"\w+:|//", address)] == []


def test_broken_and_missing_files_leave_the_rest(tmp_path):
    whole = make(tmp_path, "whole")  # its pack is not there
    for name, broken in (("x1", "{"), ("x2", "[1, 2]"), ("x3", '{"counts": [[1]], "classes": ["a", "b"]}'), ("x4", "")):
        exp = make(tmp_path, name)
        for file in ("env.json", "config.yaml", "results.json", "metrics.jsonl", "sweep.json",
                     "decode/plain/test/confusion.json", "decode/plain/test/pred.jsonl"):
            (exp / file).write_text(broken)
    (make(tmp_path, "x5") / "decode/plain/test/pred.jsonl").write_bytes(b"\xff\n{}\n[]\n")
    assert report([str(tmp_path)]) == 0
    data = page(tmp_path / "report.html")
    assert [run["name"] for run in data["runs"]][0] in ("whole", "x5") and len(data["runs"]) == 6
    (one,) = page(whole / "report.html")["runs"][0]["decoded"]
    assert "picture" not in one["wrong"][0] and one["errors"] == 4
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

    def test_speech(self, tmp_path):
        saw = browse(html.experiment_page(speech(tmp_path, "s")), 360, tmp_path)
        assert saw["fault"] == "" and saw["wide"] <= 0 and saw["pairs"] == 3 and saw["charts"] == 0

    def test_a_failed_script_shows(self, recipe, tmp_path):
        text = html.experiment_page(recipe / "exp" / "good_a").replace("theme();\nif (page", "nothing();\nif (page")
        assert "nothing is not defined" in browse(text, 800, tmp_path)["fault"]
