"""How ``weights/cifar10_teacher`` was trained, on any number of GPUs.

    torchrun --nproc_per_node 2 weights/train_cifar10.py --images FOLDER --updates 15000

FOLDER holds one folder of images a class (see dcm.data.image_folder). The averaged weights are written every half
minute and at the end, as float16; a run cut off before its end leaves the last ones.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from dcm.data.images import image_folder
from dcm.studies.images.prepare import CIFAR_NETWORK
from dcm.studies.images.study import HELD_OUT
from dcm.support.processes import Processes
from dcm.support.progress import tqdm
from dcm.teachers.unet import UNetConfig, UNetTeacher
from dcm.teachers.unet_training import TeacherTraining, train_teacher


def main() -> None:
    """Train and save; see the top of this file."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=Path, required=True)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "cifar10_teacher")
    arguments.add_argument("--updates", type=int, default=15000)
    arguments.add_argument("--minutes", type=float, help="in place of --updates: as many as fit, by a measurement")
    arguments.add_argument("--batch", type=int, default=512, help="images an update, over all GPUs")
    arguments.add_argument("--lr", type=float, default=1e-3)
    arguments.add_argument("--held-out", type=int, default=HELD_OUT)
    given = arguments.parse_args()

    here = Accelerator()
    processes = Processes(here)
    with here.main_process_first():  # the first decodes the images, the others read its cache
        data = image_folder(given.images, (3, 32, 32), held_out=given.held_out, flip=True)
    data = data.to(here.device)
    torch.manual_seed(0)
    teacher = UNetTeacher(UNetConfig(32, 3, data.num_classes, **CIFAR_NETWORK)).to(here.device)
    fresh = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    if here.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        teacher.accelerate()

    def settings(updates: int) -> TeacherTraining:
        share = given.batch // processes.size
        return TeacherTraining(updates, batch=share, learning_rate=given.lr, warmup=min(500, updates // 10), ema=0.9995)

    updates = given.updates
    if given.minutes:
        for state in train_teacher(teacher, data, settings(150), processes=processes):
            if state.step == 50:  # compiled by now; .item() waits for the device
                state.loss.item()
                began = time.monotonic()
        state.loss.item()
        rate = torch.tensor(100 / (time.monotonic() - began), device=here.device)
        if processes.size > 1:
            torch.distributed.broadcast(rate, 0)
        updates = int(rate.item() * 60 * given.minutes)
        teacher.load_state_dict(fresh)
        here.print(f"{rate.item():.1f} updates/s, so {updates} updates")

    def save(state, finished: bool) -> None:
        about = {
            "updates": state.step, "batch": given.batch, "learning rate": given.lr, "seconds": round(state.elapsed, 1),
            "images per second": round(state.step * given.batch / state.elapsed), "processes": processes.size,
            "device": torch.cuda.get_device_name() if here.device.type == "cuda" else "cpu", "torch": torch.__version__,
            "finished": finished, "training images": len(data.train),
        }  # fmt: skip
        state.ema.save(given.out, about, torch.float16)

    bar, last, losses = (
        tqdm(total=updates, desc="train the teacher", unit="update", disable=not processes.first),
        time.monotonic(),
        [],
    )
    for state in train_teacher(teacher, data, settings(updates), processes=processes):
        bar.update()
        losses.append(state.loss)
        if processes.first and state.step % 500 == 0:
            line = {"update": state.step, "seconds": round(state.elapsed, 1), "loss": torch.stack(losses).mean().item()}
            bar.write(json.dumps(line))
            losses = []
        if processes.first and time.monotonic() - last > 30:
            save(state, False)
            last = time.monotonic()
    if processes.first:
        save(state, True)


if __name__ == "__main__":
    main()
