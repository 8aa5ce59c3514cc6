"""The catalogue against what PostgreSQL really sends: each frame is decoded to its last byte and encodes to itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from protocol import messages as m
from protocol.fields import Message
from tests.support import wire
from tests.support.postgres import Server
from tests.support.waiting import until
from tests.support.wire import Frame, WireClient


def decoded(frames: list[Frame]) -> list[m.Decoded]:
    """Each frame by the catalogue; what is decoded must encode to the same bytes."""
    found = []
    for kind, body in frames:
        one = m.decode(kind.encode(), body, from_frontend=False)
        assert one.message.encode(**one.fields) == wire.frame(kind, body)
        found.append(one)
    return found


def names(frames: list[Frame]) -> list[str]:
    return [one.message.name for one in decoded(frames)]


def fields(frames: list[Frame], message: Message) -> list[dict[str, Any]]:
    """The fields of each frame that is a `message`."""
    return [one.fields for one in decoded(frames) if one.message is message]


def told(one: dict[str, Any]) -> dict[str, str]:
    """An ErrorResponse's or NoticeResponse's fields by their letters."""
    return {field["type"]: field["value"] for field in one["fields"]}


@pytest.fixture(params=[16, 18])
def server(request: pytest.FixtureRequest) -> Server:
    name = "origin" if request.param == 18 else "origin_16"
    found = request.getfixturevalue(name)
    assert isinstance(found, Server)
    return found


@pytest.fixture
def client(server: Server) -> Iterator[WireClient]:
    with WireClient.logged_in(server.port) as connected:
        yield connected


def test_the_login(server: Server) -> None:
    """Authentication frames included, which `WireClient` keeps to itself."""
    with WireClient(server.port) as client:
        client.send(m.StartupMessage.encode(
            major_version=3, minor_version=0, parameters=[{"name": "user", "value": "postgres"}]
        ))  # fmt: skip
        frames = client.receive_until("RE")
        assert fields(frames, m.AuthenticationSASL) == [{"auth_mechanisms": ["SCRAM-SHA-256"]}]
        client.send(m.SASLInitialResponse.encode(auth_mechanism="SCRAM-SHA-256", data=b"n,,n=,r=abcdefgh"))
        frames = client.receive_until("RE")
        assert fields(frames, m.AuthenticationSASLContinue)[0]["data"].startswith(b"r=abcdefgh")
        client.send(m.SASLResponse.encode(data=b"c=biws,r=abcdefgh,p=AAAA"))
        (error,) = fields(client.receive_all(), m.ErrorResponse)
        assert told(error)["C"] in ("08P01", "28P01")


def test_the_greeting(server: Server) -> None:
    with WireClient.logged_in(server.port) as client:
        assert set(names(client.greeting)) == {"ParameterStatus", "BackendKeyData", "ReadyForQuery"}
        (key,) = fields(client.greeting, m.BackendKeyData)
        assert (key["process_id"], key["secret_key"]) == (client.pid, client.secret)
        assert len(client.secret) == 4


def test_the_long_key_of_protocol_3_2(origin: Server) -> None:
    with WireClient.logged_in(origin.port, minor=2) as client:
        (key,) = fields(client.greeting, m.BackendKeyData)
        assert len(key["secret_key"]) == 32
        assert "NegotiateProtocolVersion" not in names(client.greeting)


def test_a_version_that_the_server_does_not_know_is_negotiated(server: Server, origin: Server) -> None:
    with WireClient.logged_in(server.port, minor=9999, **{"_pq_.one": "1", "_pq_.two": "2"}) as client:
        (negotiated,) = fields(client.greeting, m.NegotiateProtocolVersion)
    newest = 2 if server is origin else 0
    assert negotiated["newest_protocol_version"] == 3 << 16 | newest
    assert sorted(negotiated["unrecognized_options"]) == ["_pq_.one", "_pq_.two"]


def test_a_simple_query_with_everything_in_it(client: WireClient) -> None:
    frames = client.query(
        "create temp table t (id int, v varchar(10));"
        "insert into t values (1, 'é'), (2, null), (3, '');"
        "do $$begin raise notice 'look'; end$$;"
        "set application_name = 'seen';"
        "select id, v, ctid, 1.5 as sum from t order by id;"
        "select from t limit 1"
    )
    assert [name for name in names(frames) if name != "ParameterStatus"] == [  # whose moment the server chooses
        "CommandComplete", "CommandComplete", "NoticeResponse", "CommandComplete", "CommandComplete",
        "RowDescription", "DataRow", "DataRow", "DataRow", "CommandComplete",
        "RowDescription", "DataRow", "CommandComplete", "ReadyForQuery",
    ]  # fmt: skip
    assert fields(frames, m.ParameterStatus) == [{"name": "application_name", "value": "seen"}]
    described, empty = fields(frames, m.RowDescription)
    assert [field["name"] for field in described["fields"]] == ["id", "v", "ctid", "sum"]
    assert [field["table_attribute_number"] for field in described["fields"]] == [1, 2, -1, 0]
    assert [field["type_modifier"] for field in described["fields"]] == [-1, 14, -1, -1]
    assert [field["data_type_size"] for field in described["fields"]] == [4, -1, 6, -1]
    assert empty == {"fields": []}
    values = [row["values"] for row in fields(frames, m.DataRow)]
    assert [row[:2] for row in values[:3]] == [[b"1", "é".encode()], [b"2", None], [b"3", b""]]
    assert values[3] == []
    (notice,) = fields(frames, m.NoticeResponse)
    assert (told(notice)["V"], told(notice)["M"]) == ("NOTICE", "look")


def test_an_empty_query(client: WireClient) -> None:
    assert names(client.query("")) == ["EmptyQueryResponse", "ReadyForQuery"]


def test_an_error_with_all_its_fields(client: WireClient) -> None:
    client.query("create temp table t (id int constraint positive check (id > 0))")
    frames = client.query("begin; insert into t values (-1)")
    assert names(frames) == ["CommandComplete", "ErrorResponse", "ReadyForQuery"]
    (error,) = fields(frames, m.ErrorResponse)
    assert told(error).keys() >= set("SVCMDstnFLR")
    assert (told(error)["C"], told(error)["n"]) == ("23514", "positive")
    assert fields(frames, m.ReadyForQuery) == [{"tx_status": "E"}]
    (syntax,) = fields(client.query("select 1 +"), m.ErrorResponse)
    assert told(syntax)["P"] == "11"


def test_the_extended_protocol_sent_and_received_by_the_catalogue(client: WireClient) -> None:
    frames = client.ask(
        m.Parse.encode(
            name="s1", query="select $1::int4, $2::text from generate_series(1, 3)", parameter_oids=[23, 0]
        ),
        m.Describe.encode(object_type="S", name="s1"),
        m.Bind.encode(
            destination_portal="p1",
            prepared_statement="s1",
            parameter_format_codes=[1, 0],
            parameters=[b"\0\0\0\7", None],
            result_format_codes=[1],
        ),
        m.Describe.encode(object_type="P", name="p1"),
        m.Execute.encode(portal="p1", max_rows=2),
        m.Flush.encode(),
        m.Execute.encode(portal="p1", max_rows=0),
        m.Close.encode(object_type="P", name="p1"),
        m.Close.encode(object_type="S", name="s1"),
        m.Parse.encode(name="", query="set geqo = on", parameter_oids=[]),
        m.Describe.encode(object_type="S", name=""),
        m.Sync.encode(),
    )  # fmt: skip
    assert names(frames) == [
        "ParseComplete", "ParameterDescription", "RowDescription", "BindComplete", "RowDescription",
        "DataRow", "DataRow", "PortalSuspended", "DataRow", "CommandComplete", "CloseComplete", "CloseComplete",
        "ParseComplete", "ParameterDescription", "NoData", "ReadyForQuery",
    ]  # fmt: skip
    assert fields(frames, m.ParameterDescription) == [{"parameter_oids": [23, 25]}, {"parameter_oids": []}]
    assert fields(frames, m.DataRow) == [{"values": [b"\0\0\0\7", None]}] * 3
    assert [field["format"] for field in fields(frames, m.RowDescription)[1]["fields"]] == [1, 1]


def test_copy_in_out_and_failed(client: WireClient) -> None:
    client.query("create temp table t (id int, v text)")
    client.send(m.Query.encode(string="copy t from stdin"))
    frames = client.receive_until("G")
    assert fields(frames, m.CopyInResponse) == [{"overall_format": 0, "column_format_codes": [0, 0]}]
    frames = client.ask(m.CopyData.encode(data=b"1\ta\n2\t"), m.CopyData.encode(data=b"b\n"), m.CopyDone.encode())
    assert fields(frames, m.CommandComplete) == [{"command_tag": "COPY 2"}]
    client.send(m.Query.encode(string="copy t from stdin (format binary)"))
    frames = client.receive_until("G")
    assert fields(frames, m.CopyInResponse) == [{"overall_format": 1, "column_format_codes": [1, 1]}]
    frames = client.ask(m.CopyFail.encode(message="changed my mind"))
    (error,) = fields(frames, m.ErrorResponse)
    assert "changed my mind" in told(error)["M"]
    frames = client.query("copy t to stdout")
    assert names(frames) == ["CopyOutResponse", "CopyData", "CopyData", "CopyDone", "CommandComplete", "ReadyForQuery"]
    assert fields(frames, m.CopyData) == [{"data": b"1\ta\n"}, {"data": b"2\tb\n"}]


def test_a_function_call(client: WireClient) -> None:
    oid = int(client.one("select 'reverse(text)'::regprocedure::oid") or b"")
    null = int(client.one("select 'pg_stat_get_backend_client_addr(int)'::regprocedure::oid") or b"")

    def call(function: int, argument: bytes) -> list[Frame]:
        return client.ask(
            m.FunctionCall.encode(
                function=function, arg_format_codes=[0], arguments=[argument], result_format_code=0
            )
        )  # fmt: skip

    assert fields(call(oid, b"near"), m.FunctionCallResponse) == [{"result": b"raen"}]
    assert fields(call(null, b"999999"), m.FunctionCallResponse) == [{"result": None}]


def test_a_notification(client: WireClient) -> None:
    client.query("listen news")
    frames = client.query("notify news, 'é'")
    assert fields(frames, m.NotificationResponse) == [{"process_id": client.pid, "channel": "news", "payload": "é"}]


def test_a_text_in_another_encoding_survives(client: WireClient) -> None:
    """A String's encoding is the session's: what is no UTF-8 is kept byte for byte."""
    client.query("set client_encoding = latin1")
    frames = client.ask(wire.frame("Q", b'select 1 as "\xe9"\0'))
    (described,) = fields(frames, m.RowDescription)
    assert described["fields"][0]["name"] == "\udce9"


@contextmanager
def replicating(server: Server) -> Iterator[WireClient]:
    with WireClient.logged_in(server.port, replication="true") as client:
        yield client


def test_physical_replication(origin: Server) -> None:
    """CopyBothResponse, then XLogData and keepalives inside CopyData, answered until the stream is ended."""
    with replicating(origin) as client:
        (row,) = fields(client.query("IDENTIFY_SYSTEM"), m.DataRow)
        position = row["values"][2].decode()
        client.send(m.Query.encode(string=f"START_REPLICATION PHYSICAL {position}"))
        assert fields(client.receive_until("W"), m.CopyBothResponse) == [
            {"overall_format": 0, "column_format_codes": []}
        ]
        high, low = (int(part, 16) for part in position.split("/"))
        start = high << 32 | low
        status = m.StandbyStatusUpdate.encode(
            wal_write_position=start, wal_flush_position=start, wal_apply_position=0, client_time=0, reply_requested=1
        )
        feedback = m.HotStandbyFeedback.encode(
            client_time=0, xmin=0, xmin_epoch=0, catalog_xmin=0, catalog_xmin_epoch=0
        )
        client.send(m.CopyData.encode(data=feedback), m.CopyData.encode(data=status))
        origin.execute("create table written_to_wal as select 1")
        wanted = {m.PrimaryKeepalive, m.XLogData}
        while wanted:
            (copy_data,) = fields(client.receive_until("d")[-1:], m.CopyData)
            message, inner = m.decode_replication(copy_data["data"], from_frontend=False)
            assert message.encode(**inner) == copy_data["data"]
            assert inner["server_wal_end"] >= start
            wanted.discard(message)
        frames = client.ask(m.CopyDone.encode())
        assert names([frame for frame in frames if frame[0] != "d"])[0] == "CopyDone"
    origin.execute("drop table written_to_wal")


def test_postgresql_takes_a_cancel_request_of_the_catalogues(server: Server) -> None:
    with WireClient.logged_in(server.port) as client, WireClient(server.port) as other:
        client.query("create temp table t ()")
        client.send(m.Query.encode(string="select pg_sleep(50)"))
        origin_waits(server, client.pid)
        other.send(m.CancelRequest.encode(process_id=client.pid, secret_key=client.secret))
        assert other.receive_all() == []
        (error,) = fields(client.receive_until("Z"), m.ErrorResponse)
        assert told(error)["C"] == "57014"


def origin_waits(server: Server, pid: int) -> None:
    """Until the backend is in pg_sleep."""
    until(lambda: server.execute("select 1 from pg_stat_activity where pid = %s and wait_event = 'PgSleep'", pid))


def test_encryption_is_declined_with_a_byte(server: Server) -> None:
    with WireClient(server.port) as client:
        for request in (m.GSSENCRequest, m.SSLRequest):
            client.send(request.encode())
            assert client.read(1) == b"N"
