"""The command line: `svrt export`, `describe`, `eval`, `verify`, `inspect`, `plan`, `doctor`, `bench`.

Exit codes: 0 success, 2 something the user can mend (one line on stderr says what), 130 Ctrl-C; of `bench` also 1 for a
limit that was not kept and 3 for a measurement that cannot be trusted. What a command needs is
imported inside it, so `svrt --help` is quick and `svrt describe` never loads the exporter.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import ClipError, OutputError, SvrtError

if TYPE_CHECKING:
    from .bundle import Bundle
    from .runtime.pipeline import Description, Pipeline

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_left_to_the_kernel: list[object] = []  # what takes long to free, when the process is about to end

_BundleToUse = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="DIR", help="Bundle to use; the built-in one (pocket) if not given."),
]
_Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="What runs the graphs: auto, tensorrt, tensorrt-rtx, openvino, openvino-fp32, openvino-int8, "
        "vnni, ncnn, onnxruntime.",
    ),
]


def _say(text: str) -> None:
    """A line for a person, on stderr: stdout is the result's."""
    from .runtime.complaints import say

    say(f"svrt: {text}")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"svrt {version('svrt')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Describe a sports clip in words, on a small computer."""


_EXPORT_EXAMPLES = """
[bold]Examples[/bold]

  svrt export --out pocket-bundle
  svrt export my-recipe.toml --out /data/bundles/gym
  svrt export sv3.3b --sampler timm/vgg16.tv_in1k \\
    --encoder facebook/vjepa2-vitl-fpc64-256 \\
    --decoder meta-llama/Llama-3.2-3B-Instruct \\
    --adapter lora/ --projector projector.safetensors --out full
  svrt export sv3.3b --random-weights --out to-measure
  svrt export --engines tensorrt-rtx --compute-capability 8.6 --out laptop
  svrt export --precision int8 --calibration court/ --out small

An export that is interrupted goes on when the same command is given again.
"""


def _source(role: str, what: str) -> Any:
    return typer.Option(f"--{role}", metavar="PATH|ID", help=what, rich_help_panel="Sources")


@app.command(epilog=_EXPORT_EXAMPLES)
def export(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; a bundle there is replaced.")],
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A built-in recipe (pocket, sv3.3b) or a TOML file.")
    ] = "pocket",
    sampler: Annotated[str, _source("sampler", "VGG-16, torchvision names.")] = "",
    encoder: Annotated[str, _source("encoder", "V-JEPA 2, as transformers saves it.")] = "",
    projector: Annotated[str, _source("projector", "Two-layer MLP, safetensors.")] = "",
    decoder: Annotated[str, _source("decoder", "LLaMA: Hugging Face folder or GGUF.")] = "",
    adapter: Annotated[str, _source("adapter", "LoRA, as PEFT saves it; it is merged.")] = "",
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Random weights, at SV3.3B's full size, for each source not given.",
            rich_help_panel="Sources",
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, metavar="N", help="Of random weights; 0 if not given.", rich_help_panel="Sources"
        ),
    ] = None,
    quant: Annotated[
        str | None, typer.Option("--quant", metavar="NAME", help="Decoder: f16, q8_0, q6_k, q5_k_m, q4_k_m or q4_0.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="NAME", help="VGG-16 and encoder: fp32 or fp16; int8 is of the encoder."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="DIR", help="Clips to calibrate int8 on; the sample clips if not given."),
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option("--engines", metavar="NAME", help="Build engines too: tensorrt (this GPU) or tensorrt-rtx."),
    ] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option("--compute-capability", metavar="X.Y", help="GPU to build for, such as 8.6; tensorrt-rtx only."),
    ] = None,
) -> None:
    """Turn checkpoints into a bundle: VGG-16 and encoder as ONNX, LoRA merged into a quantized GGUF.

    A source is a path, a Hugging Face id (owner/name or owner/name@revision), or what the recipe says.
    """
    try:
        from .exporter import engines as tensorrt
        from .exporter.export import export as run
        from .exporter.recipe import check_precision, read_recipe
        from .exporter.report import ExportDisplay
    except ImportError as exc:
        raise SvrtError(f"export lacks what it needs ({exc}); run: pip install 'svrt[export]'") from exc
    if seed is not None and not random_weights:
        raise SvrtError("--seed is of random weights; give --random-weights too")
    if compute_capability is not None and engines is None:
        raise SvrtError("--compute-capability says what --engines builds for; give --engines tensorrt-rtx too")
    given = {"sampler": sampler, "encoder": encoder, "projector": projector, "decoder": decoder, "adapter": adapter}
    chosen = read_recipe(recipe).with_sources(given, Path.cwd())
    if random_weights:
        chosen = chosen.with_random_weights(seed or 0)
        if not chosen.random_seeds():
            raise SvrtError(f"--random-weights: {recipe} has a source for every part; the recipe sv3.3b has none")
    chosen = chosen if quant is None else chosen.with_quantization(quant)
    chosen = chosen if precision is None else chosen.with_precision(check_precision(precision))
    if calibration is not None and chosen.encoder.precision != "int8":
        raise SvrtError("--calibration is of int8; give --precision int8 too")
    request = None if engines is None else tensorrt.Request(engines, compute_capability)
    try:
        with ExportDisplay() as display:
            bundle = run(chosen, out, display.report, request, calibration)
    except KeyboardInterrupt:
        from .bundle import partial_folder

        _say(f"interrupted; the same command goes on from here, or remove {partial_folder(out)}")
        raise
    display.summary(bundle)


