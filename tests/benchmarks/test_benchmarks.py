"""The benchmarks' own arithmetic, and that their README is what their results say."""

import json
import sys
from pathlib import Path

import pytest
import tiny_sdxl
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import group_updates  # noqa: E402
import precision  # noqa: E402
import report  # noqa: E402
import targets  # noqa: E402
import targets_sdxl  # noqa: E402
import updates  # noqa: E402

from dcm.schedule import Grid  # noqa: E402
from dcm.solvers import solve  # noqa: E402
from dcm.support.files import read_json  # noqa: E402
from dcm.teachers.mixture import GaussianMixtureTeacher  # noqa: E402
from dcm.training.update import Update  # noqa: E402


def test_readme_shows_the_results_that_lie_beside_it():
    text, results = (BENCHMARKS / "README.md").read_text(), report.read_results()
    assert results and report.filled(text, results) == text
    for name, result in results.items():
        assert f"`{result['about']['command']}`" in text and result["about"]["device"] in text, name


def test_readme_without_its_marks_gets_one_sentence():
    with pytest.raises(SystemExit, match="lacks the line"):
        report.filled("nothing", {})


def test_command_is_the_one_that_writes_where_the_report_looks():
    found = report.command(["/x/benchmarks/targets.py", "sdxl", "--guidance", "9", "--out", "/tmp/some where/a.json"])
    assert found == "python benchmarks/targets.py sdxl --guidance 9 --out benchmarks/results/a.json"


def test_a_failed_way_leaves_the_others_and_the_file(tmp_path):
    made = report.Report(torch.device("cpu"), str(tmp_path / "a.json"))
    with made.way("broken"):
        raise RuntimeError("no such kernel")
    assert "no such kernel" in read_json(tmp_path / "a.json")["ways"][0]["failed"]
    made.add({"way": "first", "pairs a second": 2.0})
    made.add({"way": "second", "pairs a second": 5.0})
    assert [r.get("ratio of pairs a second") for r in read_json(tmp_path / "a.json")["ways"]] == [None, 1.0, 2.5]


@pytest.mark.parametrize("share, over, verdicts", [(0.6, 1.02, ["yes", "yes"]), (0.59, 1.03, ["no", "no"])])
def test_goals_are_judged_on_gpus_alone(share, over, verdicts):
    ways = [{"way": "in flight, 16 slots", "share of matrix-product rate": share, "over the minimum": over}]
    result = {"about": {"device": "NVIDIA H100 80GB HBM3"}, "ways": ways}
    assert [g["met"] for g in report.goals({"targets_sdxl_h100": result})] == verdicts
    assert not report.goals({"targets_sdxl_cpu": {"about": {"device": "x86_64, 1 thread"}, "ways": ways}})


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_papers_loop_makes_the_targets_of_plain_solving_at_a_higher_price(solver):
    teacher, grid, g = GaussianMixtureTeacher.interleaved_ring(), Grid(10), torch.Generator().manual_seed(0)
    x, n, c = torch.randn(16, 2, generator=g), torch.randint(1, 11, (16,), generator=g), torch.arange(16) % 2
    found, evaluations = targets.paper_loop(teacher, x, n, c, 3.0, solver, grid)
    plain = solve(teacher, x, n, c, 3.0, solver, grid)
    assert torch.allclose(found, plain.x, atol=1e-5)
    assert evaluations == plain.evaluations * int(n.max()) * 16 / int(n.sum())


def test_expected_steps_of_the_noisiest_member():
    """Against draws: their mean's standard error is 0.02 here."""
    n = torch.randint(1, 101, (100_000, 16), generator=torch.Generator().manual_seed(0))
    assert targets.longest_of(16, 100) == pytest.approx(float(n.max(1).values.double().mean()), abs=0.1)
    assert targets.longest_of(1, 100) == pytest.approx(50.5)


def test_flop_are_those_of_the_network_less_what_the_null_half_skips():
    """Cross-attention in the tiny network: queries, keys, values, output and both products of attention, by hand."""
    plain, skipping = targets_sdxl.evaluation_flops(tiny_sdxl.UNET, 8)
    skipped = 0
    unet = targets_sdxl.random_unet(tiny_sdxl.UNET, torch.device("cpu"), torch.float32)
    for path, attn in unet.named_modules():
        if path.endswith(".attn2"):
            d, text, tokens = attn.to_q.in_features, attn.to_k.in_features, 4 * 4
            skipped += 2 * (2 * tokens * d * d + 2 * 77 * text * d + 2 * tokens * 77 * d)
    assert skipped and plain - skipping == pytest.approx(skipped / 2)  # of two halves one skips it


