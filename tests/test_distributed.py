"""Several processes against one: real processes, at two addresses of this machine, started by torchrun.
What one process gives with as many mini-batches, or with --sync-bn as one mini-batch, is what is expected."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from sync_step import step
from test_training import CFG, command, settings, trained, write_pictures

from yolov4.distributed import Processes, SyncBatchNorm
from yolov4.model import Darknet
from yolov4.training import Training

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node")
CPU = torch.device("cpu")


@pytest.fixture
def work(tmp_path):
    write_pictures(tmp_path)
    text = CFG.format(subdivisions=2, rate=0.002, iterations=8, random=1)
    (tmp_path / "tiny.cfg").write_text(text.replace("[dropout]\nprobability=.2\n", ""))  # draws per process
    return tmp_path


def started(work, made, **environment):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(made, cwd=work, env=environment, start_new_session=True, **pipes)


def finished(*processes):
    """What each printed; all have to end well."""
    try:
        printed = ["".join(process.communicate(timeout=100)) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert not any(process.returncode for process in processes), "\n".join(printed)
    return printed


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def flags(work, name):
    given = ["--data", work / "tiny.data", "--cfg", work / "tiny.cfg", "--name", name]
    return [*given, "--workers", 0, "--eval-every", 0]


def assert_same_models(work, *names):
    one, two = (torch.load(work / "runs" / name / "last.pt", weights_only=True)["model"] for name in names)
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: key + text)


def test_two_machines_give_the_weights_of_one(root, work):
    """The same images in the same mini-batches: two of one process, or one of each of two."""
    trained(work, "one", eval_every=0)
    port, processes = free_port(), []
    for number, runs in enumerate(("runs", "elsewhere")):  # a disk each
        launcher = (*TORCHRUN, "1", "--nnodes", "2", "--node-rank", str(number), "--master-addr", "127.0.0.1",
                    "--master-port", port, "--local-addr", f"127.0.0.{number + 1}")  # fmt: skip
        made = command(root, work, *flags(work, "two"), "--runs", work / runs, launcher=launcher)
        processes.append(started(work, made, GLOO_SOCKET_IFNAME="lo"))
    first, second = finished(*processes)
    assert_same_models(work, "one", "two")
    assert "last.pt" in first and "tiny" not in second and not (work / "elsewhere").exists()


def test_two_processes_with_sync_bn_give_the_weights_of_one_mini_batch(root, work):
    trained(work, "one", eval_every=0, batch=8, subdivisions=1, sync_bn=True)
    launcher = (*TORCHRUN, "2", "--standalone")
    finished(started(work, command(root, work, *flags(work, "two"), "--sync-bn", "--batch", 8, launcher=launcher)))
    assert_same_models(work, "one", "two")


def test_batch_normalisation_over_two_processes_is_that_of_one(root, tmp_path):
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "PYTHONPATH": str(root)}
    made = [sys.executable, root / "tests/sync_step.py"]
    finished(*(started(tmp_path, [*made, f"{rank}.pt"], RANK=str(rank), **environment) for rank in range(2)))
    (first, messages), (second, others) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, expected in step(Processes(CPU)).items():
        shared = name not in ("output", "images", "bf16")
        found = first[name] if shared else torch.cat((first[name], second[name]))
        assert not shared or torch.equal(first[name], second[name]), name
        tolerance = {"rtol": 0.02, "atol": 0.02} if name == "bf16" else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(found, expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    assert messages[0] == others[0] == ""  # the same iteration, images and weights
    for number, said in enumerate((messages, others)):
        assert all(text.startswith(f"process {number}: found another iteration") for text in said[1:])


def test_the_death_of_another_process_is_one_sentence(work, monkeypatch):
    def lost(*_):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:554] Connection closed by peer [127.0.0.2]:4242\nmore of it")

    training = Training(settings(work, max_batches=9), work / "runs/run", say=lambda line: None)
    monkeypatch.setattr(training.updater, "update", lost)
    with pytest.raises(ValueError, match=r"^another process died \(.*4242\) at iteration 1, .*--resume .*run goes on$"):
        training.run()


def test_sync_bn_leaves_one_process_as_it_is_and_refuses_cmbn():
    network = Darknet.from_cfg(text=CFG.format(subdivisions=1, rate=0.1, iterations=8, random=0))
    Processes(CPU).synchronise(network)
    assert not any(isinstance(module, SyncBatchNorm) for module in network.modules())
    text = CFG.format(subdivisions=1, rate=0.1, iterations=8, random=0).replace("normalize=1", "normalize=2", 1)
    with pytest.raises(ValueError, match="--sync-bn: found CmBN in the cfg, expected batch_normalize=1"):
        Processes(CPU).synchronise(Darknet.from_cfg(text=text))
