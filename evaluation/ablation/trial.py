"""Every clip under every variant: keyframes chosen, and described where sentences are wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from ...runtime.pipeline import Pipeline
from .footage import Footage
from .journal import Journal, Result
from .seen import look
from .variants import Variant, for_encoder, variants


def run(pipeline: Pipeline, footage: Sequence[Footage], journal: Journal, say: Callable[[str], None]) -> list[Result]:
    """Results by variant and then by clip; only what the journal lacks is computed."""
    every = variants(pipeline.sampler.spec)
    for number, clip in enumerate(footage, start=1):
        missing = [variant for variant in every if journal.get(clip, variant) is None]
        if missing:
            started = time.perf_counter()
            journal.append(try_variants(pipeline, clip, missing))
            say(f"{number}/{len(footage)} {clip.group}: {clip.name}, {time.perf_counter() - started:.1f} s")
    found = [journal.get(clip, variant) for variant in every for clip in footage]
    return [result for result in found if result is not None]


def try_variants(pipeline: Pipeline, clip: Footage, wanted: Sequence[Variant]) -> list[Result]:
    """Choose keyframes of one clip in every wanted way, and describe each choice; equal choices are described once."""
    sampler, encoder = pipeline.sampler.spec, pipeline.bundle.manifest.encoder
    reduced, truth = clip.load(sampler, encoder)
    candidates, seen = reduced.candidates, look(pipeline.sampler, reduced)
    said: dict[tuple[int, ...], str] = {}

    def describe(picks: Sequence[int]) -> str:
        shown = for_encoder(picks, encoder.frames)
        if shown not in said:
            tokens = pipeline.encode(np.stack([candidates.view(pick) for pick in shown]))
            said[shown] = pipeline.decoder.generate(tokens).text.strip()
        return said[shown]

    chosen = [(variant, variant.pick(seen)) for variant in wanted]
    return [
        Result(
            bundle=pipeline.bundle.sha256,
            group=clip.group,
            clip=clip.name,
            version=clip.version,
            variant=variant.name,
            frames=candidates.indices[-1] + 1,
            keyframes=[candidates.indices[pick] for pick in picks],
            text=describe(picks) if clip.is_described else None,
            **vars(truth),
        )
        for variant, picks in chosen
    ]