_DESCRIBE_EXAMPLES = """
[bold]Examples[/bold]

  svrt describe shot.mp4
  svrt describe shot.mp4 --keyframes shot.png
  svrt describe court/*.mp4 --json > court.jsonl
  svrt describe shot.mp4 --bundle /data/bundles/gym --max-tokens 40
"""


@app.command(epilog=_DESCRIBE_EXAMPLES)
def describe(
    clips: Annotated[list[Path], typer.Argument(metavar="CLIP...", help="Video files.", show_default=False)],
    bundle: _BundleToUse = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per clip, a line each.")] = False,
    keyframes: Annotated[
        Path | None,
        typer.Option("--keyframes", metavar="OUT.png", help="Draw the keyframes with their times; one clip only."),
    ] = None,
    backend: _Backend = "auto",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", min=1, metavar="N", help="Longest text, in tokens; the bundle's limit if not given."
        ),
    ] = None,
) -> None:
    """Describe clips in words. The text goes to stdout, everything else to stderr."""
    from .runtime.lean import make_lean

    make_lean()
    from .cache import engine_folder
    from .runtime.contact_sheet import check_writable
    from .runtime.engines import check_backend
    from .runtime.pipeline import Pipeline
    from .runtime.video import check_file

    check_backend(backend)
    if keyframes is not None:
        if len(clips) > 1:
            raise OutputError(f"{keyframes}: one contact sheet holds one clip; {len(clips)} clips were given")
        check_writable(keyframes)
    readable = [clip for clip in clips if _try(check_file, clip)]
    described = 0
    if readable:  # nothing is loaded, let alone exported, for a misspelt name
        opened = _open_bundle(bundle)
        pipeline = Pipeline(opened, backend, max_tokens, engine_cache=engine_folder(), say=_say)
        _left_to_the_kernel.append(pipeline)
        printer = _Printer(keyframes, as_json, named=len(clips) > 1)
        with closing(pipeline.describe_all(readable, None if as_json else printer.show)) as found:
            described = sum(printer.finish(clip, one) for clip, one in zip(readable, found, strict=True))
    if described < len(clips):
        if len(clips) > 1:
            _say(f"{len(clips) - described} of {len(clips)} clips could not be described")
        raise typer.Exit(ClipError.exit_code)


