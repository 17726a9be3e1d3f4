# SPDX-License-Identifier: Apache-2.0
"""`edgeops ragged explain`: what padding costs for the lengths of your data, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeops._common import message, missing_extra

from ._output import AsJson, failing_with_1, out, print_json, wrong_use

_WHO = "edgeops ragged explain"


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise missing_extra(_WHO, "transformers", "hf") from error
    return transformers


def _loaded(kind: str, folder: Path) -> Any:
    """`transformers.<kind>` from a local folder."""
    try:
        return getattr(_transformers(), kind).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise wrong_use(
            message(_WHO, "needs a folder as save_pretrained writes it", f"{folder} ({first})", "Pass such a folder.")
        ) from error


def token_counts(file: Path, tokenizer: Path) -> list[int]:
    """Tokens of every line that is not blank, special tokens included, cut where the tokenizer's model cuts."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise wrong_use(message(_WHO, "needs a line of text", f"{file.name} without any", "Write one text per line."))
    encode = _loaded("AutoTokenizer", tokenizer)
    # tokenizers without a limit of their own report a huge number
    limited = encode.model_max_length < 1_000_000
    return [len(ids) for ids in encode(lines, truncation=limited)["input_ids"]]


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="Batches of sequences of different lengths.", no_args_is_help=True)
    app.add_typer(group, name="ragged")

    @group.callback()
    def ragged() -> None:
        pass

    @group.command()
    def explain(
        file: Annotated[
            Path, typer.Argument(exists=True, dir_okay=False, help="One token count per line, in the order served.")
        ],
        tokenizer: Annotated[
            Path | None,
            typer.Option(exists=True, file_okay=False, help="Folder of a tokenizer: FILE holds one text per line."),
        ] = None,
        model: Annotated[
            Path | None,
            typer.Option(exists=True, file_okay=False, help="Folder of a model, for its sizes; else 6 layers of 512."),
        ] = None,
        batch_size: Annotated[int, typer.Option(min=1, help="Sequences per batch.")] = 32,
        measure: Annotated[
            bool, typer.Option("--measure", help="Measure the rates of this machine first (about a second).")
        ] = False,
        json: AsJson = False,
    ) -> None:
        """Predict what padding costs for these lengths, and recommend to leave it, to sort, or to pack."""
        from edgeops.ragged import explain as predict

        with failing_with_1():
            try:
                lengths = file if tokenizer is None else token_counts(file, tokenizer)
                sizes = None if model is None else _loaded("AutoConfig", model)
                found = predict(lengths, sizes, batch_size=batch_size, costs="measure" if measure else None)
            except (TypeError, ValueError) as error:
                raise wrong_use(str(error)) from error
        if json:
            print_json(found.to_dict())
        else:
            out().print(str(found), markup=False)
