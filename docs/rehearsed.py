"""Tables of docs/sdxl.md: the dress rehearsals, by one process and by two, side by side (``make sdxl-rehearsal``)."""

import json
from pathlib import Path

SDXL = Path(__file__).parents[1] / "results/sdxl"


def _read(name: str) -> dict:
    return json.loads((SDXL / f"{name}.json").read_text())


def records() -> list[dict]:
    """The rehearsal by one process, and that by two."""
    return [_read(f"rehearsal_{n}") for n in ("one", "two")]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 20 else f"{value:.3g}"


def stages() -> tuple[str, list[list[dict]]]:
    """What was rehearsed; tables of what each stage took, what each kind of work takes, and the hours of the whole run."""
    both, named = records(), ("1 GPU", "2 GPUs")
    said = [f"{n}: {r['processes']} x {r['device']}, {r['settings']} (commit {r['commit'][:7]})." for n, r in zip(named, both)]
    columns = {"seconds": "seconds", "of these training": "of these training", "peak [GiB]": "peak_gib"}
    by_stage = [
        {"stage": rows[0]["stage"]} | {f"{n}: {name}": _shown(row[key]) for n, row in zip(named, rows) for name, key in columns.items()}
        for rows in zip(*(r["stages"] for r in both))
    ]  # fmt: skip
    by_work = [{"work of one GPU, after a first time": work, "seconds": _shown(seconds)} for work, seconds in both[0]["rates"].items()]
    update, updates = _read("processes100")["rows"][0]["seconds_an_update"], _read("dry_run")["settings"]["updates"]
    hours = {n: parts | {"train": update * updates / int(n) / 3600} for n, parts in both[0]["hours"].items()}
    hours = {f"{n} GPU{(int(n) > 1) * 's'}": parts | {"all": sum(parts.values())} for n, parts in hours.items()}
    whole = [{"hours of the paper's whole run": part} | {n: f"{h[part]:.2f}" for n, h in hours.items()} for part in hours["1 GPU"]]
    return f"With **random weights**. {' '.join(said)}", [by_stage, by_work, whole]


def processes() -> tuple[str, list[dict], str]:
    """How training was rehearsed; by one process and by two, on as many GPUs; what follows from that."""
    short, whole = records()[1]["training"], _read("processes100")
    parts = {"solving": "solving", "averaging": "averaging", "students": "students' part"}
    rows = [
        {"students": f"{what}, N = {run['settings']['intervals']}", "commit": run["commit"][:7], "GPUs": row["processes"],
         "seconds an update": f"{row['seconds_an_update']:.2f}", "speed-up": f"{run['speed_up'][str(row['processes'])]:.2f}", "updates timed": row["updates_timed"]}
        | {name: f"{row['parts'][part]:.2f}" for part, name in parts.items()}
        | {"peak of each [GiB]": _shown(row["peak_gib"]), "losses differ by": f"{run['difference'][str(row['processes'])]:.1g}"}
        for what, run in (("float16, 8-bit Adam", short), ("bfloat16, AdamW", whole)) for row in run["rows"]
    ]  # fmt: skip
    how, after = ", ".join(f"{name.replace('_', ' ')} {whole['settings'][name]}" for name in ("batch", "solves_in_flight", "microbatch")), short["killed"]
    said = next(r["seconds"] for r in _read("dry_run")["rows"] if (r["path"], r["students"]) == ("flight", "both"))
    found = [
        f"For one GPU at N = {whole['settings']['intervals']} the dry run had said {said:.1f} s.",
        f"Killed after update {after['went_on_after']} and run again by {after['processes']} processes, losses (float16, 8-bit Adam) differ by {short['difference_killed']:.1g}.",
    ]
    return f"CM and Direct CM side by side, a process a GPU; {how}.", rows, " ".join(found)
