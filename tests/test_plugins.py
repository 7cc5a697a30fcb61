"""Objects from modules outside flowjax, which are imported only if the user has named their module."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax as fj
from flowjax import predictions
from flowjax.arguments import make, separate
from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import changed, defaults, resolve
from flowjax.config_files import load_config
from flowjax.data import DataSpec, open_dataset
from flowjax.errors import ConfigError, check_name
from flowjax.interop.weights import Weights, save_weights
from flowjax.methods import Context
from flowjax.names import COUPLING, SCHEDULE, SCHEDULES, make_schedule
from flowjax.plugins import Kind, Outside, import_module, is_outside, modules_of
from flowjax.schedules import CondOT
from tests.conftest import TINY

MARKED = """
import functools
from pathlib import Path
Path(__file__).with_name("imported").touch()

from flax import nnx
from flowjax.schedules import CondOT
from os import remove

class Net(nnx.Module):
    def __init__(self, shape, width=4, name="net", *, rate: float = 0.5, sizes=(1, 2), rngs):
        pass

class Renamed(CondOT):
    pass

def linear() -> CondOT:
    return CondOT()

def wrong() -> CondOT:
    return 5

def wipe(folder):
    Path(folder, "wiped").touch()
    return CondOT()

@functools.cache
def cached() -> "CondOT":
    return CondOT()

late = functools.partial(linear)

