"""`mapet`: puts the verbs together."""

from __future__ import annotations

import typer

from mapet.cli import (
    codebook,
    compare,
    demo,
    evaluate,
    export,
    objectives,
    pretrain,
    protocols,
    recipes,
    report,
    reproduce,
    runs,
    tokenize,
    tokenizer,
    tokenizer_convert,
    tokenizer_random,
    tokenizer_train,
    validate,
)

app = typer.Typer(
    name="mapet",
    help="Pre-train Vision Transformers by predicting visual tokens, and find out what the pre-training is worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("recipes")(recipes.recipes)
app.command("pretrain")(pretrain.pretrain)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("reproduce")(reproduce.reproduce)
app.command("validate")(validate.validate)
app.command("export")(export.export)
app.command("protocols")(protocols.protocols)
app.command("report")(report.report)
app.command("runs")(runs.runs)
app.command("tokenize")(tokenize.tokenize)
app.command("codebook")(codebook.codebook)
app.command("objectives")(objectives.objectives)
tokenizer.app.command("train")(tokenizer_train.train)
tokenizer.app.command("convert")(tokenizer_convert.convert)
tokenizer.app.command("random")(tokenizer_random.random)
app.add_typer(tokenizer.app, name="tokenizer")


@app.callback(invoke_without_command=True)
def version(show: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    """Answers --version."""
    if show:
        from mapet import __version__

        print(f"mapet {__version__}")
        raise typer.Exit()
