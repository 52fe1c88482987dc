"""Tables of docs/sdxl.md: the dress rehearsals, by one process and by two, side by side (``make sdxl-rehearsal``)."""

import json
from pathlib import Path

SDXL = Path(__file__).parents[1] / "results/sdxl"


def records() -> list[dict]:
    """The rehearsal by one process, and that by two."""
    return [json.loads((SDXL / f"rehearsal_{n}.json").read_text()) for n in ("one", "two")]


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 20 else f"{value:.3g}"


def stages() -> tuple[str, list[list[dict]]]:
    """What was rehearsed; tables of what each stage took, what each kind of work takes, and the hours of the whole run."""
    (one, two), named = records(), ("1 GPU", "2 GPUs")
    said = [f"{n}: {r['processes']} x {r['device']}, {r['settings']} (commit {r['commit'][:7]})." for n, r in zip(named, (one, two))]
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
    """How training was rehearsed; one process against two; a killed training."""
    found = records()[1]["training"]
    rows = [
        {"processes, one a GPU": n, "seconds an update": _shown(row["seconds_an_update"]), "speed-up": _shown(found["speed_up"][n]),
         "peak of each [GiB]": _shown(row["peak_gib"]), "losses differ by": f"{found['difference'][n]:.1g}"}
        for row in found["rows"] for n in [str(row["processes"])]
    ]  # fmt: skip
    how, after = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found["settings"].items()), found["killed"]
    went_on = f"Killed after update {after['went_on_after']} and run again by {after['processes']} processes: losses differ by {found['difference_killed']:.1g}."
    return f"CM and Direct CM side by side; {how}.", rows, went_on
