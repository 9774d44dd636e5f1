"""Claims about `svrt eval`: table, scores against worked examples and other programs, resuming, reports."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import interruptible
from small_system import write_system
from svrt.errors import ClipError, OutputError
from svrt.evaluation import bertscore, labels, minilm, richness, truth, words
from svrt.evaluation.bootstrap import RESAMPLES, interval, wilson
from svrt.evaluation.evaluate import Job, evaluate
from svrt.evaluation.report import Evaluation, clip_table, markdown
from svrt.evaluation.run import LOG, Log, Said, Task, describe_all
from svrt.evaluation.scores import score
from svrt.evaluation.table import ATTRIBUTES, Row, TableError, find_clips, read_table
from svrt.evaluation.term import AbsentTermError
from svrt.exporter.export import export
from svrt.exporter.recipe import read_recipe
from svrt.models.pocket.captions import caption
from svrt.models.pocket.shot import ENTRIES, EXITS, OUTCOMES, Shot
from svrt.runtime.pipeline import Pipeline, Timings
from tokenizers import BertWordPieceTokenizer
from tokenizers.processors import BertProcessing
from transformers import BertConfig, BertModel

SAMPLE = Path(truth.__file__).parents[1] / "models" / "pocket" / "sample"
SENTENCES = [
    "Made shot: the ball comes in from the left, touches the rim and drops down.",
    "MISS 16' Pullup Jump Shot",
    "DEFENSIVE REBOUND",
    "The ball is lost from view",
    "A guard drives to the basket, then passes to the corner for a three-pointer.",
]


@pytest.fixture
def no_models(monkeypatch):
    """As where neither sentence embeddings nor BERTScore are installed."""
    monkeypatch.setattr(minilm, "PACKAGE", "a_package_that_nobody_made")

    def absent(texts, references):
        raise AbsentTermError("bert-score is not installed")

    monkeypatch.setattr(bertscore, "bert_f1", absent)


# Tables


ROWS = [
    {"video_path": "a/1.mp4", "intent": 'MISS 16\' "Pullup", Jump Shot'},
    {"video_path": "2.mp4", "intent": "STEAL"},
]


def write_table(path: Path, rows=ROWS) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            lines = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            lines.writeheader()
            lines.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_the_same_rows_are_read_from_every_kind_of_table(tmp_path, suffix):
    rows = read_table(write_table(tmp_path / f"val{suffix}"))
    assert rows == [Row("a/1.mp4", 'MISS 16\' "Pullup", Jump Shot', {}), Row("2.mp4", "STEAL", {})]


def test_labels_are_read_as_rim_clips_have_them(tmp_path):
    (tmp_path / "labels.tsv").write_text(
        "file\tsplit\toutcome\tview\tentry\tcontact\texit\tcaption\n"
        "val/a.mp4\tval\tmake\tleft\tfront\tbackboard+rim+net\tdown\tIt drops in.\n"
        "val/b.mp4\tval\tmiss\tleft\t\tnone\tunseen\tIt never arrives.\n"
    )
    first, second = read_table(tmp_path / "labels.tsv")
    assert first.labels == {"outcome": "make", "entry": "front", "board": "yes", "exit": "down"}
    assert second.labels == {"outcome": "miss", "board": "no", "exit": "unseen"}
    assert (first.video, first.reference) == ("val/a.mp4", "It drops in.")


BAD_TABLES = {
    "x.xlsx": ("", "*.parquet"),
    "absent.tsv": (None, "No such file"),
    "no_video.tsv": ("clip\tintent\na\tb\n", "no column video_path or video"),
    "no_reference.csv": ("video,notes\na,b\n", "no column intent or reference"),
    "empty.tsv": ("", "found: nothing"),
    "header.tsv": ("video\treference\n", "no row"),
    "short.tsv": ("video\treference\na\tb\nc\n", "line 3 has 1 fields"),
    "blank.tsv": ("video\treference\na\tb\nc\t \n", "line 3: reference is ' '"),
    "missing.jsonl": ('{"video": "a", "reference": "b"}\n{"video": "a"}\n', "(line 2)"),
    "mixed.jsonl": ('{"video": "a", "reference": "b"}\n{"video": "c", "outcome": "make"}\n', "line 2 has no reference"),
    "null.jsonl": ('{"video": "a", "reference": null}\n', "reference is empty"),
    "list.jsonl": ("[1]\n", "line 1 is not a JSON object"),
    "cut.jsonl": ('{"video": "a", \n', "line 1 is not JSON"),
    "label.tsv": ("video\toutcome\na\tswish\n", "outcome is 'swish'; known: make, miss"),
    "no_hoop.tsv": ("video\toutcome\texit\na\tnone\tdown\n", "no hoop in view, and exit is 'down'"),
    "contact.tsv": ("video\tcontact\na\trim+post\n", "contact is 'rim+post'"),
    "quote.csv": ('video,reference\n"a,b\n', "line 2 cannot be read"),
    "twice.tsv": ("video\toutcome\toutcome\na\tmake\tmiss\n", "two columns are named 'outcome'"),
    "latin.tsv": (b"video\treference\na\t\xe9\n", "cannot be read"),
    "text.parquet": ("video", "cannot be read as parquet"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_in_one_line_that_names_it(tmp_path, name):
    content, reason = BAD_TABLES[name]
    path = tmp_path / name
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TableError) as caught:
        read_table(path)
    assert str(path) in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_clips_are_found_as_written_or_by_name_and_missing_ones_are_counted(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/1.mp4", "2.mp4"):
        (tmp_path / name).write_bytes(b"x")
    rows = [Row("a/1.mp4", "x", {}, 2), Row("elsewhere/2.mp4", "x", {}, 3)]
    assert find_clips(Path("t.tsv"), rows, tmp_path) == [tmp_path / "a/1.mp4", tmp_path / "2.mp4"]
    rows += [Row("3.mp4", "x", {}, 4), Row("n" * 300, "x", {}, 5)]
    with pytest.raises(TableError, match=r"2 of the 4 clips of t\.tsv are not there; the first is '3\.mp4' \(line 4\)"):
        find_clips(Path("t.tsv"), rows, tmp_path)
    with pytest.raises(TableError, match=r"both 'x/2\.mp4' and 'y/2\.mp4'"):
        find_clips(Path("t.tsv"), [Row("x/2.mp4", "x", {}), Row("y/2.mp4", "x", {})], tmp_path)
    with pytest.raises(TableError, match="no such folder"):
        find_clips(Path("t.tsv"), rows, tmp_path / "absent")


# Ground Truth Validation


def test_a_text_equal_to_its_reference_scores_one(no_models):
    found = truth.score(SENTENCES, SENTENCES)
    assert set(found.values) == {"rouge_l", "bleu", "content_f1"}
    for name, values in found.values.items():
        assert values == pytest.approx(np.ones(len(SENTENCES))), name
        assert values.max() <= 1.0
    assert found.corpus_bleu == pytest.approx(1.0)


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    text, reference = "the ball touches the rim and drops", "the ball drops down after the rim"
    # Longest common subsequence "the ball the rim": 4 of 7 words of each.
    assert truth.rouge_l([text], [reference]) == pytest.approx([4 / 7])
    assert truth.rouge_l(["Shooting shots"], ["shot"]) == pytest.approx([2 * (1 / 2 * 1) / (1 / 2 + 1)])  # by stems
    assert truth.rouge_l([""], ["shot"]) == [0.0]


def plain_bleu(text: str, reference: str) -> float:
    """BLEU-4 of one sentence by its definition: an n-gram order without a match counts 1 / 2^k of one match."""
    ours, theirs = text.split(), reference.split()
    logs, halves = [], 1.0
    for n in range(1, min(4, len(ours)) + 1):
        mine, other = (Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in (ours, theirs))
        matches = sum((mine & other).values())
        if not matches:
            halves *= 2
        logs.append(math.log((matches or 1 / halves) / sum(mine.values())))
    brevity = min(1.0, math.exp(1 - len(theirs) / len(ours)))
    return brevity * math.exp(sum(logs) / len(logs))


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("the ball comes in from the left and drops down", "the ball comes in from the right and drops down"),
        ("the ball drops", "the ball drops down into the net"),
        ("rim rim rim net ball", "the ball hits the rim"),
        ("made shot", "made shot"),
    ],
)
def test_bleu_is_its_definition(text, reference):
    found = truth.sentence_bleu(truth.BLEU(effective_order=True), [text], [reference])
    assert found == pytest.approx([plain_bleu(text, reference)])


def test_content_f1_counts_words_that_are_no_stop_words():
    # {made, shot, ball, left, rim} and {ball, ball, right, rim}: two in common of five and four.
    text, reference = "Made shot: the ball is from the LEFT, to the rim", "A ball, the ball from the right of the rim"
    assert truth.content_f1(text, reference) == pytest.approx(2 * 2 / (5 + 4))
    assert truth.content_f1("the of and", "an it") == 1.0
    assert truth.content_f1("", "the ball") == 0.0
    assert truth.content_f1(reference, text) == truth.content_f1(text, reference)


def test_a_term_without_its_model_is_null_with_the_reason_and_the_sum_says_what_is_in_it(no_models):
    said = [spoken(f"{n}.mp4", text, reference=text) for n, text in enumerate(SENTENCES)]
    found = report_of(said)
    scores = found.to_json()["truth"]
    assert set(scores["missing"]) == {"bert_f1", "semantic_similarity"}
    assert minilm.INSTALL in scores["missing"]["semantic_similarity"]
    assert scores["ground_truth_validation"] is None
    assert scores["sum_of_present"]["mean"] == pytest.approx(3.0)
    assert set(scores["terms"]) == {"rouge_l", "bleu", "content_f1"}
    text = markdown(found)
    assert "| Ground Truth Validation (sum of five) | null |" in text
    assert "| sum of 3: ROUGE-L + BLEU + content F1 | 3.000 |" in text
    assert "- semantic similarity: not computed: " in text


def test_the_full_sum_is_given_when_every_term_is_there(monkeypatch):
    monkeypatch.setattr(bertscore, "bert_f1", lambda texts, references: np.full(len(texts), 0.5))
    monkeypatch.setattr(truth, "semantic_similarity", lambda texts, references: np.full(len(texts), 0.25))
    found = score([spoken(f"{n}.mp4", text, reference=text) for n, text in enumerate(SENTENCES)]).truth
    assert found.ground_truth_validation.mean == pytest.approx(3.75)
    assert found.ground_truth_validation == found.sum_of_present and found.missing == {}


# Sentence embeddings and BERTScore


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory):
    """A BERT of MiniLM's layout with random weights, and a tokenizer of the sentences' words."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=120, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertModel(config).eval()
    for parameter in model.parameters():  # as initialised, biases and norms are trivial
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(SENTENCES, vocab_size=120, show_progress=False)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = BertProcessing(*ends)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, model, tokenizer


