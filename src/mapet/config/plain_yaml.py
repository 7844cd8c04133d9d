"""YAML that holds plain values and nothing else: what a recipe, a protocol or a word of the command line needs."""

from __future__ import annotations

import re
from copy import deepcopy
from functools import cache
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, ScalarNode

from mapet.errors import SettingsError

_MOST_DIGITS = 40
_MOST_LEVELS = 50
# 010 is eight, and 1:30 is ninety, to YAML 1.1.
_NOT_DECIMAL = re.compile(r"[-+]?(0[\w]|.*:)")
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class _OwnLoader(yaml.SafeLoader):
    """Takes 1e-3 for a number, as YAML 1.2 does; PyYAML would take it for text. A date stays text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_OwnLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class _Loader(_OwnLoader):
    """For text from outside the package: no aliases and merges, which can stand for more than memory holds, and no key twice."""

    yaml_constructors = {
        f"tag:yaml.org,2002:{name}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{name}"]
        for name in ("null", "bool", "float", "str", "seq")
    } | {None: yaml.SafeLoader.construct_undefined}
    level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node, if it is no alias."""
        if self.check_event(yaml.AliasEvent):
            raise ConstructorError(None, None, "aliases (*name) are not read; write the value out", self.peek_event().start_mark)
        self.level += 1
        if self.level > _MOST_LEVELS:
            raise ConstructorError(None, None, f"more than {_MOST_LEVELS} levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def construct_plain_mapping(self, node: MappingNode) -> Any:
        """A mapping whose keys are different scalars, and in braces have a value each."""
        mapping: dict[Any, Any] = {}
        yield mapping
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "a name must be one word (merges with << are not read)", key_node.start_mark)
            key = self.construct_object(key_node)
            if key in mapping:
                raise ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
            if node.flow_style and isinstance(value_node, ScalarNode) and not value_node.value and not value_node.style:
                words = f"'{key}' has no value; write a blank behind the colon: {{name: value}}"
                raise ConstructorError(None, None, words, key_node.start_mark)
            mapping[key] = self.construct_object(value_node, deep=True)

    def construct_short_int(self, node: ScalarNode) -> int:
        """An integer of a size that settings have."""
        if len(node.value) > _MOST_DIGITS:
            raise ConstructorError(None, None, f"a number of {len(node.value):,} digits", node.start_mark)
        if _NOT_DECIMAL.match(node.value):
            words = f"'{node.value}' is not a decimal number; write it with the digits 0 to 9, without a 0 in front"
            raise ConstructorError(None, None, words, node.start_mark)
        return self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_plain_mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_short_int)


def parse_yaml(text: str, what: str) -> Any:
    """The plain values in a YAML text; `what` names it where it is none (SettingsError)."""
    return _load(text, what, _Loader)


def parse_own_yaml(text: str, what: str) -> Any:
    """The same of a file that comes with the package, which may use aliases and merges."""
    return deepcopy(_of_the_package(text, what))


@cache
def _of_the_package(text: str, what: str) -> Any:
    """Parsed once: its files do not change while a process runs."""
    return _load(text, what, _OwnLoader)


def _load(text: str, what: str, loader: type[_OwnLoader]) -> Any:
    try:
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else error
        raise SettingsError(f"{what} is not valid YAML: {reason}") from None
