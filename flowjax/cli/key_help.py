"""The help of config keys: their values, meanings and choices.

The meanings are read from docstrings: those of `flowjax.config_types` for most sections, and those of the network and
of the method's `Settings` for their own keys. The choices are the names in the tables that bind them, and the ranges
that `flowjax.config.resolve` checks. `scripts/write_keys.py` writes the same into docs/keys.md.
"""

import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowjax import config_types
from flowjax.arguments import Parameter
from flowjax.config import Config, defaults, flatten, no_such_key, own_plugins
from flowjax.config_keys import SECTIONS, method_of, method_ranges, model_of, outside_keys
from flowjax.errors import ConfigError
from flowjax.formatting import format_value
from flowjax.plugins import is_outside
from flowjax.ranges import FINITE, KINDS, RANGES, Items, Range

__all__ = ["KeyHelp", "absent", "by_section", "chosen", "configs_with", "key_help", "meanings", "summary", "table"]


@dataclass(frozen=True)
class KeyHelp:
    """What is known about a key of a config.

    Attributes:
        value: its value, with lists instead of tuples.
        default: its default.
        meaning: what it does, in plain text; "" if its docstring does not say.
        choices: the names or values that it can take; for a number or a text of any content, a description of the
            allowed values.
    """

    value: Any
    default: Any
    meaning: str
    choices: list[str] | str

    @property
    def allowed(self) -> str:
        """The choices as text."""
        return self.choices if isinstance(self.choices, str) else f"one of {', '.join(map(format_value, self.choices))}"


def key_help(config: Config) -> dict[str, KeyHelp]:
    """Returns the help of each key of a config, section by section.

    Args:
        config: a resolved config that the user has written; the modules that it names are imported.
    """
    plugins = own_plugins(config)
    method, model = config.method.name, config.model.name if "model" in config else ""
    usual = flatten(defaults(model or "mlp", method))
    outside = outside_keys(model, method, plugins)
    ranges = RANGES if is_outside(method) else RANGES | method_ranges(method)
    texts, named = _meanings(method, model, plugins), _named(method)
    flat, found = flatten(config), {}
    for key in sorted(flat, key=list(texts | flat).index):  # in the order of the docstrings
        choices = _of_parameter(outside[key]) if key in outside else _choices(key, flat[key], named, ranges)
        found[key] = KeyHelp(flat[key], usual[key], texts.get(key, ""), choices)
    return found


def _meanings(method: str, model: str, plugins: Sequence[str]) -> dict[str, str]:
    """The meanings of all keys, from the docstrings."""
    made: Any = method_of(method, plugins)
    own = {"method": {}}
    for kind in reversed(made.Settings.__mro__):
        own["method"] |= meanings(kind)
    if model:
        network = model_of(model, plugins) if is_outside(model) else _tables()["model.name"][model]
        own["model"] = meanings(network) | meanings(network.__init__)
    top = meanings(config_types.Config)
    texts = {}
    for section, kind in typing.get_type_hints(config_types.Config).items():
        if section in top:
            texts[section] = top[section]
        else:  # `name` of the section itself comes first and last
            keys = meanings(kind) | own.get(section, {}) | meanings(kind)
            texts |= {f"{section}.{key}": text for key, text in keys.items()}
    return texts


def meanings(documented: Any) -> dict[str, str]:
    """Returns what a docstring says about each name under `Attributes:` or `Args:`, as one line of text.

    Args:
        documented: a class or a function with a docstring in Google's style. An entry may have several names.
    """
    texts: dict[str, str] = {}
    inside, names = False, []
    for line in inspect.cleandoc(documented.__doc__ or "").splitlines():
        if line and not line.startswith(" "):
            inside = line in ("Attributes:", "Args:")
        elif inside and (entry := re.match(r"    (\w+(?:, \w+)*)(?: \([^)]*\))?: (.*)", line)):
            names = entry[1].split(", ")
            texts |= dict.fromkeys(names, entry[2].strip())
        elif inside and line.strip():
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return texts


