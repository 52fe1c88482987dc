"""A tiny SDXL pipeline, prepared and distilled once for the tests of this folder."""



import pytest
import tiny_sdxl
from sdxl_helpers import CPU, distill_parameters, teacher_parameters

from dcm.studies.registry import load_study
from dcm.studies.sdxl import pipeline as sdxl_pipeline
from dcm.training.run import train_group


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Notebook 1's parameters for the tiny pipeline."""
    return tiny_sdxl.write_all(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def prepared(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    sdxl_pipeline.prepare(teacher_parameters(made, folder), folder, CPU)
    return folder


@pytest.fixture(scope="session")
def study(prepared):
    return load_study("sdxl", prepared, CPU)


@pytest.fixture(scope="session")
def distilled(study, prepared):
    return train_group(study, distill_parameters(prepared), CPU)


@pytest.fixture(scope="session")
def pipe(made):
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(made["model"])
    pipe.set_progress_bar_config(disable=True)
    return pipe
