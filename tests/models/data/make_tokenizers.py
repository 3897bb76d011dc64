"""Ask Hugging Face transformers (5.24 made the stored file) what tokenizer layouts mean.

Run with `python tests/models/data/make_tokenizers.py` where transformers is installed.
"""

import json
import tempfile
from pathlib import Path

import transformers
from tokenizer_layouts import TEXTS, layouts, write

HERE = Path(__file__).parent


def main() -> None:
    found = {}
    for name, engine, settings, others in layouts():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), engine, settings, others)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            found[name] = {
                "ids": [tokenizer(text, truncation=False)["input_ids"] for text in TEXTS],
                "end": tokenizer.eos_token_id,
            }
    stored = {"transformers": transformers.__version__, "layouts": found}
    (HERE / "tokenizers.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
