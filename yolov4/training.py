"""The training loop: batch, loss, backward, step (`Updater.update`), evaluate, save
(`Training.run`); resumes bit for bit.
Source: Darknet's src/detector.c, train_detector; src/network.c, update_network, ema_update."""

import copy
import math
import os
import signal
import threading
import time
import zlib
from dataclasses import asdict, dataclass, replace
from itertools import chain, count, islice, tee

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from yolov4 import distributed, report
from yolov4.cfg import names_of_classes, parse_cfg, read_names
from yolov4.data import (
    HANGUP,
    STOPS,
    duplicates,
    inspect,
    keep_freed_memory,
    read_image_list,
    training_batches,
)
from yolov4.detector import choose_device
from yolov4.evaluation import collect
from yolov4.layers import CrossBatchNorm, growth, set_stage
from yolov4.loss import DarknetLoss, HeadTerms, attack_loss, attack_rate, attacked_images
from yolov4.model import HALVES, Darknet
from yolov4.recipe import configured, network_for
from yolov4.runs import FILES, RunFolder
from yolov4.schedule import bias_rate, check_rates, ema_decay, learning_rate, momentum
from yolov4.weights import VERSION, last_checkpoint, load_weights
from yolov4.yolov5_loss import Yolov5Loss, prior_biases

LOSSES = {"darknet": DarknetLoss, "yolov5": Yolov5Loss}
SMALLEST_SCALE = 2.0**-16  # of float16 gradients, which starts at 2^16
UNREADABLE = 0.01  # share of the images: beyond it the training stops
SHOWN_TERMS = ("average_iou", "count", "class_loss", "iou_loss", "total_loss")  # in results.csv


class NonFiniteLoss(ValueError):
    """Loss, gradient or weights are non-finite: what, where, with which images, in one sentence."""


@dataclass
class Update:
    """What one update reports, plain numbers: means over the mini-batches."""

    loss: float
    rate: float
    heads: dict[int, HeadTerms]  # by the layer of each head

    def lines(self):
        """A line per head, as in Darknet's log."""
        return [
            f"Region {layer} Avg (IOU: {t.average_iou:.6f}), count: {t.count:g}, "
            f"class_loss = {t.class_loss:.6f}, iou_loss = {t.iou_loss:.6f}, "
            f"total_loss = {t.total_loss:.6f}"
            for layer, t in self.heads.items()
        ]


