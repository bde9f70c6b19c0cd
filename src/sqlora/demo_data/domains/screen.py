"""Domains of the demo data: films and television. Declarations only; schema.py says what the fields mean."""

# fmt: off -- one argument a line would make these lists four times as long

from __future__ import annotations

from sqlora.demo_data import values as v
from sqlora.demo_data.schema import Domain, forms, real, text

FILMS = Domain(
    "films",
    forms("film/films|movie/movies|!motion picture/motion pictures"),
    ("List of {country} films of {y}", "{person} filmography"),
    (
        text(
            "name",
            "Title|Film|Film title|Title (English)",
            v.title,
            "title|film|name",
        ),
        text(
            "person",
            "Director|Directed by|Director(s)",
            v.person,
            "director|!filmmaker",
            asks="Who directed {e}|Who was behind the camera for {e}|!Who helmed {e}",
            mods="directed by {v}|that {v} directed|made by the director {v}|!helmed by {v}",
        ),
        text(
            "person",
            "Lead actor|Starring|Leading role|Star(s)",
            v.person,
            "lead actor|star|leading actor",
            asks="Who starred in {e}|Who played the lead in {e}|!Who headed the cast of {e}",
            mods="starring {v}|that starred {v}|with {v} in the lead",
        ),
        real(
            "year",
            "Year|Year (ceremony)|Release year|Released",
            v.whole(1935, 2023),
            "year|release year",
            asks=(
                "When was {e} released|What year did {e} come out|In which year was {e} made|"
                "!When did {e} hit the screens"
            ),
            mods="from {v}|released in {v}|that came out in {v}",
            over="released after {v}|newer than {v}",
            under="released before {v}|older than {v}",
            top="latest|most recent",
            bottom="earliest|first",
        ),
        text(
            "category",
            "Genre|Genre(s)|Type",
            v.one_of("Drama|Comedy|Thriller|Western|Horror|Musical|Documentary|Science fiction|Film noir"),
            "genre|type of film",
            asks="What genre is {e}|What kind of film is {e}",
            mods="in the {v} genre|of the {v} genre",
        ),
        real(
            "measure",
            "Running time (min)|Runtime|Length (min.)",
            v.whole(68, 215),
            "running time|runtime|length",
            asks="How long is {e}|How many minutes does {e} last",
            mods="that lasted {v} minutes",
            over="longer than {v} minutes",
            under="shorter than {v} minutes",
            top="longest",
            bottom="shortest",
        ),
        text(
            "place",
            "Country|Country of origin|Country/region",
            v.country,
            "country|country of origin",
            asks="Which country is {e} from|In what country was {e} made",
            mods="from {v}|made in {v}|!produced in {v}",
        ),
        real(
            "measure",
            "Gross ($ millions)|Box office ($m)|Gross (worldwide)",
            v.decimal(1, 790, 1),
            "gross|box office|!takings",
            asks="How much did {e} gross|How much money did {e} make|!What did {e} earn at the box office",
            mods="that grossed {v} million",
            over="that grossed more than {v} million",
            under="that made less than {v} million",
            top="highest|biggest",
            bottom="lowest|smallest",
        ),
        text(
            "place",
            "Studio|Studio(s)|Distributor",
            v.company,
            "studio|distributor",
            asks="Which studio made {e}|Which company put out {e}",
            mods="from the studio {v}|released by {v}",
        ),
        text(
            "category",
            "Result|Award result|Outcome",
            v.one_of("Won|Nominated|Not nominated|Shortlisted"),
            "result|award result",
            asks="What was the result for {e}",
        ),
        text(
            "category",
            "Language|Language(s)|Original language",
            v.one_of("English|French|Hindi|Japanese|Spanish|Swedish|Korean|Portuguese"),
            "language",
            asks="What language is {e} in",
            mods="in {v}|filmed in {v}",
        ),
    ),
)

EPISODES = Domain(
    "TV episodes",
    forms("episode/episodes|show/shows|!instalment/instalments"),
    ("{title} (season {n})", "List of {title} episodes"),
    (
        text(
            "name",
            "Title|Episode title|Episode",
            v.title,
            "title|episode title|name",
        ),
        real(
            "number",
            "No. in series|Series #|# in series|No.",
            v.serial,
            "number in the series|series number|!overall number",
            asks="What number in the series is {e}",
            mods="that was number {v} in the series",
            over="after number {v} in the series",
            under="before number {v} in the series",
        ),
        real(
            "number",
            "Season|Season #|Series no.",
            v.whole(1, 13),
            "season|season number",
            asks="Which season is {e} in|What season was {e} part of",
            mods="in season {v}|from season {v}",
            over="after season {v}",
            under="before season {v}",
        ),
        text(
            "person",
            "Directed by|Director|Director(s)",
            v.person,
            "director",
            asks="Who directed {e}|Who was the director of {e}",
            mods="directed by {v}|that {v} directed",
        ),
        text(
            "person",
            "Written by|Writer(s)|Writer",
            v.person,
            "writer|author|!scriptwriter",
            asks="Who wrote {e}|!Who penned {e}",
            mods="written by {v}|that {v} wrote|!penned by {v}",
        ),
        text(
            "date",
            "Original air date|Air date|Airdate|First aired",
            v.date,
            "air date|original air date|!broadcast date",
            asks="When did {e} air|When was {e} first shown|On what date was {e} broadcast|!When did {e} go out",
            mods="that aired on {v}|first shown on {v}",
        ),
        text(
            "code",
            "Production code|Prod. code|Prod. #",
            v.code("#@##|##@-###|@@-####|HQ-0###"),
            "production code|code",
            asks="What was the production code of {e}",
            mods="with production code {v}|coded {v}",
        ),
        real(
            "measure",
            "U.S. viewers (millions)|Viewers (m)|US viewers (million)",
            v.decimal(0, 21, 2),
            "number of viewers in millions|viewers in millions|viewership|!audience",
            asks="How many million people watched {e}|How many million viewers did {e} have",
            mods="seen by {v} million viewers|watched by {v} million people",
            over="watched by more than {v} million people",
            under="seen by fewer than {v} million viewers",
        ),
        real(
            "measure",
            "Rating|Rating (18-49)|Rating/Share",
            v.decimal(0, 9, 1),
            "rating",
            asks="What rating did {e} get",
            mods="rated {v}",
            over="rated above {v}",
            under="rated below {v}",
        ),
        text(
            "person",
            "Guest star|Guest(s)|Guest host",
            v.person,
            "guest star|guest",
            asks="Who guest starred in {e}|Who was the guest on {e}",
            mods="that featured {v}|with guest {v}|!with an appearance by {v}",
        ),
    ),
)

DOMAINS = (FILMS, EPISODES)
