"""SDXL's whole study on random weights of the published size, before anything is downloaded: ``make sdxl-rehearsal``.

Builds pipeline, judges, and images with captions, runs all notebooks on them through Snakemake with a few updates and
samples (encode, train, save, load, sample, measure, draw), and then times each step of the work by the code that does it:
training by sdxl_processes.py. Prints seconds and peak memory of each stage, and the hours that the paper's whole run would
take.

python benchmarks/sdxl_rehearsal.py --processes 2 --precision fp16 --optimizer adamw8bit    # and --tiny without a GPU
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import random_sdxl
import sdxl_processes
import torch
import yaml
from report import GIB, Clock, Kept

from dcm.consistency import sample
from dcm.data.captions import captioned_images
from dcm.evaluation.samples import EvaluationSet
from dcm.notebook import git_commit
from dcm.parameters.check import validate
from dcm.parameters.study import StudyConfig, read_config
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.studies.base import REFERENCE_INTERVALS
from dcm.studies.registry import load_study
from dcm.studies.sdxl.pipeline import PRECISIONS, Encoder
from dcm.support.errors import InputError
from dcm.support.files import ROOT, project_path, read_json, write_json, write_text
from dcm.support.processes import find_device, ready_device
from dcm.training.saved import load_group, sampled_sets, snapshot_updates

CONFIG = ROOT / "workflow/config/sdxl.yaml"
IMAGES = 64
NEEDED = {True: 32, False: 60}  # GiB that it takes, with gradient checkpointing and without
PAPERS_IMAGES = 11_000
HORIZONS = ["cm", "direct", "direct>cm"]


def configuration(given, made: dict[str, str]) -> dict:
    """sdxl.yaml with what was `made`, cut down."""
    config = read_config(CONFIG)
    config["run_dir"], config["results_dir"] = f"{given.folder}/run", f"{given.folder}/results"
    config["teacher"] |= made | {"inception": "off", "samples": 2, "intervals": [5], "precision": given.precision}
    config["training"] |= {"updates": given.updates, "processes": given.processes, "optimizer": given.optimizer}
    config["training"] |= {"solves_in_flight": given.solves_in_flight, "checkpoint_seconds": 60.0}
    config["groups"] = {"main": config["groups"]["main"] | {"intervals": given.intervals, "horizons": HORIZONS, "snapshots": 1}}
    config["evaluation"] |= {"samples": given.samples, "steps": [1, 2, 4]}
    config["ode_error"] |= {"start_times": 1, "start_samples": 16}
    if given.tiny:
        config["teacher"] |= {"resolution": random_sdxl.TINY.side, "batch": 4}
        config["training"] |= {"width": 2, "batch": 4, "solves_in_flight": 4}
    return config


def check(given, device: torch.device) -> None:
    """Raise :class:`InputError` for what cannot be run, before anything is built."""
    if given.tiny:
        return
    if device.type != "cuda":
        raise InputError("the rehearsal at SDXL's size needs a GPU, and none is present; allowed here: --tiny.")
    memory = torch.cuda.get_device_properties(device).total_memory / GIB
    checkpointing = read_config(CONFIG)["training"]["gradient_checkpointing"]
    if memory < (needed := NEEDED[checkpointing]):
        ways = "--precision bf16 and microbatch: 1" if checkpointing else f"gradient_checkpointing: true ({NEEDED[True]} GiB)"
        raise InputError(f"the rehearsal needs a GPU of {needed} GiB, and this one has {memory:.0f} GiB; {ways} in sdxl.yaml lowers that.")


def stages(run: Path) -> list[dict]:
    """Seconds and peak memory of each notebook, as it noted them."""
    rows = []
    for path in sorted((run / "provenance").glob("*.json")):
        record = read_json(path)
        rows.append({"stage": path.stem, "seconds": record["wall_seconds"], "of these training": record.get("training_seconds"),
                     "peak_gib": record.get("peak_gib"), "evaluations": record.get("teacher_evaluations")})  # fmt: skip
    return rows


@torch.no_grad()
def rates(config: dict, run: Path, device: torch.device) -> dict[str, float]:
    """Seconds of one image or one evaluation of each kind of work, by the code that does it; each is done once before."""
    clock, about, teacher = Clock(device), read_json(run / "teacher/teacher.json"), config["teacher"]
    rows = range(min(teacher["batch"], IMAGES))

    def timed(work, count: float) -> float:
        work()
        before = clock.now()
        work()
        return (clock.now() - before) / count

    items = captioned_images(project_path(teacher["data_dir"]))[: len(rows)]
    found = {"encode an image": timed(partial(Encoder(about, device).encode, rows, items), len(rows))}
    study = load_study("sdxl", run, device)
    p = validate(StudyConfig, config).notebook("4_sample_quality")
    evaluation = EvaluationSet(study, run, p["samples"], p["seed"], device)
    x, c = (v[: len(rows)].to(device) for v in (evaluation.noise, evaluation.condition))
    group = load_group(run, "main")
    N, w, calls = group.group.intervals, group.group.guidance[0], 2 * min(5, group.group.intervals) * len(rows)
    solving = lambda: solve(study.teacher, x, N, c, w, "ddim", Grid(N), steps=min(5, N))
    found["teacher evaluation, as it stands"] = timed(solving, calls)
    if device.type == "cuda":
        study.teacher.compile_for(2 * len(rows))
        found["teacher evaluation, fast path"] = timed(solving, calls)
        study.teacher.forget()
    students = group.students(study, group.updates[-1], device)
    size = students.size
    one = lambda: sample(study.f, students, x.expand(size, *x.shape), c.expand(size, *c.shape), Grid(N), [])
    found["student evaluation"] = timed(one, size * len(rows))
    found["decode an image"] = timed(lambda: study.pictures(x), len(rows))
    found["decode and measure an image"] = timed(lambda: study.quality._looked_at(x.cpu(), c), len(rows))
    return found


def whole_run(seconds: dict[str, float], update: float, intervals: int, gpus: int) -> dict[str, float]:
    """Hours of the paper's whole run, from the `seconds` of each kind of work and those of an `update` on so many `intervals`."""
    config = read_config(CONFIG)
    samples, group = config["evaluation"]["samples"], config["groups"]["main"]
    N, updates = group["intervals"], config["training"]["updates"]
    sets = sampled_sets(snapshot_updates(updates, group["snapshots"]), config["evaluation"]["steps"], N)
    shares = [[steps for _, steps in sets[i::gpus]] for i in range(gpus)]  # of the sets of students' samples, one a GPU
    evaluation = seconds.get("teacher evaluation, fast path", seconds["teacher evaluation, as it stands"])
    batch, students = config["training"]["batch"], len(group["horizons"])
    # The teacher's part of an update grows with N, and the students' stays.
    update += evaluation * batch * (N - intervals)
    at, fine = config["ode_error"], next(k for k in range(N, 1001, N) if k >= REFERENCE_INTERVALS and 1000 % k == 0)
    by_time = at["start_samples"] * 2 * (N + fine) * (at["start_times"] + 1) / 2  # solutions and references, from evenly spaced times
    return {
        "encode images": seconds["encode an image"] * PAPERS_IMAGES / 3600,
        "train": update * updates / gpus / 3600,
        "teacher's samples": evaluation * 2 * N * samples / gpus / 3600,
        "errors by starting time": seconds["teacher evaluation, as it stands"] * by_time / 3600,
        "students' samples": seconds["student evaluation"] * students * max(map(sum, shares)) * samples / 3600,
        "decode and measure": seconds["decode and measure an image"] * (students * max(map(len, shares)) + 1) * samples / 3600,
    }