half = CondOT()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `marked_package` with a module `nets`, whose import writes a file."""
    folder = tmp_path / "marked_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "nets.py").write_text(MARKED)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield SimpleNamespace(imported=lambda: (folder / "imported").exists(), folder=folder)
    for name in [n for n in sys.modules if n.partition(".")[0] == "marked_package"]:
        del sys.modules[name]


@pytest.fixture
def stranger(tiny_run, tmp_path):
    """`stranger(section, key, value)`: a copy of a run, with another value in its config."""

    def changed(key: str, value: str) -> Path:
        record = json.loads((Path(tiny_run) / "config.json").read_text())
        section, _, leaf = key.partition(".")
        if leaf:
            record["config"][section][leaf] = value
        else:
            record["config"][section] = value
        run = tmp_path / "stranger"
        run.mkdir(exist_ok=True)
        (run / "config.json").write_text(json.dumps(record))
        if not (run / "checkpoints").exists():
            (run / "checkpoints").symlink_to(Path(tiny_run) / "checkpoints")
        return run

    return changed


KEYS = ["model.name", "method.name", "source.name", "path.name", "path.schedule", "coupling.name", "prediction"]


@pytest.mark.parametrize("key", KEYS)
def test_a_run_imports_nothing_that_the_caller_has_not_named(key, package, stranger):
    run = stranger(key, "marked_package.nets:Net")
    for plugins in ((), ("marked",), ("marked_package.other",), ("marked_package.nets2", "package")):
        with pytest.raises(ConfigError) as error:
            fj.load(run, plugins=plugins)
        assert str(error.value) == (
            f"{key}: the run was trained with marked_package.nets:Net; name its module with --plugins "
            "marked_package.nets if you trust it"
        )
    assert not package.imported()
    assert not [name for name in sys.modules if name.startswith("marked_package")]


def test_the_data_of_a_run_are_opened_without_imports(package, stranger, flowjax):
    run = fj.load(stranger("data.name", "marked_package.nets:linear"))  # its data set is not needed
    with pytest.raises(ConfigError, match=r"data.name: the run was trained with marked_package"):
        open_dataset(run.config.data.name, plugins=run.plugins)
    code, _, err = flowjax("evaluate", "--workdir", str(run.workdir))
    assert code == 2
    assert "name its module with --plugins marked_package" in err
    assert not package.imported()


@pytest.mark.parametrize("command", ["sample", "likelihood", "evaluate", "export"])
def test_a_command_says_in_one_line_which_module_is_missing(command, stranger, flowjax, tmp_path):
    run = stranger("path.schedule", "os:system('touch harmed')")
    out = (
        ()
        if command == "evaluate"
        else ("--out", str(tmp_path / f"a{'.safetensors' if command == 'export' else '.npz'}"))
    )
    code, result, err = flowjax(command, "--workdir", str(run), *out)
    assert (code, result) == (2, None)
    assert (
        err.strip()
        .splitlines()[-1]
        .endswith("the run was trained with os:system; name its module with --plugins os if you trust it")
    )
    assert not Path("harmed").exists()
    code, _, err = flowjax(command, "--workdir", str(run), *out, "--plugins", "no_such_module_here")
    assert code == 2
    assert "--plugins: there is no module no_such_module_here" in err


def test_an_object_of_another_kind_is_refused(package):
    """Also where its module is allowed; functions that a module has imported from elsewhere are not called.

    A function is called with the arguments of the config only if its return annotation is a class of the kind.
    """
    allowed = ("marked_package", "os")
    with pytest.raises(ConfigError, match=r"must be a schedule with alpha, sigma, .*, and it is not"):
        make_schedule("marked_package.nets:Net", plugins=allowed)
    for name in ("os:system('touch harmed')", "marked_package.nets:remove('harmed')"):
        with pytest.raises(ConfigError, match=r"is defined in (posix|nt), which is not allowed"):
            make_schedule(name, plugins=allowed)
    with pytest.raises(ConfigError, match=r"or a function whose return annotation is Schedule"):
        make_schedule(f"marked_package.nets:wipe({str(package.folder)!r})", plugins=allowed)
    assert not Path("harmed").exists()
    assert not (package.folder / "wiped").exists()
    with pytest.raises(ConfigError, match="it must return a schedule, not a int"):
        make_schedule("marked_package.nets:wrong", plugins=allowed)
    with pytest.raises(ConfigError, match="has no Rename; did you mean Renamed"):
        make_schedule("marked_package.nets:Rename", plugins=allowed)
    with pytest.raises(ConfigError, match=r"a subclass of flax.nnx.Module"):
        resolve({"model": {"name": "marked_package.nets:linear"}}, allowed)
    with pytest.raises(ConfigError, match="a coupling with"):
        make("coupling.name", "marked_package.nets:half", {}, outside=Outside(COUPLING, allowed))
    with pytest.raises(ConfigError, match="is an object already and takes no arguments"):
        make_schedule("marked_package.nets:half(1)", plugins=allowed)
    with pytest.raises(ConfigError, match="is written MODULE:OBJECT"):
        make_schedule("marked_package.nets:half.t_max", plugins=allowed)


def test_classes_functions_and_objects_are_found(package):
    for name in ("Renamed", "linear", "half", "Renamed()", "cached", "late()"):
        schedule = make(
            "path.schedule", f"marked_package.nets:{name}", SCHEDULES, outside=Outside(SCHEDULE, ("marked_package",))
        )
        assert jnp.allclose(schedule.alpha(0.25), 0.25)
    assert package.imported()


def test_a_broken_module_is_one_line(package):
    (package.folder / "broken.py").write_text("import not_there_at_all\n")
    with pytest.raises(ConfigError, match=r"marked_package.broken cannot be imported: ModuleNotFoundError"):
        make_schedule("marked_package.broken:A", plugins=("marked_package",))
    with pytest.raises(ConfigError, match=r"there is no module marked_package.gone"):
        make_schedule("marked_package.gone:A", plugins=("marked_package",))


def test_the_keys_of_a_network_are_those_of_its_constructor(package):
    config = defaults("marked_package.nets:Net")  # naming it here allows it
    assert config.model.to_dict() == {"name": "marked_package.nets:Net", "width": 4, "rate": 0.5, "sizes": (1, 2)}
    config.model.sizes = (3,)
    assert resolve(config, ("marked_package",)).model.sizes == (3,)
    for key, value, message in (("width", 0.5, "whole number"), ("depth", 2, "depth"), ("sizes", ("a",), "tuple of")):
        with pytest.raises(ConfigError, match=message):
            resolve({"model": {"name": "marked_package.nets:Net", key: value}}, ("marked_package",))


def test_only_named_modules_are_found_in_the_current_folder(tmp_path, stranger, flowjax, monkeypatch):
    """JAX imports all packages in folders `jax_plugins` on the path when it starts; a run may bring such a folder.

    The modules that a named module imports, also from a submodule and late, are found.
    """
    (tmp_path / "jax_plugins" / "evil").mkdir(parents=True)
    (tmp_path / "jax_plugins" / "evil" / "__init__.py").write_text("open('harmed', 'w')\n")
    (tmp_path / "named_here").mkdir()
    (tmp_path / "named_here" / "__init__.py").write_text("from neighbour_here import CondOT, jax_plugins\n")
    (tmp_path / "named_here" / "late.py").write_text("def late():\n    import late_here\n")
    (tmp_path / "neighbour_here.py").write_text("from flowjax.schedules import CondOT\njax_plugins = None\n")
    for name in ("late_here", "unnamed_here"):
        (tmp_path / f"{name}.py").write_text("")
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)
    run, out = stranger("path.schedule", "named_here:CondOT"), tmp_path / "a.safetensors"
    code, _, err = flowjax("export", "--workdir", run, "--out", out, "--plugins", "named_here")
    assert code == 0, err
    import_module("key", "named_here.late").late()
    for name in ("jax_plugins", "unnamed_here"):
        spec = importlib.util.find_spec(name)
        assert spec is None or str(tmp_path) not in str(spec.submodule_search_locations)
    assert sys.path == path
    assert not (tmp_path / "harmed").exists()


def test_a_config_file_imports_the_modules_beside_it(tmp_path):
    (tmp_path / "base_beside.py").write_text("from flowjax.config import defaults\nimport width_beside\n")
    (tmp_path / "width_beside.py").write_text("width = 24\n")
    (tmp_path / "unnamed_beside.py").write_text("")
    lines = ("import base_beside", "def get_config():", " config = base_beside.defaults()")
    more = (" config.model.width = base_beside.width_beside.width", " return config")
    (tmp_path / "mine.py").write_text("\n".join(lines + more))
    path = list(sys.path)
    assert load_config(tmp_path / "mine.py").model.width == 24
    assert importlib.util.find_spec("unnamed_beside") is None
    assert sys.path == path


def test_keys_from_outside_follow_annotations_and_have_no_limits(package):
    """Every default is allowed, also after a round trip through JSON, and numbers are only checked to be finite."""
    (package.folder / "keys.py").write_text(ANNOTATED)
    net, loss = "marked_package.keys:Net", "marked_package.keys:Loss"
    config, plugins = defaults(net, loss), ("marked_package",)
    assert isinstance(config.model.rate, float)
    again = resolve(json.loads(json.dumps(config.to_dict())), plugins)
    assert again.to_dict() == config.to_dict()
    good = {
        "model.rate": 0.5,
        "model.sizes": (3, 0.25),
        "model.vocab": 10**12,
        "model.depth": "auto",
        "method.c": 0.5,
        "method.widths": (1, 0.5),
        "method.pairs": ((3, 4), (5, 6)),
    }
    assert changed(config, good, plugins).method.pairs == ((3, 4), (5, 6))
    for key, value, message in (
        ("model.rate", float("nan"), "must be a finite number, not nan"),
        ("model.rate", "1", "must be a number"),
        ("model.vocab", 0.5, "must be a whole number"),
        ("model.gate", 2, r"must be in \[0, 1\]"),
        ("method.c", "a", "must be a number"),
        ("method.widths", 0.1, "must be a tuple, not 0.1"),
        ("method.widths", ("a",), "must be a tuple of numbers, and one element is 'a'"),
        ("method.widths", (float("inf"),), "has an element that must be a finite number"),
    ):
        with pytest.raises(ConfigError, match=f"{key} {message}"):
            changed(config, {key: value}, plugins)


def test_arguments_from_outside_follow_annotations_and_have_no_limits(package):
    (package.folder / "keys.py").write_text(ANNOTATED)
    outside = Outside(Kind("x"), ("marked_package",))
    make_one = lambda text: make("key", f"marked_package.keys:{text}", {}, outside=outside)
    assert make_one("echo(2_000_000, (1, 2.5), None, ('a', 1))") == (2_000_000, (1, 2.5), None, ("a", 1))
    assert make_one("echo(1, odd='x')") == (1, (0.5,), "x", ())
    for text, message in (("1.5", "rows must be a whole number"), ("1, 2", "sizes must be a tuple"), ("1e999", "rows")):
        with pytest.raises(ConfigError, match=message):
            make_one(f"echo({text})")


ANNOTATED = """
from __future__ import annotations
import dataclasses
from typing import Annotated, Any
from flax import nnx
from flowjax.methods import MethodDefaults
from flowjax.ranges import Range

