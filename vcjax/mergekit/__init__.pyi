from .recipe import Recipe as Recipe
from .recipe import read_recipe as read_recipe
from .recipe_run import RecipeRun as RecipeRun
from .recipe_run import open_recipe as open_recipe