def readable(record: dict) -> str:
    """The record as tables in markdown."""
    number = lambda v, form: "" if v is None else format(v, form)
    lines = [
        f"Rehearsed with **random weights** on {record['device']} (commit {record['commit'][:7]}), {record['processes']} process(es), {record['settings']}.", "",
        "| stage | seconds | of these training | peak memory [GiB] |", "| --- | ---: | ---: | ---: |",
        *(f"| {r['stage']} | {r['seconds']:.0f} | {number(r['of these training'], '.0f')} | {number(r['peak_gib'], '.1f')} |" for r in record["stages"]),
        "", "| work, after a first time | seconds |", "| --- | ---: |", *(f"| {name} | {value:.4f} |" for name, value in record["rates"].items()),
        "", f"| hours of the paper's whole run | {' | '.join(f'{n} GPU(s)' for n in record['hours'])} |", f"| --- |{' ---: |' * len(record['hours'])}",
    ]  # fmt: skip
    parts = [*next(iter(record["hours"].values()))]
    lines += [f"| {part} | {' | '.join(f'{hours[part]:.2f}' for hours in record['hours'].values())} |" for part in parts]
    lines += [f"| all | {' | '.join(f'{sum(hours.values()):.2f}' for hours in record['hours'].values())} |"]
    lines += ["", sdxl_processes.readable(record["training"])] if "training" in record else []
    return "\n".join(lines)