class Net(nnx.Module):
    def __init__(self, shape, *, rate: float = 1, sizes=(1, 2.5), vocab: int = 2_000_000, depth: int | str = 4,
                 gate: Annotated[float, Range(0, 1)] = 1, rngs: nnx.Rngs):
        pass

@dataclasses.dataclass(frozen=True)
class Settings:
    widths: tuple[float, ...] = (0.1, 0.2)
    c: float | None = None
    pairs: tuple[tuple[int, int], ...] = ((1, 2),)

class Loss(MethodDefaults):
    Settings = Settings
    sections = ("source", "path", "model")

    @classmethod
    def from_config(cls, parts): ...
    def loss(self, params, context, key, batch): ...
    def model(self, params, state): ...

def echo(rows: int, sizes: tuple[float, ...] = (0.5,), odd: dict[str, Any] | None = None, free=()):
    return rows, sizes, odd, free
"""


def test_a_method_that_lacks_something_is_refused_by_what_it_lacks(package):
    (package.folder / "partial.py").write_text(
        "class Mine:\n"
        "    Settings = sections = limits = steps = interval = None\n"
        "    from_config = init = loss = model = print\n"
    )
    with pytest.raises(ConfigError) as error:
        resolve({"method": {"name": "marked_package.partial:Mine"}}, ("marked_package",))
    assert str(error.value) == (
        "method.name: marked_package.partial:Mine must be a class of a method, and it has no metrics, sampler, targets"
    )


def test_names():
    assert is_outside("a.b:C(1, x='d:e')")
    assert not is_outside("digits(path='a:b')")
    assert not is_outside(None)
    assert modules_of(["a.b:C(1)", "condot", None, "a.b:D", "c:E"]) == ("a.b", "c")
    assert separate("a.b:C(1, x=(2, 3)), 0..4,,vp") == ("a.b:C(1, x=(2, 3))", "0..4", "", "vp")
    with pytest.raises(ValueError, match=r"^unknown solver 'hune'; did you mean 'heun'\? \(known: heun, rk4\)$"):
        check_name("solver", "hune", ["heun", "rk4"])


def test_a_file_of_weights_imports_nothing_that_the_caller_has_not_named(package, tiny_run, tmp_path):
    run = fj.load(tiny_run)
    run.config.path.schedule = "marked_package.nets:linear"
    path = tmp_path / "a.safetensors"
    save_weights(path, Weights(run.config, run.spec, run.params))
    with pytest.raises(ConfigError, match="name its module with --plugins marked_package"):
        fj.interop.open_weights(path)
    assert not package.imported()
    opened: Any = fj.interop.open_weights(path, plugins=("marked_package",))
    assert opened.path.schedule == CondOT()


def test_a_coupling_a_source_and_a_prediction_from_outside(package):
    """The parts of a config with these names are those of the built-in names that they stand for."""
    (package.folder / "parts.py").write_text(PARTS)
    config = resolve(
        {
            "coupling": {"name": "marked_package.parts:Sorted"},
            "source": {"name": "marked_package.parts:Wide(2.0)"},
            "prediction": "marked_package.parts:towards_data",
        },
        ("marked_package",),
    )
    method: Any = build(config, DataSpec("moons", (2,)), ("marked_package",))
    assert type(method.coupling).__name__ == "Sorted"
    assert jnp.allclose(method.source.scale, 2.0)
    assert method.prediction is predictions.data


def test_a_path_from_outside(package):
    (package.folder / "roads.py").write_text(ROADS)

    def made(name: str, **more: str) -> Any:
        config = resolve({"path": {"name": f"marked_package.roads:{name}", **more}}, ("marked_package",))
        return build(config, DataSpec("moons", (2,)), ("marked_package",))

    method = made("Bent(2.0)", noise="constant(0.1)")
    assert (type(method.path).__name__, method.path.bend, method.path.noise.scale) == ("Bent", 2.0, 0.1)
    x = jnp.ones((3, 2))
    params, state = method.init(jax.random.key(0))
    assert jnp.isfinite(method.loss(params, Context(state=state), jax.random.key(1), Batch(x)).value)
    for name, more, message in (
        ("Straight", {}, r"must be a path \(a subclass of flowjax.paths.AffinePath\), and it is not"),
        ("straight", {}, r"a path \(a subclass of .*\), not a Straight"),
        ("fixed", {}, "must use the schedule that it is given"),
        ("Normal", {"noise": "constant(0.1)"}, "a GaussianPath cannot have noise"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            made(name, **more)
        assert "\n" not in str(error.value)
    assert made("Normal").path.has_score


ROADS = """
from dataclasses import dataclass
from flowjax.paths import AffinePath, GaussianPath
from flowjax.schedules import CondOT