def _try(check: Callable[[Path], None], clip: Path) -> bool:
    """Whether a clip passes; if not, say why: one bad clip does not stop the others."""
    try:
        check(clip)
    except ClipError as exc:
        _say_error(clip, exc)
        return False
    return True


def _say_error(clip: Path, exc: SvrtError) -> None:
    _say(f"error: {exc}" if str(clip) in str(exc) else f"error: {clip}: {exc}")


def _open_bundle(path: Path | None) -> Bundle:
    from .cache import open_bundle

    return open_bundle(path, _say)


@dataclass
class _Printer:
    """Prints clips: as JSON when done, or as text while it is generated."""

    keyframes: Path | None
    as_json: bool
    named: bool  # whether each text is led by its clip's name
    begun: bool = False  # whether some of a text was printed

    def show(self, clip: Path | str, text: str) -> None:
        """Print a piece of a clip's text."""
        print(self._opening(clip) + text, end="", flush=True)
        self.begun = True

    def _opening(self, clip: Path | str) -> str:
        return f"{clip}: " if self.named and not self.begun else ""

    def finish(self, clip: Path, found: Description | SvrtError) -> bool:
        """Print what is left to say of a clip; whether it could be described."""
        opening, begun, self.begun = self._opening(clip), self.begun, False
        if isinstance(found, SvrtError):
            if begun:
                print(flush=True)  # a text that broke off must not lead the next
            _say_error(clip, found)
            return False
        if self.as_json:
            print(json.dumps(found.to_json()), flush=True)
        else:
            print(opening, flush=True)  # the name, if there was no text to lead
            _say(_figures(found))
        for warning in found.warnings:
            _say(f"warning: {warning}")
        if self.keyframes is not None:
            from .runtime.contact_sheet import write_contact_sheet

            write_contact_sheet(found, self.keyframes)
        return True


def _figures(found: Description) -> str:
    ms, times = found.timings_ms, found.keyframes
    return (
        f"{len(times)} keyframes from {times[0].time_s:.2f} s to {times[-1].time_s:.2f} s; "
        f"decode {ms.decode:.0f}, sample {ms.sample:.0f}, encode {ms.encode:.0f}, prefill {ms.prefill:.0f}, "
        f"generate {ms.generate:.0f}, total {ms.total:.0f} ms"
    )


_EVAL_EXAMPLES = """
[bold]Examples[/bold]

  svrt eval val.tsv --clips nsva/
  svrt eval unseen.tsv --clips rim/ --bundle gym --out gym-eval
  svrt eval val.parquet --clips nsva/ --json > val.json

A table has a column video_path or video, and intent or reference, or labels: outcome, entry, board or contact, exit.

An evaluation that is interrupted goes on when the same command is given again.
"""


@app.command(name="eval", epilog=_EVAL_EXAMPLES)
def evaluate(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="TSV, CSV, JSONL or parquet.", show_default=False)],
    clips: Annotated[Path, typer.Option("--clips", metavar="FOLDER", help="Folder that the table's videos lie in.")],
    bundle: _BundleToUse = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for texts and reports; TABLE-eval here if not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    backend: _Backend = "auto",
) -> None:
    """Describe the clips of a table, and score the texts against its references and labels."""
    try:
        from .evaluation.evaluate import Job
        from .evaluation.evaluate import evaluate as run
        from .evaluation.report import EvaluationDisplay, show
    except ImportError as exc:
        raise SvrtError(f"eval lacks what it needs ({exc}); run: pip install 'svrt[eval]'") from exc
    from .cache import engine_folder
    from .runtime.engines import check_backend
    from .runtime.pipeline import Pipeline

    check_backend(backend)
    job = Job.read(table, clips)
    opened = _open_bundle(bundle)
    place = Path(f"{table.stem}-eval") if out is None else out

    def open_pipeline() -> Pipeline:
        return Pipeline(opened, backend, engine_cache=engine_folder(), say=_say)

    try:
        with EvaluationDisplay() as display:
            found = run(job, opened, place, backend, open_pipeline, display.report)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        raise
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        show(found, place)
    if found.failed:
        _say(f"{len(found.failed)} of {len(job.rows)} clips could not be described")
        raise typer.Exit(ClipError.exit_code)


