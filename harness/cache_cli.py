"""The command `cache`: what is kept of features and decoded images, and how it goes."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from harness import options
from harness.command import print_table

app = typer.Typer(no_args_is_help=True, help="Features and decoded images that were kept; all of it can be made again.")

Data = Annotated[str | None, typer.Option(help="Only of this data set, such as imagenet.")]
Model = Annotated[str | None, typer.Option(help="Only features of this model, as records name it.")]


@app.command("list")
def list_(cache: options.CacheFolder = None, data: Data = None, model: Model = None) -> None:
    """Show what there is, the last used first, and how large it is."""
    from harness.cache import Cache, cache_folder
    from harness.progress import say

    kept = Cache(cache_folder(cache))
    entries = [entry for entry in reversed(kept.entries()) if entry.concerns(data, model)]
    rows = [
        [
            entry.about.get("kind", "damaged"),
            entry.about.get("data", ""),
            entry.about.get("model", ""),
            entry.about.get("what", ""),
            f"{entry.bytes / 2**20:.1f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
        ]
        for entry in entries
    ]
    print_table(sys.stdout, ["kind", "data", "model", "what", "MiB", "last used"], rows, right=2)
    total = sum(entry.bytes for entry in entries)
    say(f"{len(entries)} entries, {total / 2**30:.2f} GiB in {str(kept.folder)!r}.")


@app.command()
def clear(
    cache: options.CacheFolder = None, data: Data = None, model: Model = None, quiet: options.Quiet = False
) -> None:
    """Remove all of it, or that of a data set or of a model; what a run is using stays."""
    from harness.cache import Cache, cache_folder
    from harness.command import set_quiet
    from harness.progress import say

    set_quiet(quiet)
    kept = Cache(cache_folder(cache))
    chosen = [entry for entry in kept.entries() if entry.concerns(data, model)]
    gone = [entry for entry in chosen if kept.remove(entry.key)]
    stay = f" {len(chosen) - len(gone)} are in use and stay." if len(gone) < len(chosen) else ""
    say(f"Removed {len(gone)} entries, {sum(entry.bytes for entry in gone) / 2**30:.2f} GiB.{stay}")