def out_of_memory(error):
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Updater:
    """Model, optimiser, gradient scaler and averaged weights; `update` does one iteration.

    The summed deltas of `batch` images are divided by batch, whatever subdivisions and processes
    are; decay acts on convolutions and shortcuts, not on biases and batch normalisation.
    amp: "off", "bf16" or "fp16".  freeze: so many layers keep weights and running statistics.
    ema: decay of the averaged weights, which else follow [net] ema_alpha.  world: processes.
    seed: of what is drawn in an update, as by dropout; another in each process.
    state: of last.pt.
    """

    def __init__(
        self, model, *, amp="off", loss="darknet", freeze=0, ema=0.0, world=1, seed=0, state=None
    ):
        self.model, self.net, self.freeze, self.ema = model, model.net, freeze, ema
        self.world, self.seed = world, seed
        self.device = next(model.parameters()).device
        self.loss = LOSSES[loss](model.heads, self.net)
        self.autocast = torch.autocast(self.device.type, HALVES.get(amp), enabled=amp in HALVES)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        model.layers[:freeze].requires_grad_(False)
        weights, scales, biases, self.attacked = [], [], [], []
        for name, parameter in model.named_parameters():
            # what stopbackward stops still decays, as in Darknet
            parameter.grad = torch.zeros_like(parameter)
            if parameter.requires_grad:
                others = biases if name.endswith("bias") else scales
                (weights if parameter.dim() > 1 else others).append(parameter)
                # the attack leaves gradients where no batch norm follows, and in shortcuts
                if name.split(".", 2)[2] in ("0.bias", "weight"):
                    self.attacked.append(parameter)
        groups = [{"params": each} for each in (weights, scales, biases)]
        groups[0]["weight_decay"] = self.net.decay
        self.optimiser = torch.optim.SGD(
            groups, momentum=self.net.momentum, nesterov=self.net.nesterov
        )
        self.averaged = None
        self.parts = {"model": model, "optimiser": self.optimiser, "scaler": self.scaler}
        if ema or (state and state["ema"]):
            self._start_average()
        for key, part in self.parts.items() if state else ():
            try:
                part.load_state_dict(state[key])
            except Exception as error:  # of any kind, by what is missing or has another shape
                if out_of_memory(error):
                    raise
                raise ValueError(
                    f"last.pt: its {key} does not fit its cfg: {error!r:.160}"
                ) from None
        self.stops = [getattr(section, "stopbackward", 0) for section in model.sections]
        self.mini_batches, self.parallel = max(self.net.subdivisions, world) // world, model
        self.cuts = 1  # parts of each mini-batch that comes
        self.alone = False  # until every process has had enough memory
        if world > 1:
            self.parallel = DistributedDataParallel(model, find_unused_parameters=any(self.stops))
            self.alone = not any(isinstance(each, nn.SyncBatchNorm) for each in model.modules())

    def update(self, iteration, batches):
        """One iteration, counted from 1.  batches: images uint8 (B, 3, H, W) RGB, targets (T, 6),
        image files; as many as this process needs are taken.
        Raises NonFiniteLoss before the weights change."""
        net, rate = self.net, learning_rate(iteration, self.net)
        update = self._report(iteration, rate, *self._fitting(iteration, batches))
        for group in self.optimiser.param_groups:
            group["lr"], group["momentum"] = rate, momentum(iteration, net)
        group["lr"] = bias_rate(iteration, net)  # the last one has the biases
        self.scaler.step(self.optimiser)  # skips the step where float16 gradients overflowed
        self.scaler.update()
        if self.scaler.get_scale() < SMALLEST_SCALE:
            raise NonFiniteLoss(
                f"float16 gradients overflow at every scale up to iteration {iteration}, "
                f"rate {rate:.6g}; expected --amp bf16 or off"
            )
        self._average(iteration)
        return update

    def _fitting(self, iteration, batches):
        """`_accumulate`; where the memory is full, again from the start with mini-batches of half
        as many images.

        Processes wait for each other while they join gradients, so that none could say that its
        memory is full: their first update is tried alone until all have enough.
        """
        # before the step an update changes running statistics alone
        self.before = [buffer.clone() for buffer in self.model.buffers()]
        while True:
            batches, again = tee(batches)
            full = False
            try:
                found = self._accumulate(iteration, batches)
            except RuntimeError as error:
                if not out_of_memory(error) or (self.world > 1 and not self.alone):
                    raise
                full = True
            if not (full or self.alone):
                return found
            # outside of the handler, whose traceback holds the tensors
            if distributed.in_any(full, self.device):
                self._cut_mini_batches()
            else:
                self.alone = False
            self.undo()
            batches = again

    def undo(self):
        """The model as it was before an update that did not come to its step."""
        for buffer, value in zip(self.model.buffers(), self.before, strict=True):
            buffer.copy_(value)

    def _accumulate(self, iteration, batches):
        """Sums up the gradients of the mini-batches.  Returns what `_report` takes."""
        net = self.net
        attack, grown = attack_rate(iteration, net), growth(iteration, net.max_batches)
        torch.manual_seed((self.seed + iteration) % 2**64)
        network = self.model if self.alone else self.parallel
        self.model.train()
        self.model.layers[: self.freeze].eval()
        # no gradient up to this layer: stopbackward=1 always, N > 1 in the first N iterations
        stopped = (i for i, stop in enumerate(self.stops) if stop == 1 or stop >= iteration)
        self.model.frozen = max(stopped, default=-1)
        self.optimiser.zero_grad(set_to_none=False)
        reports, files = [], []
        mini_batches = islice(self._parts(batches), self.mini_batches)
        for number, (images, targets, names) in enumerate(mini_batches):
            set_stage(self.model, grown, number)
            images = images.to(self.device, non_blocking=True).float().div_(255)
            images = images.contiguous(memory_format=torch.channels_last)
            if attack and torch.rand(()) < 0.5:
                images = self._attack(images, attack)
            # of DistributedDataParallel, which joins the gradients in the last backward
            self.parallel.require_backward_grad_sync = number == self.mini_batches - 1
            with self.autocast:
                logits = network(images)
            # the stride may not divide a size that `random` draws
            self.loss.heads = [
                replace(head, size=images.shape[:1:-1], cells=each.shape[:1:-1])
                for head, each in zip(self.model.heads, logits, strict=True)
            ]
            terms = self.loss(logits, targets)
            self.scaler.scale(terms.total / self.mini_batches).backward()
            reports.append(torch.stack([terms.total.detach(), *chain(*terms.heads)]))
            files.append(names)
        return torch.stack(reports), files

    def _parts(self, batches):
        """Each of batches in `cuts` parts."""
        for images, targets, names in batches:
            rows = len(images) // self.cuts
            for first in range(0, len(images), rows):
                part = slice(first, first + rows)
                own = targets[targets[:, 0].long() // rows == first // rows]  # a copy
                own[:, 0] -= first
                yield images[part], own, names[part]

    def _cut_mini_batches(self):
        """Twice as many, or what else divides their images.  Raises OutOfMemoryError if it is 1."""
        images = self.net.batch // (self.mini_batches * self.world)
        factor = next((n for n in range(2, images + 1) if images % n == 0), 0)
        if not factor:
            raise torch.OutOfMemoryError
        self.cuts, self.mini_batches = self.cuts * factor, self.mini_batches * factor
        self.net = replace(self.net, subdivisions=self.mini_batches * self.world)
        self.model.network = self.model.network._replace(net=self.net)
        torch.cuda.empty_cache()

    def too_large(self):
        """What to say where the memory is full."""
        net, model = self.net, self.model
        images = net.batch // max(net.subdivisions, self.world)
        outputs = sum(math.prod(model.plan[head.index].input_shape) for head in model.heads)
        return (
            f"{self.device}: out of memory with mini-batches of {images} images, whose predictions "
            f"alone, for {model.heads[0].classes} classes, take {images * outputs * 4e-9:.2g} GB; "
            "expected more --subdivisions, or a smaller network"
        )

    def _start_average(self):
        self.parts["ema"] = self.averaged = copy.deepcopy(self.model).requires_grad_(False)

    @torch.no_grad()
    def _average(self, iteration):
        """--ema: weights and running statistics, from the first iteration on.  ema_alpha, as in
        Darknet: weights alone, in the second half; 1,000 iterations before its end they take over.
        """
        model, net, last = self.model, self.net, self.net.max_batches - 1000
        if self.ema:
            values = model.state_dict()
            for name, average in self.averaged.state_dict().items():
                if average.is_floating_point():  # not the numbers of batches
                    average.lerp_(values[name], 1 - ema_decay(iteration, self.ema))
        elif net.ema_alpha and iteration >= net.max_batches // 2:
            if not self.averaged:
                self._start_average()
            for average, value in zip(self.averaged.parameters(), model.parameters(), strict=True):
                if iteration < last:
                    average.lerp_(value, 1 - net.ema_alpha)
                elif iteration == last:
                    value.copy_(average)

    def _attack(self, images, rate):
        """The images (B, 3, H, W) after a self-adversarial attack, with batch norm in eval mode."""
        images.requires_grad_()
        norms = [m for m in self.model.modules() if hasattr(m, "running_var") and m.training]
        for norm in norms:
            norm.eval()
        with self.autocast:
            logits = self.model(images)
        loss = self.scaler.scale(attack_loss(logits, self.model.heads) / self.mini_batches)
        loss.backward(inputs=[images, *self.attacked])
        for norm in norms:
            norm.train()
        rate *= len(images) * self.mini_batches / self.scaler.get_scale()
        return attacked_images(images.detach(), images.grad, rate)

    def _report(self, iteration, rate, reports, files):
        """reports (mini-batches, 1 + heads * terms).  Here alone the host waits for the device."""
        finite = reports[:, 0].isfinite()
        if not self.scaler.is_enabled():  # else overflows are the scaler's business
            norms = [torch.linalg.vector_norm(p.grad) for p in self.model.parameters()]
            finite &= torch.stack(norms).isfinite().all()
        means, heads = reports.mean(0), self.model.heads
        rows = means[1:].view(len(heads), -1).tolist()
        terms = {head.index: HeadTerms(*row) for head, row in zip(heads, rows, strict=True)}
        update = Update(means[0].item(), rate, terms)
        bad = [names for names, good in zip(files, finite.tolist(), strict=True) if not good]
        if distributed.in_any(bool(bad), self.device):
            images = ", ".join(map(str, chain(*bad[0]))) if bad else "of another process"
            raise NonFiniteLoss(
                f"non-finite loss or gradient at iteration {iteration}, rate {rate:.6g}: "
                f"loss {update.loss:.6g} ({'; '.join(update.lines())}); images: {images}"
            )
        return update


@dataclass
class Progress:
    """Where a training stands, besides weights and optimiser; -1: not yet."""

    iteration: int = 0
    best_map: float = -1.0
    last_map: float = -1.0
    waited: int = 0  # evaluations since the best
    average_loss: float = -1.0  # nine tenths of the last and one of the new, as Darknet prints it
    row: dict | None = None  # of results.csv, where it still has to be measured


class Training:
    """One run in `folder`.  resume: from its last.pt, to the same weights as a run never stopped.
    say: prints a line.  log: Darknet's line in every iteration.

    Raises ValueError for data and files that do not fit; `run` raises NonFiniteLoss.
    """

    def __init__(self, settings, folder, resume=False, say=print, log=False):
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts
            torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = not settings.deterministic
        keep_freed_memory()
        device, rank, world = distributed.join(choose_device(settings.device))
        if settings.subdivisions == "auto" and device.type != "cuda":
            raise ValueError(f"--subdivisions auto: found {device}, expected a GPU or a number")
        self.settings, self.folder, self.log = settings, folder, log
        self.say, fresh = (lambda _: None) if rank else say, not folder.exists()
        checkpoint = last_checkpoint(folder) if resume else {}
        if checkpoint:
            network = parse_cfg(checkpoint["cfg"], str(folder / "last.pt"))
        else:
            images = len(read_image_list(settings.train))
            network = network_for(settings.cfg, len(read_names(settings.names)), settings.lenient)
            network = configured(network, settings, images, self.say)
            check_rates(network)
        self.net = net = network.net
        model = Darknet(network, torch.Generator().manual_seed(settings.seed))
        model.to(device, memory_format=torch.channels_last)
        self.names = names_of_classes(settings.names, model.heads[-1].classes)
        self.paths = self._inspect(iter(checkpoint.get("lists", ())))
        if settings.sync_bn:
            crossed = any(isinstance(module, CrossBatchNorm) for module in model.modules())
            if crossed or device.type != "cuda":
                raise ValueError("--sync-bn needs GPUs, and a cfg without CmBN (batch_normalize=2)")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model
        if checkpoint:
            known = asdict(Progress()).keys() & checkpoint.keys()
            self.progress = Progress(**{key: checkpoint[key] for key in known})
            iteration = self.progress.iteration
            self.say(f"resuming {folder} at iteration {iteration} of {net.max_batches}")
        else:
            iteration = self._load_weights()
            self.progress = Progress(iteration)
        if not distributed.same_in_all(iteration, device):
            raise ValueError(
                f"{folder}/last.pt: is another one in another process, expected copies"
            )
        if iteration >= net.max_batches and not checkpoint:
            raise ValueError(
                f"{settings.weights or folder}: is at iteration {iteration} of {net.max_batches}, "
                "expected less; --clear starts at 0 again, --max-batches trains for longer"
            )
        self.updater = Updater(
            model, amp=settings.amp, loss=settings.loss, freeze=settings.freeze, ema=settings.ema,
            world=world, seed=(settings.seed << 40) + (rank << 32), state=checkpoint,
        )  # fmt: skip
        self.loader = training_batches(
            self.paths, net, model.heads[-1], settings.seed, iteration, net.max_batches,
            settings.workers, rank, world, device.type == "cuda", settings.cache or 0.0,
        )  # fmt: skip
        self.unreadable, self.stopped, self.evaluation, self.files = set(), "", None, None
        self.waiting = False
        if not rank:
            written = iteration - bool(self.progress.row)
            made = network, self.names, asdict(settings), written, fresh, self.say
            self.files = RunFolder(folder, *made)
            self.folder = folder = self.files.path
            report.write_data(folder / "data.png", self.paths, self.names, network)

    def _inspect(self, saved):
        """Reports on the data, which has to be fit for it, and on lists that do not have the saved
        checksums; returns the images for training."""
        settings, usable, self.lists = self.settings, [], []
        for path in filter(None, (settings.train, settings.valid)):
            images, size = read_image_list(path), (self.net.width, self.net.height)
            self.lists.append(checksum := zlib.crc32(os.fsencode(repr(images))))
            if next(saved, checksum) != checksum:
                self.say(f"{path}: has other images, or another order, than at the last save")
            found = inspect(images, self.names, size, path)
            self.say("\n".join(found.lines()))
            found.check()
            usable.append(found.usable)
        for line in duplicates(*usable):
            self.say(line)
        return usable[0]

    def _load_weights(self):
        """Fresh weights, or those of a whole or partial file.  Returns the first iteration - 1."""
        settings, model, loaded = self.settings, self.model, None
        if settings.loss == "yolov5":
            model.set_head_biases(prior_biases)  # overwritten by what a file holds
        if settings.weights:
            loaded = load_weights(model, settings.weights, other_classes=True)
        provided = min(loaded.layers if loaded else 0, model.heads[0].index - 1)
        if not 0 <= settings.freeze <= provided:
            raise ValueError(
                f"--freeze {settings.freeze}: --weights provides {provided} layers before the heads"
            )
        if not loaded:
            self.say("from fresh weights (no --weights)")
            return 0
        model.weights_version = VERSION
        iteration = 0 if settings.clear or loaded.classes else loaded.seen // self.net.batch
        self.say(
            f"{settings.weights}: {loaded}; {loaded.seen:,} images seen; starts at iteration "
            f"{iteration} of {self.net.max_batches}; {settings.freeze} layers frozen"
        )
        return iteration

    def run(self):
        """Trains to the end, or until one of STOPS, and returns the run's folder."""
        progress, batches = self.progress, iter(self.loader)
        main = threading.current_thread() is threading.main_thread()  # others take no signals
        handlers = {number: signal.signal(number, self._stop) for number in STOPS if main}
        if handlers.get(HANGUP) == signal.SIG_IGN:  # nohup
            signal.signal(HANGUP, signal.SIG_IGN)
        bar = tqdm(
            total=self.net.max_batches, initial=progress.iteration, dynamic_ncols=True,
            disable=None if self.files else True,
            bar_format="{n}/{total}  {desc}  {remaining} left{postfix} {bar}",
        )  # fmt: skip
        try:
            self._loop(batches, bar)
        except RuntimeError as error:
            if out_of_memory(error):
                raise ValueError(self.updater.too_large()) from None
            if not distributed.lost_process(error):
                raise
            raise ValueError(
                f"another process died or hangs after iteration {progress.iteration} "
                f"({str(error).splitlines()[0][:120]}); --resume {self.folder} resumes"
            ) from None
        finally:
            bar.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            # they ignore SIGTERM: Python would wait for them while a traceback holds the iterator
            getattr(batches, "_shutdown_workers", lambda: None)()
            for worker in getattr(batches, "_workers", ()):  # one that hangs
                worker.kill()
            if self.files:
                self.files.close()
            distributed.leave()
        if self.evaluation:
            folder = self.folder
            page = report.write(folder / "report", *self.evaluation, self.names, run=folder)
            self.say(f"{page}: the last evaluation, missed objects and false detections")
        return self.folder

    def _loop(self, batches, bar):
        """Update, evaluate, save: until the last iteration, a request, or patience ends it."""
        progress, settings, last = self.progress, self.settings, self.net.max_batches
        if self.files and progress.row:  # it was not measured, or has no report
            self._finish()
        while progress.iteration < last:
            progress.iteration += 1
            start, self.waited = time.perf_counter(), 0.0
            update = self._update(batches)
            if self.net != self.updater.net:
                self.net = self.updater.net
                self.say(
                    f"{self.updater.device}: out of memory in iteration {progress.iteration}; from "
                    f"it on subdivisions={self.net.subdivisions}: the same sum over the batch, but "
                    "batch norm by fewer images"
                )
                if self.files:
                    self.files.write_cfg(self.model.network)
            if update and self.files:  # the first process; the others wait for it in `in_any`
                seconds = time.perf_counter() - start
                bar.set_description_str(self._log(update, seconds), refresh=False)
                self._finish()
                bar.set_postfix_str(f"{self.net.batch / seconds:.1f} img/s", refresh=False)
                bar.update()
            if 0 < settings.patience <= progress.waited:
                self.stopped = f"after {progress.waited} evaluations without a better mAP"
            if not update or distributed.in_any(bool(self.stopped), self.updater.device):
                if self.files:
                    self._save()
                self.say(
                    f"stopped at iteration {progress.iteration} of {last} "
                    f"{self.stopped or 'as asked'}; "
                    f"`python train.py --resume {self.folder}` resumes"
                )
                break

    def _update(self, batches):
        """One update; None where a stop was asked for while it waited for data.  Then, and where no
        data comes, the model is as if the iteration had not begun, and saved."""
        try:
            return self.updater.update(self.progress.iteration, self._mini_batches(batches))
        except (RuntimeError, ValueError, KeyboardInterrupt):
            if not self.waiting:
                raise
            self.updater.undo()
            self.progress.iteration -= 1
            if self.stopped:
                return None
            if self.files:
                self._save()
            raise

    def _stop(self, number, _):
        if number == HANGUP:  # nothing can be printed any more
            self.say = lambda _: None
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = "as asked"
        self.say("stopping after this iteration; once more stops at once")
        if self.waiting:
            raise KeyboardInterrupt

    def _mini_batches(self, batches):
        """This iteration's mini-batches; counts the seconds that they are waited for."""
        for number in count():
            start = time.perf_counter()
            self.waiting = True
            images, targets, files, faults = next(batches)
            self.waited += time.perf_counter() - start
            for path, reason in faults:
                if path not in self.unreadable:
                    self.say(f"{reason}; another image takes its place")
                self.unreadable.add(path)
            if len(self.unreadable) > UNREADABLE * len(self.paths):
                found = f"{len(self.unreadable)} of {len(self.paths)} images"
                raise ValueError(f"{found} cannot be read any more, the last: {reason}")
            self.waiting = False
            if self.files and number == 0:
                self.files.save_picture(self.progress.iteration, images, targets)
            yield images, targets, files

    def _log(self, update, seconds):
        """A row for results.csv, at first and last Darknet's lines; returns the progress line."""
        progress, average, loss = self.progress, self.progress.average_loss, update.loss
        progress.average_loss = loss if average < 0 else 0.9 * average + 0.1 * loss
        speed, data_share = self.net.batch / seconds, self.waited / seconds
        row = {
            "iteration": progress.iteration, "loss": loss, "rate": update.rate,
            "images_per_second": speed, "data_share": data_share, "map": None,
        }  # fmt: skip
        for layer, terms in update.heads.items():
            row |= {f"{key}_{layer}": getattr(terms, key) for key in SHOWN_TERMS}
        progress.row = row
        if progress.iteration in (1, self.net.max_batches):
            first = f"iteration {progress.iteration}, rate {update.rate:.6g}"
            self.say("\n".join([first, *update.lines()]))
        if self.log:
            left = (self.net.max_batches - progress.iteration) * seconds / 3600
            self.say(
                f" {progress.iteration}: {loss:f}, {progress.average_loss:f} avg loss, "
                f"{update.rate:f} rate, {seconds:f} seconds, "
                f"{progress.iteration * self.net.batch} images, {left:f} hours left"
            )
        mean_ap = f"  mAP {progress.last_map:.2%}" if progress.last_map >= 0 else ""
        return f"loss {loss:.2f}{mean_ap}  rate {update.rate:.3g}"

    def _finish(self):
        """Evaluates and saves where it is due, logs the row.  What is evaluated was saved before.

        Evaluated is at the end and every eval_every iterations, by default 4 epochs after burn-in,
        as in Darknet."""
        progress, settings, net = self.progress, self.settings, self.net
        iteration, every = progress.iteration, settings.eval_every
        if every is None:
            every = iteration >= net.burn_in and max(100, 4 * len(self.paths) // net.batch)
        last = iteration == net.max_batches
        due = settings.valid and (last or (every and iteration % every == 0))
        self.files.log(progress.row)
        if due:
            self._save()
            progress.row["map"] = self._evaluate()
            self.files.log(progress.row, again=True)
        if not last:  # the report is written later
            progress.row = None
        if due or last or iteration % settings.save_every == 0:
            self._save()

    def _evaluate(self):
        """mAP on the validation list, None if that fails; what cannot be read is left out."""
        progress, settings, net = self.progress, self.settings, self.net
        iteration, left_out = progress.iteration, []
        model = self.updater.averaged or self.model

        def leave_out(error):
            left_out.append(error)
            self.say(f"{error}; left out")

        given = {"difficult": settings.difficult, "on_error": leave_out, "progress": True}
        self.evaluation = None
        try:
            evaluator = collect(model, settings.valid, **given)
            result = evaluator.result()
        except Exception as error:  # whatever it is, the training goes on
            reason = str(error).partition("\n")[0] or type(error).__name__
            self.say(f"iteration {iteration}: could not be evaluated, so without mAP: {reason}")
            return None
        self.evaluation, progress.last_map = (evaluator.records, result), result.map
        progress.waited, note = progress.waited + 1, ""
        if result.map >= progress.best_map:
            progress.best_map, progress.waited, note = result.map, 0, ", the best so far"
            self.files.save_weights("best", model, iteration * net.batch)
        if left_out:
            note += f"; {len(left_out)} images left out"
        self.say(f"iteration {iteration}: mAP@0.50 = {result.map:.2%}{note}")
        if iteration == net.max_batches:
            self.say(result.table(self.names))
        return result.map

    def _save(self):
        updater, settings = self.updater, asdict(self.settings)
        state = {
            "settings": {key: settings[key] for key in settings.keys() - FILES},
            "lists": self.lists,
            "seen": self.progress.iteration * self.net.batch,
            "ema": None,
        }
        state |= {key: part.state_dict() for key, part in updater.parts.items()}
        self.files.save(self.model, state | asdict(self.progress), updater.averaged)