@dataclass(frozen=True)
class Bent(AffinePath):
    bend: float = 1.0

class Normal(GaussianPath):
    pass

class Straight:
    def __init__(self, schedule, noise):
        pass

def straight(schedule, noise) -> AffinePath:
    return Straight(schedule, noise)

fixed = AffinePath(CondOT())
"""


def test_a_network_from_outside_refuses_inputs_that_it_does_not_accept(package):
    (package.folder / "residual.py").write_text(NETWORK)
    config = resolve({"model": {"name": "marked_package.residual:Net"}}, ("marked_package",))
    method: Any = build(config, DataSpec("npz", (3, 2), has_mask=True), ("marked_package",))
    variables, x = method.init(jax.random.key(0)), jnp.ones((4, 3, 2))
    apply = lambda **inputs: method.network.apply(variables, 0.5, x, None, **inputs)[0]
    plain = apply()
    np.testing.assert_array_equal(apply(key=jax.random.key(0), training=True, mask=None, forward_mode=True), plain)
    np.testing.assert_array_equal(apply(method="doubled", scale=2.0), 2 * plain)
    for name, value in (("mask", jnp.ones((4, 3), bool)), ("s", 0.5)):
        with pytest.raises(ConfigError, match=f"residual:Net' is given the input '{name}', which its __call__ does"):
            apply(**{name: value})
    batch = Batch(x, mask=jnp.ones((4, 3), bool))
    with pytest.raises(ConfigError, match="is given the input 'mask'"):
        method.loss(variables.params, Context(state=variables.state), jax.random.key(1), batch)


PARTS = """
from dataclasses import dataclass
import jax.numpy as jnp
from flowjax import predictions, sources

