"""Recipes: what is read, and what is refused before any work."""

import pytest
from svrt.errors import RecipeError
from svrt.exporter.recipe import read_recipe

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
        ("[sampler]", "[sampler]\nseed = 99999999999", "seed"),
        ("[sampler]", "[sampler]\nscale = nan", "finite"),
        ("[encoder]", "[encoder]\nresize = -5", "resize"),
        ("[encoder]", "[encoder]\ntoken_grid = []", "token_grid"),
        ("[encoder]", "[encoder]\nfit = 'squash'", "one of crop, stretch"),
        ("[encoder]", "[encoder]\nprecision = 'int8'", "one of fp32, fp16"),
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


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"vgg\.safetensors: no such file"):
        read(tmp_path, WHOLE).sources()
    with pytest.raises(RecipeError, match="nowhere_at_all is not installed; run: pip install"):
        read(tmp_path, WHOLE.replace('"vgg.safetensors"', '"package:nowhere_at_all/x"')).sources()
