"""What only a GPU does: CUDA graphs, bfloat16. Without one these tests are skipped, and say so."""

from types import SimpleNamespace

import pytest
import test_run
import tiny_sdxl
import torch
from interruption import interrupted_at
from random_sdxl import SDXL_UNET, RandomLatents, random_prompts, random_unet

from dcm.consistency import ConsistencyFunction
from dcm.data.images import ImageSet
from dcm.horizon import Group, resolve_horizon
from dcm.pairs import Pairs
from dcm.students.lockstep import MLPStudents, ModuleStudents
from dcm.students.lora import LoRAStudents
from dcm.students.networks import UNetStudent, adapt
from dcm.studies.registry import load_study
from dcm.support.checkpoint import load_optimizer, optimizer_tensors
from dcm.teachers.frozen import Float8Linear
from dcm.teachers.mixture import GaussianMixtureTeacher
from dcm.teachers.sdxl import PromptedUNet, SDXLTeacher
from dcm.teachers.unet import UNetConfig, UNetTeacher
from dcm.training.launch import launch
from dcm.training.loop import distill
from dcm.training.run import train_group
from dcm.training.saved import load_group
from dcm.training.settings import Settings, make_optimizer
from dcm.training.update import Update

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
GROUP = Group("ddim", 10, (2.0,), (1, 10), (0, 1))


def mixture():
    teacher = GaussianMixtureTeacher.interleaved_ring()
    students = MLPStudents([m.seed for m in GROUP.members], 2, 4, teacher.schedule.T, width=16).to(GPU)
    return teacher, teacher, students


def images():
    torch.manual_seed(0)
    config = UNetConfig(8, 1, 10, widths=(16, 32), attention=(False, True), layers=1, groups=8, head_width=8)
    teacher = UNetTeacher(config).eval().requires_grad_(False).to(GPU).accelerate(compile=False)
    pixels, labels = torch.randint(256, (64, *teacher.shape), dtype=torch.uint8), torch.arange(64) % 10
    data = ImageSet(pixels, labels, pixels[:0], labels[:0], tuple("0123456789")).to(GPU)
    networks = [UNetStudent(config) for _ in GROUP.members]
    for network in networks:
        network.autocast = True
    return teacher, data, ModuleStudents(networks).to(GPU)


def compiled_images():
    teacher, data, students = images()
    for network in students.networks:
        network.compiled = True
    return teacher, data, students


def adapted_images():
    teacher, data, students = images()
    torch.manual_seed(1)
    for network in students.networks:
        adapt(network.unet, 4)
    return teacher, data, students.to(GPU)


def shared_unet(dtype=torch.bfloat16):
    """Adapters of one UNet, in microbatches, beside the frozen copy that solves in flight."""
    network = PromptedUNet(random_unet(tiny_sdxl.UNET, GPU, dtype), random_prompts(tiny_sdxl.UNET, 8).to(GPU), chunk=8)
    teacher = SDXLTeacher(network, GaussianMixtureTeacher.interleaved_ring().schedule, (4, 8, 8))
    students = LoRAStudents(network, [m.seed for m in GROUP.members], 4).to(GPU)
    students.microbatch = 4
    return teacher, RandomLatents(teacher.shape, 8), students


def shared_unet_in_float16():
    """Its loss is scaled: a graph up to the gradients, and the optimiser's part as it stands."""
    return shared_unet(torch.float16)


@pytest.mark.parametrize("make", [mixture, images, compiled_images, adapted_images, shared_unet, shared_unet_in_float16])
@pytest.mark.parametrize("lr_decay", ["constant", "linear"])
def test_captured_updates_are_those_that_run_as_they_stand(make, lr_decay, monkeypatch):
    """Same students after 12 updates, up to the rounding of sums whose order a GPU does not fix."""
    found = []
    for graph in (False, True):
        teacher, data, students = make()
        settings, captured = Settings(updates=12, lr=1e-3, lr_decay=lr_decay), []
        pairs = Pairs(teacher, data, GROUP, 8, GPU, solves_in_flight=16)
        original = Update.__init__
        monkeypatch.setattr(Update, "__init__", lambda self, *a: (captured.append(self), original(self, *a, graph))[1])
        f = ConsistencyFunction(teacher.schedule)
        start = [p.detach().clone() for p in students.parameters()]
        losses = [state.loss.clone() for state in distill(pairs, students, settings, f)]
        monkeypatch.setattr(Update, "__init__", original)
        whole = graph and make is not shared_unet_in_float16
        assert [bool(part.graph) for part in (captured[0].gradients, captured[0].step)] == [graph, whole]
        end = [p.detach() for p in students.parameters()]
        found.append((torch.stack(losses), torch.cat([(b - a).flatten() for a, b in zip(start, end)])))
    (loss, moved), (graph_loss, graph_moved) = found
    assert torch.allclose(loss, graph_loss, rtol=2e-2), (loss - graph_loss).abs().max()
    # Two runs without a graph differ as well; unrelated ones would have a cosine near 0.
    assert torch.cosine_similarity(moved, graph_moved, 0) > 0.99
    assert loss[-1].ne(loss[0]).all()


