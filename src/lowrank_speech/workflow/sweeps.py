"""Sweeps: a method with lists of values becomes one method for each combination.

    methods:
      full: { adapt: full, sweep: { seed: [1, 2], training.lr: [1.0e-4, 2.0e-4] } }

stands for the methods full-seed1-lr1e-4, full-seed1-lr2e-4, full-seed2-lr1e-4 and full-seed2-lr2e-4. A name depends
only on the swept keys and on its own values, so another value adds systems and renames none:

- the method's name, then for each key in the order of the config ``-``, its last word and the value
- if two keys have the same last word (lora.rank, factorise.rank), both are written out, with ``_`` for the dot
- numbers as short as possible, 1.0e-4 as 1e-4, with ``p`` for the point and ``m`` for a minus in front: 0.24 as 0p24;
  null as none; of other values, letters and digits, with ``_`` for all others

``systems.methods`` may name the swept method, which stands for all of its expansions in their order, or single ones. A
``distil.teacher`` may name a swept method too: it stands for the expansion that has the same values as the student
(``seed``: the experiment's, if the student sets none). ``backends.<name>.systems`` stands for all expansions,
``report.against`` for the first one.

Everything after ``expand`` sees plain methods. Standard library only.
"""

import copy
import itertools
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lowrank_speech.workflow.config import BASE, Config, ConfigError

KEY = "sweep"
_CHAR = re.compile(r"[^A-Za-z0-9]+")
Values = dict[str, Any]
"""Dotted key -> value, of one expansion."""


def expand(config: Config) -> Config:
    """The config with a method for each combination of a swept method's values, instead of that method.

    The same object if there is no sweep. Raises ConfigError if a sweep has no values, a value twice, or makes a name
    that exists already, or if a teacher stands for several methods.
    """
    if not has_sweeps(config):
        return config
    methods = config["methods"]
    made: dict[str, Any] = {}
    known = expansions(config)
    for name, method in methods.items():
        if name not in known:
            _add(made, name, method, name)
        elif len(known[name]) < len(_combinations(name, method)):
            raise ConfigError(f"methods.{name}.{KEY}: two of its systems would have one name; change a value")
        for one, values in known.get(name, {}).items():
            _add(made, one, _with(method, values, f"methods.{name}.{KEY}"), name)
    _teachers(made, known, config)
    result = {**config, "methods": made}
    if isinstance(grid := config.get("systems"), Mapping) and isinstance(grid.get("methods"), list):
        chosen = [list(known.get(name, [name])) if isinstance(name, str) else [name] for name in grid["methods"]]
        result["systems"] = {**grid, "methods": list(itertools.chain(*chosen))}
    _fusions(result, known)
    report = config.get("report")
    if isinstance(report, Mapping) and report.get("against") in known:
        result["report"] = {**report, "against": next(iter(known[report["against"]]))}
    return result


def has_sweeps(config: Config) -> bool:
    """Whether a method of the config is swept."""
    methods = config.get("methods")
    return isinstance(methods, Mapping) and any(map(_swept, methods.values()))


def firsts(config: Config) -> Config:
    """The config with each sweep replaced by its first values, to check it under the names that people wrote.

    Raises ConfigError as ``expand`` does for a single sweep.
    """
    plain = {}
    for name, method in config["methods"].items():
        values = next(iter(_combinations(name, method))) if _swept(method) else None
        plain[name] = method if values is None else _with(method, values, f"methods.{name}.{KEY}")
    return {**config, "methods": plain}


def expansions(config: Config) -> dict[str, dict[str, Values]]:
    """Swept method of ``config`` (before ``expand``) -> its expansions -> their values."""
    return {
        name: {f"{name}{_suffix(values)}": values for values in _combinations(name, method)}
        for name, method in config["methods"].items()
        if _swept(method)
    }


def _swept(method: Any) -> bool:
    return isinstance(method, Mapping) and method.get(KEY) is not None


def _combinations(name: str, method: Mapping[str, Any]) -> list[Values]:
    """Every combination of the values, the last key changing fastest. Checks the section."""
    section, where = method[KEY], f"methods.{name}.{KEY}"
    if not isinstance(section, Mapping) or not section:
        raise ConfigError(f"{where}: expected keys with lists of values, such as seed: [1, 2, 3], got {section!r}")
    for key, values in section.items():
        if not isinstance(key, str) or not key or "" in key.split("."):
            raise ConfigError(f"{where}: {key!r} is not the name of a key of the method, such as seed or training.lr")
        if not isinstance(values, list):
            raise ConfigError(f"{where}.{key}: expected a list of values, got {values!r}; write [{values}] for one")
        if not values:
            raise ConfigError(f"{where}.{key}: the list is empty; give at least one value, or remove the key")
        for number, value in enumerate(values):
            if isinstance(value, Mapping):
                raise ConfigError(
                    f"{where}.{key}: {value!r} is a mapping; sweep a key below it, such as {key}.KEY: [...]"
                )
            if any(_same(value, other) for other in values[:number]):
                raise ConfigError(f"{where}.{key}: {value!r} occurs twice in {values!r}; remove one")
    return [dict(zip(section, values, strict=True)) for values in itertools.product(*section.values())]


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _with(method: Mapping[str, Any], values: Values, where: str) -> dict[str, Any]:
    """The method with ``values`` and without its sweep."""
    made = copy.deepcopy({key: value for key, value in method.items() if key != KEY})
    for path, value in values.items():
        *sections, key = path.split(".")
        place = made
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
            if not isinstance(place, dict):
                raise ConfigError(f"{where}: {path!r} is no key, because {section} is {place!r}")
        if key in place and place[key] is not None:
            raise ConfigError(
                f"{where}.{path}: the method also sets {path} to {place[key]!r}; remove it there, or from the sweep"
            )
        place[key] = copy.deepcopy(value)
    return made


