"""The study of a stranger's diffusers pipeline: what its configuration must say, its data, and a whole run in little."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_pipeline import saved, tiny_unet

from dcm.data import images as image_data
from dcm.horizon import method_name
from dcm.metrics.metric import ENCODERS
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters, TeacherParameters
from dcm.parameters.study import StudyConfig
from dcm.schedule import Grid
from dcm.studies.images.prepare import prepare
from dcm.studies.registry import check_students, load_study
from dcm.support.errors import InputError
from dcm.support.files import ROOT
from dcm.training.run import train_group

CPU = torch.device("cpu")
EXAMPLE = yaml.safe_load((ROOT / "workflow/config/diffusers.yaml").read_text())


def parameters(folder, model, **more):
    values = dict(study="diffusers", run_dir=str(folder / "run"), guidance=[1.0], intervals=[5, 10], model=str(model), data="teacher")
    return validate(TeacherParameters, values | dict(teacher_images=12) | more)


def images(folder, *names, size=(8, 8)):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return str(folder)


FLAT = [f"{i}.png" for i in range(9)]
CLASSES = [f"{c}/{i}.png" for c in "ab" for i in range(5)]


def prepared(folder, model, **more):
    prepare(parameters(folder, model, **more), folder / "run", CPU)
    return load_study("diffusers", folder / "run", CPU)


def test_without_classes_a_folder_of_images_is_enough(tmp_path):
    folder = images(tmp_path / "images", *FLAT, "deeper/10.png")
    study = prepared(tmp_path, saved(tmp_path / "m", tiny_unet(channels=3)), data="folder", data_dir=folder)
    assert (len(study.data.train), len(study.data.held_out), study.data.num_classes) == (7, 3, 1)
    assert study.f.prediction == "epsilon" and study.is_image and study.quality.note.startswith("Features: EfficientNet-Lite0.")
    x, c = torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.long)
    measured = study.quality.measure(x, c, x)
    assert set(measured) == set(study.quality.metrics) and measured["fd_teacher"] < 1e-3 < measured["fd_real"]
    columns = {e.name: ([*read][0], [*read][1], [*read][-1]) for e, read in study.quality.views}
    assert columns == {name: ENCODERS["diffusers"][name] for name in ("EfficientNet-Lite0", "pixel")}


def test_with_classes_and_a_null_class_students_train_at_any_guidance(tmp_path):
    model = saved(tmp_path / "m", tiny_unet(channels=3, num_class_embeds=3), prediction_type="v_prediction")
    folder = images(tmp_path / "images", *CLASSES)
    study = prepared(tmp_path, model, data="folder", data_dir=folder, null_class=True, guidance=[2.0])
    assert study.teacher.num_classes == study.data.num_classes == 2 and study.f.prediction == "v_prediction"
    group = dict(group_name="g", solver="ddim", intervals=5, guidance=[2.0], horizons=["cm", "direct"], seeds=[0], updates=2, batch=4,
                 pretrain=1, study="diffusers", run_dir=str(tmp_path / "run"))  # fmt: skip
    done = train_group(study, validate(DistillParameters, group), CPU)
    assert [method_name(m.horizon, 5) for m in done.group.members] == ["CM", "Direct CM"]
    assert done.losses.loss.between(0, 1e6).all() and len(done.losses)


def test_its_own_samples_are_made_once_and_a_changed_model_is_noticed(tmp_path, monkeypatch):
    model = saved(tmp_path / "m")
    first = prepared(tmp_path, model)
    assert first.data.train.shape == (12, 1, 8, 8) and len(first.data.held_out) == 0
    with monkeypatch.context() as patch:
        patch.setattr(image_data, "solve", lambda *a: pytest.fail("sampled again"))
        assert torch.equal(load_study("diffusers", tmp_path / "run", CPU).data.train, first.data.train)
    group = dict(group_name="g", solver="ddim", intervals=5, guidance=[1.0], horizons=["cm"], seeds=[0], updates=1, batch=2, pretrain=1,
                 study="diffusers", run_dir=str(tmp_path / "run"))  # fmt: skip
    train_group(first, validate(DistillParameters, group), CPU)
    check_students(first, tmp_path / "run", ["g"])
    other = prepared(tmp_path, saved(model, tiny_unet(seed=1)))
    assert not torch.equal(other.data.train, first.data.train)
    with pytest.raises(InputError, match="g.safetensors learnt from another teacher"):
        check_students(other, tmp_path / "run", ["g"])


def test_a_schedule_of_other_length(tmp_path):
    study = prepared(tmp_path, saved(tmp_path / "m", num_train_timesteps=100), intervals=[5, 10])
    x, c = torch.randn(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
    assert study.reference(x, 100, c, 1.0, Grid(100, 100)).shape == x.shape
    with pytest.raises(InputError, match="intervals = 40 does not divide the teacher's 100 timesteps; allowed: 1, 2, 4"):
        prepare(parameters(tmp_path, tmp_path / "m", intervals=[40]), tmp_path / "run", CPU)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(data="folder"), r"8\.png is 9 x 8 pixels, and the teacher needs 8 x 8"),
        (dict(data="cifar10"), r"data = 'cifar10' has 10 classes of images 3 x 32 x 32, and the teacher needs 2 classes of images 3 x 8 x 8"),
        (dict(data="folder", data_dir="three"), "has 3 classes of images 3 x 8 x 8, and the teacher needs 2 classes of images 3 x 8 x 8"),
        (dict(data="folder", data_dir="flat"), "is no image folder: it must hold one subfolder a class"),
        (dict(model="nobody/nothing"), "model = 'nobody/nothing' is not here: .* is no folder, .*; put it there, or set download to true"),
    ],
)  # fmt: skip
def test_what_does_not_suit_is_refused_before_anything_is_written(values, message, tmp_path, monkeypatch):
    model = saved(tmp_path / "m", tiny_unet(channels=3, num_class_embeds=2))
    folders = {None: images(tmp_path / "images", *CLASSES), "flat": images(tmp_path / "flat", *FLAT),
               "three": images(tmp_path / "three", *CLASSES, "c/1.png")}  # fmt: skip
    images(tmp_path / "images", "b/8.png", size=(9, 8))
    cifar = image_data.ImageSet(*image_data.split(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.arange(20) % 10, 2), classes=tuple("0123456789"))
    monkeypatch.setattr(image_data, "cifar10", lambda *a: cifar)
    p = parameters(tmp_path, values.get("model", model), data=values.get("data", "teacher"), data_dir=folders[values.get("data_dir")])
    with pytest.raises(InputError, match=message) as error:
        prepare(p, tmp_path / "run", CPU)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_guidance_is_judged_from_the_configuration_alone(tmp_path):
    folders = {"run_dir": str(tmp_path / "run"), "results_dir": str(tmp_path / "results")}
    group = EXAMPLE["groups"]["main"] | {"guidance": [1.0, 2.0]}
    message = r"in group other: guidance = \[1.0, 2.0\] is not possible .*; allowed: \[1.0\], or null_class = true where"
    with pytest.raises(InputError, match=message):
        validate(StudyConfig, EXAMPLE | folders | {"groups": EXAMPLE["groups"] | {"other": group}})
    with pytest.raises(InputError, match=r"in teacher: guidance = \[2.0\] is not possible for the study diffusers with null_class = false"):
        validate(StudyConfig, EXAMPLE | folders | {"teacher": EXAMPLE["teacher"] | {"guidance": [2.0]}})
    with_null = EXAMPLE["teacher"] | {"guidance": [2.0], "null_class": True}
    validate(StudyConfig, EXAMPLE | folders | {"teacher": with_null, "groups": {"main": group}})


@pytest.mark.parametrize("study", ["gmm", "digits", "cifar10"])
def test_a_model_is_refused_where_it_is_not_used(study, tmp_path):
    values = dict(study=study, run_dir=str(tmp_path / "run"), guidance=[1.0], intervals=[10]) | ({"data": "folder"} if study == "cifar10" else {})
    for name, value in (("model", str(tmp_path)), ("null_class", True)):
        with pytest.raises(InputError, match=f"{name} = .* is not possible for the study {study}, which does not use it"):
            validate(TeacherParameters, values | {name: value})