def test_embeddings_are_those_of_transformers(small_bert):
    folder, reference, tokenizer = small_bert
    model = minilm.SentenceModel(folder)
    tokenizer.no_padding()
    tokenizer.enable_truncation(16)
    for text in (*SENTENCES, ""):
        tokens = tokenizer.encode(text).ids
        with torch.inference_mode():
            mean = reference(torch.tensor([tokens])).last_hidden_state[0].mean(dim=0).numpy()
        np.testing.assert_allclose(model.embed(text), mean / np.linalg.norm(mean), atol=2e-6)


def test_weights_that_are_not_the_named_models_give_no_score(small_bert, monkeypatch, tmp_path):
    package = tmp_path / "other_weights"
    folder = package / "data" / "embeddings" / minilm.NAME.replace("/", "__")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(small_bert[0])
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(minilm, "PACKAGE", "other_weights")
    with pytest.raises(AbsentTermError, match=r"model\.safetensors is not the file of"):
        minilm.load()


def test_the_packaged_model_puts_like_near_like():
    try:
        minilm.load()
    except AbsentTermError as exc:
        pytest.skip(str(exc))
    text = "The shot goes in off the backboard."
    near, far = truth.semantic_similarity([text] * 2, ["It banks off the glass and scores.", "A dog eats its dinner."])
    assert near > 0.4 > 0.15 > far
    assert truth.semantic_similarity([text], [text]) == pytest.approx([1.0])


