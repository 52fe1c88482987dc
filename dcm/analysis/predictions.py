"""The predictions of docs/preregistration.md, held against measured rows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dcm.analysis import switch
from dcm.analysis.compare import CONFIDENCE, STABLE, paired_t, stability
from dcm.analysis.measured import final_one_step
from dcm.analysis.runs import SETTING_OF_RUN, Results, measures
from dcm.analysis.switch import PLAIN, SWITCH, UNBLURRED

HELD, FAILED, OPEN = "held", "failed", "open"
# What a group may differ in from the main group and still have its place in a sweep over guidance and grid.
FREE = set("solver intervals guidance horizons seeds group_name lr lr_decay snapshots steps samples evaluation_seed".split())
FREE |= set("checkpoint_seconds updates_per_solve solves_in_flight run_dir device threads".split())
LONG, ADAPTED, CIFAR_LONG = "emoji trained longer", "CIFAR-10 with LoRA", "CIFAR-10 trained longer"
# By parameters of the main group and its teacher.
SCALES: dict[str, dict] = {
    ADAPTED: {"study": "cifar10", "lora_rank": 64}, CIFAR_LONG: {"study": "cifar10", "updates": 15000},
    "CIFAR-10": {"study": "cifar10"}, "digits": {"study": "digits"},
    "emoji": {"model": "weights/emoji", "updates": 250}, "emoji on two cores": {"model": "weights/emoji", "updates": 48},
    LONG: {"model": "weights/emoji", "updates": 1000},
    "16-D mixture": {"study": "gmm", "dimension": 16, "modes": 12}, "2-D mixture": {"study": "gmm", "dimension": 2, "modes": 3},
}  # fmt: skip
FIRST, PLAINLY, FILTERED = (next(iter(pairs)) for pairs in (SWITCH, PLAIN, UNBLURRED))
CLAIMS = ("error", -1), ("teacher", 1)
NEAR = np.log(1.1)


Test = tuple[int, float, float, bool]  # a comparison: the stated sign, its value and p, and whether the CM is stable


class Ratio(NamedTuple):
    """That a ratio is above 1 (`sign` 1) or below; of the measures of a role. `intervals` N, `guidance` w."""

    scale: str
    pair: str
    role: str
    sign: int
    intervals: int = 10
    guidance: float = 2

    def tests(self, found: list[Results], table: pd.DataFrame) -> Iterator[Test]:
        """A comparison a measure; none where there is no such setting among the results `found`, of :func:`outcomes`."""
        if place := _place(found, self.scale, self.intervals, self.guidance):
            for e in switch.at(table[(table.pair == self.pair) & (table.role == self.role)], place[1]).itertuples():
                yield self.sign, e.value - 1, e.p, e.cm == STABLE


class Lower(NamedTuple):
    """That the distance's ratio D>D / D>CM is lower at (N, w) = `there` than at `here`, or there at another scale."""

    scale: str
    here: tuple[int, float]
    there: tuple[int, float]
    other: str = ""

    def tests(self, found: list[Results], table: pd.DataFrame) -> Iterator[Test]:
        """As of :class:`Ratio`, by differences between log ratios of one seed."""
        here, there = _place(found, self.scale, *self.here), _place(found, self.other or self.scale, *self.there)
        if here and there:
            before, after = (_log_ratios(place, FIRST) for place in (here, there))
            for column in (c for c in before if c in after):
                if len(change := (after[column] - before[column]).dropna()):
                    yield -1, (e := paired_t(change.to_numpy())).value, e.p, _stable(here, there)


class Near(NamedTuple):
    """That the distance's ratio by a pair is within 10 % of that by `other`, at N = 10 and w = 2."""

    scale: str
    pair: str
    other: str

    def tests(self, found: list[Results], table: pd.DataFrame) -> Iterator[Test]:
        """Two one-sided tests: that the logarithm of the quotient is above -:data:`NEAR`, and below that."""
        if place := _place(found, self.scale, 10, 2):
            one, other = (_log_ratios(place, pair) for pair in (self.pair, self.other))
            for quotient in ((one[column] - other[column]).dropna().to_numpy() for column in one):
                for sign, e in ((sign, paired_t(quotient + sign * NEAR)) for sign in (1, -1) if len(quotient)):
                    yield sign, e.value, e.p / 2, _stable(place)


class Follows(NamedTuple):
    """That where a distance is decided from equal weights, the error after its encoder lies to the same side of 1."""

    scale: str
    intervals: int
    guidance: float

    def tests(self, found: list[Results], table: pd.DataFrame) -> Iterator[Test]:
        """A comparison a pair of the switch and decided distance; none where nothing is decided."""
        if place := _place(found, self.scale, self.intervals, self.guidance):
            rows = switch.beside_errors(switch.at(table[table.pair.isin(SWITCH)], place[1]))
            for e in rows[rows.verdict.isin(["supported", "contradicted"])].itertuples():
                yield (1 if e.value > 1 else -1), e.value_there - 1, e.p_there, e.cm == STABLE


