"""Configuration: flags and key=value options on top of the YAML files in `configs/`, composed by Hydra."""

from __future__ import annotations

import copy
import difflib
import math
import os
import re
import threading
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path, PurePath

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tensorf.errors import UserError, reason

if typing.TYPE_CHECKING:
    import torch  # which takes seconds, and wrong options are told without it

MOST_SEED = 10**12  # times a million, plus the iteration, is a seed of torch's
_ROOT = Path(__file__).resolve().parents[1]
_HYDRA = threading.Lock()
_TEXT = (
    "src",
    "tgt",
    "image",
    "views",
    "capture",
    "output",
    "run",
    "scene.name",
    "scene.root",
    "scene.prompt",
)  # or null
_TEXT += ("guidance.path", "guidance.config", "guidance.revision", "clip", "where", "mask", "path", "format", "file")
_TEXT += ("model", "address", "storage", "what")
# Options of edit.py that say what is edited and where results lie: what starts edits by itself sets them itself.
RESERVED = ("src", "tgt", "image", "capture", "run", "views", "baseline", "scene", "scene.name")
RESERVED += ("output", "resume", "overwrite")
_PATHS = ("image", "views", "capture", "output", "run", "scene.root", "mask", "path", "file", "model", "storage")


def data_folder(name: str) -> Path:
    """`configs` or `scenes`: beside the package in a checkout, inside it (`cds3d/<name>`) once installed."""
    checkout = _ROOT / name
    return checkout if (_ROOT / "setup.py").exists() and checkout.is_dir() else Path(__file__).parent / name


def load_config(command: str, options: list[str]) -> DictConfig:
    """The configuration of a command (a file in configs/) with options, key=value, applied. Unknown keys are errors."""
    for option in options:
        if "=" not in option:
            raise UserError(f"{option!r} is neither a flag nor key=value; {_meant(command, option)}see --help")
        if not re.match(r"\w", option):
            raise UserError(f"{option!r} is no key=value: an option begins with its name; see --help")
    _check_groups(command, options)
    folder = data_folder("configs")
    try:
        config = copy.deepcopy(_composed(folder, _stamps(folder), command, tuple(_quoted(o) for o in options)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(command, error)) from error
    _check_text(command, config)
    return config


@lru_cache(maxsize=64)  # a command asks for its defaults several times, and Hydra reads every file each time
def _composed(folder: Path, stamps: tuple, command: str, overrides: tuple[str, ...]) -> DictConfig:
    with _hydra(folder):
        config = compose(command, overrides=list(overrides))
        OmegaConf.to_container(config, resolve=True)  # "${...}" that leads nowhere is told now
    return config


def _stamps(folder: Path) -> tuple:
    """What changes when a file below the folder does."""
    found = ((str(path), path.stat()) for path in folder.rglob("*.yaml"))
    return tuple(sorted((path, status.st_mtime_ns, status.st_size) for path, status in found))


def check_assigned(command: str, config: DictConfig) -> None:
    """Make what a program has assigned what an option would be: a `Path` becomes text. UserError as `load_config`'s."""
    _check_text(command, config)
    try:
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_explain(command, error)) from error


def _meant(command: str, word: str) -> str:
    """What may be meant by a word that is no option."""
    if command in ("train", "edit") and Path(word).exists():
        from tensorf.captures.heic import HEIC_SUFFIXES  # torch comes with them
        from tensorf.captures.images import is_photo

        is_picture = is_photo(Path(word)) or Path(word).suffix.lower() in HEIC_SUFFIXES
        return f"did you mean --{'image' if command == 'edit' and is_picture else 'capture'} {word}? "
    return f'did you mean --tgt "{word}"? ' if command == "edit" and " " in word else ""


@contextmanager
def _hydra(folder: Path):
    """Hydra, reading from a folder. Its state is global, so one thread at a time uses it."""
    with _HYDRA:
        theirs = GlobalHydra.instance().hydra  # of a program that uses Hydra itself
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(folder), version_base="1.3"):
                yield
        finally:
            GlobalHydra.instance().hydra = theirs


