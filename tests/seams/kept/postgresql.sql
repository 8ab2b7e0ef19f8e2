
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

CREATE TABLE public.pleach_key (
    name bytea NOT NULL,
    seq bigint NOT NULL,
    create_revision bigint NOT NULL,
    mod_revision bigint NOT NULL,
    version bigint NOT NULL,
    lease bigint NOT NULL
);

CREATE TABLE public.pleach_log (
    seq bigint NOT NULL,
    revision bigint NOT NULL,
    name bytea NOT NULL,
    prev_seq bigint NOT NULL,
    create_revision bigint NOT NULL,
    version bigint NOT NULL,
    lease bigint NOT NULL,
    value bytea NOT NULL
);

CREATE TABLE public.pleach_meta (
    name text NOT NULL COLLATE pg_catalog."C",
    value bigint NOT NULL,
    note bytea
);

CREATE TABLE public.pleach_record (
    name text NOT NULL COLLATE pg_catalog."C",
    value bytea NOT NULL
);

INSERT INTO public.pleach_key VALUES ('\x2f706f7374677265732fc3bc0130', 3, 11264, 11264, 1, 0);
INSERT INTO public.pleach_key VALUES ('\x2f706f7374677265732f6669727374', 5, 0, 13312, 0, 0);
INSERT INTO public.pleach_key VALUES ('\x2f706f7374677265732fc3bc0131', 7, 33792, 33792, 1, 0);
INSERT INTO public.pleach_key VALUES ('\x2f706f7374677265732f6d616e79', 9, 10240, 50176, 3, 0);
INSERT INTO public.pleach_key VALUES ('\x2f706f7374677265732fc3bc0132', 10, 51200, 51200, 1, 0);
INSERT INTO public.pleach_key VALUES ('\x2f706f7374677265732f6c6561736564', 11, 12288, 52224, 3, 7777);

INSERT INTO public.pleach_log VALUES (1, 2048, '\x2f706f7374677265732f6669727374', 0, 2048, 1, 0, '\x31');
INSERT INTO public.pleach_log VALUES (2, 10240, '\x2f706f7374677265732f6d616e79', 0, 10240, 1, 0, '\x76616c75652030');
INSERT INTO public.pleach_log VALUES (3, 11264, '\x2f706f7374677265732fc3bc0130', 0, 11264, 1, 0, '\x');
INSERT INTO public.pleach_log VALUES (4, 12288, '\x2f706f7374677265732f6c6561736564', 0, 12288, 1, 7777, '\x6c6561736564');
INSERT INTO public.pleach_log VALUES (5, 13312, '\x2f706f7374677265732f6669727374', 1, 0, 0, 0, '\x');
INSERT INTO public.pleach_log VALUES (6, 32768, '\x2f706f7374677265732f6d616e79', 2, 10240, 2, 0, '\x76616c75652031');
INSERT INTO public.pleach_log VALUES (7, 33792, '\x2f706f7374677265732fc3bc0131', 0, 33792, 1, 0, '\x');
INSERT INTO public.pleach_log VALUES (8, 34816, '\x2f706f7374677265732f6c6561736564', 4, 12288, 2, 7777, '\x6c6561736564');
INSERT INTO public.pleach_log VALUES (9, 50176, '\x2f706f7374677265732f6d616e79', 6, 10240, 3, 0, '\x76616c75652032');
INSERT INTO public.pleach_log VALUES (10, 51200, '\x2f706f7374677265732fc3bc0132', 0, 51200, 1, 0, '\x');
INSERT INTO public.pleach_log VALUES (11, 52224, '\x2f706f7374677265732f6c6561736564', 8, 12288, 3, 7777, '\x6c6561736564');

INSERT INTO public.pleach_meta VALUES ('schema', 1, NULL);
INSERT INTO public.pleach_meta VALUES ('epoch', 1, '\x6e6f64652060726f6f7460206f6e20766d202870726f636573732033303130362c206174203132372e302e302e313a323630313429');
INSERT INTO public.pleach_meta VALUES ('until', 1795960472279, NULL);

ALTER TABLE ONLY public.pleach_key
    ADD CONSTRAINT pleach_key_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.pleach_log
    ADD CONSTRAINT pleach_log_pkey PRIMARY KEY (seq);

ALTER TABLE ONLY public.pleach_meta
    ADD CONSTRAINT pleach_meta_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.pleach_record
    ADD CONSTRAINT pleach_record_pkey PRIMARY KEY (name);

CREATE INDEX pleach_key_lease ON public.pleach_key USING btree (lease) WHERE (lease <> 0);

CREATE INDEX pleach_log_revision ON public.pleach_log USING btree (revision);

