"""Domains of the demo data: mountains and minerals. Declarations only; schema.py says what the fields mean."""

# fmt: off -- one argument a line would make these lists four times as long

from __future__ import annotations

from sqlora.demo_data import values as v
from sqlora.demo_data.schema import Domain, forms, real, text

MOUNTAINS = Domain(
    "mountains",
    forms("mountain/mountains|peak/peaks|!summit/summits"),
    ("Mountains of {country}", "List of peaks above {n}00 m"),
    (
        text(
            "name",
            "Mountain|Peak|Name|Mountain peak",
            v.composed(
                "Mount {surname}|{town} Peak|{adjective} Horn|{adjective} Butte|{stem} Fell|{given}'s Seat|"
                "Pic d'{stem}al"
            ),
            "mountain|peak|name",
        ),
        real(
            "measure",
            "Height (m)|Elevation (m)|Height, m",
            v.whole(560, 8100),
            "height|elevation|!altitude",
            asks="How high is {e}|How tall is {e}|!How far does {e} rise",
            mods="that rose to {v} m|{v} m high",
            over="higher than {v} m|taller than {v} metres",
            under="lower than {v} m",
            top="highest|greatest|maximum",
            bottom="lowest|smallest|minimum",
        ),
        real(
            "measure",
            "Prominence (m)|Prominence|Prom. (m)",
            v.whole(40, 4200),
            "prominence",
            asks="How prominent is {e}",
            top="greatest|highest",
            bottom="least|lowest",
        ),
        text(
            "place",
            "Range|Mountain range|Parent range",
            v.composed("{stem}or Range|{stem}an Alps|{stem}ic Hills|{stem}ian Massif"),
            "range|mountain range",
            asks="What range is {e} in|Which range does {e} belong to",
            mods="in the {v}|in the {v} range|!belonging to the {v}",
        ),
        text(
            "place",
            "Country|Country/Region|Nation(s)",
            v.country,
            "country",
            asks="In which country is {e}|Where is {e}",
            mods="in {v}|located in {v}|!situated in {v}",
        ),
        real(
            "year",
            "First ascent|First climbed|First ascent (year)",
            v.whole(1786, 1999),
            "year of the first ascent|first ascent",
            asks=(
                "When was {e} first climbed|In what year was {e} first climbed|"
                "!When did anyone first stand on top of {e}"
            ),
            mods="first climbed in {v}|!conquered in {v}",
            over="first climbed after {v}",
            under="first climbed before {v}",
            top="latest|most recent",
            bottom="earliest",
        ),
        text(
            "person",
            "First climber|Climber(s)|First ascent by",
            v.person,
            "first climber|climber",
            asks="Who first climbed {e}|!Who was first to the top of {e}",
            mods="first climbed by {v}|that {v} climbed first",
        ),
        text(
            "code",
            "Coordinates|Location (lat., long.)|Grid ref.",
            v.code("N4# W12#|S1# E3#|N5#.# E0#.#"),
            "coordinates|location",
            asks="What are the coordinates of {e}",
            mods="at the coordinates {v}",
        ),
        text(
            "category",
            "Rock type|Type|Geology",
            v.one_of("Granite|Limestone|Stratovolcano|Shield volcano|Gneiss|Sandstone"),
            "rock type|geology",
            asks="What kind of rock is {e} made of",
            mods="made of {v}",
        ),
        real(
            "number",
            "Rank|Rank (state)|No.",
            v.serial,
            "rank",
            mods="ranked {v}",
            asks="What is the rank of {e}",
        ),
    ),
)

ELEMENTS = Domain(
    "minerals and elements",
    forms("mineral/minerals|substance/substances|!compound/compounds"),
    ("List of minerals ({letter})", "Properties of minerals"),
    (
        text(
            "name",
            "Mineral|Name|Substance",
            v.composed(
                "{stem}ite|{stem}{ending}ite|{stem}{ending}ium|{stem}ene|{stem}anite|Meta{ending}ite|Ferro{ending}ium"
            ),
            "mineral|name|substance",
        ),
        text(
            "code",
            "Symbol|Formula|Chem. symbol",
            v.code("@u#O#|Fe#O#|@aCl#|CuS#|@eSO#"),
            "symbol|formula",
            asks="What is the formula of {e}",
            mods="with the formula {v}|written as {v}",
        ),
        real(
            "measure",
            "Density (g/cm3)|Density|Density, g/cc",
            v.decimal(1, 20, 2),
            "density",
            asks="How dense is {e}",
            over="denser than {v}",
            under="less dense than {v}",
            mods="with density {v}",
        ),
        real(
            "measure",
            "Melting point (°C)|Melts at (°C)|M.p. (°C)",
            v.whole(40, 3300),
            "melting point|!melting temperature",
            asks="At what temperature does {e} melt|!How hot must {e} get to melt",
            mods="that melted at {v} degrees",
            over="that melted above {v} degrees",
            under="that melted below {v} degrees",
        ),
        real(
            "measure",
            "Hardness|Hardness (Mohs)|Mohs",
            v.decimal(1, 10, 1),
            "hardness|mohs hardness",
            asks="How hard is {e}",
            over="harder than {v}",
            under="softer than {v}",
            top="greatest|highest",
            bottom="lowest|least",
        ),
        text(
            "category",
            "Color|Colour|Color/Streak",
            v.one_of("Black|Yellow|Deep red|Green|Colourless|Blue-grey|White"),
            "color|colour",
            asks="What color is {e}|What colour does {e} have",
            mods="colored {v}|that had the color {v}",
        ),
        text(
            "category",
            "Crystal system|System|Structure",
            v.one_of("Cubic|Hexagonal|Monoclinic|Triclinic|Tetragonal|Orthorhombic"),
            "crystal system|structure",
            asks="What is the crystal structure of {e}",
            mods="of the {v} system",
        ),
        real(
            "year",
            "Discovered|Year discovered|Discovery (year)",
            v.whole(1735, 2005),
            "year of discovery|discovery year",
            asks="When was {e} discovered|In which year was {e} found|!When did someone first isolate {e}",
            mods="discovered in {v}|found in {v}",
            over="discovered after {v}",
            under="discovered before {v}|known before {v}",
            top="latest|most recent",
            bottom="earliest|first",
        ),
        text(
            "person",
            "Discoverer|Discovered by|Discoverer(s)",
            v.person,
            "discoverer",
            asks="Who discovered {e}|!Who is credited with finding {e}",
            mods="discovered by {v}|that {v} discovered|!found by {v}",
        ),
        text(
            "place",
            "Type locality|First found in|Locality, Country",
            v.country,
            "type locality|locality|place of first discovery",
            asks="Where was {e} first found",
            mods="first found in {v}",
        ),
        real(
            "number",
            "No.|Atomic #|Number",
            v.serial,
            "number|list number",
            asks="What number does {e} have",
            mods="numbered {v}",
        ),
    ),
)

DOMAINS = (MOUNTAINS, ELEMENTS)
