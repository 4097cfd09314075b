"""Reads YAML that holds no key twice: PyYAML itself keeps the last one and says nothing.

Standard library and PyYAML only.
"""

from typing import Any

import yaml


def parse(text: str, where: str) -> Any:
    """The value of the YAML document ``text``.

    ValueError, one line, which names ``where`` and the lines: a mapping has a key twice, or the text is not YAML.
    """

    class Loader(yaml.SafeLoader):
        """A loader of its own: constructors belong to the class."""

    def construct(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for name, _ in node.value:
            found, line = loader.construct_object(name, deep=True), name.start_mark.line + 1
            if found in seen:
                raise ValueError(f"{where}, lines {seen[found]} and {line}: the key {found} occurs twice; remove one")
            seen[found] = line
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