def test_bertscore_is_absent_without_its_model_and_nothing_is_downloaded(tmp_path):
    code = (
        "from svrt.evaluation import bertscore\nfrom svrt.evaluation.term import AbsentTermError\n"
        "try: bertscore.bert_f1(['a'], ['b'])\nexcept AbsentTermError as exc: print(exc)"
    )
    done = python(code, HF_HOME=str(tmp_path / "hub"))
    assert "hf download roberta-large" in done.stdout, done.stderr
    assert not (tmp_path / "hub").exists()


def test_bertscore_is_greedy_matching_of_layer_17(tmp_path):
    pytest.importorskip("bert_score")
    done = python(BERTSCORE_BY_HAND, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found, expected = json.loads(done.stdout.splitlines()[-1])
    assert found == pytest.approx(expected, abs=1e-5)
    assert min(expected) < 0.999 and expected[1] == pytest.approx(1.0, abs=1e-5)


# Writes a RoBERTa of 18 small random layers where the cache would hold the large one, and matches words by hand.
BERTSCORE_BY_HAND = """
import json, os, sys
from pathlib import Path
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, RobertaConfig, RobertaModel
from svrt.evaluation import bertscore
folder = Path(os.environ["HF_HOME"]) / "hub/models--roberta-large/snapshots/0"
folder.mkdir(parents=True)
(folder.parents[1] / "refs").mkdir()
(folder.parents[1] / "refs/main").write_text("0")
texts, references = ["the ball goes in", "made shot"], ["the shot goes wide", "made shot"]
words = ByteLevelBPETokenizer()
special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
words.train_from_iterator(texts + references, vocab_size=300, special_tokens=special)
words.save_model(str(folder))
torch.manual_seed(0)
sizes = dict(hidden_size=16, num_hidden_layers=18, num_attention_heads=2, intermediate_size=32)
model = RobertaModel(RobertaConfig(vocab_size=300, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1,
                                   bos_token_id=0, eos_token_id=2, **sizes)).eval()
model.save_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(str(folder))
def embed(text):
    with torch.inference_mode():
        layers = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
    return torch.nn.functional.normalize(layers[17][0], dim=-1)
def f1(text, reference):
    cosines = embed(text) @ embed(reference).T  # the ends of a sentence are matched with, and count nothing themselves
    precision, recall = cosines.max(dim=1).values[1:-1].mean(), cosines.max(dim=0).values[1:-1].mean()
    return float(2 * precision * recall / (precision + recall))
print(json.dumps([bertscore.bert_f1(texts, references).tolist(), list(map(f1, texts, references))]))
"""


# Information Richness


def test_richness_of_a_sentence_worked_by_hand():
    text = "MISS 16' Pullup Jump Shot: he dribbled twice, then shot from sixteen feet."
    assert richness.richness(text) == {
        "information_density": pytest.approx(10 / 13),  # all but he, then, from
        "action_complexity": 4.0,  # miss, jump, dribble, shoot
        "measurement_precision": 2.0,  # 16', sixteen feet
        "sequence_length": 3.0,  # up to the colon, up to "then", and on
        "vocabulary_richness": 12.0,  # shot stands twice
        "technical_coverage": pytest.approx(3 / 10),  # result, shot, ball
    }


def test_richness_of_nothing_is_nothing():
    assert set(richness.richness("").values()) == {0.0}
    assert set(richness.richness(" .,;").values()) == {0.0}


def test_numbers_need_a_unit_and_actions_any_inflection():
    said = words.measurements("2.8 s, three feet, 40 %, a 30-degree turn, 5 in a row, 1.5m, (2 PTS), version 3")
    assert said == ["2.8 s", "three feet", "40 %", "30-degree", "1.5m", "2 pts"]
    said = words.measurements(
        "6'2\" tall, 16' out, at 40\u00b0; one's, \"one\", '23', a three-point shot, a 3-point try, 3 points"
    )
    assert said == ["6'2\"", "16'", "40\u00b0", "3 points"]
    assert words.actions("pivoted, squatting, stolen, caught, slid, bent") == {
        *("pivot", "squat", "steal", "catch", "slide", "bend")
    }
    assert words.steps("She stands next to the rim, next she shoots") == ["she stands next to the rim, ", " she shoots"]
    assert words.actions("It flies, dropped, is bouncing; she went left") == {"fly", "drop", "bounce", "go"}
    assert words.steps("It comes in. Then it bounces, and then it drops.") == [
        "it comes in",
        " it bounces, and ",
        " it drops",
    ]


# Intervals


def test_the_interval_contains_the_mean_and_forgets_the_order():
    rng = np.random.default_rng(1)
    for values in (rng.random(7), rng.exponential(size=200), np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.3])):
        found = interval(values)
        assert found.low <= found.mean <= found.high and found.n == len(values)
        assert found.mean == pytest.approx(values.mean())
        assert interval(rng.permutation(values)) == found
    assert interval(np.array([])) is None


