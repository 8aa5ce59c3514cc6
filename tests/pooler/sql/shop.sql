-- A small shop with one of everything that classification must tell apart.

CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN email AS text CHECK (VALUE ~ '@');
CREATE TYPE place AS (x int, y int);
CREATE TYPE price_range AS RANGE (subtype = numeric);

CREATE TABLE customers (id int PRIMARY KEY, name text, mood mood, email email);
CREATE TABLE orders (
    id int PRIMARY KEY, customer_id int REFERENCES customers ON DELETE CASCADE ON UPDATE CASCADE,
    amount numeric, placed timestamptz, status text);
CREATE TABLE products (id int PRIMARY KEY, name text, price numeric, tags text[], data jsonb, words tsvector);
CREATE TRIGGER words BEFORE INSERT OR UPDATE ON products
    FOR EACH ROW EXECUTE FUNCTION tsvector_update_trigger(words, 'pg_catalog.english', name);
CREATE TABLE items (
    order_id int REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE,
    product_id int REFERENCES products ON DELETE SET NULL, quantity int);
CREATE TABLE reviews (product_id int REFERENCES products ON DELETE RESTRICT, stars int);

CREATE TABLE readings (day date NOT NULL, value int) PARTITION BY RANGE (day);
CREATE TABLE readings_2024 PARTITION OF readings FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE readings_2025 PARTITION OF readings FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')
    PARTITION BY RANGE (day);
CREATE TABLE readings_2025_a PARTITION OF readings_2025 FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE vehicles (id int, wheels int);
CREATE TABLE cars (doors int) INHERITS (vehicles);
CREATE TABLE sport_cars (speed int) INHERITS (cars);

CREATE FOREIGN DATA WRAPPER nowhere;
CREATE SERVER far FOREIGN DATA WRAPPER nowhere;
CREATE FOREIGN TABLE remote (id int) SERVER far;
CREATE TABLE archive (id int NOT NULL) PARTITION BY RANGE (id);
CREATE TABLE archive_near PARTITION OF archive FOR VALUES FROM (0) TO (1000);
CREATE FOREIGN TABLE archive_far PARTITION OF archive FOR VALUES FROM (1000) TO (2000) SERVER far;
CREATE SEQUENCE tickets;
CREATE UNLOGGED TABLE scratch (id int);

-- functions of each volatility

