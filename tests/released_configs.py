"""Published configurations, unedited."""

import json
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "models" / "configs"


def hub_fields(name: str) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text())
