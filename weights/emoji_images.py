"""Emoji as 64 x 64 images on white, each with its name as caption: the data of the study `emoji`.

    python weights/emoji_images.py data/emoji

Two npm packages have them: emoji-datasource-google (Noto, Apache License 2.0) and emoji-datasource-twitter (Twemoji,
CC-BY 4.0). They are fetched with npm, or taken from ``--packages FOLDER``, which holds the two .tgz files of ``npm pack``.
Below the folder lie ``train`` and ``held_out``, one image in ten by a hash of its name, each with a metadata.jsonl that
:func:`dcm.data.captions.captioned_images` reads, and ATTRIBUTION.txt. No image is part of this repository.
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

from dcm.support.errors import InputError, why
from dcm.support.files import write_text
from dcm.support.progress import tqdm

VERSION = "16.0.0"
VENDORS = {"google": "noto", "twitter": "twemoji"}
TONES = {"1F3FB": "light", "1F3FC": "medium light", "1F3FD": "medium", "1F3FE": "medium dark", "1F3FF": "dark"}
ATTRIBUTION = f"""\
Images and names: emoji-datasource-google and emoji-datasource-twitter {VERSION} by Cal Henderson (MIT License).
noto: Noto Emoji, Copyright Google Inc., Apache License 2.0.
twemoji: Twemoji, Copyright Twitter, Inc and other contributors, CC-BY 4.0. Both were put on a white background.
"""


def caption(name: str, tones: str, style: str) -> str:
    """What an emoji is called: ``waving hand sign, medium skin tone, noto style``."""
    shades = " and ".join(dict.fromkeys(TONES[tone] for tone in tones.split("-") if tone))
    return ", ".join(filter(None, (" ".join(name.lower().split()), shades and f"{shades} skin tone", f"{style} style")))


def listed(emoji: list[dict], vendor: str) -> list[tuple[str, str, str]]:
    """(file, caption, category) of every emoji of a vendor, with its skin tones."""
    every = [(e, entry, tones) for e in emoji for tones, entry in {"": e, **e.get("skin_variations", {})}.items()]
    named = [(entry["image"], caption(e["name"], tones, VENDORS[vendor]), e["category"]) for e, entry, tones in every if entry[f"has_img_{vendor}"]]
    return sorted(named)


def is_held_out(file: str, vendor: str) -> bool:
    """One image in ten, the same ones on every machine."""
    return hashlib.sha256(f"{vendor}/{file}".encode()).digest()[0] < 26


def on_white(data: bytes) -> Image.Image:
    """RGB (64 x 64) of a PNG with transparency."""
    image = Image.open(io.BytesIO(data)).convert("RGBA").resize((64, 64))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def lay_out(package: Path, vendor: str, folder: Path) -> dict[str, list[dict]]:
    """Write a vendor's images below `folder`; returns the metadata of each part. Raises :class:`InputError`."""
    made: dict[str, list[dict]] = {"train": [], "held_out": []}
    try:
        with tarfile.open(package) as archive:
            files = {m.name: m for m in archive.getmembers()}
            read = lambda name: archive.extractfile(files[f"package/{name}"]).read()  # type: ignore[union-attr]
            for file, text, category in tqdm(listed(json.loads(read("emoji.json")), vendor), desc=VENDORS[vendor], unit="image"):
                part = "held_out" if is_held_out(file, vendor) else "train"
                to = folder / part / VENDORS[vendor] / file
                to.parent.mkdir(parents=True, exist_ok=True)
                on_white(read(f"img/{vendor}/64/{file}")).save(to)
                made[part].append({"file_name": f"{VENDORS[vendor]}/{file}", "text": text, "category": category})
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise InputError(f"{package} is no emoji-datasource-{vendor} of npm ({why(error)}); fetch it with npm pack.") from None
    return made


def fetched(vendor: str, packages: Path | None, scratch: Path) -> Path:
    """The package's .tgz: one in `packages`, or what npm fetches into `scratch`. Raises :class:`InputError`."""
    name = f"emoji-datasource-{vendor}"
    if packages:
        there = sorted(packages.glob(f"{name}-*.tgz"))
        if not there:
            raise InputError(f"{packages} has no {name}-*.tgz; fetch it with npm pack {name}@{VERSION}.")
        return there[-1]
    if not shutil.which("npm"):
        raise InputError(f"npm is not installed; install it, or give --packages with the .tgz files of {name} and the other.")
    ran = subprocess.run(["npm", "pack", f"{name}@{VERSION}"], cwd=scratch, capture_output=True, text=True)
    if ran.returncode:
        raise InputError(f"npm could not fetch {name}@{VERSION} ({ran.stderr.strip().splitlines()[-1:] or 'no reason given'}).")
    return scratch / f"{name}-{VERSION}.tgz"


def main() -> None:
    """Fetch both packages and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages", type=Path, help="a folder with both .tgz files, in place of npm")
    asked = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            found = {vendor: fetched(vendor, asked.packages, Path(scratch)) for vendor in VENDORS}
            made = [lay_out(package, vendor, asked.folder) for vendor, package in found.items()]
    except InputError as error:
        sys.exit(str(error))
    for part in ("train", "held_out"):
        rows = [row for each in made for row in each[part]]
        write_text(asked.folder / part / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        print(f"{asked.folder / part}: {len(rows)} images")
    write_text(asked.folder / "ATTRIBUTION.txt", ATTRIBUTION)


if __name__ == "__main__":
    main()
