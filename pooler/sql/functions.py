"""Built-in functions by what they may do: the lists that classification trusts.

A name stands for every pg_catalog function of that name. What is on neither list is taken to write where only names
are known; the origin's catalog knows better (`pooler.cache.catalog`).
"""

from __future__ import annotations

SAFE = frozenset(
    """
    abs acos acosd array_agg array_append array_cat array_dims array_fill array_length array_lower array_ndims
    array_position array_positions array_prepend array_remove array_replace array_to_json array_to_string
    array_upper ascii asin asind atan atan2 avg bit_and bit_count bit_length bit_or bit_xor bool_and bool_or
    bound_box box broadcast btrim cardinality cbrt ceil ceiling center char_length character_length chr circle
    coalesce concat concat_ws convert convert_from convert_to corr cos cosd cot count covar_pop covar_samp
    cume_dist date date_add date_bin date_part date_subtract date_trunc decode degrees dense_rank diameter div
    encode every exp extract factorial family first_value float4 float8 floor format gcd generate_series
    generate_subscripts get_bit get_byte greatest grouping height host initcap int2 int4 int8 interval
    is_normalized isempty isfinite json_agg json_array_elements json_array_elements_text json_array_length
    json_build_array json_build_object json_each json_each_text json_extract_path json_extract_path_text
    json_object json_object_agg json_object_keys json_populate_record json_populate_recordset json_strip_nulls
    json_typeof jsonb_agg jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array
    jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path jsonb_extract_path_text jsonb_insert
    jsonb_object jsonb_object_agg jsonb_object_keys jsonb_path_exists jsonb_path_match jsonb_path_query
    jsonb_path_query_array jsonb_path_query_first jsonb_populate_record jsonb_populate_recordset jsonb_pretty
    jsonb_set jsonb_strip_nulls jsonb_typeof justify_days justify_hours justify_interval lag last_value lcm lead
    least left length like_escape ln log log10 lower lower_inc lower_inf lpad ltrim make_date make_interval
    make_time make_timestamp make_timestamptz masklen max md5 min mod mode netmask network normalize nth_value
    ntile nullif numeric numnode octet_length overlaps overlay parse_ident percent_rank percentile_cont
    percentile_disc phraseto_tsquery pi plainto_tsquery point polygon position pow power quote_ident quote_literal
    quote_nullable radians radius range_agg range_intersect_agg range_merge rank regexp_count regexp_instr
    regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table
    regexp_substr regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy
    repeat replace reverse right round row_number row_to_json rpad rtrim scale setweight sha224 sha256 sha384
    sha512 sign similar_to_escape sin sind split_part sqrt starts_with stddev stddev_pop stddev_samp string_agg
    string_to_array string_to_table strip strpos substr substring sum tan tand text time timestamp timestamptz
    timetz timezone to_ascii to_char to_date to_hex to_json to_jsonb to_number to_timestamp to_tsquery to_tsvector
    translate trim trim_array trim_scale trunc ts_headline ts_rank ts_rank_cd unnest upper upper_inc upper_inf
    var_pop var_samp varchar variance websearch_to_tsquery width width_bucket
    """.split()
)
"""They compute from their arguments, and from settings that are part of the cache key.

Those that pg_proc calls stable are trusted because they stand here; an immutable one needs no list.
"""

READ_ONLY = frozenset(
    """
    age clock_timestamp col_description current_database current_query current_schema current_schemas
    current_setting currval format_type gen_random_uuid has_any_column_privilege has_column_privilege
    has_database_privilege has_function_privilege has_schema_privilege has_sequence_privilege has_table_privilege
    inet_client_addr inet_server_addr inet_server_port lastval nextval now obj_description pg_advisory_lock
    pg_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_all pg_advisory_unlock_shared
    pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_backend_pid pg_blocking_pids pg_cancel_backend
    pg_column_size pg_conf_load_time pg_current_wal_lsn pg_database_size pg_encoding_to_char pg_function_is_visible
    pg_get_constraintdef pg_get_expr pg_get_function_arguments pg_get_function_identity_arguments
    pg_get_function_result pg_get_functiondef pg_get_indexdef pg_get_keywords pg_get_partkeydef pg_get_ruledef
    pg_get_serial_sequence pg_get_statisticsobjdef pg_get_triggerdef pg_get_userbyid pg_get_viewdef pg_has_role
    pg_indexes_size pg_is_in_recovery pg_is_other_temp_schema pg_my_temp_schema pg_notify pg_postmaster_start_time
    pg_relation_is_publishable pg_relation_size pg_reload_conf pg_size_pretty pg_sleep pg_sleep_for pg_sleep_until
    pg_table_is_visible pg_table_size pg_terminate_backend pg_total_relation_size pg_try_advisory_lock
    pg_try_advisory_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared pg_type_is_visible
    pg_typeof random random_normal set_config setseed setval shobj_description statement_timestamp timeofday
    to_regclass to_regproc to_regtype transaction_timestamp txid_current uuidv4 uuidv7 version
    """.split()
)
"""They write nothing that a cached answer could depend on, but their own answers must not be cached."""

