"""A trained model out of a workdir, for the commands that only read one."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from launch.cli import Settings, parse_mesh


@dataclass(frozen=True)
class Restored:
    """Which checkpoint of which run, and what is changed in its experiment."""

    workdir: Annotated[Path, tyro.conf.Positional]
    """The workdir of a run."""

    step: int | None = None
    """A checkpoint's step; default the newest."""

    overrides: Annotated[Settings, tyro.conf.arg(name="set", metavar="PATH=VALUE")] = ()
    """Any one setting, such as task.sampler.num_steps=200; may be given again."""

    mesh: Annotated[str, tyro.conf.arg(metavar="AXIS=N,...")] = "data=-1"
    """Sizes of the mesh axes data, fsdp, tensor; -1 takes the rest. It need not be the
    mesh of the training."""

    average: bool = True
    """Use the averaged parameters, where the run keeps them."""

    average_last: Annotated[int, tyro.conf.arg(metavar="NUM")] = 1
    """Use the mean of the parameters of this checkpoint and of those before it, NUM of
    them together."""

    def load(self) -> tuple[Any, dict[str, Any], Any, int]:
        """The experiment, the task's variables on the mesh, the mesh, and the step."""
        from research.experiment import override
        from research.train.averaging import mean_variables
        from research.train.builder import build
        from research.train.checkpoints import CheckpointStore, require
        from research.train.workdir import read_request

        experiment = override(read_request(self.workdir).load(), self.overrides)
        experiment = dataclasses.replace(experiment, mesh=parse_mesh(self.mesh))
        program = build(experiment)
        folder = self.workdir / "checkpoints"
        step = require(folder, self.step)
        with CheckpointStore(folder, experiment.checkpoints, read_only=True) as store:
            variables = mean_variables(
                store, step, self.average_last, program.state, self.average
            )
        return experiment, variables, program.mesh, step
