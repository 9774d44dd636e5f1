"""The ablations that the paper (SV3.3B, arXiv 2507.17844) leaves out: its sampler's parts replaced, halved and varied.

    python -m svrt.evaluation.ablate --bundle DIR [--rim FOLDER] [--clips FOLDER] [--rendered N] --out DIR [--json]

Every variant chooses keyframes of the same clips and the bundle describes them: rendered clips, whose events are known
to the frame, and the real validation clips of `--rim`. A run that is interrupted goes on when the same command is given
again. `docs/ablations.md` says what is measured and how.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..bundle import Bundle
from ..errors import OutputError, SvrtError
from ..runtime.pipeline import Pipeline
from .ablation.footage import Footage, real_footage, rendered_footage
from .ablation.journal import NAME, Journal
from .ablation.plots import new_figure, write_plots
from .ablation.results import Table, tabulate
from .ablation.sheets import FOOTAGE, videos, write_sheets
from .ablation.tables import to_json, to_markdown
from .ablation.trial import run

RENDERED = 60  # clips of each length: 20 to 26 minutes on two cores, with 33 real ones


def ablate(
    bundle: Bundle, footage: Sequence[Footage], clips: Path | None, out: Path, say: Callable[[str], None]
) -> Table:
    """Try every variant on the footage and write everything to `out`: journal, results, plots, contact sheets.

    Raises `OutputError` where `out` cannot be written, `ClipError` where a clip cannot be read.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        # What shows somebody's footage, or quotes labels of it, is not to be committed by accident.
        (out / ".gitignore").write_text(f"/.gitignore\n/{NAME}\n/{FOOTAGE}/\n", encoding="utf-8")
        with Journal(out, bundle.sha256) as journal, Pipeline(bundle) as pipeline:
            table = tabulate(run(pipeline, footage, journal, say), pipeline.backends)
            (out / "results.json").write_text(to_json(bundle, table), encoding="utf-8")
            (out / "results.md").write_text(to_markdown(bundle, table), encoding="utf-8")
            write_plots(table, pipeline.sampler.spec, out)
            write_sheets(pipeline, clips, out, say)
    except OSError as exc:
        raise OutputError(f"{out}: cannot be written: {exc.strerror or exc}") from exc
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Try the sampler's variants on clips, and report what comes out.")
    parser.add_argument("--bundle", type=Path, required=True, help="an exported bundle that speaks as pocket does")
    parser.add_argument("--rim", type=Path, help="folder with labels.tsv and val/: real clips too")
    parser.add_argument("--clips", type=Path, help="folder of videos, of any sport: a contact sheet of each")
    what = f"rendered clips of each length ({RENDERED})"
    parser.add_argument("--rendered", type=int, default=RENDERED, metavar="N", help=what)
    parser.add_argument("--out", type=Path, required=True, help="folder for results, plots and contact sheets")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, not as tables")
    return parser.parse_args()


def _say(text: str) -> None:
    print(f"ablate: {text}", file=sys.stderr, flush=True)


def main() -> None:
    args = _arguments()
    try:
        new_figure(1, 1)  # what is lacking is said before the work, not after it
        if args.rendered < 1:
            raise SvrtError(f"--rendered {args.rendered}: give 1 or more")
        if args.clips is not None:
            videos(args.clips)
        footage = rendered_footage(args.rendered) + ([] if args.rim is None else real_footage(args.rim))
        bundle = Bundle.load(args.bundle)
        table = ablate(bundle, footage, args.clips, args.out, _say)
    except SvrtError as exc:
        print(f"svrt: {exc}", file=sys.stderr)
        raise SystemExit(exc.exit_code) from None
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        raise SystemExit(130) from None
    print(to_json(bundle, table) if args.json else to_markdown(bundle, table), end="")


if __name__ == "__main__":
    main()
