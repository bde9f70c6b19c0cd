"""Domains of the demo data: recipes, held out. Declarations only; schema.py says what the fields mean."""

# fmt: off -- one argument a line would make these lists four times as long

from __future__ import annotations

from sqlora.demo_data import values as v
from sqlora.demo_data.schema import Domain, forms, real, text

RECIPES = Domain(
    "recipes",
    forms("recipe/recipes|dish/dishes"),
    ("Dishes of {country}", "{person}'s cookbook"),
    (
        text(
            "name",
            "Dish|Recipe|Name of dish",
            v.composed(
                "{given}'s Stew|{given}'s Pie|{surname}'s Gumbo|{given}'s Soup|{town} Pudding|{town} Dumplings|"
                "{stem} Flatbread|{town} Chowder|{adjective} Salad|{adjective} Noodles|{adjective} Soufflé|"
                "{adjective} Crêpe"
            ),
            "dish|recipe|name",
        ),
        text(
            "place",
            "Origin|Country|Country of origin|Origin (country)",
            v.country,
            "origin|country of origin",
            asks="Where does {e} come from|Which country gave us {e}",
            mods="from {v}|that originated in {v}",
        ),
        text(
            "category",
            "Main ingredient|Ingredient|Main ingredient(s)",
            v.one_of("Chicken|Lamb|Rice|Lentils|Cod|Aubergine|Cabbage|Pork/beef|Goat's cheese"),
            "main ingredient|ingredient",
            asks="What is {e} mainly made of|What goes into {e}",
            mods="made with {v}|made from {v}",
        ),
        text(
            "category",
            "Course|Meal|Course/Meal",
            v.one_of("Starter|Main|Dessert|Side dish|Breakfast|Snack"),
            "course|meal",
            asks="At which course is {e} eaten",
            mods="served as {v}|eaten as {v}",
        ),
        real(
            "count",
            "Calories|Calories (kcal)|kcal",
            v.whole(60, 1250),
            "calories",
            asks="How many calories does {e} have|How many calories are in {e}",
            mods="that had {v} calories",
            over="with above {v} calories",
            under="with below {v} calories",
        ),
        real(
            "measure",
            "Cooking time (min)|Time (min.)|Minutes",
            v.whole(5, 245, 5),
            "cooking time|time to cook",
            asks="How long does {e} take|How many minutes must {e} cook",
            mods="that took {v} minutes",
            over="that took longer than {v} minutes",
            under="quicker than {v} minutes",
            top="longest",
            bottom="shortest|quickest",
        ),
        real(
            "count",
            "Servings|Serves|Portions (no.)",
            v.whole(1, 14),
            "servings|portions",
            asks="How many people does {e} feed|How many portions does {e} make",
            mods="for {v} people",
        ),
        text(
            "person",
            "Chef|Chef/Author|Recipe by",
            v.person,
            "chef|cook",
            asks="Who cooked {e}|Whose recipe is {e}",
            mods="by chef {v}|cooked by {v}",
        ),
        real(
            "measure",
            "Salt (g)|Salt|Salt, g",
            v.decimal(0, 9, 1),
            "salt content|amount of salt",
            asks="How much salt is in {e}",
            mods="with {v} g of salt",
            over="saltier than {v} g",
            under="less salty than {v} g",
        ),
        text(
            "category",
            "Spice level|Heat|Spiciness",
            v.one_of("Mild|Medium|Hot|Very hot|None"),
            "spice level|spiciness",
            asks="How spicy is {e}",
        ),
    ),
    held_out=True,
)

DOMAINS = (RECIPES,)