def _check_text(command: str, config: DictConfig) -> None:
    """Make paths, names and prompts text, as numbers may be ones too; UserError for lists, mappings, true and false."""
    for key in _TEXT:
        value = _text_at(config, key)
        if value is None:
            if (command, key) in (("edit", "guidance.path"), ("bench", "output")):
                raise UserError(f"{key}=null: a path has to be given")
            continue
        if isinstance(value, (int, float, PurePath)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise UserError(f"{key}={value} has to be text")
        OmegaConf.update(config, key, _at_home(key, value))


def _text_at(config: DictConfig, key: str):
    """The value at a dotted key, None if there is none. UserError for OmegaConf's signs (`set_text`)."""
    try:
        return OmegaConf.select(config, key, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f'{key}= cannot be read ({reason(error)}): leave out "${{" and "???"') from error


def _quoted(option: str) -> str:
    """Hydra's grammar wants quotes around free text such as paths with spaces; users do not."""
    key, value = option.split("=", 1)
    if not value or value[0] in "'\"" or "${" in value:
        return option
    if key in _TEXT:  # brackets and numbers are text there; lists, mappings, true and false are told as wrong
        as_it_is = re.fullmatch(r"\[.*\]|\{.*\}|null|true|false", value, re.IGNORECASE | re.DOTALL)
    else:
        as_it_is = any(c in value for c in "[]{}$") or not re.search(r"[^\w./\-+%*@?|\\]", value, re.ASCII)
    if as_it_is:
        return option
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value)
    return f"{key}='{escaped}'"


def groups() -> dict[str, list[str]]:
    """Option groups and the names that each can be set to. Files that begin with "_" are what others share."""
    folder = data_folder("configs")
    return {g.name: sorted(f.stem for f in g.glob("[!_]*.yaml")) for g in sorted(folder.iterdir()) if g.is_dir()}


def dotted_keys(tree: Mapping, prefix: str = "") -> list[str]:
    """All keys of nested mappings, as in "edit" and "edit.lr"."""
    keys = []
    for key, value in tree.items():
        keys.append(f"{prefix}{key}")
        keys += dotted_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else []
    return keys


def set_text(config: DictConfig, name: str, value: str, told: str) -> None:
    """config[name] = value, from outside the configuration. UserError, which names `told`, for OmegaConf's signs.

    "${" would be taken for a reference to another option, "???" for one that is missing.
    """
    if "${" in value or value == "???":
        raise UserError(f"{told} {value}: leave out the {'${' if '${' in value else '???'}")
    config[name] = _at_home(name, value)


def _at_home(name: str, value: str) -> str:
    """The value of a path with a leading ~ as the user's folder, which not every shell puts there."""
    return os.path.expanduser(value) if name in _PATHS and value.startswith("~") else value


def _check_groups(command: str, options: list[str]) -> None:
    for option in options:
        key, value = option.split("=", 1)
        names = groups().get(key)
        if names is not None and value not in names:
            raise UserError(f"{key}={value} is unknown; use one of: {', '.join(names)}{_several(value)}")


def _several(value: object) -> str:
    """What to add to an error about a value that may have been meant as several."""
    return "; cds3d sweep makes an edit for each of several values" if "," in str(value) else ""


def _explain(command: str, error: Exception) -> str:
    if "Could not override" in str(error):
        return unknown_option(command, str(error).split("'")[1])
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override}: are all brackets and quotes closed?"
    return f"cannot read the options: {reason(error.__cause__ or error)}"


def unknown_option(command: str, key: str) -> str:
    """What to say of an option that a command does not have as it was called: whose it is, or what is like it."""
    group, _, name = key.partition(".")
    default = OmegaConf.to_container(load_config(command, []), resolve=False)
    owners = [n for n in groups().get(group, []) if name and name in _keys_of(group, n)]
    if owners and group in default:
        return f"{key} is an option of {' and '.join(f'{group}={n}' for n in owners)} only"
    known = dotted_keys(default)
    theirs = [c for c in ("edit", "train") if c != command and key in _every_key(c)]
    if theirs and group not in default:
        return f"{key} is an option of cds3d {theirs[0]}, not of cds3d {command}"
    if command == "edit" and key in ("prompt", "tgt", "target", "src", "source"):
        return f"unknown option {key}: did you mean --{'src' if key in ('src', 'source') else 'tgt'}?"
    if group in default:
        known += [f"{group}.{k}" for n in groups().get(group, []) for k in _keys_of(group, n)]
    alike = difflib.get_close_matches(key, [k for k in known if k != key], n=1)
    hint = f"did you mean {alike[0]}? " if alike else ""
    return f"unknown option {key}: {hint}cds3d {command} --help lists all"