_DOCTOR_EXAMPLES = """
[bold]Examples[/bold]

  svrt doctor
  svrt doctor --bundle gym-bundle
  svrt doctor --json > doctor.json
"""


@app.command(epilog=_DOCTOR_EXAMPLES)
def doctor(
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="DIR", help="Bundle to try; the built-in one (pocket) if not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this machine is, which backends run and what to mend; exit code 0 only if `describe` will work."""
    from .doctor.examination import examine, show
    from .doctor.host import this_host

    found = examine(this_host(), bundle, _say)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        show(found)
    if not found.describe_works:
        raise typer.Exit(SvrtError.exit_code)


@app.command(epilog="[bold]Example[/bold]\n\n  svrt verify pocket-bundle")
def verify(bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")]) -> None:
    """Check a bundle: schema, and the size and sha256 of every file."""
    from . import seal
    from .cache import seal_folder

    found = seal.verify(bundle, seal_folder())
    files = found.manifest.files
    size = sum(record.bytes for record in files.values()) / 1e6
    print(f"{bundle}: whole; {found.manifest.name}, {len(files)} files, {size:.1f} MB, {found.sha256}")


@app.command(epilog="[bold]Examples[/bold]\n\n  svrt inspect pocket-bundle\n\n  svrt inspect pocket-bundle --json")
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is in a bundle: files and their sizes, precision, parity, engines, where each part came from."""
    from .inspection import inspect as look
    from .inspection import show

    found = look(bundle)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        show(found)


_PLAN_EXAMPLES = """
[bold]Examples[/bold]

  svrt plan pocket-bundle
  svrt plan pocket-bundle --device orin-nano-8gb-super
  svrt plan pocket-bundle --device this
"""


@app.command(epilog=_PLAN_EXAMPLES)
def plan(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")],
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="NAME", help="A board; or `this`, which measures this machine. All boards if not given."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a bundle fits a board's memory, and how fast each stage can be at best there."""
    from .bundle import Bundle

    try:
        from .exporter.plan import plans, show
    except ImportError as exc:
        raise SvrtError(f"plan lacks what it needs ({exc}); run: pip install 'svrt[export]'") from exc
    found = plans(Bundle.load(bundle, verify=False), device)
    if as_json:
        values = [one.to_json() for one in found]
        print(json.dumps(values if device is None else values[0]))
    else:
        show(found)


_BENCH_EXAMPLES = """
[bold]Examples[/bold]

  svrt bench
  svrt bench --clip a.mp4 --clip b.mp4 --runs 50
  svrt bench --minutes 30 --limit p99_ms=2500 --limit peak_rss_mib=700
  svrt bench compare before/bench.json after/bench.json
  svrt bench growth

Exit code: 0 PASS or no limit, 1 FAIL, 3 INCONCLUSIVE.
"""

_BenchFolder = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder for the report; NAME-bench if not given.")
]
_AllAsJson = Annotated[bool, typer.Option("--json", help="Print all samples and figures as one JSON object.")]

bench_app = typer.Typer(invoke_without_command=True, rich_markup_mode="rich")
app.add_typer(bench_app, name="bench", epilog=_BENCH_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})


def _refuse_options(context: typer.Context) -> None:
    """Options before a subcommand belong to `svrt bench` itself, and would be passed over."""
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source is not None and source.name == "COMMANDLINE":
            raise SvrtError(f"{option.opts[0]} stands before {context.invoked_subcommand}, and would be passed over")


