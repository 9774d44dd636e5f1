"""The bare loop that our decoder is held against says the same, token for token."""

import pytest
from small_llama import make_llama
from svrt.benchmarks.decoder import Setting, against_bare_loop, by_threads, table
from svrt.exporter.decoder import write_merged_gguf

PREFIX, SUFFIX = "<|begin_of_text|>The guard", " shoots.<|eot_id|>The"


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Setting:
    base = tmp_path_factory.mktemp("base")
    make_llama(base)
    gguf = tmp_path_factory.mktemp("model") / "small.gguf"
    write_merged_gguf(base, None, gguf, name="small")
    return Setting(gguf, PREFIX, SUFFIX, video_tokens=12, max_tokens=16, repacked=False)


def test_both_say_the_same_and_every_figure_is_of_both(setting):
    found = against_bare_loop(setting, rounds=2)
    assert found.tokens == 16 and found.prompt_tokens[1] == 12
    assert min(found.ours_per_s, found.bare_per_s, found.ours_first_ms, found.bare_first_ms) > 0
    assert f"video 12, suffix {found.prompt_tokens[2]}, text 16 tokens" in table("small", found)


def test_every_number_of_threads_is_measured(setting, monkeypatch):
    monkeypatch.setattr("svrt.benchmarks.decoder.usable_processors", lambda: 2)
    found = by_threads(setting, rounds=1)
    assert [count for count, _, _ in found] == [1, 2]
    assert all(prefill > 0 and generation > 0 for _, prefill, generation in found)
