"""What ESPnet's asr_train (202511) needs besides a Kaldi data directory: token list, shape files, config and command.

Reference: espnet2/bin/asr_train.py and egs2/TEMPLATE/asr1/asr.sh of ESPnet (Watanabe et al. 2018, arXiv:1804.00015).
"""

from __future__ import annotations

import base64
import shlex
from pathlib import Path

import kaldiio

from speechlab.corpora.kaldi import table
from speechlab.data.symbols import KEPT
from speechlab.data.tokens import BLANK, PIECES, SPACE, UNKNOWN, Tokenizer
from speechlab.errors import UserError
from speechlab.files import atomic, write_text

_ESPNETS = ("<space>", "<sos/eos>")  # symbols of ESPnet's own
BATCH_SECONDS = 120  # seconds of sound in a batch, padding counted
_CONFIG = """# A small model for ESPnet's asr_train; give a config of your own with --config.
encoder: transformer
encoder_conf: {{output_size: 144, attention_heads: 4, linear_units: 576, num_blocks: 6}}
decoder: transformer
decoder_conf: {{attention_heads: 4, linear_units: 576, num_blocks: 2}}
model_conf: {{ctc_weight: 0.3, lsm_weight: 0.1, length_normalized_loss: false}}
optim: adam
optim_conf: {{lr: 0.001}}
scheduler: warmuplr
scheduler_conf: {{warmup_steps: 1000}}
batch_type: numel
batch_bins: {bins}
max_epoch: 20
best_model_criterion: [[valid, acc, max]]
"""


def write(folder: Path, tokens: Tokenizer, rate: int) -> Path:
    """Write ``folder/espnet`` for the data directories ``folder/train`` and ``folder/dev``; return its script's path.

    rate: the sample rate in Hz of the sound, from which ESPnet then makes features. 0: ESPnet reads the features that
    feats.scp names.
    """
    to = folder / "espnet"
    if "," in str(folder):
        raise UserError(f"{folder} has a comma in its name, at which ESPnet's options break: export to another folder")
    for split in ("train", "dev"):
        if not (folder / split / "text").is_file():
            raise UserError(f"ESPnet needs the splits train and dev with text, and {folder / split} has none: export "
                            "both (--splits)")
    units = [unit.replace(SPACE, "<space>") if tokens.kind == "char" else unit for unit in tokens.units]
    units.append("<sos/eos>")  # ESPnet wants its sign for a sentence's start and end last, and blank first as we do
    write_text(to / "tokens.txt", "".join(f"{unit}\n" for unit in units))
    options = ["--use_preprocessor", "true", "--token_list", str(to / "tokens.txt"),
               "--token_type", "bpe" if tokens.kind in PIECES else tokens.kind]
    if tokens.kind in PIECES:
        with atomic(to / "bpe.model") as aside:
            aside.write_bytes(base64.b64decode(tokens.model))
        options += ["--bpemodel", str(to / "bpe.model")]
    if symbols := [unit for unit in units if KEPT.fullmatch(unit) and unit not in (BLANK, UNKNOWN, *_ESPNETS)]:
        write_text(to / "nlsyms.txt", "".join(f"{symbol}\n" for symbol in symbols))
        options += ["--non_linguistic_symbols", str(to / "nlsyms.txt")]
    size = 1
    if not rate:
        size = kaldiio.load_mat(next(iter(table(folder / "train" / "feats.scp").values()))[1]).shape[1]
        options += ["--input_size", str(size)]
    for split, role in (("train", "train"), ("dev", "valid")):
        here = folder / split
        file = here / ("wav.scp" if rate else "feats.scp")
        if rate and any(value.endswith("|") for _, value in table(file).values()):
            # ESPnet's `sound` can't run `cat`, but can read paths with blanks. `kaldi_ark` would give integer samples.
            file = to / split / "wav.scp"
            plain = {id: shlex.split(value[:-1])[1] if value.endswith("|") else value
                     for id, (_, value) in table(here / "wav.scp").items()}
            write_text(file, "".join(f"{id} {path}\n" for id, path in plain.items()))
        options += [f"--{role}_data_path_and_name_and_type", f"{file},speech,{'sound' if rate else 'kaldi_ark'}",
                    f"--{role}_data_path_and_name_and_type", f"{here / 'text'},text,text"]
        if rate:
            speech = {id: str(round(float(value) * rate)) for id, (_, value) in table(here / "utt2dur").items()}
        else:
            speech = {id: f"{value},{size}" for id, (_, value) in table(here / "utt2num_frames").items()}
        text = {id: f"{len(tokens.encode(value))},{len(units)}"
                for id, (_, value) in table(here / "text", empty=True).items()}
        for name, shapes in (("speech_shape", speech), ("text_shape", text)):
            write_text(to / split / name, "".join(f"{id} {shape}\n" for id, shape in shapes.items()))
            options += [f"--{role}_shape_file", str(to / split / name)]
    bins = BATCH_SECONDS * (rate or 100 * size)
    frontend = f"frontend_conf: {{fs: {rate}}}\n" if rate else ""
    write_text(to / "train.yaml", _CONFIG.format(bins=bins) + frontend)
    pairs = [" ".join(map(shlex.quote, options[i:i + 2])) for i in range(0, len(options), 2)]
    lines = [f"--config {shlex.quote(str(to / 'train.yaml'))}", *pairs,
             f"--output_dir {shlex.quote(str(to / 'exp'))}", '"$@"']
    script = to / "asr_train.sh"
    write_text(script, "#!/usr/bin/env bash\n# Written by speechlab.data.kaldi export --espnet. PYTHON: one with "
               "ESPnet.\n\"${PYTHON:-python3}\" -m espnet2.bin.asr_train \\\n  " + " \\\n  ".join(lines) + "\n")
    script.chmod(0o755)
    return script
