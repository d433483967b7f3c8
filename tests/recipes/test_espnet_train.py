"""ESPnet's own asr_train takes what ``speechlab.data.kaldi export --espnet`` writes: sound or features, an epoch."""

import importlib.util
import math
import os
import re
import subprocess
import sys

import pytest
import yaml

from speechlab import corpora, prepare
from speechlab.data import kaldi
from speechlab.data.manifests import read_cuts
from speechlab.data.tokens import Tokenizer
from speechlab.extract import extract_folder
from speechlab.features.contract import FeatureContract
from speechlab.files import write_json

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("espnet2") is None, reason="no ESPnet (tools/setup.sh --espnet)"),
]
# A toy: what is tested is that the data goes in, and that every option means something to asr_train.
TOY = ["--encoder_conf", "output_size=16", "--encoder_conf", "attention_heads=2", "--encoder_conf", "linear_units=32",
       "--encoder_conf", "num_blocks=1", "--decoder_conf", "linear_units=32", "--decoder_conf", "num_blocks=1",
       "--decoder_conf", "attention_heads=2", "--max_epoch", "1", "--num_workers", "0", "--ngpu", "0",
       "--use_matplotlib", "false", "--use_tensorboard", "false", "--num_att_plot", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The made-up corpus, its features, and two token lists."""
    root = tmp_path_factory.mktemp("espnet")
    folder = corpora.load("synthetic").fetch(root)
    data = root / "data"
    assert prepare.main(["synthetic", "--from", str(folder), "--to", str(data), "--option", "train=24",
                         "--option", "dev=4", "--option", "test=2"]) == 0
    contract = FeatureContract()
    extract_folder(data, data / "fbank", contract)
    texts = [cut.supervisions[0].text for cut in read_cuts(data / "train.jsonl.gz")]
    for kind, size in (("char", 0), ("bpe", 24)):
        write_json(data / kind / "tokens.json", {"main": Tokenizer.train(texts, kind, vocab_size=size).state()})
    return data


@pytest.mark.parametrize("where, tokens, options, kind", [
    ("sound", "char", [], "wav.scp,speech,sound"),
    ("features 特征", "bpe", ["--features", "fbank"], "feats.scp,speech,kaldi_ark"),
])
def test_an_epoch_of_espnets_training(data, capsys, where, tokens, options, kind):
    to = data / where
    assert kaldi.main(["export", str(data), "--to", str(to), "--espnet", "--tokens", tokens, *options]) == 0
    shown = capsys.readouterr().out
    assert kind in shown and str(to / "espnet" / "asr_train.sh") in shown
    done = subprocess.run(["bash", str(to / "espnet" / "asr_train.sh"), *TOY], text=True, capture_output=True,
                          timeout=300, env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"})
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-4000:]
    exp = to / "espnet" / "exp"
    assert (exp / "1epoch.pth").stat().st_size > 0 and (exp / "valid.acc.best.pth").exists()
    result = re.search(r"1epoch results: \[train\](.*?)\[valid\](.*)", log)
    for part in result.groups():
        found = re.search(r"\bloss=([\w.+-]+)", part)
        assert math.isfinite(float(found[1])) and float(found[1]) > 0, part
    units = yaml.safe_load((exp / "config.yaml").read_text(encoding="utf-8"))["token_list"]
    assert units == [*Tokenizer.load(data / tokens).units, "<sos/eos>"]
