import sys

import pandas as pd
import pytest

from dcm.support.files import ROOT

sys.path.insert(0, str(ROOT / "workflow"))
import learning_rates  # noqa: E402


def test_the_rate_of_the_lowest_own_error_at_the_end_is_chosen(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    text = (ROOT / "workflow/config/smoke.yaml").read_text().replace("runs/smoke/gmm", str(tmp_path / "run"))
    config.write_text(text.replace("results/local/smoke", str(tmp_path / "results")))
    learning_rates.main([str(config), "--lr", "1e-6", "2e-3", "--seeds", "1000", "1001", "--samples", "64"])
    rows = pd.read_csv(tmp_path / "run/rates/main.csv")
    assert set(rows.seed) == {1000, 1001} and set(rows.lr) == {1e-6, 2e-3} and set(rows.method) == {"CM", "Direct CM"}
    assert list(learning_rates.choose(rows).lr) == [2e-3, 2e-3]  # at the other one nothing is learnt
    assert "Direct CM" in capsys.readouterr().out


def test_ties_go_to_the_lower_rate_and_a_rising_error_is_named():
    setting = dict(group="main", solver="ddim", intervals=10, guidance=2.0, horizon=1, method="CM", seed=1000, steps=1)
    errors = {(1e-3, 5): 0.1, (1e-3, 10): 0.2, (1e-4, 5): 0.3, (1e-4, 10): 0.2, (1e-2, 5): 0.05, (1e-2, 10): 0.3}
    rows = pd.DataFrame(setting | {"lr": lr, "update": u, "ode_error": e} for (lr, u), e in errors.items())
    [chosen] = learning_rates.choose(rows).itertuples()
    assert chosen.lr == 1e-4 and chosen.stable
    [unstable] = learning_rates.choose(rows[rows.lr > 1e-4]).itertuples()
    assert unstable.lr == 1e-3 and not unstable.stable


def test_an_unknown_group_is_named():
    with pytest.raises(SystemExit, match="InputError: group = 'nothing' is not in .*allowed: main, guidance"):
        learning_rates.main(["workflow/config/smoke.yaml", "--group", "nothing", "--lr", "1e-3"])
