"""Several processes against one with as many mini-batches, started as by torchrun."""
# ruff: noqa: F401, F811 (a fixture of another file)

import os
import shutil
import signal
import sys
from types import SimpleNamespace

import power_cut
import pytest
import torch
from test_training import CFG, started, trained, training, wait_for, work, write_cfg
from test_updates import batches, fill_memory, network

from yolov4 import distributed, save_weights
from yolov4.training import Updater
from yolov4.weights import load_checkpoint, save_checkpoint


def assert_close(found, expected):
    """All parameters; running statistics are those of the first process alone."""
    for key, tensor in expected.items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-6, msg=key)


def test_two_machines_give_the_weights_of_one(work):
    """The same images in the same mini-batches: two of one process, or one of each of two."""
    text = CFG.format(subdivisions=2, rate=0.002, iterations=4, random=1)
    # dropout draws anew in each process
    (work / "tiny.cfg").write_text(text.replace("[dropout]\nprobability=.2\n", ""))
    trained(work, "one", eval_every=0)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--nnodes=2")
    port = power_cut.ranks_of(1)[0]["MASTER_PORT"]
    launcher += ("--master-addr=127.0.0.1", f"--master-port={port}")
    processes = []
    for number, runs in enumerate(("runs", "elsewhere")):  # a disk each
        own = (f"--node-rank={number}", f"--local-addr=127.0.0.{number + 1}")
        processes.append(started(work, "--workers", 0, launcher=launcher + own, runs=runs))
    try:
        first, second = ("".join(process.communicate(timeout=100)) for process in processes)
    finally:
        for process in processes:
            process.terminate()
    assert not any(process.returncode for process in processes), first + second
    one, two = (load_checkpoint(work / f"runs/{name}/last.pt")["model"] for name in ("one", "run"))
    assert_close(two, one)
    assert "last.pt" in first and "tiny" not in second and not (work / "elsewhere").exists()


def updated(environment, path):
    """Three updates with attacks; at first the first layer gets no gradient."""
    os.environ |= environment
    torch.set_num_threads(1)
    torch.rand = lambda *_: torch.zeros(())  # below one half
    _, rank, world = distributed.join(torch.device("cpu"))
    model = network(subdivisions=4, net="adversarial_lr=500", convolution="stopbackward=2")
    # an attack goes by the running statistics of the mini-batches before
    model.layers[0][1] = torch.nn.Identity()
    trained, stream = Updater(model, world=world), list(batches(12, 2))
    for iteration in (1, 2, 3):
        trained.update(iteration, stream[4 * iteration - 4 :][rank:4:world])
    distributed.leave()
    torch.save(model.state_dict(), path / f"{world}{rank}.pt")


def results(updates, path):
    """What `updates` saves: alone, and as the first and the second of two processes."""
    environments = *power_cut.ranks_of(1), *power_cut.ranks_of(2)
    ranks = [power_cut.SERVER.Process(target=updates, args=(e, path)) for e in environments]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(100)
        assert rank.exitcode == 0
    return [torch.load(path / f"{name}.pt") for name in ("10", "20", "21")]


def test_attacks_and_stopped_gradients_are_those_of_one_process(tmp_path):
    one, first, second = results(updated, tmp_path)
    before = network(convolution="stopbackward=2").state_dict()
    assert not torch.equal(one["layers.0.0.weight"], before["layers.0.0.weight"])
    assert_close(first, one)
    assert_close(second, one)


def test_a_stale_copy_of_a_checkpoint_ends_all(work):
    write_cfg(work, subdivisions=2, iterations=6)
    trained(work, "run", eval_every=0)
    folders = work, shutil.copytree(work, work / "copy")
    for number, folder in enumerate(folders):
        path = folder / "runs/run/last.pt"
        save_checkpoint(path, load_checkpoint(path) | {"iteration": 3 + number})
    pairs = zip(folders, power_cut.ranks_of(2), strict=True)
    ranks = [power_cut.SERVER.Process(target=power_cut.train, args=(f, "run", None, 2, e))
             for f, e in pairs]  # fmt: skip
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 1


def test_sync_bn_is_refused_where_it_cannot_be(work):
    with pytest.raises(ValueError, match="--sync-bn needs GPUs"):
        training(work, sync_bn=True)


def test_synchronised_batch_norm_is_saved_and_evaluated_as_any(tmp_path):
    """In training it needs GPUs; what reads and runs the network has to know it all the same."""
    model = network()
    model.layers[0][1].running_var.fill_(0.5)
    images, paths = torch.rand(2, 3, 32, 32), [tmp_path / "a.weights", tmp_path / "b.weights"]
    save_weights(model, paths[0])
    expected = model.eval()(images)[0]
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    save_weights(model, paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    torch.testing.assert_close(model.fuse()(images)[0], expected)


@pytest.mark.parametrize(("kills", "iterations", "processes"), [(4, 12, 1), (2, 8, 2)])
def test_killed_at_any_moment_it_resumes_as_if_never_stopped(work, kills, iterations, processes):
    assert power_cut.power_cuts(work, kills, iterations, seed=1, processes=processes)


@pytest.mark.parametrize("victim", [0, 1])
def test_of_two_processes_one_that_dies_ends_the_other_with_a_sentence(work, victim):
    write_cfg(work, iterations=100000)
    ranks = power_cut.start_ranks(2, work, "run")
    last = work / "runs/run/last.pt"
    wait_for(last.exists, SimpleNamespace(poll=lambda: ranks[0].exitcode))
    ranks[victim].kill()
    ranks[1 - victim].join(60)
    assert ranks[1 - victim].exitcode == 1
    assert "another process died" in (work / f"rank{1 - victim}.txt").read_text()
    assert load_checkpoint(last)["iteration"] >= 2


def test_a_kill_while_it_resumes_keeps_the_results(work):
    write_cfg(work, iterations=8)
    for count in (8, 5):
        assert power_cut.run_once(work, "run", ("replace", count)) == -signal.SIGKILL
    lines = (work / "runs/run/results.csv").read_text().splitlines()
    numbers = [line.split(",")[0] for line in lines]
    assert numbers == ["iteration", *map(str, range(1, len(lines)))] and len(lines) > 4


def cut_updates(environment, path):
    """Two updates; the second process has memory for single images alone."""
    os.environ |= environment
    torch.set_num_threads(1)
    _, rank, world = distributed.join(torch.device("cpu"))
    model = network(subdivisions=2)
    model.layers[0][1] = torch.nn.Identity()
    if rank:
        fill_memory(model, 1, times=1)
    trained, stream = Updater(model, world=world), list(batches(4, 2))
    for iteration in (1, 2):
        trained.update(iteration, stream[2 * iteration - 2 :][rank:2:world])
    distributed.leave()
    torch.save((model.net.subdivisions, model.state_dict()), path / f"{world}{rank}.pt")


def test_processes_agree_on_more_subdivisions(tmp_path):
    one, first, second = results(cut_updates, tmp_path)
    assert (one[0], first[0], second[0]) == (2, 4, 4)
    assert_close(first[1], one[1])
    assert_close(second[1], one[1])