def _every_key(command: str) -> set[str]:
    """Dotted keys of a command, with those of all presets of its groups."""
    default = OmegaConf.to_container(load_config(command, []), resolve=False)
    keys = set(dotted_keys(default))
    for group in groups().keys() & default.keys():
        keys |= {f"{group}.{key}" for name in groups()[group] for key in _keys_of(group, name)}
    return keys


def _keys_of(group: str, name: str) -> list[str]:
    """Dotted keys of one preset, with those of the presets that it is based on."""
    folder = data_folder("configs") / group
    table = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    keys = dotted_keys({k: v for k, v in table.items() if k != "defaults"})
    for base in table.get("defaults", []):
        if base != "_self_":
            keys += _keys_of(group, base)
    return keys


def boolean(config: Mapping, *keys: str) -> None:
    """UserError unless the values at these dotted keys are true or false: a "no" would be a text, and true."""
    for key in keys:
        if not isinstance(value := OmegaConf.select(config, key), bool):
            raise UserError(f"{key}={value} has to be true or false")


def build(kind: type, config: Mapping, *, group: str = "", **more):
    """A dataclass from the keys of `config` that it has, types checked: UserError names the option that is wrong.

    group: of the configuration, whose options `config` holds, as in "edit" for edit.lr.
    """
    prefix = f"{group}." if group else ""
    hints = typing.get_type_hints(kind)
    values = dict(more)
    for option in fields(kind):
        if option.name in values:
            continue
        if option.name not in config:
            if option.default is MISSING:
                raise UserError(f"{prefix}{option.name} is missing from the configuration")
            continue
        values[option.name] = _checked(prefix + option.name, config[option.name], hints[option.name])
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from error


def _checked(name: str, value, hint):
    """`value` as `hint` (int, float, str, bool, tuple[...], or a union with None); UserError otherwise."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        items = value if OmegaConf.is_list(value) or isinstance(value, (list, tuple)) else [value]
        return tuple(_checked(name, item, inner) for item in items)
    several = _several(value) if not OmegaConf.is_list(value) else ""
    wrong = UserError(f"{name}={value} has to be {'a number' if hint in (int, float) else hint.__name__}{several}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UserError(f"{name}={value} has to be a whole number{several}") if hint is int else wrong
    return value


def positive(config: DictConfig, *keys: str) -> None:
    """UserError unless the values at these dotted keys are finite numbers above 0."""
    for key in keys:
        value = OmegaConf.select(config, key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise UserError(f"{key}={value} has to be a finite number above 0{_several(value)}")


def whole(config: DictConfig, *keys: str, least: int = 0, most: int | None = None) -> None:
    """UserError unless the values at these dotted keys are whole numbers from `least` to `most`."""
    for key in keys:
        value = OmegaConf.select(config, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{key}={value} has to be a whole number of at least {least}{_several(value)}")
        if most is not None and value > most:
            raise UserError(f"{key}={value} has to be at most {most}")


def require_unset(config: DictConfig, keys: Iterable[str], why: str) -> None:
    """UserError, which ends in `why`, if one of these options or groups of `edit.py` has not its default."""
    default = load_config("edit", [])
    for key in keys:
        if OmegaConf.select(config, key) != OmegaConf.select(default, key):
            raise UserError(f"{key}= {why}")


def pick_device(name: str) -> torch.device:
    """The device of the option `device`: auto is the first GPU if there is one. UserError as `usable_device`'s."""
    from tensorf.devices import usable_device  # torch comes with it

    return usable_device(name)
