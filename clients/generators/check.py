"""Runs datamodel-codegen on the documents: python check.py DOCS OUT"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

OPTIONS = [
    "--input-file-type=jsonschema",
    "--output-model-type=pydantic_v2.BaseModel",
    "--target-python-version=3.11",
    "--use-annotated",
    "--disable-timestamp",
    "--formatters=builtin",
]


def generate(schema: Path, code: Path) -> ModuleType:
    """The types of a schema, as a module."""
    subprocess.run(
        [sys.executable, "-m", "datamodel_code_generator", f"--input={schema}", f"--output={code}", *OPTIONS],
        check=True,
    )
    spec = importlib.util.spec_from_file_location(code.stem, code)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Types refer to each other by their module's name.
    sys.modules[code.stem] = module
    spec.loader.exec_module(module)
    return module


def same(written: Any, example: Any) -> None:
    """What was decoded and written again is the example, with null for what it leaves out."""
    if isinstance(example, dict):
        for key, value in example.items():
            same(written[key], value)
    elif isinstance(example, list):
        assert len(written) == len(example)
        for one, other in zip(written, example, strict=True):
            same(one, other)
    elif isinstance(example, str) and example.endswith(".000Z"):
        assert written.replace("Z", ".000Z") == example, (written, example)
    else:
        assert written == example, (written, example)


def main(docs: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    examples = json.loads((docs / "schema/examples.json").read_text())
    bundle = json.loads((docs / "schema/messages.json").read_text())
    types = generate(docs / "schema/messages.json", out / "messages.py")
    count = 0
    adapters = {}
    for message, all_of_it in examples.items():
        name = bundle["properties"][message]["$ref"].removeprefix("#/$defs/")
        own = generate(docs / f"schema/{message}.json", out / f"{message.replace('.', '_')}.py")
        adapters[message] = [TypeAdapter(getattr(module, name)) for module in (types, own)]
        for example in all_of_it:
            for adapter in adapters[message]:
                decoded = adapter.validate_json(json.dumps(example["body"]))
                same(json.loads(adapter.dump_json(decoded)), example["body"])
            count += 1
    # The variants of a union are told apart.
    reply = adapters["token.reply"][0].validate_python(examples["token.reply"][0]["body"]).root
    assert type(reply).__name__ == "TokenReplyOk" and reply.token.root.value == "example-access-token"
    # A code that the contract does not have.
    wrong = next(one["body"] for one in examples["token.reply"] if one["name"] == "error_internal")
    wrong["error"]["code"] = "no_such_code"
    for adapter in adapters["token.reply"]:
        try:
            adapter.validate_python(wrong)
        except ValidationError:
            continue
        raise AssertionError("a code that there is not was taken")
    numbered = [name for name in dir(types) if name[-1:].isdigit()]
    assert not numbered, f"types without a name: {numbered}"
    files = sorted(str(file) for file in out.glob("*.py"))
    subprocess.run([sys.executable, "-m", "mypy", "--strict", f"--cache-dir={out}/mypy", *files], check=True)
    print(f"datamodel-codegen: decodes {count} examples")


main(Path(sys.argv[1]), Path(sys.argv[2]))
