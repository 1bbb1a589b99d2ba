"""YAML files that somebody else may have made, as data: plain values and nothing else.

Refused are tags of Python's types (by the safe loader), aliases, by which a few lines stand for gigabytes, and
OmegaConf's "${...}", which reads environment variables among others. Nothing that this program writes has any of them.
"""

from __future__ import annotations

import io
from pathlib import Path

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tensorf.untrusted import read_bytes

_MOST_BYTES = 2**20  # a run's config.yaml has 5 kB, a sweep of 10,000 prompts half a megabyte
_DEEPEST = 50
ERRORS = (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException)  # a UnicodeDecodeError is a ValueError


def load_yaml(path: Path) -> DictConfig | ListConfig:
    """What the file holds. OSError, ValueError, yaml.YAMLError or OmegaConfBaseException (`ERRORS`) if it is wrong."""
    text = read_bytes(path, _MOST_BYTES).decode("utf-8")
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):  # the parser's events are a stream: nothing is expanded
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has the alias *{event.anchor}, which is not read")
        if isinstance(event, yaml.ScalarEvent) and ("${" in event.value or event.value == "???"):
            raise ValueError(f"it has {event.value[:40]}, which is a reference and not a value")
    return OmegaConf.load(io.StringIO(text))