@dataclass(frozen=True)
class Sorted:
    keeps_independence = False

    def __call__(self, key, x0, x1, cond=None):
        return jnp.argsort(x0[:, 0])[jnp.argsort(jnp.argsort(x1[:, 0]))]

class Wide(sources.Normal):
    def __init__(self, shape, width: float = 1.0):
        super().__init__(shape, scale=width)

towards_data = predictions.data
"""


STREAMED = """
import os
from pathlib import Path

import numpy as np
from flowjax.batch import Batch
from flowjax.data import Dataset, DataSpec

class Counted:
    def __init__(self, scale):
        self.scale = scale

    def __len__(self):
        return 64

    def __getitem__(self, index):
        (Path(__file__).parent / f"read_by_{os.getpid()}").touch()
        return Batch(np.full(2, self.scale * index / 64, np.float32))

def counted(request, scale: float = 1.0, offset: float = 0.0) -> Dataset:
    test = np.linspace(offset, offset + scale, 32, dtype=np.float32).repeat(2).reshape(16, 4)[:, :2]
    return Dataset(DataSpec("counted", (2,)), test=test, rows=Counted(scale))
"""

CONFIG = """
from flowjax.config import defaults

def get_config():
    config = defaults("marked_package.residual:Net")
    config.data.name = "marked_package.rows:counted(2.0)"
    config.train.steps, config.train.batch_size, config.train.log_every = 3, 4, 1
    config.train.warmup = 0.0
    return config