def test_the_interval_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(2).gamma(2.0, size=120)
    found = interval(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert abs(found.low - theirs.low) < 0.1 * width and abs(found.high - theirs.high) < 0.1 * width


def test_many_clips_are_drawn_in_blocks_and_the_interval_shrinks_with_their_root():
    rng = np.random.default_rng(3)
    few, many = interval(rng.normal(size=100)), interval(rng.normal(size=10_000))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10, rel=0.3)


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (29, 33), (33, 33), (1, 1)])
def test_wilsons_interval_is_scipys(hits, total):
    theirs = scipy.stats.binomtest(hits, total).proportion_ci(method="wilson")
    assert wilson(hits, total) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


# Labels


def labelled(shot: Shot) -> dict[str, str]:
    board = "yes" if "backboard" in shot.contacts else "no"
    return {"outcome": shot.outcome, "entry": shot.entry, "board": board, "exit": shot.exit}


def test_true_sentences_are_right_about_every_attribute():
    shots = [Shot(o, e, c, x) for o in OUTCOMES for e in ENTRIES for c in ((), ("backboard", "net")) for x in EXITS]
    found = labels.accuracies([caption(shot).text for shot in shots], [labelled(shot) for shot in shots])
    assert set(found) == set(ATTRIBUTES)
    for name, one in found.items():
        assert one.hits == one.n == len(shots), name
        assert all(row[value] == sum(row.values()) for value, row in one.confusion.items())


