"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speechlab.errors import UserError
from speechlab.ranges import within


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Section ``optim``: which optimiser changes the weights, and at which learning rate."""

    # muon (Jordan 2024; torch.optim.Muon) makes the updates of the hidden layers' matrices orthogonal, and leaves all
    # other weights to AdamW. Its updates are scaled so that AdamW's lr and weight_decay fit it (Moonshot 2025, arXiv
    # 2502.16982).
    name: Literal["adamw", "adam", "sgd", "rmsprop", "muon"] = "adamw"
    lr: float = 1e-3  # peak learning rate, reached after warmup
    weight_decay: float = 1e-2  # pulls matrices towards 0; biases and norms never
    betas: tuple[float, ...] = (0.9, 0.98)  # adamw, adam: decay per step of the averages of the gradient and its square
    momentum: float = 0.9  # sgd, rmsprop: share of the last update that is added to this one; 0: none
    # After the warmup: cosine and linear fall to final at the end of training; noam falls as 1 / sqrt(step) (Vaswani et
    # al. 2017); constant stays at lr.
    schedule: Literal["cosine", "linear", "noam", "constant"] = "cosine"
    warmup: int = 500  # optimiser steps in which the rate rises from 0 to lr
    final: float = 0.02  # cosine, linear: the last learning rate as a share of lr
    clip: float = 5.0  # a gradient with a larger norm is scaled down to it; 0: never
    # muon treats the filters of convolutions too, each as a row of a matrix (but not those of depthwise convolutions).
    muon_filters: bool = False
    bias_scale: float = 1.0  # biases and norms learn at this multiple of the rate (64 in airbench, Jordan 2024)

    def __post_init__(self) -> None:
        within(self, "lr", "bias_scale", above=0)
        within(self, "weight_decay", "warmup", "clip", least=0)
        within(self, "momentum", "betas", least=0, below=1)
        within(self, "final", least=0, most=1)
        if len(self.betas) != 2:
            raise ValueError("betas must be two numbers")


class Several:
    """Several optimisers over parts of the parameters, used as one."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, its in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(its)
        self.param_groups = [group for part in self.parts for group in part.param_groups]  # loading made new groups


class SharedMuon(torch.optim.Muon):
    """torch's Muon with its costly part, making each update orthogonal, shared out over the processes.

    All processes hold all momenta, so that a checkpoint of one is whole, and the same averaged gradients. Each process
    makes some of the updates orthogonal and receives the rest from the others, so that any number of processes does
    the same step. The filters of a convolution are taken as a matrix (out, in * height * width), which torch refuses.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float, momentum: float):
        torch.optim.Optimizer.__init__(self, params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, params, grads, momenta)
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov's
            updates = [update.flatten(1) for update in updates]
            scales = [0.2 * math.sqrt(max(u.shape)) for u in updates]  # torch's adjust_lr_fn = match_rms_adamw
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            for param, update, scale in zip(params, _orthogonal(updates), scales):
                param.add_(update.reshape(param.shape), alpha=-group["lr"] * scale)


def _orthogonal(updates: list[Tensor]) -> list[Tensor]:
    """The nearest orthogonal matrix to each of ``updates``, in bf16; each process computes a share of them."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if size > 1 else 0
    cost = [u.numel() * min(u.shape) for u in updates]
    order = sorted(range(len(updates)), key=lambda i: -cost[i])
    shares = [order[r::2 * size] + order[2 * size - 1 - r :: 2 * size] for r in range(size)]  # there and back: even
    mine = {i: newton_schulz(updates[i]) for i in shares[rank]}
    if size == 1:
        return [mine[i] for i in range(len(updates))]
    longest = max(sum(updates[i].numel() for i in share) for share in shares)
    packed = torch.zeros(longest, dtype=torch.bfloat16, device=updates[0].device)
    torch.cat([mine[i].reshape(-1) for i in shares[rank]], out=packed[: sum(m.numel() for m in mine.values())])
    parts = [torch.empty_like(packed) for _ in range(size)]
    # As bytes: not every back end passes bf16 on.
    dist.all_gather([part.view(torch.uint8) for part in parts], packed.view(torch.uint8))
    found: dict[int, Tensor] = {}
    for share, part in zip(shares, parts):
        for i, flat in zip(share, part.split([*(updates[i].numel() for i in share),
                                              longest - sum(updates[i].numel() for i in share)])):
            found[i] = flat.view(updates[i].shape)
    return [found[i] for i in range(len(updates))]


def newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    """(m, n) with the singular value decomposition U S V^T -> about U V^T, in bf16, by Jordan's (2024) iteration."""
    x = matrix.bfloat16()
    if turned := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if turned else x


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer | Several:
    """The optimiser over ``parameters``; weight decay is for parameters of two and more dimensions."""
    wanted = [p for p in parameters if p.requires_grad]
    if config.name == "muon":
        # Matrices between hidden layers. AdamW does better with a vocabulary's, which has far more rows than columns.
        hidden = [p for p in wanted if (p.ndim == 2 and max(p.shape) <= 8 * min(p.shape))
                  or (config.muon_filters and p.ndim == 4 and p.shape[1] > 1)]
        if not hidden:
            raise UserError("optim.name: muon finds no matrix between hidden layers in this model (of convolutions: "
                            "optim.muon_filters: true)", 2)
        chosen = {id(p) for p in hidden}
        rest = [p for p in wanted if id(p) not in chosen]
        muon = SharedMuon(hidden, lr=config.lr, weight_decay=config.weight_decay, momentum=0.95)
        return Several(muon, build_optimizer(rest, dataclasses.replace(config, name="adamw")))
    groups = [{"params": [p for p in wanted if p.ndim >= 2], "weight_decay": config.weight_decay},
              {"params": [p for p in wanted if p.ndim < 2], "weight_decay": 0.0}]
    if config.bias_scale != 1:
        groups[1]["scale"] = config.bias_scale  # the loop multiplies the schedule's rate by it
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)  # type: ignore[arg-type]
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, fused=True)  # type: ignore[arg-type]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.RMSprop(groups, lr=config.lr, momentum=config.momentum)


def learning_rate(step: int, done: float, config: OptimConfig) -> float:
    """The learning rate of optimiser step ``step`` (from 0) when the share ``done`` (0 to 1) of the run is over.

    It depends on nothing but the position, so that a resumed run needs no saved state, and more epochs just stretch
    the curve.
    """
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    if config.schedule == "noam":
        return config.lr * min(rise, math.sqrt(max(config.warmup, 1) / (step + 1)))
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[config.schedule]
    if config.schedule != "constant":
        shape = config.final + (1 - config.final) * shape
    return config.lr * rise * shape