class Stable(NamedTuple):
    """That the CM is stable with DDIM at N and w, or is not (`sign` -1)."""

    scale: str
    intervals: int
    guidance: float
    sign: int = 1

    def tests(self, found: list[Results], table: pd.DataFrame) -> Iterator[Test]:
        """One, by :func:`dcm.analysis.compare.stability`, which has no p."""
        if place := _place(found, self.scale, self.intervals, self.guidance):
            yield self.sign, 1.0 if _stable(place) else -1.0, 0.0, True


def both(scale: str, *roles: str) -> list[Ratio]:
    """That both claims hold by both pairs of the switch."""
    return [Ratio(scale, pair, role, -1 if role == "error" else 1) for pair in SWITCH for role in ("error", *roles)]


HARD = ("CIFAR-10", "digits", "16-D mixture")
BETWEEN = [("Direct CM", "error", 1), ("direct>cm", "error", -1), ("Direct CM", "teacher", -1), ("direct>cm", "teacher", 1)]
STEPS = [Lower("16-D mixture", (10, a), (10, b)) for a, b in ((1, 2), (2, 4), (4, 9))]
PREDICTIONS: dict[int, tuple[str, Sequence[Ratio | Lower | Near | Follows | Stable]]] = {
    1: ("CIFAR-10: both claims, both pairs, every encoder", both("CIFAR-10", "teacher")),
    2: ("digits: the same", both("digits", "teacher")),
    3: ("16-D mixture: the same, to data too", both("16-D mixture", "teacher", "data")),
    4: ("2-D mixture: C1 holds, C2 is contradicted (D>D / D>CM)", [Ratio("2-D mixture", FIRST, r, -1) for r in ("error", "teacher")]),
    5: ("CIFAR-10: direct>cm is best, by every encoder", [Ratio("CIFAR-10", f"direct>cm / {m}", "teacher", -1) for m in ("CM", "Direct CM")]),
    6: ("CIFAR-10: C1 fails in feature space (D>D / D>CM)", [Ratio("CIFAR-10", FIRST, "features", 1)]),
    7: (
        "C2 falls with guidance; at w = 9 it is contradicted in 16-D",
        [*STEPS, Ratio("16-D mixture", FIRST, "teacher", -1, 10, 9), *(Lower(s, (10, 2), (10, 9)) for s in HARD[:2])],
    ),
    8: ("C2 is lower at N = 50 than at N = 10", [Lower(s, (10, 2), (50, 2)) for s in HARD]),
    9: ("anneal lies between", [Ratio(s, f"anneal / {m}", role, sign) for s in HARD for m, role, sign in BETWEEN]),
    10: ("CIFAR-10: linear blur does not explain C2", [Ratio("CIFAR-10", FILTERED, "teacher", 1), Near("CIFAR-10", FILTERED, FIRST)]),
    14: ("CIFAR-10, N = 50: both claims (D>D / D>CM)", [Ratio("CIFAR-10", FIRST, r, s, 50) for r, s in CLAIMS]),
    15: ("CIFAR-10, N = 50: C2 is lower at w = 9 than at w = 2", [Lower("CIFAR-10", (50, 2), (50, 9))]),
    26: ("CIFAR-10, N = 10, w = 9: the CM is stable", [Stable("CIFAR-10", 10, 9)]),
    27: ("LoRA on CIFAR-10, N = 100, w = 9: both claims (D>D / D>CM)", [Ratio(ADAPTED, FIRST, r, s, 100, 9) for r, s in CLAIMS]),
    28: ("the same, plain: the Direct CM is better in both", [Ratio(ADAPTED, PLAINLY, r, -1, 100, 9) for r, _ in CLAIMS]),
    29: (
        "CIFAR-10, N = 50 and LoRA: in two steps C2 is reversed (D>D / D>CM)",
        [Ratio(s, f"{FIRST}, 2 steps", "teacher", -1, n, w) for s, n, w in (("CIFAR-10", 50, 2), ("CIFAR-10", 50, 9), (ADAPTED, 100, 9))],
    ),
    30: ("emoji on two cores, N = 10, w = 2: both claims (D>D / D>CM)", [Ratio("emoji on two cores", FIRST, r, s) for r, s in CLAIMS]),
    31: ("emoji, LoRA, N = 100, w = 2: both claims (D>D / D>CM)", [Ratio("emoji", FIRST, r, s, 100) for r, s in CLAIMS]),
    32: ("emoji, LoRA, N = 100, w = 9: the CM is not stable", [Stable("emoji", 100, 9, -1)]),
    33: (
        "emoji, N = 10 and 100, w = 2: in two steps C2 is reversed (D>D / D>CM)",
        [Ratio(s, f"{FIRST}, 2 steps", "teacher", -1, n) for s, n in (("emoji on two cores", 10), ("emoji", 100))],
    ),
    34: ("emoji trained longer, N = 100, w = 9 and 2: the CM is stable", [Stable(LONG, 100, w) for w in (9, 2)]),
    35: ("the same, w = 2: both claims (D>D / D>CM)", [Ratio(LONG, FIRST, r, s, 100) for r, s in CLAIMS]),
    36: ("the same, w = 9: C1 holds, C2 does not come back (D>D / D>CM)", [Ratio(LONG, FIRST, r, -1, 100, 9) for r, _ in CLAIMS]),
    37: ("the same, w = 9: C2 is higher than with the paper's numbers", [Lower(LONG, (100, 9), (100, 9), "emoji")]),
    38: ("CIFAR-10 trained longer: the CM is stable", [Stable(CIFAR_LONG, 10, 2)]),
    39: ("the same: both claims (D>D / D>CM)", [Ratio(CIFAR_LONG, FIRST, r, s) for r, s in CLAIMS]),
    40: ("the same: C2 is lower than in 1,600 updates", [Lower("CIFAR-10", (10, 2), (10, 2), CIFAR_LONG)]),
    41: ("CIFAR-10, N = 50, w = 9: anneal is better than the Direct CM", [Ratio("CIFAR-10", "anneal / Direct CM", "teacher", -1, 50, 9)]),
    45: ("digits, (N, w) = (10, 3) and (50, 9): C2's sign is that of the error after the encoder", [Follows("digits", 10, 3), Follows("digits", 50, 9)]),
    46: ("16-D mixture, w = 3: C2 lies between those of w = 2 and 4", [Lower("16-D mixture", (10, a), (10, b)) for a, b in ((2, 3), (3, 4))]),
}  # fmt: skip


