"""Image sources: digits, folders, teacher samples."""


import numpy as np
import pytest
import torch
from PIL import Image

from dcm.data.images import ImageSet, cifar10, digits, image_folder, open_image, teacher_samples
from dcm.support.errors import InputError


def test_digits_split_is_fixed_disjoint_and_in_range(data):
    again = digits()
    assert torch.equal(data.train, again.train) and torch.equal(data.held_out, again.held_out)
    assert len(data.train) + len(data.held_out) == 1797 and data.shape == (1, 8, 8) and data.num_classes == 10
    assert torch.bincount(data.held_out_labels, minlength=10).min() > 30  # every class is held out
    x, _ = data.images("train")
    assert x.min() == -1 and x.max() == 1
    both = torch.cat([data.train, data.held_out]).flatten(1)
    assert len(both.unique(dim=0)) == 1797  # so no image can lie in both parts


def test_a_draw_pairs_images_with_their_labels_and_depends_on_the_generator_alone(data):
    x, c = data.draw(torch.Generator().manual_seed(3), 32)
    y, d = data.draw(torch.Generator().manual_seed(3), 32)
    assert torch.equal(x, y) and torch.equal(c, d) and c.dtype == torch.int64
    all_x, all_c = data.images("train")
    for image, label in zip(x, c):
        assert label in all_c[(all_x == image).flatten(1).all(1)]


def test_flips_mirror_about_half_of_the_images():
    ramp = torch.arange(8, dtype=torch.uint8).expand(1, 1, 8, 8).clone()
    label = torch.zeros(1, dtype=torch.int64)
    images = ImageSet(ramp, label, ramp[:0], label[:0], ("a",), peak=7, flip=True)
    x, _ = images.draw(torch.Generator().manual_seed(0), 400)
    assert 0.4 < (x[:, 0, 0, 0] == 1).double().mean() < 0.6
    assert torch.equal(x[:, 0, 0, 0], -x[:, 0, 0, -1])


def write_folder(root, sizes=((8, 8), (8, 8), (8, 8))):
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i, size in enumerate(sizes):
            value = 100 * (label == "dog") + i
            Image.new("RGB", size, (value, value, value)).save(root / label / f"{i}.png")
    return root


def test_image_folder_reads_labels_and_pixels_and_its_cache_is_used_and_renewed(tmp_path):
    root = write_folder(tmp_path / "images")
    first = image_folder(root, (3, 8, 8), held_out=2)
    assert first.classes == ("cat", "dog") and len(first.train) == 4 and first.shape == (3, 8, 8)
    assert torch.equal(first.train[:, 0, 0, 0] >= 100, first.train_labels == 1)
    assert len(list(root.glob(".decoded-*"))) == 1
    second = image_folder(root, (3, 8, 8), held_out=2)
    assert torch.equal(first.train, second.train) and torch.equal(first.held_out, second.held_out)
    Image.new("RGB", (8, 8), (250, 250, 250)).save(root / "dog" / "new.png")
    third = image_folder(root, (3, 8, 8), held_out=0)
    assert len(third.train) == 7 and 250 in third.train


def test_image_folder_says_what_is_wrong(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="one subfolder a class"):
        image_folder(tmp_path / "empty")
    with pytest.raises(InputError, match="no image folder"):
        image_folder(tmp_path / "absent")
    with pytest.raises(InputError, match="9 x 8 pixels, and the teacher needs 8 x 8"):
        image_folder(write_folder(tmp_path / "size", ((8, 8), (9, 8))), (3, 8, 8))
    root = write_folder(tmp_path / "broken")
    whole = (root / "cat" / "1.png").read_bytes()
    (root / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="1.png cannot be read as an image"):
        image_folder(root, (3, 8, 8))
    assert len(image_folder(write_folder(tmp_path / "few"), (3, 8, 8), held_out=6).held_out) == 2, "a third of 6 at most"
    with pytest.raises(InputError, match="held_out = 1797 is out of range; allowed: 0 to 1796"):
        digits(held_out=1797)


def test_absent_data_are_refused(tmp_path):
    with pytest.raises(InputError, match="could not be read from .*; `make study-cifar10 DOWNLOAD=1` fetches CIFAR-10"):
        cifar10(tmp_path)


def test_teacher_samples_do_not_depend_on_batching(unet):
    a = teacher_samples(unet, 12, intervals=2, chunk=12)
    b = teacher_samples(unet, 12, intervals=2, chunk=5)
    assert a.shape == (1, 8, 8) and sorted(a.train_labels.tolist()) == sorted(i % 10 for i in range(12))
    # Batches of other sizes may round the last bit of a float otherwise: one grey level.
    assert (a.train.int() - b.train.int()).abs().max() <= 1 and len(a.held_out) == 0


def test_deep_images_keep_their_levels_and_none_is_too_large_for_a_sentence(tmp_path, monkeypatch):
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert (np.asarray(open_image(tmp_path / "deep.png"))[..., 0] == deep // 256).all()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    with pytest.raises(InputError, match="deep.png cannot be read as an image .*; remove or replace it"):
        open_image(tmp_path / "deep.png")