def _add(made: dict[str, Any], name: str, method: Any, origin: str) -> None:
    if name in made:
        swept = f"methods.{origin}: its sweep makes" if name != origin else f"methods.{origin}: a sweep makes"
        raise ConfigError(f"{swept} the method {name}, which exists already; rename one of them")
    made[name] = method


# -- names -------------------------------------------------------------------------------------------------------------


def _suffix(values: Values) -> str:
    last = Counter(key.rpartition(".")[2] for key in values)
    parts = []
    for key, value in values.items():
        word = key.rpartition(".")[2]
        parts.append(f"-{word if last[word] == 1 else key.replace('.', '_')}{_written(value)}")
    return "".join(parts)


def _written(value: Any) -> str:
    """A value in a name."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list):
        return "_".join(map(_written, value)) or "empty"
    return _CHAR.sub("_", str(value)).strip("_") or "empty"


def _number(value: float) -> str:
    """The shorter of 0.0001 and 1e-4 (an integer as it is), with letters for what a name cannot have."""
    if value != value or abs(value) == float("inf"):
        return "nan" if value != value else "inf"  # the schema refuses them
    plain = repr(value).removesuffix(".0")
    digits = next(d for d in range(18) if float(f"{value:.{d}e}") == float(value))
    mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
    scientific = f"{mantissa}e{int(exponent)}"
    short = isinstance(value, int) or ("e" not in plain and len(plain) <= len(scientific))
    found = plain if short else scientific
    sign = "m" if found.startswith("-") else ""
    return sign + found.removeprefix("-").replace(".", "p")


def _fusions(result: dict[str, Any], known: Mapping[str, Mapping[str, Values]]) -> None:
    """Let back ends that fuse a swept method (as method, or base/method) fuse all of its systems."""
    if not isinstance(sections := result.get("backends"), Mapping):
        return
    result["backends"] = made = dict(sections)
    for name, section in sections.items():
        if isinstance(section, Mapping) and isinstance(named := section.get("systems"), list):
            pairs = [(one, *one.rpartition("/")) for one in named if isinstance(one, str)]
            every = [[f"{base}{slash}{m}" for m in known.get(method, [method])] for _, base, slash, method in pairs]
            made[name] = {**section, "systems": [*itertools.chain(*every)]} if len(pairs) == len(named) else section


# -- teachers ----------------------------------------------------------------------------------------------------------


def _teachers(made: dict[str, Any], swept: Mapping[str, Mapping[str, Values]], config: Config) -> None:
    """Replace the names of swept teachers by those of the expansions that have the student's values."""
    for name, method in made.items():
        distil = method.get("distil") if isinstance(method, Mapping) else None
        named = distil.get("teacher", BASE) if isinstance(distil, Mapping) else None
        if not isinstance(named, str) or named not in swept:
            continue
        known = swept[named]
        fitting = [
            one for one, values in known.items() if all(_agrees(method, key, v, config) for key, v in values.items())
        ]
        fitting = fitting or [one for one, values in known.items() if _agree_where_set(method, values)]
        if len(fitting) != 1:
            keys = ", ".join(next(iter(known.values())))
            raise ConfigError(
                f"methods.{name}.distil.teacher: {named!r} is swept over {keys}, and "
                f"{'none' if not fitting else 'not one'} of its systems has the values of this student; name one of: "
                f"{', '.join(known)}"
            )
        made[name] = {**method, "distil": {**distil, "teacher": fitting[0]}}


def _agrees(method: Mapping[str, Any], path: str, value: Any, config: Config) -> bool:
    found = _value(method, path)
    return _same(config.get("seed") if found is None and path == "seed" else found, value)


def _agree_where_set(method: Mapping[str, Any], values: Values) -> bool:
    """Whether the student has the values of the keys that it sets, wherever it sets one."""
    return all(_value(method, key) is None or _same(_value(method, key), value) for key, value in values.items())


def _value(method: Any, path: str) -> Any:
    for key in path.split("."):
        method = method.get(key) if isinstance(method, Mapping) else None
    return method
