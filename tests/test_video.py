"""Reading clips: which frames, at which times, upright, in bounded memory, and what is said of damaged ones."""

import io
import os
import wave

import cv2
import numpy as np
import pytest
from conftest import moving_ball, rotate_metadata, write_video
from svrt.errors import ClipError
from svrt.runtime import video
from svrt.runtime.complaints import decoder_complaints, say


class Kept:
    """A collector that keeps numbers, times and pictures."""

    def __init__(self):
        self.indices, self.times, self.images = [], [], []

    def add(self, frame):
        self.indices.append(frame.index)
        self.times.append(frame.time_s)
        self.images.append(frame.image)


def read(path, limit=64):
    return video.read_candidates(path, limit, Kept)


def test_every_frame_is_a_candidate_up_to_the_limit(clip):
    kept, warnings = read(clip)
    assert kept.indices == list(range(40))
    np.testing.assert_allclose(kept.times, np.arange(40) / 30, atol=1e-3)
    assert not warnings


def test_longer_clips_give_64_frames_evenly_from_first_to_last(tmp_path):
    kept, _ = read(write_video(tmp_path / "long.mp4", moving_ball(200)))
    assert kept.indices == [round(i * 199 / 63) for i in range(64)]
    np.testing.assert_allclose(kept.times, np.array(kept.indices) / 30, atol=1e-3)


