"""A model of a few hundred parameters, clips without a file, and processes that train it, for the tests of training/.

Decides what a fake run is; what must hold of it is left to the tests. Run as a script it is the command line with the
model "fake" in it.
"""

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vgkernels
import vgkernels_models
from vgkernels_models.data.batch import Batch
from vgkernels_models.model import ModelConfig, Step, VideoModel
from vgkernels_models.training.checkpoint import load_model
from vgkernels_models.training.ranks import Ranks, join
from vgkernels_models.training.run_folder import Record, RunFolder, checkpoint_to_resume, open_run
from vgkernels_models.training.trainer import Trainer, TrainingOptions


@dataclass
class FakeConfig(ModelConfig):
    """The defaults train in milliseconds."""

    channels: int = 1  # C
    frames: int = 2  # T
    size: int = 4  # H = W, pixels
    batch_size: int = 4  # B
    steps: int = 12  # updates
    z_dim: int = 3  # dimension of z
    rate: float = 0.02  # learning rate
    norm: bool = True  # batch norm in the critic
    clipped: bool = True  # the critic is held after every step
    noise: bool = True  # z is drawn; else it is constant
    breaks_at: int = -1  # the step whose critic loss is NaN

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "tiny": {"steps": 5}}
    LEAST = {**ModelConfig.LEAST, "breaks_at": -1}  # noqa: RUF012


class Fake(VideoModel):
    """Clips by one linear layer, judged by one convolution."""

    Config = FakeConfig
    config: FakeConfig

    def __init__(self, config: FakeConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = nn.Linear(config.z_dim, config.channels * config.frames * config.size**2)
        norm = [nn.BatchNorm3d(4)] if config.norm else []
        self.critic = nn.Sequential(nn.Conv3d(config.channels, 4, 2, 2), *norm, nn.LeakyReLU(0.2), nn.Flatten())
        self.head = nn.LazyLinear(1)
        self.judge(torch.zeros(2, *self.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.config.channels, self.config.frames, self.config.size, self.config.size

    def judge(self, clip: Tensor) -> Tensor:
        return self.head(self.critic(clip))

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        critic = [*self.critic.parameters(), *self.head.parameters()]
        return {
            "generator": torch.optim.Adam(self.decoder.parameters(), lr=self.config.rate),
            "critic": torch.optim.RMSprop(critic, lr=self.config.rate),
        }

    def training_step(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        n = len(batch)
        z = torch.randn(n, self.config.z_dim) if self.config.noise else torch.ones(n, self.config.z_dim)
        fake, real = self.judge(self.decoder(z).tanh().unflatten(1, self.shape)), self.judge(batch.video)
        losses = {"generator": F.softplus(-fake).mean(), "critic": (F.softplus(fake) + F.softplus(-real)).mean()}
        if step.number == self.config.breaks_at:
            losses["critic"] = losses["critic"] * float("nan")
        step.descend(losses)
        if self.config.clipped:
            self.constrain(step)
        return losses

    @torch.no_grad()
    def constrain(self, step: Step) -> None:
        """As TGAN's critic is: singular values, and batch norm's weight by its running variance."""
        vgkernels.svc_projection_(self.critic[0].weight, 0.3)
        if isinstance(norm := self.critic[1], nn.BatchNorm3d):
            step.average([norm.running_var])
            norm.weight.clamp_(max=0.9 * norm.running_var.sqrt())

    def generate(self, n: int, generator: torch.Generator, condition: Tensor | None, length: int | None) -> Tensor:
        self.fixed_length(length)
        return self.decoder(torch.randn(n, self.config.z_dim, generator=generator)).tanh().unflatten(1, self.shape)


vgkernels_models.MODELS["fake"] = "fake:Fake"
sys.modules["vgkernels_models.fake"] = sys.modules[__name__]


class Clips:
    """Smooth random clips: a rank's batch of a step is its share of one large batch of all ranks."""

    def __init__(self, config: ModelConfig, ranks: Ranks | None = None) -> None:
        self.config, self.ranks = config, ranks or Ranks()

    def starting_at(self, step: int, workers: int = 0) -> Iterator[Batch]:
        config, ranks = self.config, self.ranks
        shape = (config.batch_size * ranks.world, config.channels, config.frames, config.size, config.size)
        while True:
            whole = torch.rand(shape, generator=torch.Generator().manual_seed(step)) * 2 - 1
            yield Batch(whole[ranks.rank * config.batch_size :][: config.batch_size])
            step += 1


def record_of(config: FakeConfig, options: TrainingOptions, ranks: int = 1) -> Record:
    return Record("fake", "paper", asdict(config), asdict(options), ranks=ranks)


def make_trainer(
    out: Path,
    config: FakeConfig | None = None,
    options: TrainingOptions | None = None,
    resume: bool = False,
    ranks: Ranks | None = None,
) -> Trainer:
    """As `train fake --out OUT` does it."""
    config, options, ranks = config or FakeConfig(), options or TrainingOptions(log_every=1), ranks or Ranks()
    record = record_of(config, options, ranks.world)
    torch.manual_seed(options.seed + ranks.rank)  # ranks begin differently: the broadcast has to make them equal
    model = Fake(config)
    if ranks.first:
        with open_run(out, record, resume):
            pass
    ranks.wait()
    run = RunFolder(out)
    trainer = Trainer(model, Clips(config, ranks), run, record, options, ranks)
    if resume and (checkpoint := checkpoint_to_resume(run)):
        trainer.resume(checkpoint)
    return trainer


def train(out: Path, config: FakeConfig | None = None, options: TrainingOptions | None = None, **more: Any) -> int:
    """Trains to the end; the exit code."""
    return make_trainer(out, config, options, **more).fit()


def read_metrics(out: Path) -> list[tuple[int, dict[str, float]]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["losses"]) for line in lines]


def weights(out: Path, averaged: bool = False) -> dict[str, Tensor]:
    return load_model(out, averaged).state_dict()


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def process(target: Any, *arguments: Any) -> Any:
    """A process that has torch imported already; the first one takes seconds, the others milliseconds."""
    tests = str(Path(__file__).parent)
    if tests not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH", "")]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_fakes"])
    child = context.Process(target=target, args=arguments)
    child.start()
    return child


def train_and_exit(out: Path, config: FakeConfig, options: TrainingOptions) -> None:
    """A process's target: starts or takes up the run; the exit code is the process's."""
    torch.set_num_threads(1)
    sys.exit(train(out, config, options, resume=True))


def train_as_rank(rank: int, world: int, port: int, out: Path, config: FakeConfig, options: TrainingOptions) -> None:
    """A process's target: as torchrun starts it. Each rank leaves its final state in OUT.rank0, OUT.rank1, ..."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = join("cpu")
    trainer = make_trainer(out, config, options, ranks=ranks)
    code = trainer.fit()
    torch.save(trainer.model.state_dict(), f"{out}.rank{rank}")
    ranks.leave()
    sys.exit(code)


def train_on_ranks(world: int, out: Path, config: FakeConfig, options: TrainingOptions) -> list[int]:
    """Exit codes of the ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [process(train_as_rank, rank, world, port, out, config, options) for rank in range(world)]
    for child in children:
        child.join(120)
    return [child.exitcode for child in children]


if __name__ == "__main__":
    from vgkernels_models.__main__ import main

    sys.exit(main())