def test_wrong_and_missing_answers_are_counted_where_they_belong():
    texts = ["Made shot.", "Missed shot.", "A dog runs.", "Made shot."]
    truths = [{"outcome": "make"}, {"outcome": "make"}, {"outcome": "miss"}, {"entry": "left"}]
    found = labels.accuracies(texts, truths)
    outcome = found["outcome"]
    assert (outcome.hits, outcome.n) == (1, 3) and outcome.commonest == pytest.approx(2 / 3)
    assert outcome.confusion == {
        "make": {"make": 1, "miss": 1, "none": 0, labels.NOT_SAID: 0},
        "miss": {"make": 0, "miss": 0, "none": 0, labels.NOT_SAID: 1},
        "none": {"make": 0, "miss": 0, "none": 0, labels.NOT_SAID: 0},
    }
    assert (outcome.low, outcome.high) == wilson(1, 3)
    assert found["entry"].confusion["left"][labels.NOT_SAID] == 1
    assert set(found) == {"outcome", "entry"}


def test_no_hoop_in_view_is_a_third_outcome_and_leaves_nothing_else_to_be_right_about():
    texts = ["No hoop in view.", "Made shot: the ball comes in from the left.", "No hoop in view.", "Missed shot."]
    truths = [{"outcome": "none"}, {"outcome": "none"}, {"outcome": "miss", "entry": "left"}, {"outcome": "miss"}]
    found = labels.accuracies(texts, truths)
    assert (found["outcome"].hits, found["outcome"].n) == (2, 4)
    assert found["outcome"].confusion == {
        "make": {"make": 0, "miss": 0, "none": 0, labels.NOT_SAID: 0},
        "miss": {"make": 0, "miss": 1, "none": 1, labels.NOT_SAID: 0},
        "none": {"make": 1, "miss": 0, "none": 1, labels.NOT_SAID: 0},
    }
    assert found["entry"].n == 1 and found["entry"].confusion["left"][labels.NOT_SAID] == 1
    said = [spoken(str(n), text, truths=truth) for n, (text, truth) in enumerate(zip(texts, truths, strict=True))]
    report = markdown(report_of(said))
    assert "| outcome: true \\ said | make | miss | none |\n| --- | ---: | ---: | ---: |" in report
    assert "| miss | 0 | 1 | 1 |\n| none | 1 | 0 | 1 |" in report


