"""What the benchmarks share: rows that are printed and written as they are measured, and the device's own rate.

    python benchmarks/report.py

puts every result in benchmarks/results/ into benchmarks/README.md, with device, versions and the command to repeat it.
"""

import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dcm.support.files import read_json, write_json, write_text
from dcm.support.processes import peak_gib

HERE = Path(__file__).parent
BEGIN, END = "<!-- written by report.py: begin -->", "<!-- written by report.py: end -->"
# (of which result's name, of which ways, quantity, the least or the most of it): what the benchmarks aim at on an H100
GOALS = (
    ("targets_cifar10", "in flight", "ratio of pairs a second", "at least", 4.0),
    ("targets_sdxl", "in flight", "ratio of pairs a second", "at least", 2.2),
    ("targets_sdxl", "in flight", "share of matrix-product rate", "at least", 0.6),
    ("targets_", "in flight", "over the minimum", "at most", 1.02),
    ("updates_", "overhead of ours", "share of an update", "at most", 0.03),
)
COLUMNS_IN_FILE_ALONE = ("timed [s]", "memory held [GiB]", "calls", "ratio of evaluations a second")
GIB = 2**30
KINDS = {  # of kernels, by what their names contain; the first that fits
    "norms, activations, sums (compiled)": ("triton",),
    "attention": ("flash", "fmha", "sdpa", "fort_native", "attention"),
    "convolutions": ("conv", "fprop", "implicit", "nhwc", "nchw"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "splitk"),
}


def kernels(step: Callable[[], object]) -> dict:
    """Where a GPU's time goes in one `step`, by kind of kernel: milliseconds in all, the share of each, the longest.

    ``busy`` is the share of the step's own time in which there was a kernel: what is missing waits for the CPU. It is
    timed without the profiler, which slows the CPU down.
    """
    from torch.profiler import ProfilerActivity, profile

    step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    took = 1e3 * (time.perf_counter() - began)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        step()
        torch.cuda.synchronize()
    times: dict[str, float] = {}
    with TemporaryDirectory() as folder:  # its own table of averages takes a minute where a step has 100,000 kernels
        seen.export_chrome_trace(path := f"{folder}/trace.json")
        for event in json.loads(Path(path).read_text())["traceEvents"]:
            if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
                times[event["name"]] = times.get(event["name"], 0.0) + event["dur"] / 1e3
    if not times:
        raise RuntimeError("the profiler saw no kernels")
    total, kinds = sum(times.values()), dict.fromkeys([*KINDS, "others"], 0.0)
    for name, ms in times.items():
        kinds[next((k for k, parts in KINDS.items() if any(p in name.lower() for p in parts)), "others")] += ms
    longest = sorted(times.items(), key=lambda item: -item[1])[:40]
    return {"total [ms]": total, "busy": total / took, "share": {k: v / total for k, v in kinds.items()},
            "longest [ms]": {name[:160]: ms for name, ms in longest}}  # fmt: skip


def wait(device: torch.device) -> None:
    """Until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rounded(row: dict) -> dict:
    """For reading; the file has every digit."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