def rehearse(given) -> dict:
    """Everything; returns the record, and raises :class:`InputError`."""
    device = find_device("cpu" if given.tiny else "auto")
    check(given, device)
    ready_device(device, 2)
    folder, began = project_path(given.folder), time.time()
    sizes, dtype = (random_sdxl.TINY, torch.float32) if given.tiny else (random_sdxl.Sizes(), torch.float16)
    building = partial(random_sdxl.write_all, folder / "made", sizes, IMAGES, str(device), dtype)
    made = Kept(folder / "made.json", {"sizes": repr(sizes), "images": IMAGES, "dtype": str(dtype)})("made", building)
    built = time.time() - began
    config = configuration(given, made)
    path = folder / "rehearsal.yaml"
    write_text(path, yaml.safe_dump(config, sort_keys=False))
    began = time.time()
    if subprocess.run([sys.executable, ROOT / "workflow/study.py", path, "-j", "1"], cwd=ROOT).returncode:
        raise InputError(f"the study of {path} stopped; its last words are above.")
    run, studied = project_path(config["run_dir"]), time.time() - began
    rows, seconds = stages(run), Kept(folder / "rates.json", config | {"commit": git_commit()})("rates", partial(rates, config, run, device))
    gc.collect()
    torch.cuda.empty_cache()  # training needs it, in other processes
    training = sdxl_processes.run(folder, sorted({1, given.processes}), kill=given.kill)
    p = config["training"]
    how = f"gradient checkpointing {'on' if p['gradient_checkpointing'] else 'off'}, microbatch {p['microbatch'] or 'all'}"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", "processes": given.processes, "commit": git_commit(),
        "settings": f"{given.precision}, {given.optimizer}, {how}, {given.updates} updates, N = {given.intervals}, {given.samples} samples, {given.solves_in_flight} solves in flight",
        "build_seconds": built, "study_seconds": studied, "stages": rows, "rates": seconds,
        "training": training, "hours": {n: whole_run(seconds, training["rows"][0]["seconds_an_update"], given.intervals, n) for n in (1, 2, 8)},
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """The command; writes its record beside the run, and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/rehearsal", help="where all of it goes; 12 GB at full size")
    parser.add_argument("--tiny", action="store_true", help="some hundred thousand weights, on the CPU")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--intervals", type=int, default=20)
    parser.add_argument("--solves-in-flight", type=int, default=16)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--precision", default="bf16", choices=list(PRECISIONS))
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "adamw8bit"])
    parser.add_argument("--kill", action="store_true", help="kill a training as well, and let it go on")
    given = parser.parse_args(arguments)
    out = project_path(given.folder) / "rehearsal.json"
    try:
        record = rehearse(given)
        write_json(out, record)
        write_text(out.with_suffix(".md"), readable(record) + "\n")
        print(readable(record))
        sdxl_processes.check(record["training"])  # once all of it is written
    except InputError as error:
        raise SystemExit(f"{error}") from None


if __name__ == "__main__":
    main()
