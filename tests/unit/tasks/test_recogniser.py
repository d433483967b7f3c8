"""A recogniser from a checkpoint's state: every method, what it lacks, and input that is broken, short or long."""

import math

import pytest
import torch

from speechlab.config import to_dict
from speechlab.data.tokens import Tokenizer
from speechlab.decoding.arpa import ArpaLM
from speechlab.decoding.ngram import NGram
from speechlab.errors import UserError
from speechlab.files import write_json
from speechlab.tasks import from_dict
from speechlab.tasks.asr.recogniser import METHODS, Recogniser
from speechlab.tasks.asr.search import Search
from speechlab.tasks.asr.train import build_model
from speechlab.tasks.lm.config import Config as LMNetConfig
from speechlab.tasks.lm.train import build_lm
from speechlab.training import checkpoint

UNITS = ["<blank>", "<unk>", *"你好吗我很"]


def state(ctc=0.5, layers=1, units=UNITS):
    """A checkpoint of a small untrained model."""
    raw = {"task": "asr", "loss": {"ctc": ctc}, "decoder": {"layers": layers, "heads": 2},
           "decode": {"beam": 3, "ctc_beam": 4, "nbest": 3},
           "model": {"class": "speechlab.models.asr:Transformer", "d": 16, "heads": 2, "layers": 1}}
    config = from_dict(raw)
    torch.manual_seed(0)
    tokenizer = Tokenizer(units)
    model = build_model(config, tokenizer, None, None)
    return {"config": to_dict(config), "features": config.features.to_dict(), "tokens": tokenizer.state(),
            "auxiliary": None, "model": model.state_dict()}


def arpa(tmp_path, units=UNITS):
    NGram(["你好", "我很好", "你好吗"], 2, vocabulary=units[2:]).write_arpa(tmp_path / "lm.arpa")
    return ArpaLM.read(tmp_path / "lm.arpa", units)


def batch(*frames):
    torch.manual_seed(1)
    lengths = torch.tensor(frames)
    x = torch.randn(len(frames), max(frames), 80)
    for i, n in enumerate(frames):
        x[i, n:] = 0
    return {"x": x, "x_lens": lengths}


def test_every_method_gives_ranked_lists(tmp_path):
    recogniser = Recogniser(state(), torch.device("cpu"), arpa(tmp_path))
    assert list(recogniser.methods()) == list(METHODS)
    found = recogniser.encode(batch(60, 37, 9))
    for method in METHODS:
        if method == "rescore":
            continue
        nbest = recogniser.search(found, method, {"lm_weight": 0.5, "length_bonus": 0.1})
        assert len(nbest) == 3
        for hyps in nbest:
            scores = [h.score for h in hyps]
            assert scores == sorted(scores, reverse=True) and all(map(math.isfinite, scores)), method
            assert 1 <= len(hyps) <= (1 if method == "ctc_greedy" else 3)
    nbest = recogniser.search(found, "ctc_beam_lm", {"lm_weight": 0.5})
    more = recogniser.judge(found, nbest)
    assert set(more) == {"attention"}, "the n-gram has judged them already"
    assert [len(scores) for scores in more["attention"]] == [len(hyps) for hyps in nbest]
    assert set(recogniser.judge(found, recogniser.search(found, "attention"))) == {"lm"}


@pytest.mark.parametrize(("ctc", "layers", "can"), [
    (1.0, 0, ["ctc_greedy", "ctc_beam"]), (0.0, 1, ["attention"]), (0.5, 1, ["ctc_greedy", "ctc_beam", "attention",
                                                                           "joint"])])
def test_what_a_model_lacks(ctc, layers, can):
    recogniser = Recogniser(state(ctc, layers), torch.device("cpu"))
    assert list(recogniser.methods()) == can
    found = recogniser.encode(batch(20))
    for method in set(METHODS) - set(can):
        with pytest.raises(UserError, match="no CTC head|no attention decoder|no language model"):
            recogniser.search(found, method)
    with pytest.raises(UserError, match="no search method 'ctc'"):
        recogniser.lacks("ctc")


def test_one_broken_utterance_spoils_no_other(tmp_path):
    recogniser = Recogniser(state(), torch.device("cpu"), arpa(tmp_path))
    whole = batch(40, 40)
    clean = {m: recogniser.search(recogniser.encode(whole), m) for m in METHODS if m != "rescore"}
    whole["x"][0, 5] = math.nan
    found = recogniser.encode(whole)
    for method, expected in clean.items():
        broken, sound = recogniser.search(found, method)
        assert broken[0].error and not broken[0].tokens, method
        assert [h.tokens for h in sound] == [h.tokens for h in expected[1]], method


def test_a_tenth_of_a_second_and_twenty_minutes(tmp_path):
    recogniser = Recogniser(state(), torch.device("cpu"), arpa(tmp_path))
    for frames in (10, 120_000):
        found = recogniser.encode(batch(frames))
        assert found.lengths.tolist() == [-(-frames // 4)]
        for method in ("ctc_greedy", "ctc_beam_lm"):
            (hyps,) = recogniser.search(found, method)
            assert hyps[0].error is None


def test_weights_that_do_not_fit_the_tokens():
    other = {**state(), "tokens": Tokenizer([*UNITS, "哈"]).state()}
    with pytest.raises(UserError, match="do not fit its own config and 8 tokens"):
        Recogniser(other, torch.device("cpu"))


def test_a_network_over_other_units(tmp_path):
    recogniser = Recogniser(state(), torch.device("cpu"))
    for units, ok in ((UNITS, True), ([*UNITS[:-1], "天"], False)):
        raw = {"task": "lm", "model": {"class": "speechlab.models.lm:TransformerLM", "d": 16, "heads": 2, "layers": 1}}
        config = from_dict(raw)
        assert isinstance(config, LMNetConfig)
        checkpoint.save(tmp_path / "checkpoints" / "final.pt", {
            "config": to_dict(config), "tokens": Tokenizer(units).state(),
            "model": build_lm(config, len(units)).state_dict()})
        if ok:
            recogniser.load_neural_lm(tmp_path)
            found = recogniser.encode(batch(30, 20))
            nbest = recogniser.search(found, "ctc_beam")
            assert set(recogniser.judge(found, nbest)) == {"attention", "neural_lm"}
        else:
            with pytest.raises(UserError, match="over other units"):
                recogniser.load_neural_lm(tmp_path)


def test_a_language_model_over_other_units(tmp_path):
    from speechlab.decoding import arpa as module

    arpa(tmp_path)
    write_json(tmp_path / "lm.json", {"units": UNITS, "order": 2})
    assert len(module.load(tmp_path, UNITS)) > 0
    with pytest.raises(UserError, match="over other units"):
        module.load(tmp_path, [*UNITS, "天"])


def test_weights_in_the_config_are_not_tuned(tmp_path):
    from speechlab.config import override

    raw = state()
    weights = ["decode.lm_weight=0.7", "decode.length_bonus=0.2", "decode.ctc_weight=0.4"]
    raw["config"] = override(raw["config"], weights)
    search = Search(Recogniser(raw, torch.device("cpu"), arpa(tmp_path)), tmp_path / "none")
    assert search.weights("ctc_beam_lm") == {"lm_weight": 0.7, "length_bonus": 0.2}
    assert search.weights("joint") == {"ctc_weight": 0.4, "length_bonus": 0.2}
    assert search.weights("ctc_greedy") == {}
    with pytest.raises(UserError, match="--stage 1"):  # the n-best weights want the validation set
        search.weights("rescore")
