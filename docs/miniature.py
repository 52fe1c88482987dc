"""Tables of docs/emoji.md: the small model of SDXL's kind, and what the study on it measured."""

import json
from pathlib import Path

import pandas as pd

from dcm.analysis.compare import interval
from dcm.analysis.switch import SWITCH

ROOT = Path(__file__).parents[1]
# By run and group.
SHOWN = {
    ("emoji_paper", "paper"): "the paper's: adapters, N = 100, w = 9", ("emoji", "main"): "the same, w = 2",
    ("emoji", "full"): "full fine-tuning, w = 2, a tenth of the rate", ("emoji", "euler"): "the paper's, Euler",
    ("emoji", "heun"): "the paper's, Heun",
    ("emoji_long", "main"): "trained longer, w = 9", ("emoji_long", "w2"): "trained longer, w = 2",
    ("emoji_cpu", "main"): "two cores: adapters, N = 10, w = 2",
}  # fmt: skip
METHODS = ["Direct CM", "direct>cm", "cm>direct", "CM"]


def _report() -> dict:
    return json.loads((ROOT / "weights/emoji/report.json").read_text())


def model() -> list[dict]:
    """What it is, beside SDXL."""
    about = _report()
    size, trained = about["parameters"], about["training"]
    million, text = lambda n: f"{n / 1e6:.2f} million", size["text_encoder"] + size["text_encoder_2"]
    minutes, updates = trained["minutes"], trained["updates"]
    lines = [
        ("UNet", "2.57 billion parameters", f"{million(size['unet'])}, same block types, attention at two of three resolutions"),
        ("text encoders", "0.82 billion, 77 tokens", f"{million(text)}, 24 tokens, trained with the UNet; a tokenizer of the captions' words"),
        ("autoencoder", "1024 pixels to 4 x 128 x 128", f"{million(size['vae'])}; 64 pixels to 4 x 16 x 16"),
        ("data", "an internal set", f"{trained['images']:,} images, a caption each"),
        ("training", "800,000 updates of 2,048 (Podell et al. 2023), then more at 1024 pixels", f"{minutes[0]:g} and {minutes[1]:g} minutes: {updates[0]:,} updates of the autoencoder, {updates[1]:,} of the rest"),
        ("on disk, float16", "7 GB", f"{2 * sum(size.values()) / 1e6:.1f} MB"),
    ]  # fmt: skip
    return [{"": name, "SDXL": theirs, "here": ours} for name, theirs, ours in lines]


def quality() -> tuple[str, list[dict]]:
    """How good it is: what was measured, and the table."""
    good = _report()["quality"]
    said = f"Quality on {good['images']} held-out captions, {good['steps']} steps; distances are to their images, in EfficientNet-Lite0's features, and a classifier of ten categories tells which one a sample shows:"
    named = [(name, of["Frechet distance"], f"{of['in their category']:.1%}") for name, of in good.items() if isinstance(of, dict)]
    named.append(("as many training images in place of samples", good["Frechet distance of as many training images"], ""))
    named.append(("held-out images in place of samples", "", f"{good['held-out images put into their category']:.1%}"))
    return said, [dict(zip(("samples of held-out captions", "Frechet distance", "in their category"), line)) for line in named]


def ratios(pairs: tuple[str, ...] = (*SWITCH, "Direct CM / CM")) -> list[dict]:
    """The claims by setting: of the switch, and both trained whole, or of other `pairs`."""
    found, lines = pd.read_csv(ROOT / "results/switch/verdicts.csv"), []
    for (run, group), says in SHOWN.items():
        for pair in pairs:
            rows = found[(found.run == run) & (found.group == group) & (found.pair == pair)]
            told = {row.label: f"{interval(row)} {row.verdict}" for row in rows[rows.role.isin(["error", "teacher"])].itertuples()}
            if told:
                lines.append({"setting": says, "pair": pair} | {label.removeprefix("distance to teacher, "): text for label, text in told.items()})
    return lines


def shares() -> str:
    """How often the third term of log C2 speaks against the Direct CM, here and on CIFAR-10."""
    terms = pd.read_csv(ROOT / "results/switch/accounting.csv")
    count = lambda runs: f"{(terms[terms.run.isin(runs)].share > 0).sum()} of {terms.run.isin(runs).sum()}"
    return f"That term is above 0, against the Direct CM, in {count(['cifar10', 'cifar10_w9'])} comparisons on CIFAR-10, and in {count(['emoji', 'emoji_paper', 'emoji_long'])} here."


def while_training() -> list[dict]:
    """ODE errors in one step by update, means over seeds."""
    runs, lines = ("emoji_paper", "emoji", "emoji_long"), []
    rows = pd.concat([pd.read_csv(ROOT / "results" / run / "metrics.csv").assign(run=run) for run in runs]).query("steps == 1")
    updates = sorted(rows["update"].unique())
    for (run, group), says in ((of, says) for of, says in SHOWN.items() if of[0] in runs):
        for method in METHODS:
            means = rows[(rows.run == run) & (rows.group == group) & (rows.method == method)].groupby("update").ode_error.mean()
            if len(means):
                cells = {str(u): f"{means[u]:.3f}" if u in means else "" for u in updates}
                lines.append({"setting": says, "method": method} | cells)
    return lines