def scale_of(results: Results) -> str | None:
    """Which of :data:`SCALES` a run is at; None for one of others."""
    of = results.teacher | results.groups[results.main].model_dump()
    return next((name for name, parameters in SCALES.items() if parameters.items() <= of.items()), None)


def _place(found: list[Results], scale: str, intervals: int, guidance: float) -> tuple[Results, pd.Series] | None:
    """The setting of a scale with DDIM at N and w: of the main group, or of one that trains as that does."""
    for results in found:
        if scale_of(results) != scale or not len(settings := switch.settings(results)):
            continue
        how = {name: p.model_dump(exclude=FREE) for name, p in results.groups.items()}
        main = how[results.main]
        at = (settings.solver == "ddim") & (settings.intervals == intervals) & (settings.guidance == guidance)
        for _, setting in settings[at & settings.group.map(lambda group: how[group] == main)].iterrows():
            return results, setting
    return None


def _log_ratios(place: tuple[Results, pd.Series], pair: str) -> dict[str, pd.Series]:
    """By distance to the teacher's samples: log ratios by seed."""
    results, setting = place
    rows = switch.at(pd.concat([final_one_step(results.rows), switch.filtered(results)]), setting)
    columns = [c for c, (role, _) in measures(results.study).items() if role == "teacher" and c in rows]
    return {c: switch.log_ratios(rows, (SWITCH | UNBLURRED)[pair], c) for c in columns}


def _stable(*places: tuple[Results, pd.Series]) -> bool:
    return all(stability(r.rows, SETTING_OF_RUN)[tuple(s)] == STABLE for r, s in places)


def outcome(parts: Sequence[list[Test]]) -> tuple[str, str]:
    """Whether a prediction of these parts held, failed or is open, and how many comparisons have the stated sign.

    It holds where every part was measured and every comparison has the stated sign at the 5 % level, and fails where one has
    the other sign at that level. One whose CM is not stable says nothing.
    """
    tests = [test for part in parts for test in part]
    clear = [sign * value > 0 for sign, value, p, stable in tests if stable and p < 1 - CONFIDENCE]
    state = FAILED if not all(clear) else HELD if all(parts) and len(clear) == len(tests) else OPEN
    if not tests:
        return state, "not measured here"
    counts = {
        "the other way": clear.count(False), "without a stable CM": sum(not stable for *_, stable in tests),
        f"of {len(parts)} parts not measured here": sum(not part for part in parts),
    }  # fmt: skip
    told = [f"{count} {words}" for words, count in counts.items() if count]
    return state, "; ".join([f"{sum(clear)} of {len(tests)} comparisons as predicted", *told])


def outcomes(found: list[Results], table: pd.DataFrame) -> pd.DataFrame:
    """A row a prediction: its :func:`outcome`. `table` has the :func:`dcm.analysis.switch.effects` of all results."""
    out = []
    for number, (says, parts) in PREDICTIONS.items():
        state, comparisons = outcome([list(part.tests(found, table)) for part in parts])
        out.append({"prediction": number, "says": says, "outcome": state, "comparisons": comparisons})
    return pd.DataFrame(out)
