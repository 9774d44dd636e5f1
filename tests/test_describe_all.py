"""Many clips: the next is read while the last is put in words, and nobody can tell but by the clock."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from itertools import groupby

import pytest
from conftest import interruptible, moving_ball, write_video
from small_system import write_system
from svrt.benchmarks import overlap
from svrt.errors import ClipError, DecoderError
from svrt.exporter.export import export
from svrt.exporter.recipe import read_recipe
from svrt.runtime import pipeline as chain
from svrt.runtime.pipeline import Pipeline
from svrt.runtime.sampler import cached_batch

LONG_S = 60.0  # no wait in these tests takes this long unless something is broken


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    recipe = write_system(tmp_path_factory.mktemp("system"))
    return export(read_recipe(str(recipe)), tmp_path_factory.mktemp("bundles") / "b")


@pytest.fixture(scope="module")
def pipeline(bundle):
    with Pipeline(bundle) as made:
        yield made


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / f"{n}.mp4", moving_ball(n, 64, 48, seed=n)) for n in (18, 24, 40)]


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    return path


def same(a, b):
    return (a.clip, a.text, a.keyframes, a.tokens, a.backends, a.warnings) == (
        *(b.clip, b.text, b.keyframes, b.tokens, b.backends, b.warnings),
    )


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("svrt-reader")]


def test_many_clips_give_what_each_gives_alone_in_their_order(pipeline, clips):
    asked = [*clips, clips[0], clips[0]]
    pieces = []
    found = list(pipeline.describe_all(asked, on_text=lambda clip, text: pieces.append((clip, text))))
    assert all(same(one, pipeline.describe(clip)) for one, clip in zip(found, asked, strict=True))
    assert len({one.text for one in found}) > 1
    together = "".join(text for clip, text in pieces if clip == clips[1])
    assert together.strip() == found[1].text
    assert [clip for clip, _ in groupby(clip for clip, _ in pieces)] == asked[:4]  # the last two run together
    assert not readers()
    for one in found:
        ms = one.timings_ms
        assert ms.decode + ms.sample + ms.encode + ms.prefill + ms.generate <= ms.total * 1.01


def test_no_clip_gives_nothing(pipeline):
    assert list(pipeline.describe_all([])) == []


def test_the_next_clip_is_read_while_a_text_is_generated(pipeline, clips, monkeypatch):
    read, reading = chain.read_candidates, threading.Event()

    def noticed(clip, *arguments):
        if clip == clips[1]:
            reading.set()
        return read(clip, *arguments)

    monkeypatch.setattr(chain, "read_candidates", noticed)
    waited = []

    def on_text(clip, _):
        if clip == clips[0]:
            waited.append(reading.wait(LONG_S))

    assert len(list(pipeline.describe_all(clips[:2], on_text))) == 2
    assert waited and all(waited)


def test_one_clip_ahead_is_read_and_no_more(pipeline, clips):
    taken = []

    def give():
        for index in range(6):
            taken.append(index)
            yield clips[index % 3]

    for index, _ in enumerate(pipeline.describe_all(give())):
        time.sleep(0.2)  # for a reader that would run on
        assert len(taken) <= index + 2
    assert index == 5


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_unreadable_clip_is_an_error_in_its_place(pipeline, clips, broken, place):
    asked = list(clips)
    asked.insert(place, broken)
    found = list(pipeline.describe_all(asked))
    with pytest.raises(ClipError) as alone:
        pipeline.describe(broken)
    assert isinstance(found[place], ClipError) and str(found[place]) == str(alone.value)
    del found[place]
    assert all(same(one, pipeline.describe(clip)) for one, clip in zip(found, clips, strict=True))


def test_a_text_that_fails_does_not_stop_the_next(pipeline, clips, monkeypatch):
    generate, calls = pipeline.decoder.generate, []

    def fail_once(*arguments, **settings):
        calls.append(1)
        if len(calls) == 1:
            raise DecoderError("llama.cpp failed to decode")
        return generate(*arguments, **settings)

    monkeypatch.setattr(pipeline.decoder, "generate", fail_once)
    found = list(pipeline.describe_all(clips))
    assert isinstance(found[0], DecoderError)
    assert [one.clip for one in found[1:]] == [str(clip) for clip in clips[1:]]


def test_what_is_not_a_clips_own_fault_is_raised_in_its_turn(pipeline, clips, monkeypatch):
    read = chain.read_candidates

    def fail(clip, *arguments):
        if clip == clips[1]:
            raise MemoryError
        return read(clip, *arguments)

    monkeypatch.setattr(chain, "read_candidates", fail)
    found = pipeline.describe_all(clips)
    assert next(found).clip == str(clips[0])
    with pytest.raises(MemoryError):
        next(found)
    assert not readers()


@pytest.mark.parametrize("stage", ["reading", "sampling", "encoding"])
def test_ctrl_c_gives_up_what_is_read_ahead(pipeline, clips, monkeypatch, stage):
    """The reader is held in the middle of its clip until the interrupt came: had it gone on, `done` would say so."""
    interrupted, begun, done = threading.Event(), threading.Event(), []
    stderr = os.fstat(2)

    def hold():
        if threading.current_thread() in readers():
            begun.set()
            interrupted.wait(LONG_S)

    add, embed, encode = chain.Candidates.add, chain.Sampler.embed, pipeline.encode
    if stage == "reading":
        monkeypatch.setattr(chain.Candidates, "add", lambda self, frame: (hold(), add(self, frame)))
    elif stage == "sampling":
        monkeypatch.setattr(chain.Sampler, "embed", lambda self, images: (hold(), embed(self, images))[1])

    def encode_and_tell(views):
        if stage == "encoding":
            hold()
        tokens = encode(views)
        done.append(threading.current_thread())
        return tokens

    monkeypatch.setattr(pipeline, "encode", encode_and_tell)

    def interrupt(*_):
        assert begun.wait(LONG_S)
        threading.Thread(target=lambda: pipeline._stop.wait(LONG_S) and interrupted.set()).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(pipeline.describe_all([clips[2], clips[2]], interrupt))
    monkeypatch.undo()
    assert interrupted.is_set() and done == [threading.main_thread()]
    assert not readers()
    assert os.path.samestat(os.fstat(2), stderr)  # libav's complaints are no longer listened to
    assert pipeline.describe(clips[0]).clip == str(clips[0])


def test_a_second_ctrl_c_does_not_let_what_was_given_up_go_on(pipeline, clips, monkeypatch):
    """Or the process would end only after a clip that nobody wants. `shutdown` is where the second one arrives."""
    begun, go, read = threading.Event(), threading.Event(), []
    add, shutdown = chain.Candidates.add, chain.ThreadPoolExecutor.shutdown

    def held(self, frame):
        if threading.current_thread() in readers():
            begun.set()
            go.wait(LONG_S)
            read.append(frame.index)
        add(self, frame)

    def interrupt(*_):
        assert begun.wait(LONG_S)
        raise KeyboardInterrupt

    monkeypatch.setattr(chain.Candidates, "add", held)
    monkeypatch.setattr(chain.ThreadPoolExecutor, "shutdown", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(pipeline.describe_all([clips[0], clips[2]], interrupt))
    monkeypatch.setattr(chain.ThreadPoolExecutor, "shutdown", shutdown)
    go.set()
    assert same(pipeline.describe(clips[1]), next(pipeline.describe_all([clips[1]])))
    assert len(read) <= 1 and not readers()


def test_a_clip_described_between_others_does_not_share_the_engines(pipeline, clips, monkeypatch):
    inside, most = [], []
    pick = chain.Sampler.pick

    def watched(self, candidates):
        inside.append(1)
        late = time.monotonic() + 1.0
        while threading.current_thread() in readers() and len(inside) < 2 and time.monotonic() < late:
            time.sleep(0.01)  # long enough for the other to come, if it can
        most.append(len(inside))
        try:
            return pick(self, candidates)
        finally:
            inside.pop()

    monkeypatch.setattr(chain.Sampler, "pick", watched)
    for found in pipeline.describe_all(clips[:2]):
        assert same(pipeline.describe(found.clip), found)
    assert len(most) == 4 and max(most) == 1


def test_backends_are_tried_alone_and_with_the_samplers_batch(bundle, monkeypatch, tmp_path):
    """A decoder that loads beside would be timed with the first of them."""
    load, load_decoder, loaded, seen = chain.load, Pipeline._load_decoder, [], []

    def slowly(self, limit):
        time.sleep(0.3)
        made = load_decoder(self, limit)
        loaded.append(1)
        return made

    def told(path, backend, precision, store):
        store.quiet()
        seen.append((len(loaded), store.cpu_batch))
        return load(path, "onnxruntime", precision)

    monkeypatch.setattr(Pipeline, "_load_decoder", slowly)
    monkeypatch.setattr(chain, "load", told)
    with Pipeline(bundle, engine_cache=tmp_path) as made:
        assert seen == [(1, cached_batch(made.sampler.spec.size))] * 2


def test_an_iterator_left_early_leaves_no_thread(pipeline, clips):
    with closing(pipeline.describe_all(clips)) as found:
        next(found)
    assert not readers()
    assert same(pipeline.describe(clips[1]), next(pipeline.describe_all([clips[1]])))


def test_the_command_prints_clips_in_order_and_ends_at_ctrl_c(bundle, clips, broken):
    asked = [clips[0], broken, *clips[1:], *clips * 30]
    command = [sys.executable, "-u", "-m", "svrt", "describe", *map(str, asked), "--bundle", str(bundle.path)]
    with interruptible():
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [child.stdout.readline() for _ in range(3)]
    child.send_signal(signal.SIGINT)
    rest, errors = child.communicate(timeout=120)
    assert [line.split(": ")[0] for line in lines] == list(map(str, clips))
    assert child.returncode == 130, errors
    assert "Traceback" not in errors and len(rest.splitlines()) < len(asked) - 4
    said = [line for line in errors.splitlines() if "16 keyframes" in line or str(broken) in line]
    assert [str(broken) in line for line in said[:3]] == [False, True, False]


def test_both_ways_are_measured_on_the_same_texts(pipeline, clips):
    found = overlap.measure(pipeline, clips[:2], rounds=1)
    assert min(found.one_by_one, found.read_ahead, found.ratio) > 0
