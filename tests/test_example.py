"""What README and docs show runs as it stands, and `from dcm import ..` finds what they use without slow imports."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dcm

ROOT = Path(__file__).parents[1]
MARK = "<!-- example -->"
SLOW = ("diffusers", "seaborn", "papermill", "matplotlib", "torchvision", "transformers", "scipy")


def example() -> str:
    """The code block of README.md that follows the mark."""
    text = (ROOT / "README.md").read_text()
    found = re.search(re.escape(MARK) + r"\s*```python\n(.*?)```", text, re.DOTALL)
    assert found, f"README.md has no python block after {MARK}"
    return found[1]


def test_the_readmes_example_is_short_and_shows_the_lower_ode_error_of_the_direct_cm(capsys):
    code = example()
    assert sum(bool(line.strip()) for line in code.splitlines()) < 15
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})
    errors = {int(h): float(error) for h, error in re.findall(r"h = (\d+): ODE error ([0-9.]+)", capsys.readouterr().out)}
    assert sorted(errors) == [1, 10] and errors[10] < errors[1] < 1


def test_the_objective_on_a_diffusers_unet(capsys):
    """Both students are trained from the teacher's weights, by losses that differ, and give finite images."""
    path = ROOT / "docs/example_unet.py"
    assert len(path.read_text().splitlines()) < 40
    torch.manual_seed(0)
    made = runpy.run_path(str(path))
    assert capsys.readouterr().out.count("losses of CM and Direct CM") == 3
    loss, images = made["state"].loss, made["images"]
    assert images.shape == (2, 4, 1, 8, 8) and images.isfinite().all() and not torch.equal(images[0], images[1])
    assert loss.isfinite().all() and loss[0] != loss[1]
    for network in made["students"].networks:
        pairs = zip(network.parameters(), made["teacher"].parameters())
        assert any(not torch.equal(own, start) for own, start in pairs)


def test_every_public_name_is_there_and_typed():
    """What type checkers are told is what is imported."""
    typed = {}
    for node in ast.walk(ast.parse(Path(dcm.__file__).read_text())):
        if isinstance(node, ast.If):
            typed |= {a.name: i.module for i in node.body if isinstance(i, ast.ImportFrom) for a in i.names}
    assert typed == dcm._HOME and set(typed) <= set(dir(dcm))
    for name, module in dcm._HOME.items():
        assert getattr(dcm, name) is getattr(sys.modules[module], name)
    with pytest.raises(AttributeError, match="no attribute 'grid'; its names: .*Grid"):
        dcm.grid  # noqa: B018


def test_importing_is_cheap():
    """`import dcm` takes nothing along, not even torch; the public names take no slow library."""
    code = (
        "import sys, dcm\nassert 'torch' not in sys.modules\n"
        "import dcm.support.errors\nassert 'torch' not in sys.modules\n"
        f"for name in dcm._HOME: getattr(dcm, name)\nprint([m for m in {SLOW} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
