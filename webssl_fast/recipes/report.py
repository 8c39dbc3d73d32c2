"""`webssl report`: one page about runs, with pictures of what an encoder sees and tables of how it is judged."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from webssl_fast.config.load import load_config
from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import EvalLoader
from webssl_fast.data.training_data import sources_of
from webssl_fast.errors import UserError
from webssl_fast.methods.base import Reconstructs
from webssl_fast.recipes.encoder_source import load_encoder, load_method, untrained_twin
from webssl_fast.recipes.setup import describe_method, num_parameters
from webssl_fast.records import Preprocessing
from webssl_fast.report.features import FeaturePicture, feature_pictures
from webssl_fast.report.page import shown_directory, write_report
from webssl_fast.report.reconstructions import ReconstructionPicture, reconstruction_pictures
from webssl_fast.report.study_files import is_study
from webssl_fast.report.study_page import write_study_report

logger = logging.getLogger(__name__)

NUM_PICTURES = 6
PICTURE_PATCHES = 24  # patches a side: finer than training crops, so that shapes can be seen


def report(run_dirs: Sequence[Path], output: Path | None = None, images: Path | None = None) -> Path:
    """Writes the page (default: the first directory's report.html) and prints where it is. Pictures are left out,
    loudly, where no run has a checkpoint yet or its images are not at hand. A study has a page of its own."""
    studies = [directory for directory in run_dirs if is_study(directory)]
    if studies:
        if len(run_dirs) > 1:
            raise UserError(f"{studies[0]} is a study, which is reported alone; got {len(run_dirs)} directories")
        path = write_study_report(studies[0], output)
        print(f"wrote {path}, and {path.stem}_vqa.csv, _fits.csv, _filters.csv, _tables.csv beside it")
        return path
    configs = {run_dir: _config(run_dir) for run_dir in run_dirs if (run_dir / "config.yaml").is_file()}
    shown = configs.get(shown_directory(run_dirs))
    pictures, reconstructions = _first_pictures(configs, images)
    path = write_report(
        *run_dirs,
        output=output,
        pictures=pictures,
        num_parameters=num_parameters(describe_method(shown).encoder()) if shown is not None else None,
        reconstructions=reconstructions,
    )
    print(f"wrote {path}")
    return path


def _config(run_dir: Path) -> RunConfig:
    on_cpu = ["data.decode.device=cpu"]  # the report is made on any machine
    return resolve(load_config(run_dir / "config.yaml", on_cpu), world_size=1, device="cpu")


def _first_pictures(
    configs: Mapping[Path, RunConfig], images: Path | None
) -> tuple[list[FeaturePicture], list[ReconstructionPicture]]:
    """Of the first run that has a checkpoint and images; reconstructions where its method makes them."""
    for run_dir, config in configs.items():
        try:
            pictures = _pictures(config, run_dir, images)
            reconstructs = isinstance(describe_method(config), Reconstructs)
            return pictures, _reconstructions(config, run_dir, images) if reconstructs else []
        except (UserError, OSError, ValueError) as reason:
            logger.warning("no pictures of features or predictions of %s in this report: %s", run_dir, reason)
    return [], []


def _pictures(config: RunConfig, run_dir: Path, images: Path | None) -> list[FeaturePicture]:
    trained = load_encoder(run_dir)
    untrained = untrained_twin(trained, config.seed)
    preprocessing = trained.preprocessing.at(PICTURE_PATCHES * trained.patch_size)
    names, images_B3SS = _sample(config, images, preprocessing)
    return feature_pictures(names, images_B3SS, trained, untrained, mean=preprocessing.mean, std=preprocessing.std)


def _reconstructions(config: RunConfig, run_dir: Path, images: Path | None) -> list[ReconstructionPicture]:
    method = load_method(run_dir)
    assert isinstance(method, Reconstructs)
    preprocessing = method.encoder().preprocessing
    names, images_B3SS = _sample(config, images, preprocessing)
    return reconstruction_pictures(
        names, images_B3SS, *method.reconstruct(images_B3SS), mean=preprocessing.mean, std=preprocessing.std
    )


def _sample(config: RunConfig, images: Path | None, preprocessing: Preprocessing) -> tuple[list[str], Tensor]:
    """Names and pixels of a few images, spread over the data set."""
    index = Index.open(str(images) if images else config.eval.knn.test_source or sources_of(config.data)[0].source)
    spread = torch.linspace(0, len(index) - 1, min(NUM_PICTURES, len(index))).long().tolist()
    loader = EvalLoader(
        index,
        config.data,
        preprocessing=preprocessing,
        batch_size=NUM_PICTURES,
        sample_ids=spread,
        num_threads=torch.get_num_threads(),
    )
    batch = next(iter(loader))
    return [index.name(int(sample_id)) for sample_id in batch.sample_ids], batch.images
