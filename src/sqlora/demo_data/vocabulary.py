"""Word lists that the demo data's values are composed from. Data only."""
# ruff: noqa: SIM905 -- lists of quoted words would be three times as long and hard to read

GIVEN = (
    "Adele Agnes Ahmed Alan Alejandro Amara Anders Andrea Anita Antoine Arjun Astrid Beatriz Ben Bjørn Brenda "
    "Bruno Carla Cedric Chidi Chloé Clara Connor Curtis Daisuke Dana Dariusz Deborah Diego Dmitri Edith Elena Eli "
    "Emeka Émile Esther Fatima Felix Fiona Francesca Gareth Gemma Giulia Grace Greta Hamish Hana Harold Hélène Hugo "
    "Ian Ibrahim Imogen Ines Ingrid Ivan Jack Jasper Jérôme Jin Joanna Jorge José Julia Kamal Karin Keiko Kofi Kurt "
    "Lars Laura Leila Leon Liam Lucía Luka Magnus Malik Marco María Marta Mateusz Maya Mei Miguel Mohamed Moira "
    "Nadia Naomi Ned Niamh Nils Nora Olga Omar Oscar Paolo Patrick Paula Pedro Petra Priya Quentin Rafael Ravi "
    "Rebecca René Rosa Ruth Sadie Samir Sara Sergio Siobhán Sofia Stefan Sunil Tadeusz Tara Teodor Theo Thomas Ulla "
    "Uma Valentina Vera Victor Wanda Wei Wendell Xavier Yara Yuki Yusuf Zane Zoë"
).split()

SURNAMES = (
    "Abbott Adeyemi Almeida Alvarez Andersson Baker Bauer Becker Bennett Bianchi Blackwood Bouchard Brandt Byrne "
    "Calloway Castillo Chen Clarke Conti Corrigan Costa Crane D'Angelo Dahl Davies De&Vries Delgado Dubois "
    "Eriksen Espinoza Fairfax Farrell Ferreira Fischer Fitzgerald Fontaine Fujita Gallagher García Gomez Grant Greer "
    "Gupta Haddad Hall Halvorsen Hansen Harker Hayashi Hoffmann Holloway Hughes Ibsen Ito Ivanov Jansen Jensen "
    "Jovanović Kaminski Kapoor Keller Kelly Khan Kim Kovač Krüger Lachance Larsen Leclerc Lindqvist Lopez Lund "
    "MacLeod Mahler Marsh Martínez McAllister McCoy Mendes Mensah Meyer Mills Moreau Morgan Mwangi Müller Nakamura "
    "Navarro Nguyen Nielsen Novak Núñez O'Brien O'Connor O'Neal O'Shea Okafor Olsen Ortiz Osei Oyelaran Park Patel "
    "Peltonen Pereira Petrov Quinn Ramírez Rao Reid Ricci Rossi Roux Sato Sauvé Schneider Shah Silva Smith-Jones "
    "Sokolov Sørensen St.&John Stone Suzuki Takahashi Tanaka Thorne Torres Tremblay Ueda Underwood Van&Dyke Vargas "
    "Vasquez Vidal Wagner Walsh Watanabe Webb Whitaker Wójcik Wright Yamamoto Yang Young Zhang Zimmermann"
).split()

STEMS = (
    "Ald Ash Bar Beck Birch Black Bright Brook Burn Cal Carl Castle Clear Cold Cran Dal Dun East Elm Fair Fern "
    "Glen Gold Gran Hart Haw Hazel Hill Holm Kings Lang Law Lin Long Mar Mid Mill Morn Oak Old Os Pem Pine Ray "
    "Red Rock Rose Rush Sal Sand Sel Shel Silver Stan Sud Swan Thorn Wal Water Wes West Whit Wil Win Wood"
).split()

ENDINGS = (
    "borough bridge brook burgh bury by cliff cester combe dale den field ford gate grove ham haven hurst ley "
    "mere minster mont more mouth port ridge shaw stead stoke ton vale view ville wick wood worth"
).split()

PLACE_PREFIXES = ("North", "South", "New", "Port", "Saint", "Lake", "Fort", "Upper", "Great", "Mount", "El", "San")

