-- A few tables that a person would enjoy querying: moons, mountains, and who first stood on them.
BEGIN;

CREATE TABLE moon (
    name text PRIMARY KEY,
    planet text NOT NULL,
    radius_km numeric NOT NULL,
    period_days numeric NOT NULL,
    discovered integer,
    discoverer text
);
INSERT INTO moon VALUES
    ('Moon', 'Earth', 1737.4, 27.32, NULL, NULL),
    ('Phobos', 'Mars', 11.3, 0.32, 1877, 'Asaph Hall'),
    ('Deimos', 'Mars', 6.2, 1.26, 1877, 'Asaph Hall'),
    ('Io', 'Jupiter', 1821.6, 1.77, 1610, 'Galileo Galilei'),
    ('Europa', 'Jupiter', 1560.8, 3.55, 1610, 'Galileo Galilei'),
    ('Ganymede', 'Jupiter', 2634.1, 7.15, 1610, 'Galileo Galilei'),
    ('Callisto', 'Jupiter', 2410.3, 16.69, 1610, 'Galileo Galilei'),
    ('Amalthea', 'Jupiter', 83.5, 0.50, 1892, 'Edward Barnard'),
    ('Mimas', 'Saturn', 198.2, 0.94, 1789, 'William Herschel'),
    ('Enceladus', 'Saturn', 252.1, 1.37, 1789, 'William Herschel'),
    ('Tethys', 'Saturn', 531.1, 1.89, 1684, 'Giovanni Cassini'),
    ('Dione', 'Saturn', 561.4, 2.74, 1684, 'Giovanni Cassini'),
    ('Rhea', 'Saturn', 763.8, 4.52, 1672, 'Giovanni Cassini'),
    ('Titan', 'Saturn', 2574.7, 15.95, 1655, 'Christiaan Huygens'),
    ('Iapetus', 'Saturn', 734.5, 79.32, 1671, 'Giovanni Cassini'),
    ('Miranda', 'Uranus', 235.8, 1.41, 1948, 'Gerard Kuiper'),
    ('Ariel', 'Uranus', 578.9, 2.52, 1851, 'William Lassell'),
    ('Umbriel', 'Uranus', 584.7, 4.14, 1851, 'William Lassell'),
    ('Titania', 'Uranus', 788.4, 8.71, 1787, 'William Herschel'),
    ('Oberon', 'Uranus', 761.4, 13.46, 1787, 'William Herschel'),
    ('Triton', 'Neptune', 1353.4, 5.88, 1846, 'William Lassell'),
    ('Nereid', 'Neptune', 170, 360.14, 1949, 'Gerard Kuiper'),
    ('Charon', 'Pluto', 606, 6.39, 1978, 'James Christy');

CREATE TABLE mountain (
    name text PRIMARY KEY,
    country text NOT NULL,
    height_m integer NOT NULL,
    note text
);
INSERT INTO mountain (name, country, height_m) VALUES
    ('Everest', 'Nepal', 8849), ('K2', 'Pakistan', 8611), ('Kangchenjunga', 'Nepal', 8586), ('Lhotse', 'Nepal', 8516),
    ('Makalu', 'Nepal', 8485), ('Cho Oyu', 'Nepal', 8188), ('Annapurna', 'Nepal', 8091), ('Nanga Parbat', 'Pakistan', 8126),
    ('Aconcagua', 'Argentina', 6961), ('Denali', 'United States', 6190), ('Kilimanjaro', 'Tanzania', 5895),
    ('Elbrus', 'Russia', 5642), ('Mont Blanc', 'France', 4806), ('Matterhorn', 'Switzerland', 4478), ('Fuji', 'Japan', 3776),
    ('Aoraki', 'New Zealand', 3724), ('Teide', 'Spain', 3715), ('Ben Nevis', 'United Kingdom', 1345);

CREATE TABLE first_ascent (
    mountain text PRIMARY KEY REFERENCES mountain ON DELETE CASCADE,
    year integer NOT NULL,
    climbers text[] NOT NULL
);
INSERT INTO first_ascent VALUES
    ('Everest', 1953, '{Edmund Hillary,Tenzing Norgay}'),
    ('K2', 1954, '{Achille Compagnoni,Lino Lacedelli}'),
    ('Kangchenjunga', 1955, '{George Band,Joe Brown}'),
    ('Lhotse', 1956, '{Ernst Reiss,Fritz Luchsinger}'),
    ('Makalu', 1955, '{Jean Couzy,Lionel Terray}'),
    ('Annapurna', 1950, '{Maurice Herzog,Louis Lachenal}'),
    ('Nanga Parbat', 1953, '{Hermann Buhl}'),
    ('Aconcagua', 1897, '{Matthias Zurbriggen}'),
    ('Mont Blanc', 1786, '{Jacques Balmat,Michel Paccard}'),
    ('Matterhorn', 1865, '{Edward Whymper}');

CREATE VIEW ascent AS
    SELECT m.name, m.country, m.height_m, a.year, a.climbers FROM mountain m JOIN first_ascent a ON a.mountain = m.name;

COMMIT;
ANALYZE;