# Whole runs


def spoken(video="a.mp4", text="Made shot.", error=None, reference=None, truths=None) -> Said:
    stamp = (1, 2, "b" * 64, "auto")
    return Said(video, reference, truths or {}, *stamp, text, error, [], {}, {"sampler": "onnxruntime cpu"})


def report_of(said) -> Evaluation:
    return Evaluation("t.tsv", "small", "b" * 64, {"sampler": "onnxruntime cpu"}, {"svrt": "0"}, score(said))


class Parrot:
    """Stands in for a pipeline: says the clip's content, fails on clips that say so, and remembers what it saw."""

    backends = {"sampler": "none"}  # noqa: RUF012

    def __init__(self):
        self.seen = []

    def describe(self, path):
        self.seen.append(path.name)
        text = path.read_text()
        if text == "bad":
            raise ClipError(f"{path}: no picture could be decoded")
        if text == "kill":
            raise KeyboardInterrupt
        return type("Described", (), {"text": text, "warnings": [], "timings_ms": Timings(1, 2, 3, 4, 5, 15)})()


def task_of(folder: Path, name: str, text: str, bundle="b" * 64) -> Task:
    path = folder / name
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return Task.of(Row(name, "reference", {}), path, bundle, "auto")


def ran(folder: Path, tasks) -> tuple[list, list]:
    """Texts and errors of one run, and the names of the clips that were described in it."""
    parrot = Parrot()
    with Log(folder / "out") as log:
        said = describe_all(tasks, log, lambda: nullcontext(parrot), lambda *_: None)
    return [one.text or one.error for one in said], parrot.seen


def test_a_run_goes_on_where_it_stopped(tmp_path):
    tasks = [task_of(tmp_path, name, text) for name, text in (("a", "one"), ("b", "kill"), ("c", "three"))]
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, tasks)
    tasks[1] = task_of(tmp_path, "b", "two")
    assert ran(tmp_path, tasks) == (["one", "two", "three"], ["b", "c"])
    assert ran(tmp_path, tasks) == (["one", "two", "three"], [])


def test_progress_says_what_was_done_before_and_counts_on(tmp_path):
    seen = []

    def progress(said, done, total):
        seen.append((said and said.video, done, total))

    tasks = [task_of(tmp_path, name, name) for name in ("a", "b", "c")]
    ran(tmp_path, tasks[:1])
    with Log(tmp_path / "out") as log:
        describe_all(tasks, log, lambda: nullcontext(Parrot()), progress)
    assert seen == [(None, 1, 3), ("b", 2, 3), ("c", 3, 3)]


def test_a_bad_clip_is_recorded_does_not_stop_the_others_and_is_tried_again(tmp_path):
    tasks = [task_of(tmp_path, name, text) for name, text in (("a", "bad"), ("b", "two"))]
    said, seen = ran(tmp_path, tasks)
    assert "no picture" in said[0] and said[1] == "two" and seen == ["a", "b"]
    assert "no picture" in json.loads((tmp_path / "out" / LOG).read_text().splitlines()[0])["error"]
    assert ran(tmp_path, tasks)[1] == ["a"]


def test_what_a_text_depends_on_decides_whether_it_is_kept(tmp_path):
    task = task_of(tmp_path, "a", "one")
    assert ran(tmp_path, [task])[1] == ["a"]
    for other in (
        replace(task, bundle="c" * 64),
        replace(task, backend="onnxruntime"),
        replace(task, modified_ns=task.modified_ns + 1),
        replace(task, row=Row("a", "another reference", {})),
        replace(task, row=Row("a", "reference", {"outcome": "make"})),
    ):
        assert ran(tmp_path, [other])[1] == ["a"]
        assert ran(tmp_path, [other, task])[1] == []