def _tables() -> dict[str, Mapping[str, Any]]:
    """The tables of the names that keys can take, most with the functions or classes that the names stand for."""
    from flowjax import names
    from flowjax.data.augment import AUGMENTATIONS
    from flowjax.data.degrade import DEGRADES
    from flowjax.data.requests import DEQUANTISATIONS, NORMALISE
    from flowjax.data.sets import DATASETS
    from flowjax.methods import METHODS, cnf, consistency, flow_map
    from flowjax.methods.times import has_weights
    from flowjax.models import edm2, layers, mlp, transformer
    from flowjax.models.bijections import FLOWS
    from flowjax.paths.transition import Variance
    from flowjax.simulators import BENCHMARK
    from flowjax.solvers.ode import SOLVERS
    from flowjax.training import optimizers, step

    return {
        "method.name": METHODS,
        "method.weight": names.WEIGHTS,
        "method.loss": names.ROW_LOSSES,
        "method.spacing": consistency.SPACINGS,
        "method.solver": SOLVERS,
        "method.times": {name: kind for name, kind in names.TIMES.items() if not has_weights(kind)},
        "method.form": flow_map.FORMS,
        "method.flow": FLOWS,
        "method.divergence": dict.fromkeys(cnf.DIVERGENCES),
        "method.variance": dict.fromkeys(typing.get_args(Variance)),
        "source.name": names.SOURCES,
        "path.name": names.PATHS,
        "path.schedule": names.SCHEDULES,
        "path.noise": {"": None, **names.NOISES},
        "coupling.name": names.COUPLINGS,
        "prediction": names.PREDICTIONS,
        "model.name": names.MODELS,
        "model.activation": mlp.ACTIVATIONS,
        "model.dtype": layers.DTYPES,
        "model.remat": layers.REMAT,
        "model.positions": dict.fromkeys(transformer.POSITIONS),
        "model.time": dict.fromkeys(edm2.TIMES),
        "data.name": {"": None, **DATASETS},
        "data.degrade": {"": None, **DEGRADES},
        "data.dequantisation": dict.fromkeys(DEQUANTISATIONS),
        "data.normalise": dict.fromkeys(NORMALISE),
        "data.simulator": {"": None, **BENCHMARK},
        "data.augment": AUGMENTATIONS,
        "train.optimizer": optimizers.OPTIMIZERS,
        "train.schedule": optimizers.SCHEDULES,
        "train.loop": step.LOOPS,
    }


def _tables_of(method: str) -> dict[str, Mapping[str, Any]]:
    """The tables of the keys for which a method has other names than most methods, by key."""
    from flowjax import names
    from flowjax.methods import gan, score_distillation

    plain = dict.fromkeys  # these names have no arguments in brackets
    return {
        "flow_matching": {"method.times": names.TIMES},
        "gan": {"method.loss": plain(gan.LOSSES)},
        "score_distillation": {"method.loss": plain(score_distillation.LOSSES)},
    }.get(method, {})


_GIVEN = {"source.name": 1, "path.name": 3, "coupling.name": 1, "data.name": 1, "data.degrade": 1}
"""The number of arguments that the function of a name is given before those in brackets, if there are any."""

_WITH_BRACKETS = (
    *(
        "method.weight",
        "method.loss",
        "method.times",
        "path.schedule",
        "path.noise",
        "prediction",
        "data.augment",
        "train.schedule",
    ),
    *_GIVEN,
)
"""The keys whose names may have arguments in brackets."""


def _named(method: str) -> dict[str, list[str]]:
    """The names that keys can take in a config of this method, with the arguments that they may have in brackets."""
    tables = _tables() | _tables_of(method)
    shown = lambda key, name, build: _call(name, build, _GIVEN.get(key, 0)) if key in _WITH_BRACKETS else name
    return {key: [shown(key, name, build) for name, build in table.items()] for key, table in tables.items()}


def _call(name: str, build: Callable[..., Any] | None, given: int) -> str:
    """A name with its arguments in brackets, such as `polynomial(n)` or `edm(p=0.12)`."""
    if build is None:
        return name
    known = [p for p in inspect.signature(build).parameters.values() if p.kind is not p.VAR_KEYWORD][given:]
    shown = ", ".join(p.name if p.default in (p.empty, None) else f"{p.name}={p.default!r}" for p in known)
    return f"{name}({shown})" if shown else name


def _choices(
    key: str, value: Any, named: Mapping[str, list[str]], ranges: Mapping[str, Range | Items]
) -> list[str] | str:
    if key in named:
        return named[key]
    if isinstance(value, bool):
        return ["true", "false"]
    bounds = ranges.get(key)
    if isinstance(bounds, Items):
        each = "" if bounds.kind is str else f", each {_interval(bounds.range)}"
        return f"a tuple of {KINDS[bounds.kind]}s like {bounds.example}{each}"
    return "a string" if bounds is None else f"a {KINDS[type(value)]} {_interval(bounds)}"