@bench_app.callback()
def bench(
    context: typer.Context,
    bundle: _BundleToUse = None,
    clips: Annotated[
        list[Path] | None, typer.Option("--clip", metavar="CLIP", help="Clip, once or more; the sample if not given.")
    ] = None,
    runs: Annotated[
        int | None, typer.Option("--runs", min=1, metavar="N", help="Warm runs of each clip; 20 if not given.")
    ] = None,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.0, metavar="M", help="Go on for M minutes at least.")
    ] = 0.0,
    limits: Annotated[
        list[str] | None, typer.Option("--limit", metavar="NAME=NUMBER", help="Such as p50_ms=2500, once or more.")
    ] = None,
    out: _BenchFolder = None,
    as_json: _AllAsJson = False,
    backend: _Backend = "auto",
) -> None:
    """Measure time, memory and energy of `describe` on this machine, and write HTML, JSON and Markdown."""
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    from .benchmarks.bench import EXIT, RUNS, SAMPLE, BenchDisplay, check_writable, show, to_json, write
    from .benchmarks.growth import curves_in
    from .benchmarks.harness import Job, describe_clip, make_ready, measure
    from .benchmarks.verdict import parse_limits, verdict
    from .runtime.engines import check_backend

    check_backend(backend)
    asked, chosen = parse_limits(limits or []), clips or [SAMPLE]
    for clip in chosen:
        describe_clip(clip)  # refused before anything is loaded
    opened = _open_bundle(bundle)
    place = Path(f"{opened.manifest.name}-bench") if out is None else out
    check_writable(place)
    count = runs or (5 if minutes else RUNS)
    curves = curves_in(place, opened.sha256)  # refused before anything is measured
    make_ready(opened, backend)
    with BenchDisplay() as display:
        found = measure(Job(opened, chosen, count, minutes, backend, asked), display.report)
    found = replace(found, growth=curves)
    write(found, place)
    if as_json:
        print(json.dumps(to_json(found)))
    else:
        show(found, place)
    raise typer.Exit(EXIT.get(verdict(found).result or "", 0))


@bench_app.command(
    name="growth", epilog="[bold]Example[/bold]\n\n  svrt bench growth --out grown\n\nGiven again, it goes on."
)
def bench_growth(
    bundle: _BundleToUse = None,
    out: _BenchFolder = None,
    as_json: _AllAsJson = False,
    backend: _Backend = "auto",
) -> None:
    """Measure time and memory against length, resolution and frame rate of a clip, and the number of clips."""
    from .benchmarks import growth_report as report
    from .benchmarks.bench import EXIT, check_writable
    from .benchmarks.growth import grow
    from .runtime.engines import check_backend

    check_backend(backend)
    opened = _open_bundle(bundle)
    place = Path(f"{opened.manifest.name}-bench") if out is None else out
    check_writable(place)
    try:
        found = grow(opened, place, backend, say=_say)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        raise
    report.write(found, place)
    if as_json:
        print(json.dumps(report.to_json(found)))
    else:
        report.show(found, place)
    raise typer.Exit(EXIT.get(report.result(report.findings(found)), 0))


@bench_app.command(
    name="compare", epilog="[bold]Example[/bold]\n\n  svrt bench compare before/bench.json after/bench.json"
)
def compare_benches(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="What `svrt bench` wrote before.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="What it wrote after.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hold two benchmarks of one bundle and the same clips against each other: ratios of medians, with intervals."""
    from .benchmarks.bench import show_comparison
    from .benchmarks.compare import compare

    found = compare(a, b)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        show_comparison(found)


def main() -> None:
    """Entry point: runs a command, turns what a user can mend into one line, and ends the process with its exit code.

    It ends at once: what the libraries would take down one by one, the kernel takes back whole.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 still gets its text
    code = 0
    try:
        try:
            app()
        except SystemExit as done:  # how typer ends a command
            code = done.code if isinstance(done.code, int) else int(done.code is not None)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SvrtError as exc:
        _say(f"error: {exc}")
        code = exc.exit_code
    except OSError as exc:  # a full disk behind `>`; files of ours raise SvrtError
        _say(f"error: cannot write the result: {exc.strerror or exc}")
        code = OutputError.exit_code
    os._exit(code)
