"""The settings of `webssl study`: a grid of runs that differ in method, size, images seen and subset of the data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from webssl_fast.config.fields import Config, NonNegativeInt, PositiveFloat, PositiveInt

ALL_DATA = "full"  # the subset that is none
VQA = "vqa"  # the evaluation by `webssl vqa`


class DerivedConfig(Config):
    """A config file and what every point changes in it. `{size}` in the path and in the values stands for a point's."""

    config: str  # relative to the study's file
    settings: dict[str, Any] = {}  # as the file would have them, e.g. {model: {preset: "vit_{size}_patch14"}}


class GridConfig(Config):
    """Every combination of these is a point. Several grids are joined; a point of two of them is run once."""

    methods: Annotated[tuple[str, ...], Field(min_length=1)]  # keys of the study's `methods`
    sizes: Annotated[tuple[str, ...], Field(min_length=1)]
    samples_seen: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    subsets: Annotated[tuple[str, ...], Field(min_length=1)] = (ALL_DATA,)  # keys of the study's `subsets`, or full


class LaunchConfig(Config):
    """How the points are run. local: one after the other on this machine; slurm: as jobs of an array."""

    kind: Literal["local", "slurm"] = "local"
    nodes: PositiveInt | dict[str, PositiveInt] = 1  # one number, or one for each size
    gpus_per_node: NonNegativeInt = 0  # as many ranks; 0: one process, without torchrun
    cpus_per_node: PositiveInt = 64
    time: str = "24:00:00"  # of a job, which goes back into the queue until its point is done
    sbatch_options: tuple[str, ...] = ()  # further ones, e.g. "--partition=h100"
    gpu: str = "h100"  # a name of webssl_fast/gpus.py, for the plan

    @model_validator(mode="after")
    def _fits(self):
        if self.kind == "slurm" and not self.gpus_per_node:
            raise ValueError("kind slurm needs gpus_per_node")
        if self.kind == "local" and self.nodes != 1:
            raise ValueError("kind local runs on one node; set nodes to 1, or kind to slurm")
        return self


class StudyConfig(Config):
    output_dir: str
    methods: Annotated[dict[str, DerivedConfig], Field(min_length=1)]
    grids: Annotated[tuple[GridConfig, ...], Field(min_length=1)]
    settings: dict[str, Any] = {}  # of every run, under those of its method
    # name -> a file of `webssl filter` or `webssl data subset`; the data must then be the index that it is of
    subsets: dict[str, str] = {}
    exclude: tuple[str, ...] = ()  # points that are not run, by name or pattern: "clip_7b_*"
    evaluations: dict[str, DerivedConfig] = {}  # name -> a config of `webssl eval`
    vqa: str = ""  # a config of `webssl vqa`, relative to the study's file; empty: none
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _names_are_known(self):
        for grid in self.grids:
            for kind, names, known in (
                ("methods", grid.methods, list(self.methods)),
                ("subsets", grid.subsets, [ALL_DATA, *self.subsets]),
            ):
                unknown = [name for name in names if name not in known]
                if unknown:
                    raise ValueError(f"grids name {kind} {unknown}; there are {known}")
        if VQA in self.evaluations:
            raise ValueError("evaluations must not be named vqa; the config of `webssl vqa` is the setting vqa")
        if isinstance(self.launch.nodes, dict):
            sizes = {size for grid in self.grids for size in grid.sizes}
            if missing := sorted(sizes - self.launch.nodes.keys()):
                raise ValueError(f"launch.nodes has no number for the sizes {missing}")
        return self
