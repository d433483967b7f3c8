"""python -m speechlab.score on folders such as stage 5 leaves, and on bad ones."""

import importlib.util
import json

import pytest

from speechlab.score import main


def hyps(exp, method, test_set, rows):
    path = exp / "decode" / method / test_set / "hyp.jsonl"
    path.parent.mkdir(parents=True)
    (exp / "config.yaml").write_text("task: asr\n")
    path.write_text("".join(
        json.dumps({"id": name, "ref": ref, "hyp": hyp, "seconds": 1.5, "speaker": "s", "score": -1.0, "error": error},
                   ensure_ascii=False) + "\n" for name, ref, hyp, error in rows), encoding="utf-8")
    return path


@pytest.fixture
def exp(tmp_path):
    exp = tmp_path / "my recipe" / "exp" / "迷你"
    refs = {"u2": "老师您好", "u1": "谢谢", "u3": "再见"}
    hyps(exp, "oracle", "test", [(name, refs[name], refs[name], None) for name in sorted(refs)])
    hyps(exp, "ctc_greedy", "test", [
        ("u2", refs["u2"], "老是您好", None), ("u1", refs["u1"], "谢谢", None),
        ("u3", refs["u3"], "", "not finite at frame 0")])
    (exp / "config.yaml").write_text("task: asr\ndata: {corpus: mini}\nmodel: {class: 'm:C'}\n")
    (exp / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 1, "step": 5, "train_loss": 3.0}\n')
    (exp / "decode" / "methods.json").write_text('{"ctc_greedy": {}}')  # the oracle is not the experiment's own
    return exp


def test_hanzi_get_a_cer_and_a_ser_row_a_method(exp, capsys):
    assert main([str(exp)]) == 0
    shown = capsys.readouterr().out
    text = (exp / "results.txt").read_text(encoding="utf-8")
    assert text in shown and text.startswith("test: ctc_greedy, CER 16.67 % (") and "warning" not in text
    greedy, oracle, *syllables = json.loads((exp / "results.json").read_text())
    assert [(r["method"], r["metric"], r["value"], r["n"], r["n_failed"]) for r in syllables] == [
        ("ctc_greedy", "SER", pytest.approx(100 / 6, abs=1e-4), 2, 1), ("oracle", "SER", 0.0, 3, 0)]  # shi1, shi4
    assert syllables[0]["protocol"].startswith("SER jiwer, tonal, pypinyin ") and syllables[0]["ci_high"] > 0
    assert (greedy["method"], greedy["metric"], greedy["n"], greedy["n_failed"]) == ("ctc_greedy", "CER", 2, 1)
    assert greedy["value"] == pytest.approx(100 / 6, abs=1e-4)
    assert greedy["ci_low"] <= greedy["value"] <= greedy["ci_high"]
    assert (oracle["value"], oracle["n"], oracle["n_failed"]) == (0.0, 3, 0)
    assert greedy["list_hash"] == oracle["list_hash"]
    assert "test ctc_greedy CER: substitutions 1, deletions 0, insertions 0, of 6; 1 of 2 utterances without" in text

    folder = exp / "decode/ctc_greedy/test"
    assert (folder / "ref.trn").read_text(encoding="utf-8") == "谢 谢 (u1)\n老 师 您 好 (u2)\n"
    assert (folder / "hyp.trn").read_text(encoding="utf-8") == "谢 谢 (u1)\n老 是 您 好 (u2)\n"
    worst = (folder / "worst.txt").read_text(encoding="utf-8")
    assert "REF 老 师 您 好\nHYP 老 是 您 好\n       S\n" in worst and "u3: not finite" in worst
    assert (exp / "decode/oracle/test/worst.txt").read_text() == "no errors\n"
    assert (exp / "curves.png").exists()
    assert "16.67" in (exp.parent.parent / "params_table.csv").read_text(encoding="utf-8")

    assert main([str(exp)]) == 0
    assert (exp / "results.txt").read_text(encoding="utf-8") == text, "the same figures give the same file"


