"""A training step of our CTC Conformer against ESPnet's and SpeechBrain's of the same size, on the same batch.

    tools/setup.sh --extras asr,tests,benchmarks --espnet --venv .venv.espnet
    .venv.espnet/bin/python tests/benchmarks/bench_train_step.py
    .venv.espnet/bin/python tests/benchmarks/bench_train_step.py --learn 300 --data egs/aishell_asr/data/mini

A step is forward, CTC loss, backward, clipping and AdamW. Rounds are interleaved (A B C ..., A B C ...), figures are
medians, and ratios are taken round by round. ``--learn N`` then trains each for N steps on the same batches of a corpus
(prepared by the recipe with conf/conformer.yaml) and prints the loss: speed counts at equal convergence only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from speechlab.models.asr import AsrModel, Conformer
from speechlab.training.device import amp_dtype
from speechlab.training.optim import OptimConfig, build_optimizer


class ESPnetEncoder(nn.Module):
    """ESPnet's Conformer in its usual configuration (conv2d front end, relative positions), behind our interface."""

    def __init__(self, input_size: int, d: int, heads: int, layers: int, dropout: float):
        super().__init__()
        from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

        self.output_size = d
        self.encoder = ConformerEncoder(
            input_size, output_size=d, attention_heads=heads, linear_units=4 * d, num_blocks=layers,
            dropout_rate=dropout, positional_dropout_rate=dropout, attention_dropout_rate=0.0,
            input_layer="conv2d", normalize_before=True,
            macaron_style=True, rel_pos_type="latest", pos_enc_layer_type="rel_pos",
            selfattention_layer_type="rel_selfattn", activation_type="swish", use_cnn_module=True, cnn_module_kernel=15)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y, lengths, _ = self.encoder(x, lengths)
        return y, lengths


class SpeechBrainEncoder(nn.Module):
    """SpeechBrain's Conformer as its recipes build it (two-layer convolutional front end), behind our interface."""

    def __init__(self, input_size: int, d: int, heads: int, layers: int, dropout: float):
        super().__init__()
        from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
        from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR

        self.output_size = d
        self.front = ConvolutionFrontEnd((8, 10, input_size), num_blocks=2, num_layers_per_block=1, dropout=dropout,
                                         out_channels=[64, 32], kernel_sizes=[3, 3], strides=[2, 2],
                                         residuals=[False, False])
        self.encoder = TransformerASR(tgt_vocab=2, input_size=32 * -(-input_size // 4), d_model=d, nhead=heads,
                                      num_encoder_layers=layers, num_decoder_layers=0, d_ffn=4 * d, dropout=dropout,
                                      activation=nn.GELU, encoder_module="conformer", attention_type="RelPosMHAXL",
                                      normalize_before=True, causal=False, kernel_size=15)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y = self.encoder.encode(self.front(x), lengths / x.shape[1])
        return y, ((lengths + 1) // 2 + 1) // 2


def stepper(model: nn.Module, dtype: torch.dtype | None) -> Callable[[dict[str, Tensor]], float]:
    """One optimiser step on a batch; returns the loss a token."""
    optimizer = build_optimizer(model.parameters(), OptimConfig(lr=1e-3))
    model.train()

    def step(batch: dict[str, Tensor]) -> float:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            log_probs, lengths = model(batch["x"], batch["x_lens"])
        loss = F.ctc_loss(log_probs.transpose(0, 1), batch["y"], lengths, batch["y_lens"], reduction="sum",
                          zero_infinity=True) / batch["y_lens"].sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return float(loss)

    return step


def made_batch(size: int, seconds: float, vocab: int) -> dict[str, Tensor]:
    frames, tokens = int(100 * seconds), int(4 * seconds)
    return {"x": torch.randn(size, frames, 80), "x_lens": torch.full((size,), frames),
            "y": torch.randint(1, vocab, (size, tokens)), "y_lens": torch.full((size,), tokens)}


def learn(models: dict[str, Callable[[int], tuple[nn.Module, torch.dtype | None]]], data: Path, steps: int) -> None:
    from speechlab.tasks import load_config as load
    from speechlab.tasks.asr.train import AsrTraining

    config = load(data.parents[1] / "conf" / "conformer.yaml")
    task = AsrTraining(config, data, torch.device("cpu"))
    loader = task.loader()
    for name, build in models.items():
        torch.manual_seed(0)
        model, dtype = build(len(task.tokenizer))
        step, losses, epoch, started = stepper(model, dtype), [], 0, time.perf_counter()
        while len(losses) < steps:
            for group in loader.epoch(epoch):
                losses.append(step(group[0][1]))
                if len(losses) % 40 == 0:
                    print(f"{name:28s} step {len(losses):4d}, {time.perf_counter() - started:4.0f} s: mean loss of the "
                          f"last 40 steps {statistics.mean(losses[-40:]):.3f}", flush=True)
                if len(losses) >= steps:
                    break
            epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="utterances")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each")
    parser.add_argument("--vocab", type=int, default=1700)
    parser.add_argument("--d", type=int, default=144)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--learn", type=int, default=0, help="then train each for so many steps")
    parser.add_argument("--only", default="", help="the models whose name holds this")
    parser.add_argument("--data", type=Path, help="for --learn: a recipe's data folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bf16 = amp_dtype("auto", torch.device("cpu"))

    def ours(dtype: torch.dtype | None, **more: int) -> Callable[[int], tuple[nn.Module, torch.dtype | None]]:
        return lambda vocab: (AsrModel(Conformer(80, args.d, 4, args.layers, **more), vocab), dtype)

    def espnet(dtype: torch.dtype | None) -> Callable[[int], tuple[nn.Module, torch.dtype | None]]:
        return lambda vocab: (AsrModel(ESPnetEncoder(80, args.d, 4, args.layers, 0.1), vocab), dtype)

    def speechbrain(dtype: torch.dtype | None) -> Callable[[int], tuple[nn.Module, torch.dtype | None]]:
        return lambda vocab: (AsrModel(SpeechBrainEncoder(80, args.d, 4, args.layers, 0.1), vocab), dtype)

    models = {"ESPnet fp32": espnet(None), "SpeechBrain fp32": speechbrain(None), "ours fp32": ours(None)}
    if bf16 is not None:
        models |= {"ESPnet bf16": espnet(bf16), "SpeechBrain bf16": speechbrain(bf16), "ours bf16": ours(bf16),
                   "ours bf16, halved after 3": ours(bf16, halve_after=3)}
    models = {name: build for name, build in models.items() if args.only in name}
    torch.manual_seed(0)
    batch = made_batch(args.batch, args.seconds, args.vocab)
    built = {name: build(args.vocab) for name, build in models.items()}
    steps = {name: stepper(*pair) for name, pair in built.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(args.rounds + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step(batch)
            if turn >= 2:  # two to warm up
                times[name].append(time.perf_counter() - started)
    print(f"{args.batch} x {args.seconds:g} s, d {args.d}, {args.layers} layers, {args.threads} threads, "
          f"torch {torch.__version__}, {args.rounds} rounds")
    first = next(iter(times))
    print(f"{'':28s} {'million':>8s} {'s/step':>8s} {'min':>7s} {'max':>7s} {'x ' + first:>14s}")
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(times[first], taken, strict=True))
        size = sum(p.numel() for p in built[name][0].parameters()) / 1e6
        median = statistics.median(taken)
        print(f"{name:28s} {size:8.2f} {median:8.3f} {min(taken):7.3f} {max(taken):7.3f} {ratio:14.2f}")
    if args.learn:
        learn(models, args.data, args.learn)


if __name__ == "__main__":
    main()
