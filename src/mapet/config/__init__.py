"""Typed settings and recipes."""

from mapet.config.recipes import load_recipe, recipe_names, recipe_text
from mapet.config.settings import PretrainSettings

__all__ = ["PretrainSettings", "load_recipe", "recipe_names", "recipe_text"]