"""

NETWORK = """
from flax import nnx

class Net(nnx.Module):
    def __init__(self, shape, *, width: int = 4, rngs):
        self.layer = nnx.Linear(shape[-1], shape[-1], rngs=rngs)

    def __call__(self, t, x, cond=None):
        return self.layer(x)

    def doubled(self, t, x, cond=None, *, scale):
        return scale * self.layer(x)
"""


@pytest.fixture
def project(package, tmp_path, monkeypatch):
    """The folder of a config file, and of a package with a data set and a network that the config names."""
    from flowjax.inference import figures

    monkeypatch.setattr(figures, "draw_all", lambda *arguments: None)
    (package.folder / "rows.py").write_text(STREAMED)
    (package.folder / "residual.py").write_text(NETWORK)
    (tmp_path / "mine.py").write_text(CONFIG)
    return tmp_path


def test_workers_read_a_data_set_from_outside(project, package, flowjax, monkeypatch):
    """The package is in the folder of the config file, and not on the Python path."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(project)])
    arguments = ("--config", project / "mine.py", "--config.data.workers=1", "--workdir", project / "run")
    code, result, err = flowjax("train", *arguments)
    assert code == 0, err
    assert result["step"] == 3
    readers = {int(path.name.removeprefix("read_by_")) for path in package.folder.glob("read_by_*")}
    assert readers - {os.getpid()}


def test_training_in_a_workdir_of_another_name_from_outside(stranger, package, flowjax):
    """The error names the key. The module of the run is not imported."""
    for key in ("model.name", "prediction"):
        run = stranger(key, "marked_package.nets:Other")
        code, _, err = flowjax("train", *TINY, "--workdir", run)
        assert code == 2
        line = err.splitlines()[-1]
        assert f"{run} is the workdir of another config: {key} is 'marked_package.nets:Other' there and " in line
        assert "--plugins" not in line
    assert not package.imported()


def test_a_sweep_over_names_from_outside(project, flowjax):
    """In the config, and in the grid, where arguments in brackets hold commas."""
    grid = "data.name=marked_package.rows:counted(2.0),marked_package.rows:counted(1.0, offset=0.5)"
    command = ("sweep", "--config", project / "mine.py", "--workdir", project / "sweep", "--grid", grid)
    code, result, err = flowjax(*command, "--dry_run")
    assert code == 0, err
    assert len(result["points"]) == 2
    code, result, err = flowjax(*command)
    assert code == 0, err
    assert [row["runs"] for row in result["table"]] == [1, 1]
    assert not result["failed"]