def test_a_line_that_a_power_cut_tore_is_dropped_and_its_clip_described_again(tmp_path):
    tasks = [task_of(tmp_path, name, text) for name, text in (("a", "one"), ("b", "two"))]
    ran(tmp_path, tasks)
    log = tmp_path / "out" / LOG
    log.write_bytes(log.read_bytes()[:-20])
    assert ran(tmp_path, tasks) == (["one", "two"], ["b"])
    assert len([json.loads(line) for line in log.read_text().splitlines()]) == 2


def test_a_log_that_is_none_or_is_in_use_is_refused_by_name(tmp_path):
    with Log(tmp_path), pytest.raises(OutputError, match="another svrt eval"):
        Log(tmp_path)
    (tmp_path / LOG).write_text('{"video": 1}\n')
    with Log(tmp_path) as log, pytest.raises(OutputError, match=r"clips.jsonl: line 1"):
        log.read()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        Log(tmp_path / "file")


def test_the_order_of_rows_changes_no_score(no_models):
    references = [*SENTENCES[1:], SENTENCES[0]]
    said = [
        spoken(f"{n}.mp4", text, reference=reference, truths={"outcome": "make"})
        for n, (text, reference) in enumerate(zip(SENTENCES, references, strict=True))
    ]
    first, second = (report_of(order).to_json() for order in (said, said[::-1]))
    corpus = [one["truth"].pop("corpus_bleu") for one in (first, second)]
    assert first == second and corpus[0] == pytest.approx(corpus[1])


def test_reports_of_failed_clips_and_of_nothing_described(no_models):
    found = report_of([spoken(reference="x | y", truths={"outcome": "miss"}), spoken("b|d.mp4", None, "b|d.mp4: cut")])
    found = replace(found, scores=score([spoken(reference="x | y"), spoken("b|d.mp4", None, "cut", "x")]))
    assert [clip.video for clip in found.failed] == ["b|d.mp4"]
    assert found.to_json()["described"] == 1 and "b\\|d.mp4: cut" in markdown(found)
    lines = list(csv.DictReader(clip_table(found).splitlines(), delimiter="\t"))
    assert [line["error"] for line in lines] == ["", "cut"]
    assert lines[1]["rouge_l"] == "" and float(lines[0]["information_richness"]) > 0
    nothing = report_of([spoken(text=None, error="cut", reference="x")])
    assert nothing.to_json()["truth"] is None and nothing.to_json()["richness"] is None
    assert "0 of 1 clips" in markdown(nothing)


def test_an_empty_text_is_scored_as_nothing(no_models):
    found = report_of([spoken(text="", reference="Made shot.", truths={"outcome": "make"})]).to_json()
    assert found["described"] == 1 and found["truth"]["sum_of_present"]["mean"] == 0.0
    assert found["labels"]["outcome"]["hits"] == 0


def test_any_bundle_is_evaluated(tmp_path, clip, no_models):
    bundle = export(read_recipe(str(write_system(tmp_path / "system"))), tmp_path / "bundle")
    table = write_table(tmp_path / "t.csv", [{"video": clip.name, "reference": "The ball crosses."}])
    job = Job.read(table, clip.parent)
    found = evaluate(job, bundle, tmp_path / "out", "auto", lambda: Pipeline(bundle), lambda *_: None)
    assert found.bundle_name == "small" and found.failed == []
    assert found.scores.truth.terms["rouge_l"].n == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["clips.jsonl", "clips.tsv", "report.json", "report.md"]


@pytest.mark.parametrize("name", ["clips.tsv", "clips.jsonl"])
def test_a_table_is_never_written_over(tmp_path, name, pocket):
    rows = [{"video": "make.mp4", "reference": "It drops in.", "mine": "an hour of labelling"}]
    table = write_table(tmp_path / name, rows)
    table.write_text(before := table.read_text().rstrip("\n"))  # as editors leave it: a torn line in a log
    with pytest.raises(OutputError, match=rf"{name}: is where .* give another --out"):
        evaluate(Job.read(table, SAMPLE), pocket, tmp_path, "auto", lambda: Pipeline(pocket), lambda *_: None)
    assert table.read_text() == before and os.listdir(tmp_path) == [name]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