@pytest.mark.parametrize("at_switch", ["continue", "restart"])
@pytest.mark.parametrize("make", [mixture, images, shared_unet])
def test_a_graph_is_captured_anew_where_a_horizon_changes(make, at_switch, monkeypatch):
    """Students whose horizon changes end where they end without graphs."""
    group = Group("ddim", 10, (2.0,), (1, 10, resolve_horizon("direct>cm", 10), resolve_horizon("cm>direct", 10)), (0,))
    settings, found = Settings(updates=24, lr=1e-3, at_switch=at_switch), []
    for possible in (False, True):
        teacher, data, students = make()
        monkeypatch.setattr(type(students), "capturable", possible)
        pairs = Pairs(teacher, data, group, 8, GPU, solves_in_flight=16, updates=24)
        start = [p.detach().clone() for p in students.parameters()]
        losses = [
            state.loss.clone() for state in distill(pairs, students, settings, ConsistencyFunction(teacher.schedule))
        ]
        moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(students.parameters(), start)])
        found.append((torch.stack(losses), moved))
    (loss, moved), (graph_loss, graph_moved) = found
    assert torch.allclose(loss, graph_loss, rtol=5e-2), (loss / graph_loss - 1).abs().max()
    assert torch.cosine_similarity(moved, graph_moved, 0) > 0.99


@pytest.mark.parametrize("make", [mixture, images])
def test_targets_in_flight_are_those_of_plain_solving(make):
    teacher, data, _ = make()
    flying, plain = (
        [b for _, b in Pairs(teacher, data, GROUP, 8, GPU, solves_in_flight=slots).between(0, 20)] for slots in (16, 0)
    )
    for a, b in zip(flying, plain):
        assert torch.equal(a.x, b.x) and torch.equal(a.t_hat, b.t_hat)
        variance = b.x_hat.var()
        assert (a.x_hat - b.x_hat).square().mean() < 1e-3 * variance


def test_the_optimiser_goes_on_from_a_checkpoint():
    """A learning rate that is a tensor, and steps counted on the GPU, survive saving and loading."""

    _, _, students = mixture()
    settings = Settings(updates=3)
    optimizer = make_optimizer(students, settings)
    for p in students.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    again = make_optimizer(students, settings)
    load_optimizer(again, {n: t.clone() for n, t in optimizer_tensors(optimizer).items()})
    for p in students.parameters():
        assert all(torch.equal(optimizer.state[p][n], again.state[p][n]) for n in optimizer.state[p])
        assert again.state[p]["step"].device.type == "cuda"


def test_a_training_goes_on_from_its_checkpoint(tmp_path):
    """On its device, with losses that were noted before and after."""
    study = load_study("gmm", "unused", GPU)
    of = lambda folder: test_run.parameters(tmp_path / folder, solves_in_flight=0)
    whole = train_group(study, of("whole"), GPU)
    with interrupted_at(34):
        train_group(study, of("cut"), GPU)
    resumed = train_group(study, of("cut"), GPU)
    for name, value in whole.tensors.items():
        assert value.shape == resumed.tensors[name].shape and torch.allclose(value, resumed.tensors[name], rtol=1e-3, atol=1e-3), name


@pytest.mark.parametrize("solves_in_flight", [0, 16])
def test_two_gpus_train_as_one(tmp_path, solves_in_flight):
    """Gradients are averaged between the two graphs of an update, and solves come from one queue."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for n in (1, 2):  # both launched, and so in the same precision: TF32
        launch(test_run.parameters(tmp_path / str(n), processes=n, solves_in_flight=solves_in_flight))
    one, two = (load_group(tmp_path / str(n), "main") for n in (1, 2))
    assert (one.about["processes"], two.about["processes"]) == (1, 2)
    a, b = (torch.cat([v.flatten() for v in group.tensors.values()]) for group in (one, two))
    assert torch.dist(a, b) < 0.01 * a.norm()  # 0.16 without averaging


def captured_beside_nccl():
    """Capture updates whose gradients NCCL averages, in a process group of one."""
    torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    team = SimpleNamespace(average=lambda tensors: [torch.distributed.all_reduce(t) for t in tensors])
    teacher, data, students = shared_unet()
    batches, f = Pairs(teacher, data, GROUP, 8, GPU).between(0, 8), ConsistencyFunction(teacher.schedule)
    optimizer = make_optimizer(students, settings := Settings(updates=8))
    updates = [Update(students, optimizer, settings, f, team) for _ in range(3)]  # three chances to be asked
    for _, batch in batches:
        losses = [update(batch, 1e-3) for update in updates]
    assert all(update.gradients.graph and update.step.graph for update in updates) and torch.stack(losses).isfinite().all()
    torch.distributed.destroy_process_group()


def test_an_update_is_captured_beside_nccl():
    """Whose thread asks the device, meanwhile, what has ended. In a process of its own, which may not hang."""
    process = torch.multiprocessing.get_context("spawn").Process(target=captured_beside_nccl)
    process.start()
    process.join(300)
    process.kill()
    assert process.exitcode == 0


@pytest.mark.parametrize("compile", ["no", "regions"])
def test_a_teacher_in_fp8_predicts_nearly_what_it_does_in_bf16(compile):
    """SDXL's own structure, narrow; the scales are those of the first call."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with FP8 matrix products")
    config = SDXL_UNET | {"block_out_channels": [32, 64, 128], "attention_head_dim": [1, 2, 4], "cross_attention_dim": 32, "sample_size": 8}
    network = PromptedUNet(random_unet(config, GPU, torch.bfloat16), random_prompts(config, 8).to(GPU), chunk=16)
    teacher = SDXLTeacher(network, GaussianMixtureTeacher.interleaved_ring().schedule, (4, 8, 8))
    x, c = RandomLatents(teacher.shape, 8).draw(torch.Generator(GPU).manual_seed(0), 8)
    t = torch.arange(100, 900, 100, device=GPU)
    plain = teacher.predict_noise(x, t, c)
    teacher.freeze("fp8")
    teacher.compile_for(8, compile)
    for _ in range(2):
        found = teacher.predict_noise(x, t, c)
        assert 1e-8 < (found - plain).square().mean() / plain.var() < 0.01
    layers = [m for m in teacher._fast.modules() if isinstance(m, Float8Linear)]
    assert layers and not any(layer.observing for layer in layers) and any(float(layer.x_scale) != 1 for layer in layers)