CREATE FUNCTION tax(numeric) RETURNS numeric IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 0.2';
CREATE FUNCTION tax(numeric, rate numeric) RETURNS numeric VOLATILE LANGUAGE plpgsql AS 'BEGIN RETURN $1 * $2; END';
CREATE FUNCTION price_class(numeric) RETURNS text STABLE LANGUAGE sql AS $$SELECT CASE WHEN $1 > 10 THEN 'b' ELSE 'a' END$$;
CREATE FUNCTION cheapest() RETURNS numeric STABLE LANGUAGE sql AS 'SELECT min(price) FROM public.products';
CREATE FUNCTION dice(sides int DEFAULT 6) RETURNS int VOLATILE LANGUAGE sql AS 'SELECT 1 + floor(random() * $1)::int';
CREATE FUNCTION biggest(VARIADIC int[]) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT max(v) FROM unnest($1) v';
CREATE FUNCTION shout(customers) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper(($1).name)';
CREATE FUNCTION fortune(customers) RETURNS float VOLATILE LANGUAGE sql AS 'SELECT random()';
CREATE FUNCTION is_even(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 % 2 = 0';
CREATE FUNCTION record_visit() RETURNS int VOLATILE LANGUAGE sql AS 'INSERT INTO public.scratch VALUES (1) RETURNING id';

CREATE FUNCTION same(int, text) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1::text = $2';
CREATE FUNCTION perhaps(int, text) RETURNS bool VOLATILE LANGUAGE sql AS 'SELECT random() > 0.5';
CREATE OPERATOR === (FUNCTION = same, LEFTARG = int, RIGHTARG = text);
CREATE OPERATOR =?= (FUNCTION = perhaps, LEFTARG = int, RIGHTARG = text);
CREATE FUNCTION add_noise(float, float) RETURNS float VOLATILE LANGUAGE sql AS 'SELECT $1 + $2 + random()';
CREATE FUNCTION add_up(float, float) RETURNS float IMMUTABLE LANGUAGE sql AS 'SELECT $1 + $2';
CREATE AGGREGATE noisy_sum(float) (SFUNC = add_noise, STYPE = float, INITCOND = '0');
CREATE AGGREGATE plain_sum(float) (SFUNC = add_up, STYPE = float, INITCOND = '0');
CREATE FUNCTION place_of(text) RETURNS place VOLATILE LANGUAGE sql AS 'SELECT (random(), 1)::place';
CREATE CAST (text AS place) WITH FUNCTION place_of(text);
CREATE DOMAIN lucky AS int CHECK (dice() > 0);
CREATE DOMAIN even AS int CHECK (is_even(VALUE));
CREATE TYPE box_of_even AS (a even, b mood);
CREATE TYPE box_of_luck AS (a lucky);

-- views

CREATE VIEW totals AS SELECT c.name, sum(o.amount) AS total FROM customers c JOIN orders o ON o.customer_id = c.id GROUP BY 1;
CREATE VIEW big_totals AS SELECT * FROM totals WHERE total > 100;
CREATE VIEW all_readings AS SELECT * FROM readings;
CREATE VIEW taxed AS SELECT id, tax(price) FROM products;
CREATE VIEW classed AS SELECT id, price_class(price) FROM products;
CREATE VIEW recent AS SELECT * FROM orders WHERE placed > now() - interval '1 day';
CREATE VIEW todays AS SELECT * FROM orders WHERE placed > current_date;
CREATE VIEW mine AS SELECT * FROM customers WHERE name = current_user;
CREATE VIEW lottery AS SELECT * FROM customers ORDER BY random();
CREATE VIEW sampled AS SELECT * FROM customers TABLESAMPLE system (50);
CREATE VIEW locked AS SELECT * FROM customers FOR UPDATE;
CREATE VIEW of_names AS SELECT relname FROM pg_class;
CREATE VIEW of_sequence AS SELECT last_value FROM tickets;
CREATE VIEW of_remote AS SELECT * FROM remote;
CREATE VIEW perhaps_view AS SELECT * FROM customers WHERE id =?= name;
CREATE VIEW days AS SELECT placed::date AS day, placed > '2024-01-01'::date AS late FROM orders;
CREATE VIEW from_text AS SELECT 'now'::text::timestamptz AS at;
CREATE VIEW happy AS SELECT * FROM customers WHERE mood = 'happy';
CREATE VIEW writes_view AS SELECT record_visit();
CREATE MATERIALIZED VIEW stats AS SELECT count(*) AS orders, now() AS made FROM orders;
CREATE MATERIALIZED VIEW visits AS SELECT record_visit();
CREATE VIEW of_stats AS SELECT * FROM stats;

-- row-level security

CREATE TABLE by_tenant (tenant int, v int);
CREATE POLICY p ON by_tenant USING (tenant = current_setting('app.tenant', true)::int);
CREATE TABLE by_owner (owner text, v int);
CREATE POLICY p ON by_owner USING (owner = current_user);
CREATE POLICY w ON by_owner FOR INSERT WITH CHECK (dice() > 0);
CREATE TABLE by_time (until timestamptz, v int);
CREATE POLICY p ON by_time USING (until > now());
CREATE TABLE by_customer (customer_id int, v int);
CREATE POLICY p ON by_customer USING (EXISTS (SELECT FROM customers c WHERE c.id = customer_id AND c.name = current_user));
CREATE TABLE by_role (owner name, v int);
CREATE POLICY p ON by_role USING (pg_has_role(owner, 'member'));
CREATE TABLE by_setting (v int);
CREATE POLICY p ON by_setting USING (current_setting('transaction_isolation') = 'serializable');
CREATE TABLE by_nobody (v int);
ALTER TABLE by_tenant ENABLE ROW LEVEL SECURITY;
ALTER TABLE by_owner ENABLE ROW LEVEL SECURITY;
ALTER TABLE by_time ENABLE ROW LEVEL SECURITY;
ALTER TABLE by_customer ENABLE ROW LEVEL SECURITY;
ALTER TABLE by_role ENABLE ROW LEVEL SECURITY;
ALTER TABLE by_setting ENABLE ROW LEVEL SECURITY;
ALTER TABLE by_nobody ENABLE ROW LEVEL SECURITY;

-- what writes lead to

CREATE TABLE journal (at timestamptz DEFAULT now(), what text);
CREATE TABLE watched (id int, v int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO journal (what) VALUES (tg_op); RETURN NULL; END$$;
CREATE TRIGGER noted AFTER UPDATE OR DELETE ON watched FOR EACH ROW EXECUTE FUNCTION note();
CREATE TABLE diary (id int, v int);
CREATE TABLE diary_copy (id int, v int);
CREATE RULE copied AS ON INSERT TO diary DO ALSO INSERT INTO diary_copy VALUES (new.id, new.v);
CREATE TABLE numbered (id int DEFAULT record_visit(), v int);
CREATE TABLE checked (v int CHECK (dice(v) > 0));
CREATE TABLE stamped (id uuid DEFAULT gen_random_uuid(), at timestamptz DEFAULT now(), n int DEFAULT nextval('tickets'), v int);
CREATE TABLE lucky_ones (v lucky);
CREATE TABLE lucky_boxes (v box_of_luck[]);
CREATE VIEW door AS SELECT id, v FROM watched;
CREATE FUNCTION enter() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO journal (what) VALUES ('door'); RETURN new; END$$;
CREATE TRIGGER enter INSTEAD OF INSERT ON door FOR EACH ROW EXECUTE FUNCTION enter();
CREATE VIEW hatch AS SELECT id, v FROM diary;
CREATE RULE through AS ON INSERT TO hatch DO INSTEAD INSERT INTO journal (what) VALUES (new.id::text);
CREATE TABLE nodes (id int PRIMARY KEY, parent int REFERENCES nodes ON DELETE SET DEFAULT);
CREATE TABLE regions (id int PRIMARY KEY, name text) PARTITION BY RANGE (id);
CREATE TABLE regions_a PARTITION OF regions FOR VALUES FROM (0) TO (100);
CREATE TABLE regions_b PARTITION OF regions FOR VALUES FROM (100) TO (200);
CREATE TABLE towns (region int REFERENCES regions ON DELETE CASCADE, name text);
CREATE TABLE guarded (id int, v int) PARTITION BY RANGE (id);
CREATE TABLE guarded_a PARTITION OF guarded FOR VALUES FROM (0) TO (100);
CREATE TRIGGER noted AFTER INSERT ON guarded FOR EACH ROW EXECUTE FUNCTION note();
CREATE PROCEDURE tidy() LANGUAGE sql AS 'DELETE FROM journal';

-- names that stand twice

CREATE SCHEMA other;
CREATE TABLE other.orders (id int, amount numeric);
CREATE TABLE other.only_here (id int);
CREATE VIEW other.customers AS SELECT random() AS id;
CREATE FUNCTION other.lower(text) RETURNS text VOLATILE LANGUAGE sql AS 'SELECT $1 || random()';
CREATE SCHEMA visitor;
CREATE TABLE visitor.orders (id int, amount numeric);

INSERT INTO customers VALUES (1, 'ann', 'happy', 'a@x'), (2, 'bob', 'sad', 'b@x'), (3, 'cy', 'ok', 'c@x');
INSERT INTO orders VALUES (1, 1, 10, '2024-05-05', 'paid'), (2, 2, 200, '2025-05-05', 'open');
INSERT INTO products VALUES (1, 'red pen', 2, '{a}', '{"k": 1}'), (2, 'blue ink', 12, '{b}', '{}');
INSERT INTO items VALUES (1, 1, 3), (2, 2, 1);
INSERT INTO readings VALUES ('2024-02-02', 1), ('2025-02-02', 2);
INSERT INTO vehicles VALUES (1, 4);
INSERT INTO cars VALUES (2, 4, 5);
INSERT INTO sport_cars VALUES (3, 4, 2, 300);
INSERT INTO watched VALUES (1, 1);
INSERT INTO diary VALUES (1, 1);
INSERT INTO nodes VALUES (1, NULL), (2, 1);
INSERT INTO regions VALUES (1, 'a'), (101, 'b');
INSERT INTO towns VALUES (1, 'x');
INSERT INTO by_tenant VALUES (1, 1);
INSERT INTO numbered VALUES (1, 1);
