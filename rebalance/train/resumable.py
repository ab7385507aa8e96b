"""Ultralytics' detection trainer, which goes on after a kill as if it had never stopped.

With the loader in the training's own process (`workers=0`, always so on a CPU) the resumed run ends in the weights of
the unbroken one, bit by bit, also where several processes train, if they are as many again. Workers of a loader have
random numbers of their own, which are lost with them: then the order of the images goes on, and their augmentation is
drawn anew.
"""

from __future__ import annotations

import math
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import LogRecord
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.data.augment import Albumentations
from ultralytics.data.build import InfiniteDataLoader
from ultralytics.engine import trainer as host
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import init_seeds, unwrap_model

from rebalance.errors import RunError
from rebalance.files import clear, moved, replaced, unwritable_told, write_whole
from rebalance.processes import gathered, met, together
from rebalance.train import launch
from rebalance.train.checkpoint import cut_csv, find_state, remove_states, state_of, write_state


class Resumable(DetectionTrainer):  # type: ignore[misc]
    """Trains as the host does; its checkpoints are written whole, each with the state that goes on exactly."""

    wdir: Path
    last: Path
    best: Path
    epochs: int
    start_epoch: int
    loss_names: tuple[str, ...]
    lr: dict[str, float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._state: dict[str, Any] | None = None  # that the run is about to go on with
        self._exact = False  # whether it went on with one
        self._over = False  # whether what is resumed was trained to its end, and only stripping and validation are left
        self._since = 0.0  # batches since the optimizer's last step
        self._mosaic_closed = False
        self._passes = Passes()
        self._draws: list[dict[str, Any]] = []  # what the images of each process are drawn by, after an epoch
        with launch.told(), unwritable_told("the run folder"):
            super().__init__(*args, **kwargs)

    def train(self) -> None:
        """Train, as there; where the disk is full, or a process of several stops, say so in one line."""
        with launch.told():
            self._train()

    def _train(self) -> None:
        stock = host.generate_ddp_command

        def generate(trainer: Any) -> tuple[list[str], str]:
            command, file = stock(trainer)
            return launch.command(command), file

        host.generate_ddp_command = generate
        try:
            with unwritable_told(self.save_dir):
                super().train()
        except subprocess.CalledProcessError:  # of the launch of several processes
            kept = f"; resume with model={self.last}" if self.last.exists() else ""
            raise RunError(f"one of the {self.world_size} processes stopped, and says above why{kept}") from None
        except RunError as error:
            kept = f"; make room, then resume with model={self.last}" if self.last.exists() else ""
            raise RunError(f"{error}{kept}") from None
        finally:
            host.generate_ddp_command = stock

    def _do_train(self) -> None:
        try:
            super()._do_train()
        except _Over:
            LOGGER.info("rebalance: every epoch was trained before; what is left is the last validation")
            self.epoch, self.lr, self.epoch_time = self.start_epoch - 1, {}, None
            self.final_eval()
            if RANK in {-1, 0}:
                if self.args.plots:
                    self.plot_metrics()
                self.run_callbacks("on_train_end")
            self._clear_memory()

    # What a criterion adds --------------------------------------------------------------------------------------------

    def criterion_state(self) -> dict[str, Any]:
        """What the criterion keeps from step to step, as tensors and plain values."""
        updates = getattr(unwrap_model(self.model).criterion, "updates", None)
        return {} if updates is None else {"updates": updates}

    def restore_criterion(self, state: dict[str, Any]) -> None:
        """Put back what `criterion_state` gave."""
        if "updates" in state:  # of two branches; the host counts epochs, and one that was repeated counts twice
            criterion = unwrap_model(self.model).criterion
            criterion.updates = state["updates"] - 1
            criterion.update()

    # Saving ---------------------------------------------------------------------------------------------------------

    def save_model(self) -> Any:
        """Save as the host does, every file whole, with the state of last.pt; see `rebalance.train.checkpoint`."""
        places = {name: getattr(self, name) for name in ("wdir", "last", "best")}
        self.wdir.mkdir(parents=True, exist_ok=True)
        with moved(self.wdir, last=self.last.name) as folder:
            try:
                self.wdir, self.last, self.best = folder, folder / self.last.name, folder / self.best.name
                saved = super().save_model()
            finally:
                self.__dict__.update(places)
            state = state_of(self.last, self.epoch)
            if self.args.save:
                write_state(state, folder / self.last.name, self._to_keep())
        remove_states(self.wdir, keep=state)
        return saved

    def _to_keep(self) -> dict[str, Any]:
        model = unwrap_model(self.model)
        pending = {name: p.grad for name, p in model.named_parameters() if p.grad is not None} if self._since else {}
        return {
            "stop": bool(self.stop),
            "seconds": time.time() - self.train_time_start,
            "csv": self.csv.read_text(encoding="utf-8"),
            "model": model.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gradients": pending,
            "since": self._since,
            "criterion": self.criterion_state(),
            "loss_names": list(self.loss_names),
            **self._drawn_by(),
            "others": self._draws[1:],
            "mosaic_closed": self._mosaic_closed,
        }

    def _drawn_by(self) -> dict[str, Any]:
        """What this process draws its images by."""
        return {
            "random": random_state(self.device),
            "order": self._passes.state(),
            "images": images_state(self.train_loader.dataset),
        }

    def final_eval(self) -> None:
        """Strip and validate, as there; a checkpoint is replaced only by one that is written to its end.

        last.pt comes after all else: stripped, it says that nothing is left to do.
        """
        with _strips_whole(self.last):
            super().final_eval()
        if RANK in {-1, 0}:
            remove_states(self.wdir)

    # Going on ---------------------------------------------------------------------------------------------------------

    def resume_training(self, ckpt: Any) -> None:
        """Resume from the state beside the checkpoint; where there is none, as the host does, and say so."""
        if RANK in {-1, 0}:
            clear(self.wdir)
        if ckpt is None or not self.resume:
            super().resume_training(ckpt)
            return
        checkpoint, epoch = Path(self.args.resume), ckpt.get("epoch", -1)
        state, missing = find_state(checkpoint, epoch)
        met()  # before one of them changes what the others still read
        if RANK in {-1, 0}:
            if state:
                write_whole(self.csv, state["csv"].encode())
            else:
                cut_csv(self.csv, epoch + 1)
        self._over = bool(state and state["stop"]) or 0 < self.epochs <= epoch + 1
        if self._over:
            self.start_epoch = epoch + 1
            return
        super().resume_training({**ckpt, "optimizer": state["optimizer"]} if state else ckpt)
        if not state:
            LOGGER.warning(f"rebalance: {missing}: goes on from {checkpoint.name} alone, which rounds, not exactly")
            return
        self._state = state
        unwrap_model(self.model).load_state_dict(state["model"])
        self.ema.ema.load_state_dict(state["ema"])
        self.metrics = {k: v for k, v in ckpt["train_metrics"].items() if k != "fitness"}
        self.fitness = ckpt["train_metrics"]["fitness"]
        self.loss_names = tuple(state["loss_names"])
        if self.args.time:  # as the host estimates it after each epoch
            self.epochs = self.args.epochs = math.ceil(self.args.time * 3600 / (state["seconds"] / self.start_epoch))
            self._setup_scheduler()
        lost = self.train_loader.num_workers or len(state.get("others", ())) + 1 != max(self.world_size, 1)
        but = ", but for the augmentation of its images: the processes that drew it are gone" if lost else ""
        LOGGER.info(f"rebalance: goes on from {state_of(checkpoint, epoch).name} as if it had not stopped{but}")

    def run_callbacks(self, event: str) -> None:
        """Keep count, put the state back where the first epoch begins, and run the callbacks."""
        if event == "on_train_start":
            if self._over:
                raise _Over
            self._since = 0
            if self._state:
                self.train_time_start -= self._state["seconds"]
        elif event == "on_train_epoch_start" and self._state:
            self._go_on(self._state)
        elif event == "on_train_batch_start":
            self._since += 1
        elif event == "on_train_batch_end" and self._exact and self._since >= self.accumulate:
            self.optimizer_step()
        elif event == "on_train_epoch_end":
            self._passes.passed()
            if self._exact:
                self.start_epoch = 0  # for the mean time of an epoch: `train_time_start` is that of the whole run
        super().run_callbacks(event)

    def _go_on(self, state: dict[str, Any]) -> None:
        self._state, self._exact, self._since = None, True, state["since"]
        for name, parameter in unwrap_model(self.model).named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(parameter.device)
        self.restore_criterion(state["criterion"])
        self._mosaic_closed = state["mosaic_closed"]
        of_each = [state, *state.get("others", ())]
        own = of_each[max(RANK, 0)] if len(of_each) > RANK else None  # None: there are more than there were
        self._images = (own or state)["images"]
        restore_images(self.train_loader.dataset, self._images)
        self._passes.restore((own or state)["order"])
        if own:
            set_random_state(own["random"], self.device)
        else:
            init_seeds(self.args.seed + 1 + RANK + 1000 * self.epoch, deterministic=self.args.deterministic)

    def optimizer_step(self) -> None:
        """Step, as there. Resumed, the host no longer knows when the last step was and calls too early: we count."""
        if not self._exact or self._since >= self.accumulate:
            self.take_step()
            self._since = 0

    def take_step(self) -> None:
        """Take a step that is due."""
        super().optimizer_step()

    def _handle_nan_recovery(self, epoch: int) -> bool:
        recovered = bool(super()._handle_nan_recovery(epoch))
        if recovered:
            self._since = math.inf  # the host steps after the first batch then
        elif self.args.save and together():  # the epoch is over in all processes, and the first is about to save
            self._draws = gathered(self._drawn_by())
        return recovered

    def _build_train_pipeline(self) -> None:
        super()._build_train_pipeline()
        loader = self.train_loader
        if isinstance(loader, InfiniteDataLoader):
            self._passes = Passes(loader.batch_sampler.sampler, loader.generator)
            object.__setattr__(loader, "batch_sampler", self._passes)  # as the host does it: the class refuses others
        self._since = math.inf  # likewise, after an epoch that did not fit into memory
        self._mosaic_closed = False

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        if self._mosaic_closed:  # once more, in a resumed run: the host makes a new iterator, and the first went on
            restore_images(self.train_loader.dataset, self._images)
        else:
            self._mosaic_closed = True
            self._passes.begin_anew()


class _Over(Exception):  # noqa: N818 - it is none
    """Nothing is left to train."""


class Passes:
    """Repeats a sampler of batches, as the host's loader wants it, and can go on after any pass in another process.

    A sampler draws at the beginning of a pass, and may draw again at its end, which comes before or after the last
    batch depending on numbers: so what is kept is the state before the pass, which is run again without its images.
    """

    def __init__(self, sampler: Any = (), generator: torch.Generator | None = None) -> None:
        """Begin; the loader draws from `generator` too, when it makes an iterator."""
        self.sampler, self.generator = sampler, generator or torch.Generator()
        self._begun: list[torch.Tensor] = []  # states before the passes that are under way; workers are ahead
        self._last: torch.Tensor | None = None  # before the pass that ended last
        self._replay: torch.Tensor | None = None

    def __iter__(self) -> Iterator[Any]:
        self._begun.clear()
        if self._replay is not None:
            self.generator.set_state(self._replay)
            self._replay = None
            for _ in self.sampler:
                pass
        while True:
            self._begun.append(self.generator.get_state())
            yield from self.sampler

    def passed(self) -> None:
        """Take note that the images of a pass were all trained on."""
        if self._begun:
            self._last = self._begun.pop(0)

    def state(self) -> dict[str, Any]:
        """For `restore`, between two passes."""
        return {"now": self.generator.get_state(), "last": self._last}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another one was."""
        self.generator.set_state(state["now"])
        self._last = self._replay = state["last"]

    def begin_anew(self) -> None:
        """What comes is the first pass of a new iterator."""
        self._replay = None


@contextmanager
def _strips_whole(last: Path | None = None) -> Iterator[None]:
    """Let the host, which strips checkpoints of optimizers in place, write them beside; `last` is moved at the end."""
    stock, at_the_end = host.strip_optimizer, ExitStack()

    def strip(f: Any, s: str = "", updates: Any = None) -> Any:
        file = Path(f)
        with ExitStack() as at_once:
            until = at_the_end if file == last else at_once
            part = until.enter_context(replaced(file))

            def shown(record: LogRecord) -> bool:
                record.msg = str(record.msg).replace(f" saved as {part},", "")  # it does not stay there
                return True

            LOGGER.addFilter(shown)
            try:
                return stock(file, s or str(part), updates)
            except RuntimeError as error:  # torch's own for a file that it could not write to its end
                raise RunError(f"{file} cannot be written: {' '.join(str(error).split())}") from None
            finally:
                LOGGER.removeFilter(shown)

    host.strip_optimizer = strip
    try:
        with at_the_end:
            yield
    finally:
        host.strip_optimizer = stock


# Random numbers -------------------------------------------------------------------------------------------------------


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of all global generators, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    numbers = (kind, np.asarray(keys).tolist(), *rest)
    state = {"python": random.getstate(), "numpy": numbers, "torch": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = getattr(torch, device.type).get_rng_state(*_of(device))
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_state` gave; the device's where it is of the same kind."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and "device" in state:
        getattr(torch, device.type).set_rng_state(state["device"], *_of(device))


def _of(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # of which there is one


def images_state(dataset: Any) -> dict[str, Any]:
    """What a data set keeps from image to image: which ones mosaic draws from, and Albumentations' own generators."""
    drawn = [
        (made.random_generator.bit_generator.state, made.py_random.getstate())
        if made.seed == torch.initial_seed()  # else it has not drawn yet, and is seeded when it does
        else None
        for made in _albumentations(dataset)
    ]
    return {"count": len(dataset), "buffer": [int(i) for i in getattr(dataset, "buffer", ())], "albumentations": drawn}


def restore_images(dataset: Any, state: dict[str, Any]) -> None:
    """Put back what `images_state` gave, of as many images."""
    if len(dataset) == state["count"] and not getattr(dataset, "buffer", ()):
        for index in state["buffer"]:
            dataset.load_image(index)  # which puts it into the buffer
    for made, drawn in zip(_albumentations(dataset), state["albumentations"], strict=False):
        if drawn:
            made.set_random_seed(torch.initial_seed())
            made.random_generator.bit_generator.state, numbers = drawn
            made.py_random.setstate(numbers)


def _albumentations(dataset: Any) -> list[Any]:
    """Those that draw from generators of their own, as they do from version 1.4.21 on."""
    steps = getattr(getattr(dataset, "transforms", None), "transforms", ())
    composed = [step.transform for step in steps if isinstance(step, Albumentations)]
    return [made for made in composed if hasattr(made, "set_random_seed")]
