"""Domains of the demo data: ships and airports. Declarations only; schema.py says what the fields mean."""

# fmt: off -- one argument a line would make these lists four times as long

from __future__ import annotations

from sqlora.demo_data import values as v
from sqlora.demo_data.schema import Domain, forms, real, text

SHIPS = Domain(
    "ships",
    forms("ship/ships|vessel/vessels|!boat/boats"),
    ("Ships built in {town}", "List of shipwrecks in {y}"),
    (
        text(
            "name",
            "Ship|Name|Ship name|Vessel",
            v.composed(
                "HMS {adjective}|USS {surname}|SS {noun}|MV {town}|{noun} of {town}|Queen {given} II|{adjective} {noun}"
            ),
            "ship|name",
        ),
        text(
            "category",
            "Class|Type|Class / type",
            v.one_of("Frigate|Destroyer|Corvette|Cargo ship|Ferry|Tanker|Battleship|Sub-chaser"),
            "class|type",
            asks="What class is {e}|What type of ship was {e}",
            mods="of the {v} class|classed as {v}",
        ),
        text(
            "date",
            "Launched|Launch date|Date launched",
            v.date,
            "launch date|date of launch",
            asks="When was {e} launched|On what date did {e} first touch water",
            mods="launched on {v}",
        ),
        text(
            "date",
            "Commissioned|Commission date|Date of commission",
            v.date,
            "commission date",
            asks="When was {e} commissioned|!When did {e} enter service",
            mods="commissioned on {v}",
        ),
        text(
            "place",
            "Builder|Shipyard|Built by",
            v.company,
            "builder|shipyard|!yard",
            asks="Who built {e}|Which shipyard made {e}|!Who constructed {e}",
            mods="built by {v}|that {v} built|!constructed by {v}",
        ),
        real(
            "measure",
            "Tonnage (GRT)|Tonnage|Displacement (t)",
            v.whole(240, 68000),
            "tonnage|displacement",
            asks="How heavy was {e}|What tonnage did {e} have",
            over="heavier than {v} tons",
            under="lighter than {v} tons",
            top="greatest|largest",
            bottom="smallest",
        ),
        real(
            "measure",
            "Length (m)|Length|Length overall (ft)",
            v.decimal(30, 330, 1),
            "length",
            asks="How long was {e}",
            over="longer than {v}",
            under="shorter than {v}",
            top="longest|greatest",
            bottom="shortest",
        ),
        text(
            "category",
            "Fate|Status|Fate/Status",
            v.one_of("Scrapped|Sunk|In service|Museum ship|Torpedoed|Wrecked, no loss"),
            "fate|status",
            asks="What happened to {e}|What became of {e}|!How did {e} end",
            mods="with the fate {v}|listed as {v}",
        ),
        real(
            "count",
            "Crew|Complement|Crew (officers)",
            v.whole(9, 1450),
            "crew members|sailors",
            asks="How many crew members did {e} have|How large was the crew of {e}",
            mods="manned by {v} sailors",
            over="manned by more than {v} sailors",
        ),
        text(
            "place",
            "Home port|Port|Port of registry",
            v.town,
            "home port|port",
            asks="Where was {e} based",
            mods="based in {v}|registered in {v}",
        ),
        text(
            "code",
            "Pennant|Hull no.|Pennant #",
            v.code("@##|@###|@@-###"),
            "pennant number|hull number",
            asks="What is the hull number of {e}",
            mods="numbered {v}",
        ),
        text(
            "place",
            "Flag|Country|Nation",
            v.country,
            "country|flag",
            asks="Under which flag did {e} sail",
            mods="that sailed for {v}|from {v}",
        ),
    ),
)

AIRPORTS = Domain(
    "airports",
    forms("airport/airports|airfield/airfields|!aerodrome/aerodromes"),
    ("Airports in {country}", "Busiest airports, {y}"),
    (
        text(
            "name",
            "Airport|Airport name|Name",
            v.composed(
                "{town} Airport|{town} International Airport|{town} Regional|{town} Municipal Airport|{surname} Field"
            ),
            "airport|name",
        ),
        text(
            "place",
            "City|City served|City, State|Location",
            v.town_and_state,
            "city|city served",
            asks="Which city does {e} serve|Where is {e}",
            mods="serving {v}|in {v}|!close to {v}",
        ),
        text(
            "code",
            "IATA|IATA code|IATA (code)",
            v.code("@@@"),
            "IATA code|IATA",
            asks="What is the IATA code of {e}",
            mods="with the IATA code {v}|coded {v}",
        ),
        text(
            "code",
            "ICAO|ICAO code|ICAO #",
            v.code("K@@@|E@@@|L@@@"),
            "ICAO code|ICAO",
            asks="What is the ICAO of {e}",
            mods="with the ICAO code {v}",
        ),
        text(
            "place",
            "Country|Country/territory|Nation",
            v.country,
            "country",
            asks="What country is {e} in|Which country has {e}",
            mods="in the country of {v}",
        ),
        real(
            "count",
            "Passengers|Passengers ({y})|Total passengers",
            v.wide(2000, 60000000),
            "passengers|travellers|!flyers",
            asks="How many passengers used {e}|How many people flew through {e}",
            mods="used by {v} passengers",
            over="used by more than {v} passengers",
            under="used by fewer than {v} passengers|with under {v} passengers",
        ),
        real(
            "measure",
            "Change (%)|Change|% change",
            v.decimal(-25, 40, 1),
            "percent change|change in percent",
            asks="By what percentage did {e} change",
        ),
        real(
            "count",
            "Runways|No. of runways|# of runways",
            v.whole(1, 7),
            "runways|!landing strips",
            asks="How many runways does {e} have",
            mods="with {v} runways",
        ),
        real(
            "measure",
            "Elevation (ft)|Elevation|Elev. (ft)",
            v.whole(3, 7800),
            "elevation|altitude",
            asks="How high is {e}|How many feet above the sea is {e}",
            over="higher than {v} feet",
            under="lower than {v} feet",
        ),
        real(
            "year",
            "Opened|Year opened|Opened (year)",
            v.whole(1916, 2018),
            "opening year|year of opening",
            asks="When did {e} open|What year was {e} opened",
            mods="that opened in {v}",
            over="that opened after {v}",
            under="that opened before {v}|older than {v}",
            top="latest|most recent",
            bottom="earliest|first",
        ),
        real(
            "number",
            "Rank|Rank ({y})|#",
            v.serial,
            "rank",
            asks="How is {e} ranked",
            mods="ranked {v}",
            under="ranked above {v}",
            over="ranked below {v}",
        ),
        text(
            "place",
            "Hub for|Main airline|Largest airline",
            v.composed("{word} Air|{word} Airways|{word} Airlines|{word} Express"),
            "main airline|hub airline",
            asks="Which airline uses {e} as a hub",
            mods="that served as a hub for {v}",
        ),
    ),
)

DOMAINS = (SHIPS, AIRPORTS)
