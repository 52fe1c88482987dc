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
    (one, two), named = records(), ("1 GPU", "2 GPUs")
    said = [f"{n}: {r['processes']} x {r['device']}, {r['settings']} (commit {r['commit'][:7]})." for n, r in zip(named, (one, two))]
    again = _read("1_teacher")  # its provenance; only this stage was run once more
    said += [f"The first stage once more, without cuDNN's search for the autoencoder: {again['wall_seconds']:.0f} s, {_shown(again['peak_gib'])} GiB (commit {again['commit'][:7]})."]
    columns = {"seconds": "seconds", "of these training": "of these training", "peak [GiB]": "peak_gib"}
    by_stage = [
        {"stage": a["stage"]} | {f"{n}: {name}": _shown(r[key]) for n, r in zip(named, (a, b)) for name, key in columns.items()}
        for a, b in zip(one["stages"], two["stages"])
    ]  # fmt: skip
    by_work = [{"seconds, after a first time": work} | {n: _shown(r["rates"].get(work)) for n, r in zip(named, (one, two))} for work in two["rates"]]
    hours = {n: parts | {"all": sum(parts.values())} for n, parts in two["hours"].items()}
    whole = [{"hours of the paper's whole run": part} | {f"{n} GPU{(int(n) > 1) * 's'}": f"{h[part]:.2f}" for n, h in hours.items()} for part in hours["1"]]
    return f"With **random weights**. {' '.join(said)}", [by_stage, by_work, whole]


def processes() -> tuple[str, list[dict], str]:
    """How training was rehearsed; by one process and by two, on as many GPUs; what follows from that."""
    before, fp16, whole = records()[1], _read("processes_fp16"), _read("processes100")
    old = before["training"] | {"commit": before["commit"]}
    parts = {"solving": "solving", "averaging": "averaging", "students": "students' part"}
    rows = [
        {"students": what, "commit": run["commit"][:7], "N": run["settings"]["intervals"], "GPUs": row["processes"],
         "seconds an update": f"{row['seconds_an_update']:.2f}", "updates timed": row["updates_timed"]}
        | {name: f"{row['parts'][part]:.2f}" if "parts" in row else "" for part, name in parts.items()}
        | {"peak of each [GiB]": _shown(row["peak_gib"]), "losses differ by": f"{run['difference'][str(row['processes'])]:.1g}"}
        for what, run in (("float16, 8-bit Adam", old), ("float16, 8-bit Adam", fp16), ("bfloat16, AdamW", whole)) for row in run["rows"]
    ]  # fmt: skip
    how, after = ", ".join(f"{name.replace('_', ' ')} {old['settings'][name]}" for name in ("batch", "solves_in_flight", "microbatch")), old["killed"]
    said = next(r["seconds"] for r in _read("dry_run")["rows"] if (r["path"], r["students"]) == ("flight", "both"))
    found = [
        f"At N = {whole['settings']['intervals']} two GPUs train {whole['speed_up']['2']:.2f} times as fast as one; with the older code, at N = {old['settings']['intervals']}, it was {old['speed_up']['2']:.2f} times.",
        f"For one GPU at N = {whole['settings']['intervals']} the dry run had said {said:.1f} s.",
        f"One GPU takes {fp16['rows'][0]['seconds_an_update'] / old['rows'][0]['seconds_an_update']:.2f} of the older code's time, in float16 with 8-bit Adam.",
        f"Killed after update {after['went_on_after']} (older code) and run again by {after['processes']} processes, losses differ by {old['difference_killed']:.1g}.",
    ]
    return f"CM and Direct CM side by side, a process a GPU; {how}.", rows, " ".join(found)