def _of_parameter(parameter: Parameter) -> str:
    """The allowed values of a key of a network or method from outside flowjax."""
    kinds = " or ".join(KINDS[kind] for kind in parameter.kinds if kind is not type(None))
    bounds = parameter.range
    return kinds if bounds in (None, FINITE) else f"{kinds} {_interval(bounds)}"


def _interval(bounds: Range) -> str:
    """The numbers of a range in words. Upper bounds above 1 only catch mistakes, and are left out."""
    low = f"above {bounds.low:g}" if bounds.ends[0] == "(" else f"of at least {bounds.low:g}"
    high = (
        "" if bounds.high > 1 else f"below {bounds.high:.3g}" if bounds.ends[1] == ")" else f"at most {bounds.high:g}"
    )
    return f"{low} and {high}" if high else low


def chosen(config: Config, text: str) -> dict[str, KeyHelp]:
    """Returns the help of the keys that a text names: a key, a section, or the start of a key.

    Args:
        config: as for `key_help`.
        text: such as `path.schedule`, `path` or `train.keep`; `config.path` and `--config.path` are the same.

    Raises:
        ConfigError: if the config has no such key; the message names the nearest one.
    """
    found, name = key_help(config), _name_of(text)
    exact = {key: one for key, one in found.items() if key == name or key.startswith(f"{name}.")}
    if some := exact or {key: one for key, one in found.items() if key.startswith(name)}:
        return some
    raise ConfigError(no_such_key(name, config))


def _name_of(text: str) -> str:
    """The key, section or start of a key that a text names."""
    return re.sub(r"^(--)?(config(\.|$))?", "", text).partition("=")[0]


def configs_with(text: str) -> list[Config]:
    """Returns the default config if it has the keys that a text names, or else those of the methods that have them.

    Args:
        text: as for `chosen`.
    """
    from flowjax.methods import METHODS

    name = _name_of(text)
    has = lambda config: any(key == name or key.startswith(f"{name}.") for key in flatten(config))
    found = [] if has(defaults()) else [config for config in (defaults(method=m) for m in METHODS) if has(config)]
    return found or [defaults()]


def absent(config: Config) -> str:
    """Returns a hint about the sections that other methods read and this one does not; "" if there are none."""
    names = [section for section in (*SECTIONS, "model") if section not in config]
    return f"The method {config.method.name!r} does not read {', '.join(names)}." if names else ""


def table(found: Mapping[str, KeyHelp], width: int | None = None) -> str:
    """Returns the help of keys as text for a terminal, aligned and grouped by section.

    Args:
        found: from `key_help`.
        width: the number of columns; by default that of the terminal.
    """
    width = min(width or shutil.get_terminal_size((110, 24)).columns, 140)
    first = max(map(len, found)) + 4
    values = {key: format_value(one.value) for key, one in found.items()}
    second = min(max(map(len, values.values())), 24) + 2
    lines: list[str] = []
    for section, keys in by_section(found).items():
        lines += ["", f"{section}: {summary(section)}"] if section else [""]
        for key in keys:
            one, value = found[key], values[key]
            changed = "" if one.value == one.default else f" (default {format_value(one.default)})"
            body = [*_wrapped(one.meaning or "(its docstring does not describe it)", width - first - second)]
            body += _wrapped(f"{one.allowed}{changed}", width - first - second)
            start = f"  {key:<{first - 2}}{value:<{second}}"
            if len(value) > second - 2:
                lines += [start.rstrip()]
                start = " " * (first + second)
            lines += [start + body[0], *(" " * (first + second) + line for line in body[1:])]
    return "\n".join(lines[1:])


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 40), break_long_words=False, break_on_hyphens=False)


def by_section(keys: Iterable[str]) -> dict[str, list[str]]:
    """Returns the keys by section; "" stands for those that are in no section, which come first."""
    sections: dict[str, list[str]] = {"": []}
    for key in keys:
        sections.setdefault(key.rpartition(".")[0], []).append(key)
    return {section: keys for section, keys in sections.items() if keys}


def summary(section: str) -> str:
    """Returns the first paragraph of the docstring of a section."""
    kind = typing.get_type_hints(config_types.Config)[section]
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())