def test_sdxl_benchmark_extrapolates_from_evaluations(tmp_path, monkeypatch):
    """The whole script at tiny size: pairs a second are evaluations a second over evaluations a pair of the real N."""
    (tmp_path / "unet.json").write_text(json.dumps(tiny_sdxl.UNET))
    monkeypatch.setattr(targets, "SOLVES", 5)
    options = "sdxl --device cpu --seconds 0 --intervals 20 --batch 4 --slots 4 --coarse 4 --ways flight reuse"
    paths = ["--unet", str(tmp_path / "unet.json"), "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["targets.py", *options.split(), *paths])
    targets.main()
    result = read_json(tmp_path / "out.json")
    paper, flight, reused = result["ways"]
    assert paper["teacher evaluations a pair"] == pytest.approx(2 * targets.longest_of(4, 20))
    assert 1 <= flight["over the minimum"] < 1.5 and reused["teacher evaluations a pair"] == 2 * 20 / 4
    for row in result["ways"]:
        expected = row["evaluations a second"] / row["teacher evaluations a pair"]
        assert row["pairs a second"] == pytest.approx(expected)
    assert result["about"]["targets: bf16 against paper"] < 1e-9


def test_update_benchmark_measures_every_way(tmp_path, monkeypatch):
    """The example's update runs too, and overhead is what is left of an update without its passes."""
    options = "digits --device cpu --seconds 0 --batch 2 --intervals 10 --out"
    monkeypatch.setattr(sys, "argv", ["updates.py", *options.split(), str(tmp_path / "out.json")])
    updates.main()
    rows = read_json(tmp_path / "out.json")["ways"]
    assert not [row for row in rows if "failed" in row]
    student, average, ours, teachers, own, overhead = (row["ms"] for row in rows)
    assert overhead == pytest.approx(ours - teachers - own) and min(student, average, ours, teachers, own) > 0
    assert rows[2]["ratio of updates a second"] == pytest.approx(student / ours)


def test_group_benchmark_measures_every_way_on_the_same_students(tmp_path, monkeypatch):
    options = "digits --device cpu --seconds 0 --students 3 --batch 2 --out"
    monkeypatch.setattr(sys, "argv", ["group_updates.py", *options.split(), str(tmp_path / "out.json")])
    losses, call = [], Update.__call__
    monkeypatch.setattr(Update, "__call__", lambda *a: losses.append(call(*a)) or losses[-1])
    group_updates.main()
    rows = read_json(tmp_path / "out.json")["ways"]
    assert [row["way"] for row in rows] == [name for name, *_ in group_updates.WAYS]
    assert rows[1]["ratio of student updates a second"] == pytest.approx(
        rows[0]["ms an update of the group"] / rows[1]["ms an update of the group"]
    )
    first = losses[:: len(losses) // len(rows)][: len(rows)]
    assert all(torch.equal(loss, first[0]) for loss in first) and first[0][0] != first[0][-1]  # a CM, a Direct CM


def test_the_examples_update_regresses_on_the_consistency_target():
    """Its one step of DDIM and its boundary conditions, against ours at its own timesteps."""
    data = {}

    class Drawn:
        def draw(self, generator, count):
            data["x_0"] = torch.randn(count, 1, 8, 8, generator=generator)
            return data["x_0"], torch.arange(count)

    teacher, _ = targets.make_teacher("digits", torch.device("cpu"))
    example = updates.Example(teacher, Drawn(), 3.0, 4, 10, torch.device("cpu"), averaged=False)
    torch.manual_seed(5)
    example.update()
    torch.manual_seed(5)
    noise = torch.randn(4, 1, 8, 8)
    index = torch.randint(0, 10, (4,))
    t = (index + 1) * 100 - 1  # the example counts timesteps from 0, as its network is told
    s = (t - 100).clamp(min=0)
    bar = example.noise_scheduler.alphas_cumprod
    a, b = (bar[v].sqrt().reshape(-1, 1, 1, 1) for v in (t, s))
    sigma, sigma_s = (1 - a**2).sqrt(), (1 - b**2).sqrt()
    x = a * data["x_0"] + sigma * noise
    network = lambda y, at, labels: teacher.unet(y, at, class_labels=labels).sample
    with torch.no_grad():
        labels = torch.arange(4)
        v, v_null = network(x, t, labels), network(x, t, torch.full((4,), 10))
        guided = v_null + 3 * (v - v_null)
        y = b * (a * x - sigma * guided) + sigma_s * (a * guided + sigma * x)
        v_s = network(y, s, labels)
        skip = lambda at: (0.25 / ((10 * at) ** 2 + 0.25)).reshape(-1, 1, 1, 1)
        out = lambda at: (10 * at / ((10 * at) ** 2 + 0.25) ** 0.5).reshape(-1, 1, 1, 1)
        own = skip(t) * x + out(t) * (a * x - sigma * v)
        target = skip(s) * y + out(s) * (b * y - sigma_s * v_s)
    assert example.logs["loss"] == pytest.approx(float((own - target).square().mean()), rel=1e-3)


def test_precision_benchmark_compares_with_float32(tmp_path, monkeypatch):
    """On a CPU, which has no FP8: that way says so, and the others are there."""
    options = "--device cpu --seconds 0 --samples 1 --intervals 2 --guidance 2 --precisions float32 bf16 fp8 --out"
    monkeypatch.setattr(sys, "argv", ["precision.py", *options.split(), str(tmp_path / "out.json")])
    precision.main()
    exact, rounded, impossible = read_json(tmp_path / "out.json")["ways"]
    key = "relative squared difference, w = 2"
    assert exact[key] == 0 and 1e-9 < rounded[key] < 1e-2 and "needs a GPU" in impossible["failed"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_where_a_gpus_time_goes_adds_up():
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    found = report.kernels(lambda: [a @ a for _ in range(8)])
    assert sum(found["share"].values()) == pytest.approx(1) and found["share"]["matrix products"] > 0.9
    assert 0 < found["busy"] < 1.2 and found["total [ms]"] > 0.5