def test_words_get_wer_and_cer(tmp_path, capsys):
    hyps(tmp_path, "ctc_greedy", "test", [("u1", "HELLO BIG WORLD", "HELLO PIG WORLD", None)])
    assert main([str(tmp_path)]) == 0
    assert {r["metric"]: r["value"] for r in json.loads((tmp_path / "results.json").read_text())} == {
        "CER": pytest.approx(100 / 13, abs=1e-4), "WER": pytest.approx(100 / 3, abs=1e-4)}
    assert (tmp_path / "decode/ctc_greedy/test/ref.trn").read_text() == "HELLO BIG WORLD (u1)\n"
    assert "params_table.csv is left" in capsys.readouterr().out and not (tmp_path / "params_table.csv").exists()
    assert main([str(tmp_path), "--metric", "cer"]) == 0
    assert [r["metric"] for r in json.loads((tmp_path / "results.json").read_text())] == ["CER"]
    assert main([str(tmp_path), "--metric", "wer"]) == 0
    assert [r["metric"] for r in json.loads((tmp_path / "results.json").read_text())] == ["WER"]


def test_code_switching_gets_a_mer(tmp_path, capsys):
    hyps(tmp_path, "ctc_greedy", "test", [("u1", "我们用PYTHON写程序吧", "我们用PYTHONS写程序", None)])
    assert main([str(tmp_path)]) == 0
    rows = {r["metric"]: r for r in json.loads((tmp_path / "results.json").read_text())}
    assert set(rows) == {"MER", "CER", "SER"} and rows["MER"]["protocol"] == "MER jiwer, hanzi and words"
    assert rows["MER"]["value"] == 25.0 and rows["CER"]["value"] == pytest.approx(200 / 13, abs=1e-4)
    assert (tmp_path / "results.txt").read_text(encoding="utf-8").startswith("test: ctc_greedy, MER 25.00 %")
    assert (tmp_path / "decode/ctc_greedy/test/hyp.trn").read_text() == "我 们 用 PYTHONS 写 程 序 (u1)\n"
    assert "MER 25.0 %" in (tmp_path / "decode/ctc_greedy/test/worst.txt").read_text()
    hyps(tmp_path, "ctc_beam", "test", [("u1", "LET US 去 THE MARKET", "LET US 去 THE MARKET", None)])
    for metric, expected in (("mer", ["MER"]), ("cer", ["CER"]), ("ser", ["SER"])):
        assert main([str(tmp_path), "--metric", metric]) == 0
        assert {r["metric"] for r in json.loads((tmp_path / "results.json").read_text())} == set(expected)
    hyps(tmp_path / "english", "ctc_beam", "test", [("u1", "LET US 去 THE MARKET", "LET US 去 THE MARKET", None)])
    assert main([str(tmp_path / "english")]) == 0
    assert [r["metric"] for r in json.loads((tmp_path / "english/results.json").read_text())] == ["CER", "MER"]


def test_methods_on_different_lists_are_told_apart(tmp_path):
    hyps(tmp_path, "ctc_greedy", "test", [("u1", "老师", "老师", None)])
    hyps(tmp_path, "ctc_beam", "test", [("u1", "老是", "老师", None)])
    assert main([str(tmp_path)]) == 0
    assert "warning: test: the methods were not decoded on one list" in (tmp_path / "results.txt").read_text()


