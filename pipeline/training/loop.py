"""The training loop: the whole set as one uint8 tensor, indexed batch by batch."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from engines.errors import DeployError, NotAvailableError
from pipeline.training import memory, optimization
from pipeline.training.captured import CapturedStep
from pipeline.training.checkpoint import Progress, TrainingCheckpoint
from pipeline.training.distributed import Group, broadcast, group
from pipeline.training.numerics import autocast, tf32
from pipeline.training.settings import Samples, Settings
from pipeline.workflow import console, signals

if TYPE_CHECKING:
    import torch
    from torch import nn


# Time between two readings of the loss; reading it waits for the GPU.
_SHOW_SECONDS = 0.5
# Time between two saves of the progress within an epoch.
_SAVE_SECONDS = 60.0
# At the end of an epoch, save only if the last save took less than this part (1/20) of the time
# since: an epoch on a GPU may take little longer than a save.
_SAVE_SHARE = 20


def train(
    network: nn.Module,
    prepare: nn.Module | None,
    samples: Samples,
    settings: Settings,
    checkpoint: TrainingCheckpoint | None = None,
    *,
    resume: bool = False,
) -> list[dict[str, float]]:
    """Trains a network in place.

    Args:
        network: Newly initialised after `seed`. It is returned to the CPU, in evaluation mode.
        prepare: Turns raw inputs into the network's; the same module that goes into the
            exported graph, so that training and serving cannot differ.
        checkpoint: Where to save the progress: after an epoch, every minute, and when a signal
            ends the training.
        resume: Continue from the saved progress, if there is any.

    Returns:
        One entry for each epoch: mean loss, images/s, seconds and, for classes, the accuracy on
        the training batches (0 to 1).

    Raises:
        NotAvailableError: The device, or the compiler for `compile`, is not on this machine.
        DeployError: The loss became NaN or infinite, the batch does not fit in memory, or the
            saved progress belongs to another training.
    """
    total = settings.epochs * len(samples.targets)
    with _memory_errors(settings), console.bar("train", total) as bar:
        run = _Run(network, prepare, samples, settings, checkpoint, bar)
        if resume and checkpoint is not None:
            run.restore(checkpoint)
        bar.advance((run.epoch - 1) * run.count + run.seen)
        try:
            with memory.kept(run.memory), tf32(settings):
                run.capture()
                while run.epoch <= settings.epochs:
                    run.one_epoch()
        except KeyboardInterrupt:
            run.save("interrupted: --resume continues from here")
            raise
    network.cpu().eval()
    return run.curve


class _Run:
    """The state of a running training."""

    def __init__(
        self,
        network: nn.Module,
        prepare: nn.Module | None,
        samples: Samples,
        settings: Settings,
        checkpoint: TrainingCheckpoint | None,
        bar: console.Bar,
    ) -> None:
        import torch

        self.settings = settings
        self.group = group()
        self.device = _device(settings.device, self.group)
        self.checkpoint = checkpoint if self.group.rank == 0 else None
        self.count = len(samples.targets)
        self.memory = memory.check(network, prepare, samples, settings)
        # Convolutions are faster in channels_last: on two cores by a quarter to a half.
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        optimization.set_training(self.network, frozen=settings.freeze)
        self.prepare = None if prepare is None else prepare.to(self.device)
        self.inputs = samples.inputs.to(self.device)
        self.targets = samples.targets.to(self.device)
        self.optimizer = optimization.make_optimizer(network, settings)
        self.augment = optimization.augmentation(settings, tuple(samples.inputs.shape[1:]))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.amp == "fp16")
        self.module = _wrapped(self.network, settings, self.group, self.device)
        self.order = torch.Generator().manual_seed(settings.seed)
        self.bar = bar
        self.epoch, self.step, self.curve = 1, 0, list[dict[str, float]]()
        # Summed on the device, since reading the loss in every step would wait for the GPU.
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.seconds = 0.0
        self.saved = time.perf_counter()
        self.saving_takes = 0.0  # seconds
        self.captured: CapturedStep | None = None

    def capture(self) -> None:
        """Captures the step as a CUDA graph if there is a GPU and the step allows it.

        The launches of LeNet's step take six times as long as its kernels.
        """
        import torch

        alone = self.group.world == 1
        # The loss scaler of fp16 asks the device after every step whether a gradient overflowed.
        # A graph would repeat the first learning rate and the first random crops.
        fixed = self.settings.schedule == "constant" and self.augment is None
        if self.device.type != "cuda" or not alone or self.settings.amp == "fp16" or not fixed:
            return
        if self.count < self.settings.batch_size:
            return
        rows = torch.arange(self.settings.batch_size, device=self.device)
        tensors = [*self.network.parameters(), *self.network.buffers(), self.loss, self.correct]
        try:
            self.captured = CapturedStep(self._step, rows, tensors)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            self.bar.line(f"train: without a CUDA graph, as the step cannot be captured: {reason}")

    @property
    def seen(self) -> int:
        """How many samples of this epoch the network was trained on."""
        return min(self.step * self.settings.batch_size, self.count)

    def one_epoch(self) -> None:
        """Trains one epoch, or the rest of a resumed one."""
        import torch

        permutation = torch.randperm(self.count, generator=self.order).to(self.device)
        batches = permutation.split(self.settings.batch_size)  # type: ignore[no-untyped-call]
        if self.step == 0:
            # An epoch must not depend on how many random numbers the last one used.
            torch.manual_seed(self.settings.seed + 1_000_003 * self.epoch + 1009 * self.group.rank)
        start, shown = time.perf_counter() - self.seconds, self.seconds
        for batch in batches[self.step :]:
            # A signal must not end a step half done.
            with signals.deferred():
                self._train_on(batch)
                self.step += 1
                self.seconds = time.perf_counter() - start
            text = ""
            if self.seconds - shown > _SHOW_SECONDS or self.step == len(batches):
                shown = self.seconds
                # The processes' losses are summed at the end of the epoch; until then, this
                # process has only its share.
                mean = self._mean_loss() * self.group.world
                text = f"loss {mean:.4f} {self.seen / self.seconds:,.0f} images/s"
            self.bar.advance(len(batch), text)
            if time.perf_counter() - self.saved > _SAVE_SECONDS:
                self.save()
        with signals.deferred():
            self._end_epoch()

    def _train_on(self, batch: torch.Tensor) -> None:
        if len(batch) < self.group.world:
            return  # fewer samples than processes; at most in the last step of an epoch
        if self.captured is not None and len(batch) == self.settings.batch_size:
            self.captured(batch)
            return
        if self.settings.schedule != "constant":
            per_epoch = math.ceil(self.count / self.settings.batch_size)
            step = (self.epoch - 1) * per_epoch + self.step
            rate = optimization.learning_rate(self.settings, step, self.settings.epochs * per_epoch)
            for group_ in self.optimizer.param_groups:
                group_["lr"] = rate
        mine = batch[self.group.rank :: self.group.world]
        # Gradients are averaged over processes; the weight makes up for shares of the batch that
        # differ by one sample.
        self._step(mine, len(mine) * self.group.world / len(batch))

    def _step(self, mine: torch.Tensor, weight: float = 1.0) -> None:
        """Trains on the samples with these indices, int64 `[count]`; scales their mean loss."""
        from torch.nn import functional

        target, inputs = self.targets[mine], self.inputs[mine]
        if self.augment is not None:
            inputs = self.augment(inputs)
        if self.prepare is not None:
            inputs = self.prepare(inputs)
        if inputs.ndim == 4:  # noqa: PLR2004 - images
            inputs = memory.channels_last(inputs)
        full = len(mine) == self.settings.batch_size
        # The smaller last batch of an epoch is not worth compiling for.
        module = self.module if full or self.group.world > 1 else self.network
        with autocast(self.settings, self.device):
            outputs = module(inputs)
            if self.settings.loss == "cross-entropy":
                outputs = _logits(outputs)
                loss = functional.cross_entropy(outputs, target)
                summed = loss.detach() * len(mine)
            else:
                loss = ((outputs - target) ** 2).sum()
                summed = loss.detach()
        self.optimizer.zero_grad()
        self.scaler.scale(loss * weight if weight != 1 else loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss += summed
        if self.settings.loss == "cross-entropy":
            self.correct += (outputs.argmax(1) == target).sum()

    def _end_epoch(self) -> None:
        import torch

        if self.group.world > 1:
            torch.distributed.all_reduce(self.loss)
            torch.distributed.all_reduce(self.correct)
        entry: dict[str, float] = {"epoch": self.epoch, "loss": self._mean_loss()}
        if self.settings.loss == "cross-entropy":
            entry["accuracy"] = int(self.correct) / self.count
        entry["images_per_second"] = round(self.count / self.seconds, 1)
        entry["seconds"] = round(self.seconds, 3)
        self.curve.append(entry)
        accuracy = f" accuracy {entry['accuracy']:.4f}," if "accuracy" in entry else ""
        self.bar.line(
            f"epoch {self.epoch}/{self.settings.epochs}: loss {entry['loss']:.4f},{accuracy}"
            f" {entry['images_per_second']:,.0f} images/s"
        )
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.loss.zero_()
        self.correct.zero_()
        last = self.epoch > self.settings.epochs
        if last or time.perf_counter() - self.saved >= _SAVE_SHARE * self.saving_takes:
            self.save()

    def _mean_loss(self) -> float:
        mean = float(self.loss) / max(self.seen, 1)
        if not math.isfinite(mean):
            raise self._diverged(f"the training loss became {mean}")
        return mean

    def _diverged(self, what: str) -> DeployError:
        hint = "use a smaller --lr"
        if self.checkpoint is not None and (epoch := self.checkpoint.rescue()):
            hint += f"; the weights of epoch {epoch} are in {self.checkpoint.rescued}"
        return DeployError(
            f"{what} within the first {self.seen:,} images of epoch {self.epoch}", hint
        )

    def save(self, reason: str = "") -> None:
        """Saves the progress and prints `reason`; raises if a weight became NaN or infinite."""
        import torch

        if self.checkpoint is None or (self.group.world > 1 and self.step):
            return  # several processes have the same state only at the end of an epoch
        with signals.deferred():
            start = time.perf_counter()
            state = self.network.state_dict()
            numbers = [tensor for tensor in state.values() if tensor.is_floating_point()]
            if not all(bool(tensor.isfinite().all()) for tensor in numbers):
                raise self._diverged("a weight became NaN or infinite")
            rng = {"cpu": torch.get_rng_state()}
            if self.device.type == "cuda":
                rng["cuda"] = torch.cuda.get_rng_state(self.device)
            optimizer = {
                f"{index}/{name}": value
                for index, entry in self.optimizer.state_dict()["state"].items()
                for name, value in entry.items()
                if isinstance(value, torch.Tensor)
            }
            self.checkpoint.save(
                Progress(
                    key=self.checkpoint.key,
                    epoch=self.epoch,
                    step=self.step,
                    loss=float(self.loss),
                    correct=int(self.correct),
                    seconds=self.seconds,
                    curve=self.curve,
                    scaler=dict(self.scaler.state_dict()),
                    tensors={"model": state, "optimizer": optimizer, "rng": rng},
                )
            )
            self.saved = time.perf_counter()
            self.saving_takes = self.saved - start
        if reason:
            self.bar.line(f"epoch {self.epoch}, step {self.step}: {reason}")

    def restore(self, checkpoint: TrainingCheckpoint) -> None:
        """Loads the saved progress, if there is any."""
        import torch

        progress = checkpoint.load() if self.group.rank == 0 else None
        if self.group.world > 1:  # the others may be on machines without the file
            progress = broadcast(progress)
        if progress is None:
            console.say("no interrupted training was found: starting from the beginning")
            return
        console.say(f"resuming at epoch {progress.epoch}, step {progress.step}")
        self.network.load_state_dict(progress.tensors["model"])
        parameters = [p for among in self.optimizer.param_groups for p in among["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, saved in progress.tensors["optimizer"].items():
            index, _, name = key.partition("/")
            own = parameters[int(index)]
            # The file has no layouts. Fused optimizers go through memory, so that a buffer must
            # have the layout of its parameter.
            like = own if saved.shape == own.shape else saved
            tensor = torch.empty_like(like, dtype=saved.dtype, device=saved.device).copy_(saved)
            state.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.scaler.load_state_dict(progress.scaler)
        self.epoch, self.step, self.curve = progress.epoch, progress.step, progress.curve
        self.loss += progress.loss
        self.correct += progress.correct
        self.seconds = progress.seconds
        for _ in range(self.epoch - 1):  # `one_epoch` draws the order of the current epoch
            torch.randperm(self.count, generator=self.order)
        torch.set_rng_state(progress.tensors["rng"]["cpu"])
        if "cuda" in progress.tensors["rng"]:
            torch.cuda.set_rng_state(progress.tensors["rng"]["cuda"], self.device)


def _device(name: str, among: Group) -> torch.device:
    import torch

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise NotAvailableError(f"torch sees no CUDA device for {name!r}", "use --device cpu")
    if name == "cuda" and among.world > 1:
        name = f"cuda:{among.local}"
    return torch.device(name)


def _wrapped(
    network: nn.Module, settings: Settings, among: Group, device: torch.device
) -> Callable[..., Any]:
    """Returns the network, wrapped for several processes and compiled, if asked for."""
    import torch

    module: Callable[..., Any] = network
    if among.world > 1:
        ids = [device.index] if device.type == "cuda" else None
        module = torch.nn.parallel.DistributedDataParallel(network, device_ids=ids)
    if settings.compile:
        if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
            raise NotAvailableError(
                "--compile needs a C++ compiler, but neither g++ nor clang++ is installed",
                "install one, or leave --compile out",
            )
        module = torch.compile(module)
    return module


def _logits(outputs: Any) -> torch.Tensor:
    """Returns the first output, which for a classifier is its logits."""
    from exporters.module import named_outputs

    return next(iter(named_outputs(outputs).values()))


@contextmanager
def _memory_errors(settings: Settings) -> Iterator[None]:
    """Turns running out of memory into an error the user can act on."""
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error).lower():
            raise
        raise DeployError(
            f"out of memory at a batch of {settings.batch_size}:"
            f" {(str(error).splitlines() or ['no memory left'])[0]}",
            "use a smaller --batch-size; on a GPU, the whole data set must fit, too (--limit)",
        ) from error
