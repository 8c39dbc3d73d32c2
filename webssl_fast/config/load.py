"""From a YAML file and `key=value` overrides to a checked RunConfig, with errors that say the way out."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from webssl_fast.config.fields import Config
from webssl_fast.config.schema import RunConfig
from webssl_fast.config.study import StudyConfig
from webssl_fast.errors import ConfigError

AnyConfig = TypeVar("AnyConfig", bound=Config)


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not a silent choice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise ConfigError(f"{self.name}, line {key_node.start_mark.line + 1}: the key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a config file: defaults of schema.py, under the file's `base:` (one, relative to it), under the file, under
    the overrides ("train.num_steps=100"; values are YAML).

    Raises ConfigError, which names the file, the key, what was got and what is allowed.
    """
    return _load(RunConfig, path, overrides)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Reads a file of `webssl study`, as `load_config` reads a run's."""
    return _load(StudyConfig, path, overrides)


def _load(model: type[AnyConfig], path: str | Path, overrides: Sequence[str]) -> AnyConfig:
    path = Path(path)
    tree = _read(path)
    if "base" in tree:
        base_path = path.parent / str(tree.pop("base"))
        base = _read(base_path)
        if "base" in base:
            raise ConfigError(f"{base_path} is the base of {path} and has a base itself; one level is allowed")
        tree = _merge(base, tree)
    for override in overrides:
        tree = _merge(tree, _parse_override(override))
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item, model) for item in error.errors()]
        raise ConfigError(f"{path}: {len(lines)} problem(s)\n" + "\n".join(f"  {line}" for line in lines)) from None


def save_config(config: RunConfig, path: Path) -> None:
    """Writes a config so that `load_config` of the file gives it back."""
    path.write_text(config_text(config))


def config_text(config: RunConfig) -> str:
    """YAML with every setting."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def changed_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """Differences as lines "key: old -> new"."""
    old_flat, new_flat = (dict(_flatten(c.model_dump(mode="json"))) for c in (old, new))
    keys = list(old_flat) + [k for k in new_flat if k not in old_flat]
    return [f"{k}: {old_flat.get(k)} -> {new_flat.get(k)}" for k in keys if old_flat.get(k) != new_flat.get(k)]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        where = path.parent if path.parent.is_dir() else Path(".")
        near = difflib.get_close_matches(path.name, [p.name for p in where.glob("*.y*ml")], n=1)
        hint = f"; did you mean {where / near[0]}?" if near else ""
        raise ConfigError(f"no config file {path}{hint}")
    try:
        tree = yaml.load(path.read_text(), _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of settings at its top, got a {type(tree).__name__}")
    return tree


def _parse_override(text: str) -> dict[str, Any]:
    key, sep, value = text.partition("=")
    if not sep or not all(key.split(".")):
        raise ConfigError(f"override {text!r} is not of the form key=value or key.sub=value, e.g. train.num_steps=100")
    try:
        tree: Any = yaml.load(value, _Loader) if value else ""  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML: {error}") from None
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def _merge(below: dict, above: dict) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _flatten(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _explain(item: Any, root: type[BaseModel]) -> str:
    location, tags = _split_tags([str(part) for part in item["loc"]])
    key = ".".join(location) or "the whole"
    if item["type"] == "extra_forbidden":
        parent = _model_at(location[:-1], tags, root)
        known = list(parent.model_fields) if parent else []
        everywhere = dict(_all_keys(root))
        near = difflib.get_close_matches(location[-1], known, n=1)
        elsewhere = [k for k, name in everywhere.items() if name == location[-1]]
        if near:
            hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?"
        elif elsewhere:
            hint = f"did you mean {elsewhere[0]}?"
        else:
            hint = f"allowed here: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if item["type"] == "union_tag_invalid":
        return f"{key}.name: {item['ctx']['tag']!r} is no method; allowed: {item['ctx']['expected_tags']}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if isinstance(item["input"], dict):  # a rule between several settings, which its message names
        return f"{key}: {message}"
    return f"{key}: {message}, got {item['input']!r}"


def _split_tags(location: list[str]) -> tuple[list[str], dict[str, str]]:
    """A key without the names that pydantic adds where a model was chosen by its `name`; and those, by key."""
    if len(location) > 1 and location[0] == "method":
        return [location[0], *location[2:]], {"method": location[1]}
    return location, {}


def _model_at(location: list[str], tags: dict[str, str], model: type[BaseModel]) -> type[BaseModel] | None:
    is_key = False  # of a list or a mapping of models, which is no field
    for part in location:
        if is_key:
            is_key = False
            continue
        field = model.model_fields.get(part)
        is_key = field is not None and typing.get_origin(field.annotation) in (dict, tuple)
        models = _models_of(field.annotation) if field else []
        if part in tags:
            models = [m for m in models if m.model_fields["name"].default == tags[part]]
        if not models:
            return None
        model = models[0]
    return model


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    candidates = [annotation, *typing.get_args(annotation)]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]


def _all_keys(model: type[BaseModel], prefix: str = ""):
    for name, field in model.model_fields.items():
        yield prefix + name, name
        for below in _models_of(field.annotation):
            yield from _all_keys(below, f"{prefix}{name}.")
