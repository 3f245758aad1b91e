"""The options of the command line, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

MODEL_HELP = (
    "Model ids: a registered name, carrier+attention, timm:NAME, package.module:callable, path/to/file.py:callable. "
    "Several may follow."
)
WEIGHTS_HELP = (
    "random (seeded), pretrained (timm's hub), own (as the callable built them), or a .safetensors or weights-only "
    "checkpoint file."
)

Model = Annotated[list[str], typer.Option(help=MODEL_HELP)]
ModelOrName = Annotated[list[str] | None, typer.Option(help=MODEL_HELP + " With --predictions, the name in records.")]
Predictions = Annotated[
    Path | None,
    typer.Option(help="Measure this in place of a model: COCO results, a folder of label PNGs, a table of classes."),
]
Annotations = Annotated[
    Path | None, typer.Option(help="With --predictions: the truth, where it is not in the data root.")
]
Task = Annotated[list[str], typer.Option(help="Task ids, such as imagenet, imagenet:knn, cost. Several may follow.")]
Weights = Annotated[str, typer.Option(help=WEIGHTS_HELP)]
AllowPartial = Annotated[
    bool, typer.Option("--allow-partial", help="Load a checkpoint that misses or adds keys; the record says so.")
]
Data = Annotated[str | None, typer.Option(help="Root of the data sets; by default $BENCH_DATA, or data.")]
Results = Annotated[str, typer.Option(help="Folder of records and boards, or an address such as s3://bucket/results.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Measure again what has a record.")]
BatchSize = Annotated[int, typer.Option(help="Images per forward pass; for cost the larger of the two batches.")]
Precision = Annotated[str, typer.Option(help="fp32, tf32, bf16 or fp16.")]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help="Channels-last memory layout.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the model with torch.compile.")]
CudaGraphs = Annotated[
    bool, typer.Option("--cuda-graphs", help="Costs: record a pass once as a CUDA graph, and measure its replay.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default cuda where there is one.")]
Seed = Annotated[int, typer.Option(help="Of random weights and of generated inputs.")]
Limit = Annotated[int | None, typer.Option(help="Evaluate only N items, spread evenly; never ranks.")]
ImageSize = Annotated[str | None, typer.Option(help="Override the input size: N or H,W.")]
CropPct = Annotated[float | None, typer.Option(help="Override the crop fraction.")]
CropMode = Annotated[str | None, typer.Option(help="Override: center, squash or border.")]
Interpolation = Annotated[str | None, typer.Option(help="Override: bilinear, bicubic, nearest or lanczos.")]
Antialias = Annotated[bool | None, typer.Option(help="Override; only the decoder torchvision can do without.")]
Decoder = Annotated[str | None, typer.Option(help="Override: pil or torchvision.")]
Mean = Annotated[str | None, typer.Option(help="Override: three numbers, comma-separated, for pixels in 0..1.")]
Std = Annotated[str | None, typer.Option(help="Override: three numbers, comma-separated.")]
Workers = Annotated[int | None, typer.Option(help="Processes that load data; by default one a core, at most 8.")]
Threads = Annotated[int | None, typer.Option(help="Threads of torch on the CPU; by default torch's choice.")]
CacheFolder = Annotated[
    str | None, typer.Option("--cache", help="Folder of features and decoded images; by default $BENCH_CACHE.")
]
CacheLimit = Annotated[
    float | None, typer.Option(help="GiB that it may take; by default $BENCH_CACHE_LIMIT, or 20. 0 keeps nothing.")
]
Executor = Annotated[
    Literal["process", "inline"], typer.Option(help="Each pair in a process of its own, or all in this one.")
]
SavePanels = Annotated[
    int | None,
    typer.Option(min=1, help="Draw image, truth and prediction of N images, spread evenly, into RESULTS/panels."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print this call's records as a JSON list on standard output, nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
