"""Directions, said once: every metric of the field the right way up, and a task's own over them."""

import json

import pytest

from speechlab.errors import UserError
from speechlab.scoring import metric
from speechlab.scoring.metric import METRICS, Metric

LOWER = ["CER", "WER", "SER", "error", "EER", "minDCF", "MCD", "perplexity", "loss", "RTF", "MAE", "Cllr",
         "false alarms"]
HIGHER = ["accuracy", "recall", "precision", "F1", "AUC", "PESQ", "STOI", "ESTOI", "SI-SDR", "SI-SDRi", "SECS",
          "DNSMOS"]


@pytest.mark.parametrize("name", LOWER + HIGHER)
def test_the_fields_metrics_have_their_direction(name):
    found = metric.find(name)
    assert found.lower is (name in LOWER) and found.name == name
    assert found.best([1.0, 3.0, 2.0]) == (1.0 if name in LOWER else 3.0)
    assert found.better(1.0, 2.0) is (name in LOWER) and not found.better(2.0, 2.0)
    assert sorted([1.0, 3.0, 2.0], key=found.rank)[0] == found.best([1.0, 3.0, 2.0])


def test_an_epochs_name_and_the_results_name_are_one():
    for name in ("SI-SDR", "si_sdr", "valid_si_sdr", "valid_SI-SDR"):
        assert metric.find(name) is METRICS["sisdr"]
    assert metric.find("valid_cer").name == "CER" and metric.find("valid_loss").unit == "1"


def test_nobody_guesses_from_a_name():
    for name in ("zing", "accent_distance", "snrish"):
        found = metric.find(name)
        assert found.lower is None and found.best([1.0, 2.0]) is None
        assert not found.better(1.0, 2.0) and not found.better(2.0, 1.0) and found.arrow == ""
    with pytest.raises(UserError, match="no metric is called 'zing'"):
        metric.declared("zing")


def test_a_tasks_own_metric_counts_over_the_fields(tmp_path):
    own = (Metric("zing", "dB", lower=False), Metric("error", "s", lower=True))
    metric.write(tmp_path, own)
    assert metric.read(tmp_path) == own
    assert metric.find("valid_zing", own).lower is False and metric.find("error", own).unit == "s"
    assert metric.main(["CER", "zing", "error"], own) == "zing" and metric.main(["CER", "zing"]) == "CER"
    assert metric.read(tmp_path / "nowhere") == ()
    for content in ("{", "[1]", '[{"name": 3}]', '{"a": 1}', "null"):
        (tmp_path / metric.FILE).write_text(content)
        assert metric.read(tmp_path) == (), content
    (tmp_path / metric.FILE).write_text(json.dumps([{"name": "x", "lower": False, "of a later version": 1}]))
    assert metric.read(tmp_path) == (Metric("x", lower=False),)


def test_a_speed_ranks_nothing():
    assert metric.main(["RTF"]) == "" and metric.main(["RTF", "SER", "WER"]) == "WER" and metric.main([]) == ""


def test_figures_for_people():
    assert METRICS["cer"].show(12.345) == "12.35" and METRICS["cer"].show(0.0012) == "0.0012"
    assert METRICS["cer"].show(None) == "-" and METRICS["mindcf"].show(0.25) == "0.250"
