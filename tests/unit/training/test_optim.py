"""Muon, shared out over processes, against torch's own."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from speechlab.training.optim import OptimConfig, build_optimizer

SHAPES = [(12, 8), (8, 12), (8, 8), (20, 10), (6, 6)]


def steps(make, wanted=4):
    """Parameters after a few steps with made gradients."""
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]
    optimizer = make(parameters)
    for _ in range(wanted):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() for p in parameters]


def ours(parameters):
    return build_optimizer(parameters, OptimConfig("muon", lr=0.02, weight_decay=0.1))


def one_of_two(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(steps(ours), f"{out}.{rank}")
    dist.destroy_process_group()


def test_one_process_is_torchs_muon():
    theirs = steps(lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1, momentum=0.95,
                                              adjust_lr_fn="match_rms_adamw"))
    for mine, expected in zip(steps(ours), theirs):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-6)


def test_two_processes_do_the_step_of_one(tmp_path):
    mp.spawn(one_of_two, (str(tmp_path / "store"), str(tmp_path / "out")), nprocs=2)
    alone = steps(ours)
    for rank in range(2):
        for mine, expected in zip(torch.load(tmp_path / f"out.{rank}", weights_only=True), alone):
            assert torch.equal(mine, expected)
