"""Recipes: what is read, and what is refused before any work."""

import pytest
from svrt.errors import RecipeError
from svrt.exporter.recipe import check_precision, read_recipe

WHOLE = """
name = "mine"
[sampler]
source = "vgg.safetensors"
[encoder]
source = "encoder"
[projector]
source = "projector.safetensors"
[decoder]
source = "llama"
prefix = "a"
suffix = "b"
"""


def read(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    return read_recipe(str(tmp_path / "mine.toml"))


def test_a_recipe_is_read_with_the_papers_numbers_as_defaults(tmp_path):
    recipe = read(tmp_path, WHOLE)
    assert (recipe.sampler.keyframes, recipe.sampler.candidates, recipe.sampler.level) == (16, 64, 2)
    assert recipe.encoder.token_grid == [8, 4, 4]
    assert recipe.folder == tmp_path


def test_a_quantization_is_read_in_either_spelling(tmp_path):
    text = WHOLE.replace('prefix = "a"', 'prefix = "a"\nquantization = "Q4_K_M"')
    assert read(tmp_path, text).decoder.quantization == "q4_k_m"


def test_the_built_in_recipe_is_read_by_name():
    recipe = read_recipe("pocket")
    assert recipe.name == "pocket"
    assert set(recipe.sources()) == {"sampler", "encoder", "projector", "decoder", "adapter"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[sampler]", "[sampler]\nlvel = 2", r"unknown key 'sampler.lvel'; known here: source, keyframes"),
        ("[sampler]", "[sampler]\nlevel = '2'", r"sampler.level = '2' must be of type int"),
        ("[sampler]", "[sampler]\nlevel = true", "sampler.level"),
        ("[sampler]", "[sampler]\nmean = [1, 2]", "three numbers"),
        ("[sampler]", "[sampler]\nkeyframes = 65", "keyframes must be"),
        ("[sampler]", "[sampler]\nkeyframes = 15", "even"),
        ("[sampler]", "[sampler]\nsize = 31", "size must be from 32"),
        ("[sampler]", "[sampler]\nwavelet = 'foo'", "wavelet 'foo'"),
        ("[sampler]", "[sampler]\nlevel = -1", "level"),
        ("[sampler]", "[sampler]\nscale = nan", "finite"),
        ("[encoder]", "[encoder]\nresize = -5", "resize"),
        ("[encoder]", "[encoder]\ntoken_grid = []", "token_grid"),
        ("[encoder]", "[encoder]\nfit = 'squash'", "one of crop, stretch"),
        ("[encoder]", "[encoder]\nprecision = 'int4'", "one of fp32, fp16, int8"),
        ("[sampler]", "[sampler]\nprecision = 'int8'", "VGG-16 is not offered in int8"),
        ("[encoder]", "[encoder]\ntoken_grid = [4, 4]", "token_grid"),
        ('prefix = "a"', "", "'decoder.prefix' is missing"),
        ('prefix = "a"', 'prefix = "a"\nquantization = "q3"', "one of f16, q8_0"),
        ('prefix = "a"', 'prefix = "a"\nmax_tokens = 0', "max_tokens"),
        ("[projector]", "[projektor]", "unknown key 'projektor'"),
        ("[sampler]", "folder = 'x'\n[sampler]", "unknown key 'folder'"),
        ('name = "mine"', "name = ", "not TOML"),
    ],
)
def test_a_mistake_is_told_by_its_key(tmp_path, old, new, message):
    with pytest.raises(RecipeError, match=message) as caught:
        read(tmp_path, WHOLE.replace(old, new, 1))
    assert str(tmp_path / "mine.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_names_those_that_are():
    with pytest.raises(RecipeError, match=r"pockt: no recipe .* built in: .*pocket"):
        read_recipe("pockt")


def find(recipe):
    return recipe.find(lambda done, total: None)


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"vgg\.safetensors: no such file"):
        find(read(tmp_path, WHOLE))
    with pytest.raises(RecipeError, match="nowhere_at_all is not installed; run: pip install"):
        find(read(tmp_path, WHOLE.replace('"vgg.safetensors"', '"package:nowhere_at_all/x"')))


def test_sources_given_by_hand_start_where_the_hand_is(tmp_path):
    recipe = read(tmp_path, WHOLE)
    (tmp_path / "here").mkdir()
    for name in ("llama", "encoder", "projector.safetensors"):
        (tmp_path / name).touch()
    for name in ("vgg", "lora"):
        (tmp_path / "here" / name).touch()
    found = find(recipe.with_sources({"sampler": "vgg", "adapter": "lora", "encoder": ""}, tmp_path / "here"))
    assert {role: part.path for role, part in found.items()} == {
        "sampler": tmp_path / "here" / "vgg",
        "encoder": tmp_path / "encoder",
        "projector": tmp_path / "projector.safetensors",
        "decoder": tmp_path / "llama",
        "adapter": tmp_path / "here" / "lora",
    }


def test_random_weights_fill_what_has_no_source_and_only_that(tmp_path):
    recipe = read_recipe("sv3.3b").with_sources({"encoder": str(tmp_path)}, tmp_path).with_random_weights(7)
    assert recipe.random_seeds() == {"sampler": 7, "projector": 7, "decoder": 7, "adapter": 7}
    assert set(find(recipe)) == {"encoder"}
    assert read_recipe("pocket").with_random_weights(7).random_seeds() == {}
    assert read(tmp_path, WHOLE.replace("vgg.safetensors", "random:3")).random_seeds() == {"sampler": 3}
    with pytest.raises(RecipeError, match="'random:x' is not of the form"):
        read(tmp_path, WHOLE.replace("vgg.safetensors", "random:x")).random_seeds()


def test_precision_and_quantization_are_chosen_by_name():
    recipe = read_recipe("sv3.3b").with_precision(check_precision("FP32")).with_quantization("Q8_0")
    assert (recipe.sampler.precision, recipe.encoder.precision, recipe.decoder.quantization) == ("fp32", "fp32", "q8_0")
    with pytest.raises(RecipeError, match="precision 'int4' is not known; one of fp32, fp16, int8"):
        check_precision("int4")
    with pytest.raises(RecipeError, match="quantization 'q3' is not known; one of f16"):
        recipe.with_quantization("q3")
