"""The training loop: batches in, updates, evaluation, checkpoints; it stops anywhere and goes on where it stopped.
Source: Darknet's src/detector.c, train_detector."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from yolov4 import datareport
from yolov4.batches import training_batches
from yolov4.cfg import format_cfg, parse_cfg, read_cfg
from yolov4.checkpoint import last_checkpoint
from yolov4.data import read_image_list
from yolov4.distributed import Processes, local_rank, lost_another
from yolov4.ema import Ema
from yolov4.evaluation import collect
from yolov4.model import Darknet
from yolov4.predict import choose_device
from yolov4.progress import Faults, Timed, announce, darknet_log, stop_requests
from yolov4.runfolder import RunFolder
from yolov4.settings import Settings, configured
from yolov4.start import class_names, from_checkpoint, from_weights, usable_images
from yolov4.updates import NonFiniteLoss, Updater, make_deterministic


class Training:
    """One run.  resume: goes on from folder/last.pt, to the same weights as a run that was never stopped.

    Raises ValueError for data and files that do not fit; `run` raises NonFiniteLoss where the loss is no number.
    """

    def __init__(self, settings: Settings, folder: Path, resume: bool = False, say: Callable[[str], None] = announce):
        if settings.deterministic:
            make_deterministic()
        device = choose_device(settings.device)
        self.device = torch.device("cuda", local_rank()) if device.type == "cuda" and device.index is None else device
        self.processes = Processes(self.device)
        self.settings, self.folder = settings, folder
        self.say = say if self.processes.first else lambda line: None
        checkpoint = last_checkpoint(folder) if resume else None
        paths = read_image_list(settings.train)
        if checkpoint:
            self.network = parse_cfg(checkpoint["cfg"], str(folder / "last.pt"))
        else:
            self.network = configured(read_cfg(settings.cfg), settings, len(paths), self.say)
        self.net = self.network.net
        generator = torch.Generator().manual_seed(settings.seed)
        self.model = Darknet(self.network, generator).to(self.device, memory_format=torch.channels_last)
        self.names = class_names(settings, self.model)
        self.paths = usable_images(paths, settings, self.names, (self.net.width, self.net.height), self.say)
        self.faults = Faults(len(self.paths), self.say)
        if settings.sync_bn:
            self.processes.synchronise(self.model)
        options = {"amp": settings.amp, "loss": settings.loss, "freeze": settings.freeze}
        self.updater = Updater(self.model, self.net, self.processes, **options)
        self.ema = Ema(self.model, self.net, settings.ema)
        if checkpoint:
            self.progress = from_checkpoint(checkpoint, folder / "last.pt", self.updater, self.ema)
            self.say(f"resuming {folder} at iteration {self.progress.iteration} of {self.net.max_batches}")
        else:
            self.progress = from_weights(self.model, self.ema, settings, self.say)
        if self.progress.iteration >= self.net.max_batches:
            raise ValueError(
                f"{settings.weights or folder}: is at iteration {self.progress.iteration} of {self.net.max_batches}, "
                "expected less; --clear starts its weights again at 0, --max-batches goes on with them for longer"
            )
        iteration = self.progress.iteration
        self.processes.check_same_start(self.model, iteration, len(self.paths))
        self.files = RunFolder(folder, self.network, self.names, settings, iteration) if self.processes.first else None
        if self.files:
            datareport.write(folder / "data.png", self.paths, self.names, self.network)

    def run(self) -> Path:
        """Trains to the end, or until it is stopped (SIGINT, SIGTERM), and returns the run's folder."""
        # the data counts iterations from 0
        batches = training_batches(
            self.paths, self.net, self.model.heads[-1], self.settings.seed, self.progress.iteration,
            self.net.max_batches, self.settings.workers, self.processes.rank, self.processes.world,
            self.device.type == "cuda", self.settings.cache or 0.0,
        )  # fmt: skip
        timed = Timed(batches)
        bar = tqdm(
            total=self.net.max_batches, initial=self.progress.iteration, unit="it", dynamic_ncols=True,
            disable=None if self.processes.first else True,
        )  # fmt: skip
        closing = contextlib.closing
        with closing(self.files or bar), closing(timed), self._advice(), stop_requests(self.say) as requested, bar:
            while self.progress.iteration < self.net.max_batches:
                bar.set_postfix_str(self._iterate(timed))
                bar.update()
                if reason := self._reason_to_stop(requested):
                    if self.files:
                        self._save()
                    self.say(f"stopped at iteration {self.progress.iteration} of {self.net.max_batches} {reason}; "
                             f"`python train.py --resume {self.folder}` goes on")  # fmt: skip
                    break
        if self.files and (page := self.files.report()):
            self.say(f"{page}: what was measured last, what was missed and what was false")
        self.processes.close()
        return self.folder

    def _reason_to_stop(self, requested: list[int]) -> str:
        """Why all processes stop now; empty: they go on."""
        if self.processes.any(bool(requested), self.device):
            return "as asked"
        if self.settings.patience and self.progress.waited >= self.settings.patience:
            return f"after {self.progress.waited} evaluations without a better mAP than {self.progress.best_map:.2%}"
        return ""

    def _iterate(self, batches: Timed) -> str:
        """One iteration with all that is due at its end; returns what the progress line shows."""
        progress, start = self.progress, time.perf_counter()
        iteration = progress.iteration + 1
        # of dropout: the same after a resume, and another in each process
        torch.manual_seed((self.settings.seed << 40) + (self.processes.rank << 32) + iteration)
        update = self.updater.update(iteration, self._pictured(iteration, islice(batches, self.updater.mini_batches)))
        self.ema.update(self.model, iteration)
        progress.advance(update)
        seconds = time.perf_counter() - start
        speed, data_share = self.net.batch / seconds, batches.take() / seconds
        mean_ap = self._evaluate() if self._is_evaluated(iteration) else None
        if self.files:
            self.files.log(iteration, update, speed, data_share, mean_ap)
            if mean_ap is not None or iteration % self.settings.save_every == 0 or iteration == self.net.max_batches:
                try:
                    self._save()
                except ValueError as error:  # rolling averages may overflow while the loss does not
                    seen = f"the loss is {update.loss:.6g} at iteration {iteration} with rate {update.rate:.6g}"
                    raise NonFiniteLoss(f"{error}; {seen}") from None
        if iteration in (1, self.net.max_batches):
            log = darknet_log(update, [head.index for head in self.model.heads])
            self.say(f"iteration {iteration}, rate {update.rate:.6g}\n{log}")
        return progress.line(update, speed, data_share)

    def _pictured(self, iteration: int, batches: Iterator) -> Iterator:
        """Passes mini-batches on; the first of the first iterations are drawn."""
        for number, (images, targets, files, faults) in enumerate(batches):
            self.faults.add(faults)
            if self.files and number == 0:
                self.files.save_picture(iteration, images, targets)
            yield images, targets, files

    def _is_evaluated(self, iteration: int) -> bool:
        """At the end, and every eval_every iterations; by default every 4 epochs after burn-in, as in Darknet."""
        every = self.settings.eval_every
        if every is None:
            every = max(100, 4 * len(self.paths) // self.net.batch)
            if iteration < self.net.burn_in:
                every = 0
        due = iteration == self.net.max_batches or (every and iteration % every == 0)
        return bool(self.settings.valid and due)

    def _evaluate(self) -> float:
        """mAP on the validation list; the first process measures, the others wait."""
        progress, result = self.progress, None
        if self.files:
            model = self.ema.model or self.model
            evaluator = collect(model, self.settings.valid, difficult=self.settings.difficult, progress=True)
            result = evaluator.result()
            self.files.evaluated(progress.iteration, evaluator.records, result)
        mean_ap = self.processes.from_first(result.map if result else 0.0, self.device)
        best = progress.measured(mean_ap)
        self.say(f"iteration {progress.iteration}: mAP@0.50 = {mean_ap:.2%}" + (", the best so far" if best else ""))
        if best and self.files:
            self.files.save_best(model, progress.iteration * self.net.batch)
        if result and progress.iteration == self.net.max_batches:
            self.say(result.table(self.names))
        return mean_ap

    def _save(self) -> None:
        state = {
            "cfg": format_cfg(self.network.net, self.network.sections), "names": self.names,
            "model": self.model.state_dict(), "ema": self.ema.model and self.ema.model.state_dict(),
            "optimiser": self.updater.optimiser.state_dict(), "scaler": self.updater.scaler.state_dict(),
            "seen": self.progress.iteration * self.net.batch, **asdict(self.progress),
        }  # fmt: skip
        self.files.save(self.model, state, self.ema.model)

    @contextlib.contextmanager
    def _advice(self) -> Iterator[None]:
        """Turns what torch says of the machine into one sentence."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise ValueError(
                f"{self.device}: out of memory with {self.net.batch} images in {self.net.subdivisions} mini-batches of "
                f"{self.net.width}x{self.net.height}, expected more --subdivisions (or a smaller network)"
            ) from None
        except RuntimeError as error:
            if lost_another(error):
                who = "another process"
                expected = f"all {self.processes.world} to live: --resume {self.folder} goes on"
            elif "DataLoader worker" in str(error):
                who = "a process that prepares images"
                expected = f"all {self.settings.workers} to live: is there enough memory?"
            else:
                raise
            reason, iteration = str(error).partition("\n")[0][:120], self.progress.iteration + 1
            raise ValueError(f"{who} died ({reason}) at iteration {iteration}, expected {expected}") from None
