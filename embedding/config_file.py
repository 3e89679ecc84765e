"""Options from a YAML file: plain values of bounded size and depth, each option once.

An options file needs only a part of YAML, and other parts do harm: an alias repeats its value, so a few lines can
describe gigabytes; a tag can create any type; if a key is repeated, YAML ignores the first value.
"""

from typing import Any

import yaml

from embedding import storage
from embedding.errors import RequestError

MOST_BYTES = 1 << 20
MOST_DEPTH = 8  # a list of inputs has a depth of 2
_NUMBER_CHARACTERS = 64  # no option needs a longer number, and Python refuses to print numbers of thousands of digits
# Types of options. YAML 1.1 also has dates; in an options file a date is text.
_TYPES = ("str", "bool", "int", "float", "null", "merge")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, tags, dates and repeated keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 — PyYAML defines this attribute of the class
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in _TYPES]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        if self.check_event(yaml.AliasEvent):
            raise _refusal("an alias (*name); write the value itself", event.start_mark)
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise _refusal("a tag (!name); write the value without it", event.start_mark)
        if self._depth == MOST_DEPTH:
            raise _refusal(f"lists in lists, more than {MOST_DEPTH} deep", event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if node.tag.endswith((":int", ":float")) and len(value) > _NUMBER_CHARACTERS:
            raise _refusal(f"a number of more than {_NUMBER_CHARACTERS} characters", node.start_mark)
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _refusal("half a character (a lone surrogate, \\uD800 to \\uDFFF)", node.start_mark) from None
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            name = str(key.value).replace("-", "_")
            if name in keys:
                raise _refusal(f"{key.value!r} twice", key.start_mark)
            keys.add(name)
        return super().construct_mapping(node, deep)


class _RefusedError(yaml.YAMLError):
    """YAML that an options file does not need; the message is one line with the line number."""


def _refusal(reason: str, mark: yaml.Mark) -> _RefusedError:
    return _RefusedError(f"{reason}, in line {mark.line + 1}")


def read_config_file(path: str) -> dict[str, object]:
    """Return the options in a YAML file, by field name (``window_s`` or ``window-s``).

    Raises:
        RequestError: The file cannot be read, or is not a mapping of options.
    """
    try:
        values = _Loader(storage.read_bytes(path, MOST_BYTES)).get_single_data()
    except OSError as error:
        raise RequestError(f"--config: cannot read {path}: {error.strerror}") from error
    except _RefusedError as error:
        raise RequestError(f"--config: {path} has {error}") from None
    except yaml.MarkedYAMLError as error:  # the message of PyYAML quotes the line, which may contain a secret
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RequestError(f"--config: {path} is not YAML{where}; is a quote or a bracket missing?") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # for example, a number with thousands of digits
        raise RequestError(f"--config: {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise RequestError(f"--config: {path} must hold 'option: value' lines")
    return {str(name).replace("-", "_"): value for name, value in values.items()}
