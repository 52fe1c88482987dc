"""What the benchmarks share: rows that are printed and written as they are measured, and the device's own rate."""

import json
import platform
import time
from contextlib import contextmanager
from importlib import metadata

import torch

from dcm.artifacts import git_commit, write_json


def wait(device: torch.device) -> None:
    """Until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rounded(row: dict) -> dict:
    """For reading; the file has every digit."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}


class Report:
    """Rows of one run. Each is printed, and the file written anew, at once: a run cut off loses nothing measured."""

    def __init__(self, device: torch.device, out: str | None, **about):
        gpu = device.type == "cuda"
        self.device, self.out, self.rows, self.began = device, out, [], time.perf_counter()
        self.about = about | {
            "device": torch.cuda.get_device_name()
            if gpu
            else f"{platform.machine()}, {torch.get_num_threads()} thread",
            "commit": git_commit(),
            "versions": {name: metadata.version(name) for name in ("torch", "diffusers")},
        }

    def note(self, **about) -> None:
        """Add what holds for all rows."""
        self.about |= about
        self._write()

    def add(self, row: dict) -> dict:
        """One more row, with its ratio to the first where both have a rate (the key ends in `` a second``)."""
        for key in [k for k in row if k.endswith("s a second") and k in (self.rows or [row])[0]]:
            row[f"ratio of {key}"] = row[key] / (self.rows or [row])[0][key]
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


def table(rows: list[dict]) -> str:
    """Rows as a table in markdown; columns are what any row has, numbers with three digits."""
    columns = list(dict.fromkeys(k for row in rows for k in row if not isinstance(row[k], (dict, list))))
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for row in rows:
        shown = (f"{v:,.3g}" if isinstance(v, float) and abs(v) < 1000 else f"{v:,.0f}" if isinstance(v, float) else v
                 for v in (row.get(c, "") for c in columns))  # fmt: skip
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    return "\n".join(lines)


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