ODD_PLACES = (
    "Land's End|Coeur d'Alene|King's Lynn|L'Aquila|São Tomás|Łódź Nowa|Saint-Étienne|Bishop's Stortford|Ålesund|"
    "Martha's Vineyard|Cluj-Mare|O'Fallon|Val-d'Or|Stratford-on-Lee|Córdoba Alta|Gävle|Hawke's Bay|Winston-Hale|"
    "Baden-Weil|Truth Springs|Devil's Lake|Málaga Vieja|St. Albans|Xi'an|Trois-Lacs|Bury St. Anne"
).split("|")

STATES = (
    "Alabama|Alaska|Arizona|California|Colorado|Florida|Georgia|Idaho|Illinois|Iowa|Kansas|Kentucky|Maine|Maryland|"
    "Michigan|Minnesota|Montana|Nebraska|Nevada|New Mexico|North Carolina|Ohio|Oregon|Tennessee|Texas|Utah|Vermont|"
    "Virginia|Wisconsin|Wyoming"
).split("|")

COUNTRIES = (
    "Argentina|Australia|Austria|Belgium|Bolivia|Brazil|Canada|Chile|China|Colombia|Croatia|Cuba|Czech Republic|"
    "Denmark|Ecuador|Egypt|Estonia|Ethiopia|Finland|France|Germany|Ghana|Greece|Guinea-Bissau|Hungary|Iceland|India|"
    "Indonesia|Ireland|Israel|Italy|Ivory Coast|Jamaica|Japan|Kenya|Latvia|Lithuania|Malaysia|Mexico|Morocco|Nepal|"
    "Netherlands|New Zealand|Nigeria|Norway|Pakistan|Peru|Philippines|Poland|Portugal|Romania|Senegal|Serbia|"
    "Slovenia|South Africa|South Korea|Spain|Sweden|Switzerland|Thailand|Tunisia|Turkey|Ukraine|United Kingdom|"
    "United States|Uruguay|Venezuela|Vietnam|Zambia|Zimbabwe"
).split("|")

ADJECTIVES = (
    "Silent Golden Broken Distant Hidden Crimson Empty Final Frozen Gentle Hollow Last Little Lonely Lost Midnight "
    "Naked New Pale Quiet Restless Sacred Second Secret Seventh Shattered Slow Strange Sudden Summer Tender Third "
    "Uncertain Velvet Wandering White Wild Winter Wooden Yellow Invisible Electric Paper Burning Northern Forgotten"
).split()

NOUNS = (
    "Anchor Arrow Autumn Bell Bird Bridge Candle Circus City Clock Crossing Dancer Daughter Desert Door Dream Echo "
    "Empire Fire Forest Garden Ghost Glass Harbour Heart Highway Horizon Hour House Island Journey Key Kingdom "
    "Lantern Letter Lighthouse Lion Mirror Moon Morning Mountain Night Ocean Orchard Promise Rain River Road Room "
    "Rose Sea Season Shadow Sky Snow Song Spring Stone Storm Story Stranger Street Sunday Thief Thunder Tide Tower "
    "Train Tree Valley Voice Wall War Water Wheel Wind Window Wolf"
).split()

MASCOTS = (
    "Badgers Bears Blazers Bulls Chargers Comets Cougars Cyclones Dragons Eagles Falcons Flyers Foxes Giants Hawks "
    "Hornets Jets Kings Knights Lancers Lions Mariners Monarchs Otters Panthers Pilots Pirates Rams Rangers Ravens "
    "Royals Sharks Spartans Stags Stars Storm Thunder Tigers Titans Vikings Warriors Wolves"
).split()

MONTHS = "January February March April May June July August September October November December".split()

COMPANY_WORDS = (
    "Aero Allied Alpha Apex Arc Atlas Aurora Beacon Blue Boreal Cobalt Core Crest Delta Dyna Echo Ever Falcon Global "
    "Helio Inter Iron Juno Kestrel Lumen Meridian Metro Nova Omni Orbit Pan Pioneer Polar Prime Quanta Sierra Solar "
    "Summit Terra Trans Union Vector Vertex Zenith"
).split()

COMPANY_TAILS = (
    "Group|Industries|Systems|Holdings|Partners|Technologies|Labs|Corporation|Ltd.|Works|& Co.|Energy|Foods|"
    "Motors|Media|Records|Pictures|Bank|Press|Logistics"
).split("|")