def test_all_failed_is_no_figure_rather_than_a_zero(tmp_path):
    hyps(tmp_path, "ctc_greedy", "test", [("u1", "老师", "", "no audio")])
    assert main([str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["metric"] for row in rows] == ["CER", "SER"]
    for row in rows:
        assert (row["value"], row["ci_low"], row["n"], row["n_failed"]) == (None, None, 0, 1)


def test_metric_ser_alone_and_without_pypinyin(tmp_path, capsys, monkeypatch):
    hyps(tmp_path, "ctc_greedy", "test", [("u1", "他说", "她说", None)])
    assert main([str(tmp_path), "--metric", "ser"]) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert (row["metric"], row["value"]) == ("SER", 0.0)
    assert (tmp_path / "decode/ctc_greedy/test/ref.trn").read_text(encoding="utf-8") == "他 说 (u1)\n"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    capsys.readouterr()
    assert main([str(tmp_path)]) == 0 and "it needs pypinyin" in capsys.readouterr().err
    assert [r["metric"] for r in json.loads((tmp_path / "results.json").read_text())] == ["CER"]
    assert main([str(tmp_path), "--metric", "ser"]) == 1 and "pip install pypinyin" in capsys.readouterr().err


def test_true_readings_serve_every_method_of_a_test_set(tmp_path):
    """了 is liao3 here; the answer that has it right is right though pypinyin reads le5, and so is the oracle's."""
    path = hyps(tmp_path, "ctc_greedy", "test", [("u1", "了", "了", None)])
    path.write_text(json.dumps({**json.loads(path.read_text()), "pinyin": "liao3"}))
    hyps(tmp_path, "oracle", "test", [("u1", "了", "料", None)])
    assert main([str(tmp_path)]) == 0
    greedy, oracle = (r for r in json.loads((tmp_path / "results.json").read_text()) if r["metric"] == "SER")
    assert (greedy["value"], oracle["value"]) == (0.0, 100.0)
    assert greedy["protocol"] == oracle["protocol"] and "ref true readings, else pypinyin" in greedy["protocol"]


def test_speed_is_a_row_and_a_table(tmp_path):
    folder = hyps(tmp_path, "ctc_greedy", "test", [("u1", "HELLO", "HELLO", None)]).parent
    (folder / "time.json").write_text(json.dumps({
        "audio_seconds": 51.08, "network_seconds": 0.045, "search_seconds": 0.058, "real_time_factor": 0.00201743,
        "device": "cpu", "threads": 1}))
    for method, content in (("broken", "{"), ("empty", '{"real_time_factor": null}'), ("list", "[1]")):
        (hyps(tmp_path, method, "test", [("u1", "HELLO", "HELLO", None)]).parent / "time.json").write_text(content)
    assert main([str(tmp_path)]) == 0
    (row,) = (r for r in json.loads((tmp_path / "results.json").read_text()) if r["metric"] == "RTF")
    assert (row["method"], row["value"], row["unit"], row["protocol"], row["n"], row["ci_low"]) == (
        "ctc_greedy", 0.002017, "1", "cpu, 1 thread", 1, None)
    assert (tmp_path / "results.txt").read_text().endswith("test      ctc_greedy             0.002  cpu, 1 thread\n")


@pytest.mark.parametrize(("content", "says"), [
    ('{"id": "u1", "ref": "a", "hyp": "a"}\n{"id": "u2", "re', "line 2 is not an answer"),
    ('{"id": "u1", "ref": "a"}\n', "line 1 is not an answer"),
    ("[]\n", "line 1 is not an answer"),
    ('{"id": "u1", "ref": "a", "hyp": "a"}\n' * 2, "u1 is there twice"),
    ("", "is empty"),
])
def test_a_broken_hyp_file_is_one_line_and_keeps_the_old_results(tmp_path, capsys, content, says):
    hyps(tmp_path, "ctc_greedy", "test", []).write_text(content)
    (tmp_path / "results.txt").write_text("the old ones\n")
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert says in error and "--stage 5" in error and len(error.splitlines()) == 1
    assert (tmp_path / "results.txt").read_text() == "the old ones\n"


def test_nothing_decoded(tmp_path, capsys):
    assert main([str(tmp_path / "exp")]) == 1
    assert "no experiment" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 1
    assert "config.yaml, which says its task" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("task: asr\n")
    assert main([str(tmp_path)]) == 1
    assert "run stage 5" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["a", "--compare", "a", "b"], ["a", "--json"], ["a", "--method", "m"],
                                     ["--metric", "cer", "a", "--json"], ["--compare", "a"]])
def test_options_that_do_not_go_together(tmp_path, options, capsys, monkeypatch):
    hyps(tmp_path / "a", "ctc_greedy", "test", [("u1", "老师", "老师", None)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2 and "error:" in capsys.readouterr().err
