"""Read YAML and reject duplicate keys, of which PyYAML silently keeps the last.

Imports only the standard library and PyYAML.
"""

from pathlib import Path
from typing import Any

import yaml


def parse(text: str, where: str) -> Any:
    """Parse the YAML document ``text``.

    Raises a one-line ValueError that names ``where`` and the lines if a mapping has a key twice or the text is not
    YAML.
    """

    class Loader(yaml.SafeLoader):
        """A new class for each call, because constructors are registered on the class."""

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


def load(path: str | Path) -> dict[Any, Any]:
    """The keys in the YAML file ``path``. Raises a one-line ValueError if it cannot be read or does not hold keys."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is not UTF-8; convert the file, for example with iconv"
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); correct the path or its permissions") from error
    found = parse(text, str(path))
    if not isinstance(found, dict):
        raise ValueError(f"{path} has no keys at the top level; write some, such as `experiment: title`")
    return found