def test_frames_are_those_of_the_stream(tmp_path):
    frames = list(moving_ball(100))
    kept, _ = read(write_video(tmp_path / "x.avi", frames, codec="MJPG"), limit=10)
    for index, image in zip(kept.indices, kept.images, strict=True):
        assert np.abs(image.astype(int) - frames[index]).mean() < 6


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_metadata_is_honoured(tmp_path, degrees):
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[:30, :40] = (255, 255, 255)  # top left of the picture as stored
    path = write_video(tmp_path / "x.mp4", [frame] * 4)
    rotate_metadata(path, degrees)
    kept, _ = read(path)
    upright = np.rot90(frame, -degrees // 90)  # clockwise
    assert kept.images[0].shape == upright.shape
    assert np.abs(kept.images[0].astype(int) - upright).mean() < 6


def test_a_header_that_claims_too_many_frames_does_not_change_the_choice(tmp_path):
    """Cut off an AVI's tail: its header still claims 200 frames."""
    path = write_video(tmp_path / "x.avi", moving_ball(200), codec="MJPG")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    kept, warnings = read(path)
    last = kept.indices[-1]
    assert 70 < last < 160
    assert kept.indices == video.candidate_indices(last + 1, 64)
    assert len(warnings) == 1 and str(path) in warnings[0]


def test_garbage_in_the_middle_is_described_with_a_warning(tmp_path):
    path = write_video(tmp_path / "x.avi", moving_ball(100), codec="MJPG")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    kept, warnings = read(path)
    assert len(kept.indices) == 64
    assert len(warnings) == 1 and "damaged" in warnings[0] and str(path) in warnings[0]


def test_what_others_write_to_stderr_meanwhile_is_passed_on(capfd):
    with decoder_complaints() as complaints:
        os.write(2, b"[h264 @ 0x55d0c0ffee00] error while decoding MB 3 4\n[mystery] someone else's line\n")
    assert complaints == ["h264: error while decoding MB 3 4"]
    assert capfd.readouterr().err == "[mystery] someone else's line\n"


def test_the_end_of_a_line_may_come_after_decoding(capfd):
    with decoder_complaints() as complaints:
        os.write(2, b"someone else's")
    os.write(2, b" line\n")
    assert complaints == []
    assert capfd.readouterr().err == "someone else's line\n"


def test_what_svrt_says_meanwhile_comes_at_once_and_in_order(capfd):
    say("before")
    with decoder_complaints() as complaints:
        os.write(2, b"[h264 @ 0x55d0c0ffee00] error while decoding MB 3 4\n")
        say("[h264 @ 0x0] svrt speaks of a decoder")
        assert capfd.readouterr().err == "before\n[h264 @ 0x0] svrt speaks of a decoder\n"
    say("after")
    assert complaints == ["h264: error while decoding MB 3 4"]
    assert capfd.readouterr().err == "after\n"


def test_what_svrt_says_goes_where_a_program_has_put_stderr(capfd, monkeypatch):
    elsewhere = io.StringIO()
    monkeypatch.setattr("sys.stderr", elsewhere)
    with decoder_complaints():
        say("hello")
    monkeypatch.setattr("sys.stderr", None)
    say("nobody hears this")
    assert elsewhere.getvalue() == "hello\n"
    assert capfd.readouterr().err == ""


def test_clips_read_in_several_threads_keep_their_warnings_and_stderr(tmp_path, clip, capfd):
    import threading

    cut = write_video(tmp_path / "x.mkv", moving_ball(60))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    found = {}
    readers = [threading.Thread(target=lambda p=p: found.update({p: read(p)[1]})) for p in (cut, clip) for _ in "123"]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found[clip] == [] and "damaged" in found[cut][0]
    os.write(2, b"still here\n")
    assert capfd.readouterr().err == "still here\n"


def test_a_name_that_is_not_utf8_is_refused(tmp_path, clip):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.mp4")
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(clip.read_bytes())
    with pytest.raises(ClipError, match="not valid UTF-8"):
        read(path)


def bad_clip(tmp_path, kind):
    path = tmp_path / f"{kind}.mp4"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("not a video\n" * 100)
    elif kind == "playlist":
        write_video(tmp_path / "other.avi", moving_ball(20), codec="MJPG")
        path.write_text("ffconcat version 1.0\nfile other.avi\n")
    elif kind == "empty":
        path.touch()
    elif kind == "audio":
        with wave.open(str(path), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(32000))
    elif kind == "truncated":
        whole = write_video(tmp_path / "whole.mp4", moving_ball(60)).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "one-frame":
        write_video(path, moving_ball(1))
    elif kind == "8k":
        write_video(path, [np.zeros((4320, 7680, 3), np.uint8)] * 2)
    return path


BAD_CLIPS = {
    "missing": "No such file",
    "folder": "is a folder",
    "text": "no picture could be decoded",
    "playlist": "is a playlist",
    "empty": r"0 bytes",
    "audio": "no picture could be decoded",
    "truncated": "no picture could be decoded",
    "one-frame": "only one frame",
    "8k": "7680x4320",
}


@pytest.mark.parametrize("kind", BAD_CLIPS)
def test_what_is_not_a_clip_is_refused_in_one_line_by_name(tmp_path, capfd, kind):
    path = bad_clip(tmp_path, kind)
    with pytest.raises(ClipError, match=BAD_CLIPS[kind]) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # libav's own complaints are folded in


def test_a_name_that_ffmpeg_would_take_for_a_protocol_is_a_file(tmp_path, monkeypatch, clip):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cam:1 %03d.mp4").write_bytes(clip.read_bytes())
    assert len(read("cam:1 %03d.mp4")[0].indices) == 40


def test_streams_without_times_are_counted_at_the_frame_rate(monkeypatch, clip):
    real = cv2.VideoCapture

    class Timeless:
        def __init__(self, *arguments):
            self._capture = real(*arguments)

        def get(self, prop):
            return 0.0 if prop == cv2.CAP_PROP_POS_MSEC else self._capture.get(prop)

        def __getattr__(self, name):
            return getattr(self._capture, name)

    monkeypatch.setattr(cv2, "VideoCapture", Timeless)
    np.testing.assert_allclose(read(clip)[0].times, np.arange(40) / 30, atol=1e-6)


def test_a_clip_can_be_given_up_at_any_frame(tmp_path):
    """At those, too, that are no candidates: of a container without a count the first pass has none."""
    path, asked = write_video(tmp_path / "x.avi", moving_ball(60), codec="MJPG"), []

    def go_on():
        asked.append(1)
        if len(asked) == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.read_candidates(path, 2, Kept, go_on)
    assert len(asked) == 33
    assert video.read_candidates(path, 2, Kept, lambda: asked.append(1))[0].indices == [0, 59]
    assert len(asked) == 33 + 60 + 1  # and once more at the end


def test_a_strip_is_refused_before_a_frame_of_it_is_scaled(tmp_path):
    path = write_video(tmp_path / "x.avi", (np.zeros((16, 640, 3), np.uint8) for _ in range(4)), codec="MJPG")
    with pytest.raises(ClipError, match="640x16 are a strip"):
        read(path)
    assert read(write_video(tmp_path / "y.avi", (np.zeros((20, 640, 3), np.uint8) for _ in range(4)), codec="MJPG"))


def test_what_cannot_be_told_on_stderr_is_lost_and_ends_nothing(monkeypatch):
    class Full(io.StringIO):
        def write(self, _text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    say("sampled in 12 ms")


def test_a_process_without_free_descriptors_hears_of_no_damage(monkeypatch):
    def refuse():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", refuse)
    with decoder_complaints() as complaints:
        assert complaints == []