class Clock:
    """Seconds and peak memory of what a device does."""

    def __init__(self, device: torch.device):
        self.device, self.cuda = device, device.type == "cuda"

    def now(self) -> float:
        """Seconds, once everything that was asked for is done."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float | None:
        """GiB at most since then; None where it cannot be measured."""
        return peak_gib(self.device) if self.cuda else None


class Kept:
    """What a run has measured, by name, in a file as soon as it is known: the same run, cut off and begun again, goes on.

    `run` says what it is that was measured; a file of another run is begun anew.
    """

    def __init__(self, path: Path, run: dict):
        self.path, self.run = path, run
        found = read_json(path) if path.exists() else {}
        self.results: dict[str, dict] = found["results"] if found.get("run") == run else {}

    def __call__(self, name: str, measure: Callable[[], dict]) -> dict:
        """The result of this name, measured where there is none."""
        if name not in self.results:
            self.results[name] = measure()
            write_json(self.path, {"run": self.run, "results": self.results})
            print(f"{name}: {json.dumps({k: v for k, v in rounded(self.results[name]).items() if not isinstance(v, dict)})}", flush=True)
        return self.results[name]


class Report:
    """Rows of one run. Each is printed, and the file written anew, at once: a run cut off loses nothing measured."""

    def __init__(self, device: torch.device, out: str | None, **about):
        gpu = device.type == "cuda"
        self.device, self.out, self.rows, self.began = device, out, [], time.perf_counter()
        self.about = about | {
            "device": torch.cuda.get_device_name()
            if gpu
            else f"{platform.machine()}, {torch.get_num_threads()} thread",
            "command": command(sys.argv),
            "versions": {name: metadata.version(name) for name in ("torch", "diffusers")},
        }

    def note(self, **about) -> None:
        """Add what holds for all rows."""
        self.about |= about
        self._write()

    def add(self, row: dict) -> dict:
        """One more row, with the ratio of its rates (keys that end in ``s a second``) to the first row's that has them."""
        for key in [k for k in row if k.endswith("s a second")]:
            row[f"ratio of {key}"] = row[key] / next(r for r in [*self.rows, row] if key in r)[key]
        self.rows.append(row)
        print(f"[{time.perf_counter() - self.began:.0f} s] {json.dumps(rounded(row))}", flush=True)
        self._write()
        return row

    @contextmanager
    def way(self, name: str):
        """Measure one way; when it fails, the row says why, and the next way has its turn."""
        try:
            yield
        except Exception as error:
            self.add({"way": name, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _write(self) -> None:
        if self.out:
            write_json(self.out, {"about": self.about, "ways": self.rows})

    def print(self) -> None:
        """All rows as a table."""
        print(json.dumps(self.about))
        print(table(self.rows))


def command(argv: list[str]) -> str:
    """The command that repeats this run: that of the process, but for where it wrote."""
    words = [f"benchmarks/{Path(argv[0]).name}", *argv[1:]]
    if "--out" in words:
        at = words.index("--out")
        words[at + 1] = f"benchmarks/results/{Path(words[at + 1]).name}"
    return shlex.join(["python", *words])


def shown(value) -> str:
    """A number with three digits, or as a whole one from a thousand up; words as they are."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def table(rows: list[dict], without: tuple[str, ...] = ()) -> str:
    """Rows as a table in markdown; columns are what any row has, those `without` left out."""
    columns = list(dict.fromkeys(k for row in rows for k in row if not isinstance(row[k], (dict, list))))
    columns = [c for c in columns if c not in without]
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    lines += ["| " + " | ".join(shown(row.get(c, "")) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def goals(results: dict[str, dict]) -> list[dict]:
    """What GPU results reached of :data:`GOALS`; FP8 counts with the ways in flight, as a way of its own."""
    return [
        {"goal": f"{quantity}, {kind} {bound:g}", "result": name, "way": row["way"], "measured": row[quantity],
         "met": "yes" if (row[quantity] >= bound if kind == "at least" else row[quantity] <= bound) else "no"}
        for part, way, quantity, kind, bound in GOALS
        for name, result in results.items()
        if name.startswith(part) and result["about"]["device"].startswith("NVIDIA")
        for row in result["ways"]
        if row["way"].startswith(way) and quantity in row
    ]  # fmt: skip


def section(name: str, result: dict) -> str:
    """One result in markdown."""
    about = dict(result["about"])
    device, versions, repeat = about.pop("device"), about.pop("versions"), about.pop("command")
    profile, made = about.pop("profile", None), [f"{k} {v}" for k, v in versions.items()]
    facts = "; ".join(f"{k} {shown(v)}" for k, v in about.items() if v is not None)
    text = [
        f"### {name}", f"On {device} ({', '.join(made)}). Repeat: `{repeat}`. [All digits](results/{name}.json)",
        facts + ".", table(result["ways"], COLUMNS_IN_FILE_ALONE),
    ]  # fmt: skip
    if profile:
        text += [
            f"Where the GPU's time goes in one step in flight ({shown(profile['total [ms]'])} ms, precision {profile['precision']}):",
            table([{"kernels": kind, "share": share} for kind, share in profile["share"].items()]),
        ]
    return "\n\n".join(text)


def render(results: dict[str, dict]) -> str:
    """Every result, by its file's name, and what was reached of the goals, in markdown."""
    reached = goals(results)
    text = ["### Goals on an H100\n\n" + table(reached)] if reached else []
    return "\n\n".join(text + [section(name, result) for name, result in results.items()])


def read_results(folder: Path = HERE / "results") -> dict[str, dict]:
    """Results by name, in order of name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def filled(text: str, results: dict[str, dict]) -> str:
    """README `text` with the results between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"benchmarks/README.md lacks the line {BEGIN} or {END}; put both back.")
    return f"{before}{BEGIN}\n\n{render(results)}\n\n{END}{after}"


def timed(device: torch.device, do, seconds: float, blocks: int = 5) -> tuple[float, int, float]:
    """(seconds a call, calls, spread) of `do()`, called for `seconds` in all.

    The device is waited for once a block of calls, as training does not wait either. The median over blocks, and their
    standard deviation.
    """
    each, calls = [], 0
    for _ in range(blocks):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / blocks or not count:
            do()
            count += 1
            if count % 4 == 0:  # so as not to queue more than the time that is left
                wait(device)
        wait(device)
        each.append((time.perf_counter() - began) / count)
        calls += count
    values = torch.tensor(each, dtype=torch.float64)
    return float(values.median()), calls, float(values.std())


@torch.no_grad()
def matrix_rate(device: torch.device) -> float:
    """FLOP/s of a bf16 (GPU) or float32 (CPU) matrix product of 8192 (1024) squared."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    wait(device)
    began = time.perf_counter()
    for _ in range(10):
        a @ b
    wait(device)
    return 10 * 2 * size**3 / (time.perf_counter() - began)


def main() -> None:
    """Write the results into the README."""
    readme = HERE / "README.md"
    write_text(readme, filled(readme.read_text(), read_results()))


if __name__ == "__main__":
    main()