def svrt_eval(*arguments, cwd=None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "svrt", "eval", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd)


SAMPLES = [
    {"video": "make.mp4", "reference": "The ball drops in.", "outcome": "make"},
    {"video": "miss.mp4", "reference": "The ball bounces off.", "outcome": "miss"},
]


def test_the_command_scores_the_sample_clips_and_resumes(pocket, tmp_path):
    table = write_table(tmp_path / "samples.tsv", SAMPLES)
    options = (table, "--clips", SAMPLE, "--bundle", pocket.path)
    first = svrt_eval(*options, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "2 of 2 clips described by pocket" in first.stdout and "ROUGE-L" in first.stdout
    log = (tmp_path / "samples-eval" / LOG).read_text()
    second = svrt_eval(*options, "--json", cwd=tmp_path)
    assert second.returncode == 0 and (tmp_path / "samples-eval" / LOG).read_text() == log
    found = json.loads(second.stdout)
    assert found == json.loads((tmp_path / "samples-eval" / "report.json").read_text())
    assert found["labels"]["outcome"]["hits"] == 2 and found["bundle"]["sha256"] == pocket.sha256
    assert found["truth"]["terms"]["rouge_l"]["n"] == 2
    lines = list(csv.DictReader((tmp_path / "samples-eval" / "clips.tsv").open(), delimiter="\t"))
    assert [line["said_outcome"] for line in lines] == ["make", "miss"]


def test_ctrl_c_leaves_no_traceback_and_the_same_command_goes_on(pocket, tmp_path):
    table, log = write_table(tmp_path / "t.tsv", SAMPLES), tmp_path / "o" / LOG
    options = (table, "--clips", SAMPLE, "--bundle", pocket.path, "--out", tmp_path / "o")
    command = [sys.executable, "-m", "svrt", "eval", *map(str, options)]
    with interruptible():
        running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with running:
        while running.poll() is None and not (log.exists() and log.read_bytes().endswith(b"\n")):
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        printed, said = running.communicate(timeout=300)
    assert running.returncode == 130 and "the same command goes on" in said, said
    assert "Traceback" not in said and printed == ""
    first = log.read_text()
    done = svrt_eval(*options)
    assert done.returncode == 0 and "1 of 2 clips are described already" in done.stderr, done.stderr
    assert log.read_text().startswith(first) and len(log.read_text().splitlines()) == 2


def test_a_bad_clip_gives_exit_code_2_and_the_others_scores(pocket, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "make.mp4").symlink_to(SAMPLE / "make.mp4")
    (tmp_path / "clips" / "miss.mp4").write_text("no video")
    table = write_table(tmp_path / "t.jsonl", SAMPLES)
    done = svrt_eval(table, "--clips", tmp_path / "clips", "--bundle", pocket.path, "--out", tmp_path / "o", "--json")
    assert done.returncode == 2, done.stderr
    assert "miss.mp4" in done.stderr and "Traceback" not in done.stderr
    assert json.loads(done.stdout)["described"] == 1
    assert json.loads((tmp_path / "o" / "report.json").read_text())["labels"]["outcome"]["n"] == 1


def test_what_the_user_can_mend_is_one_line(pocket, tmp_path):
    table = write_table(tmp_path / "t.tsv", SAMPLES)
    wrong = write_table(tmp_path / "wrong.tsv", [{"clip": "a", "text": "b"}])
    options = ("--bundle", pocket.path, "--out", tmp_path / "out")
    for arguments, reason in (
        ((wrong, "--clips", SAMPLE, *options), "wrong.tsv: no column video_path or video"),
        ((table, "--clips", tmp_path, *options), "2 of the 2 clips"),
        ((table, "--clips", SAMPLE, *options, "--backend", "abacus"), "abacus"),
        ((table, "--clips", SAMPLE, "--bundle", tmp_path), "not a bundle"),
    ):
        done = svrt_eval(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and reason in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert sorted(os.listdir(tmp_path)) == ["t.tsv", "wrong.tsv"]