ARGUMENTS_DECIDE = frozenset({"age", "pg_size_pretty"})
"""Of `READ_ONLY`: by the number of arguments, or always, immutable; the catalog knows."""

SAFE_TYPES = frozenset(
    """
    bit bool boolean box bpchar bytea char cidr circle date daterange float4 float8 inet int2 int4 int4range int8
    int8range interval json jsonb line lseg macaddr macaddr8 money name numeric numrange oid path point polygon text
    time timestamp timestamptz timetz tsquery tsrange tstzrange tsvector uuid varbit varchar xml
    """.split()
)
"""Built-in types a cacheable statement may cast to: their input functions look nothing up."""

LOOK_UP_TYPES = frozenset(
    "regclass regcollation regconfig regdatabase regdictionary regnamespace regoper regoperator regproc regprocedure "
    "regrole regtype".split()
)
"""Built-in types whose input and output functions read the system catalogs."""

HARMLESS_TRIGGERS = frozenset(
    "suppress_redundant_updates_trigger tsvector_update_trigger tsvector_update_trigger_column "
    "unique_key_recheck".split()
)
"""Built-in trigger functions that touch nothing but their own row."""

HARMLESS_EXTENSIONS = frozenset(
    """
    autoinc crypt gen_random_bytes gen_random_uuid gen_salt insert_username moddatetime pg_stat_statements
    uuid_generate_v1 uuid_generate_v1mc uuid_generate_v4
    """.split()
)
"""Volatile functions of well-known extensions, in C, that write no table (triggers: nothing but their own row)."""

BUILT_IN_PINS = {
    "currval": "SEQUENCE",
    "lastval": "SEQUENCE",
    "setseed": "SEED",
    "pg_advisory_lock": "ADVISORY",
    "pg_advisory_lock_shared": "ADVISORY",
    "pg_try_advisory_lock": "ADVISORY",
    "pg_try_advisory_lock_shared": "ADVISORY",
    "pg_replication_origin_session_setup": "REPLICATION",
    "pg_backup_start": "LASTING",
    "pg_start_backup": "LASTING",
    "dblink_connect": "LASTING",
    "dblink_connect_u": "LASTING",
    "set_limit": "HIDDEN",
}
"""Functions that leave state on the connection, and which kind (`PinKind`)."""

SLOT_MAKERS = frozenset(
    "pg_create_logical_replication_slot pg_create_physical_replication_slot pg_copy_logical_replication_slot "
    "pg_copy_physical_replication_slot".split()
)
"""Their third argument, `temporary`, says that what they make ends with the connection."""

RUNS_TEXT = frozenset(
    "query_to_xml query_to_xmlschema query_to_xml_and_xmlschema ts_stat ts_rewrite crosstab crosstab2 crosstab3 "
    "crosstab4 crosstab_hash connectby xpath_table".split()
)
"""They run what their arguments say, or make of them, as a query: it may do what any other may."""

RUNS_RELATIONS = frozenset(
    "table_to_xml table_to_xml_and_xmlschema schema_to_xml schema_to_xml_and_xmlschema database_to_xml "
    "database_to_xml_and_xmlschema".split()
)
"""They read relations that their text need not name."""

PIN_PREFIXES = ("dblink", "pgv_", "dbms_", "utl_file", "plvlex", "plvdate")
"""Beginnings of the names, or of the schemas' names, of well-known extensions' functions that keep state in the
session.
"""

LIBRARIES_WITH_SESSIONS = {
    "set_user": "(re)?set_(user(_u)?|session_auth)",
    "hypopg": "hypopg.*",
    "temporal_tables": "set_system_time",
    "plprofiler": "pl_profiler_.*",
    "plugin_debugger": "pldbg_.*",
    "plpgsql_check": "plpgsql_check_(profiler|tracer)",
    "pg_session_jwt": ".*jwt_session_init|init",
}
"""Of well-known libraries in C, the functions that leave in the session what not even DISCARD ALL takes back: patterns,
for the origin to look for.
"""
