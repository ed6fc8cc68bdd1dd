"""Files in which a process says how it does: JSON for promises and people, whole or not there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def tell(file: Path, document: Mapping[str, Any]) -> None:
    """Raises OSError. It need not outlive a power cut: whoever told it tells it again."""
    draft = file.with_name(f".{file.name}.tmp")
    draft.write_text(json.dumps(document, indent=1))
    draft.replace(file)


def told(file: Path) -> dict[str, Any]:
    """What was told last; empty when there is nothing that can be read."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
