"""The examples of CONTRIBUTING.md are doctests."""

import doctest
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax.errors import ConfigError

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


@pytest.mark.analytic
@pytest.mark.usefixtures("as_users_call")
def test_the_examples_run():
    path = Path(__file__).parent.parent / "CONTRIBUTING.md"
    failed, tried = doctest.testfile(str(path), module_relative=False)
    assert tried > 10
    assert failed == 0


@pytest.fixture
def outside(tmp_path):
    """A folder with the modules that CONTRIBUTING.md shows; `forget` makes Python forget them."""
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, flags=re.S):
        (tmp_path / name).write_text(code)

    def forget():
        for name in [n for n in sys.modules if n.startswith("my_")]:
            del sys.modules[name]

    yield tmp_path, forget
    forget()


@pytest.mark.usefixtures("as_users_call")
def test_modules_outside_of_the_repository_train_and_sample(outside, flowjax, monkeypatch):
    folder, forget = outside
    assert len(list(folder.glob("my_*.py"))) == 5
    run, out = str(folder / "run"), folder / "a.npz"
    tiny = ("--config.train.steps=60", "--config.train.batch_size=32", "--config.train.log_every=20")
    code, result, err = flowjax("train", "--config", str(folder / "my_config.py"), "--workdir", run, *tiny)
    assert code == 0, err
    assert result["step"] == 60
    forget()

    own = "my_nets,my_losses"
    with pytest.raises(ConfigError, match="name its module with --plugins my_losses"):
        fj.load(run)
    assert not {"my_nets", "my_losses", "my_data"} & set(sys.modules)
    monkeypatch.chdir(folder)
    sample = ("sample", "--workdir", run, "--num", "64", "--out", str(out), "--plugins", own)
    code, result, err = flowjax(*sample, "--solver", "my_samplers:Ralston(0.75)", "--steps", "20")
    assert code == 0, err
    assert result["nfe"] == 40
    samples = np.load(out)["samples"]
    code, _, err = flowjax(*sample, "--solver", "dopri5")
    assert code == 0, err
    # order 2 with 20 steps, on a field that 60 steps of training have left smooth
    np.testing.assert_allclose(np.load(out)["samples"], samples, atol=0.05 * samples.std())

    forget()
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ConfigError, match="name its module with --plugins my_nets"):
        fj.load(run, plugins=("my_losses",))
    assert "my_nets" not in sys.modules
    loaded = fj.load(run, plugins=own.split(","))
    assert loaded.config.model.name == "my_nets:Residual"
    assert loaded.config.data.name == "my_data:spiral(1.25)"
    x = loaded.prior.sample(jax.random.key(0), 4)
    assert bool(jnp.isfinite(loaded.model().velocity(0.5, x)).all())
