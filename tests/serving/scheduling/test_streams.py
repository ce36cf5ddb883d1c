"""`StreamTable`: which streams are held, which are gone and why; the tests give the time."""

import pytest

from deploy_rnn.errors import BusyError, InputError, StreamError
from deploy_rnn.serving.scheduling.limits import Limits
from deploy_rnn.serving.scheduling.streams import MAX_REASONS, Stream, StreamTable


def chunk(
    streams: StreamTable, name: int | str, now: float, *, start: bool = False, end: bool = False
) -> Stream:
    stream = streams.admit(name, 1, start=start, end=end, now=now)
    streams.answered(stream, now)
    return stream


@pytest.fixture
def streams() -> StreamTable:
    return StreamTable(Limits(max_streams=3, stream_idle=100.0, stream_keep=10.0))


def test_a_stream_lives_from_start_to_end(streams: StreamTable) -> None:
    with pytest.raises(
        StreamError, match=r"stream 7 is unknown; send its first chunk with `start`."
    ):
        chunk(streams, 7, 0.0)
    stream = chunk(streams, 7, 0.0, start=True)
    assert chunk(streams, 7, 1.0) is stream
    assert 7 in streams
    assert "7" not in streams
    assert chunk(streams, 7, 2.0, end=True) is stream
    assert len(streams) == 0
    with pytest.raises(StreamError, match="stream 7 has ended; start it again to use its id again"):
        chunk(streams, 7, 3.0)
    assert chunk(streams, 7, 3.0, start=True) is not stream


def test_a_chunk_that_does_not_fit_is_refused(streams: StreamTable) -> None:
    chunk(streams, "a", 0.0, start=True)
    with pytest.raises(
        InputError, match="stream 'a' has 1 rows, this chunk has 2; a stream keeps its rows"
    ):
        streams.admit("a", 2, start=False, end=False, now=1.0)
    chunk(streams, "a", 2.0)


def test_a_start_of_a_live_stream_begins_anew(streams: StreamTable) -> None:
    for name in ("a", "b", "c"):
        chunk(streams, name, 0.0, start=True)
    old = streams.admit("a", 1, start=False, end=False, now=1.0)
    # The table is full, and has room for a stream that takes the place of its like; it may have other rows.
    new = streams.admit("a", 2, start=True, end=False, now=1.0)
    assert new is not old
    assert (old.waiting, old.broken, len(streams)) == (1, None, 3)
    streams.answered(old, 2.0)
    streams.fail(old, 2, "a chunk of the stream that had the name before")
    streams.admit("a", 2, start=False, end=False, now=3.0)
    assert streams.admit("a", 1, start=True, end=True, now=3.0) is not new
    with pytest.raises(StreamError, match="stream 'a' has ended"):
        chunk(streams, "a", 4.0)


def test_a_start_of_a_live_stream_is_refused_if_restarts_are() -> None:
    streams = StreamTable(Limits(refuse_restart=True))
    stream = chunk(streams, "a", 0.0, start=True)
    with pytest.raises(
        StreamError, match="stream 'a' has already started; end it first, or use another id"
    ):
        chunk(streams, "a", 1.0, start=True)
    assert chunk(streams, "a", 2.0, end=True) is stream
    assert chunk(streams, "a", 3.0, start=True) is not stream


def test_streams_that_are_ended_say_why(streams: StreamTable) -> None:
    for name in (1, "b"):
        chunk(streams, name, 0.0, start=True)
    waiting = streams.admit("b", 1, start=False, end=False, now=1.0)
    assert streams.end("was ended: it is late", "c") == []
    assert streams.end("was ended: it is late") == [1, "b"]
    assert (len(streams), waiting.broken) == (0, None)
    assert streams.ended() == {1: "was ended: it is late", "b": "was ended: it is late"}
    with pytest.raises(StreamError, match=r"stream 1 was ended: it is late\."):
        chunk(streams, 1, 2.0)


def test_an_idle_stream_expires(streams: StreamTable) -> None:
    chunk(streams, "a", 0.0, start=True)
    chunk(streams, "b", 60.0, start=True)
    assert streams.next_expiry() == 100.0
    streams.expire(99.9)
    assert len(streams) == 2
    chunk(streams, "a", 99.9)
    streams.expire(160.0)
    assert "b" not in streams
    with pytest.raises(
        StreamError, match="stream 'b' expired after 100 s without a chunk; start it again"
    ):
        chunk(streams, "b", 161.0)
    assert "a" in streams
    streams.expire(1000.0)
    assert streams.next_expiry() is None


def test_a_stream_does_not_expire_while_a_chunk_waits(streams: StreamTable) -> None:
    stream = streams.admit("a", 1, start=True, end=False, now=0.0)
    streams.expire(500.0)
    assert "a" in streams
    streams.answered(stream, 500.0)
    streams.expire(599.0)
    assert "a" in streams
    streams.expire(600.0)
    assert "a" not in streams


def test_a_stream_whose_chunk_waits_does_not_keep_others_from_expiring(
    streams: StreamTable,
) -> None:
    for name in ("a", "b"):
        chunk(streams, name, 0.0, start=True)
    streams.admit("a", 1, start=False, end=False, now=50.0)
    streams.expire(100.0)
    assert [name in streams for name in "ab"] == [True, False]


def test_a_full_table_refuses_a_stream_or_evicts_an_idle_one(streams: StreamTable) -> None:
    for number in range(3):
        chunk(streams, number, float(number), start=True)
    with pytest.raises(
        BusyError, match="3 streams are live, which is the limit; end some, or try again later"
    ):
        chunk(streams, 3, 9.9, start=True)
    chunk(streams, 0, 9.9)
    chunk(streams, 3, 11.0, start=True)
    with pytest.raises(
        StreamError,
        match="stream 1 was evicted for a new one, since 3 is the limit; start it again",
    ):
        chunk(streams, 1, 12.0)
    assert [number in streams for number in range(4)] == [True, False, True, True]


def test_a_stream_whose_chunk_waits_is_not_evicted(streams: StreamTable) -> None:
    waiting = streams.admit("a", 1, start=True, end=False, now=0.0)
    for name in ("b", "c"):
        chunk(streams, name, 1.0, start=True)
    chunk(streams, "d", 20.0, start=True)
    assert [name in streams for name in "abcd"] == [True, False, True, True]
    streams.answered(waiting, 30.0)
    chunk(streams, "e", 31.0, start=True)
    assert [name in streams for name in "acde"] == [True, False, True, True]
    for name in "ade":
        streams.admit(name, 1, start=False, end=False, now=32.0)
    with pytest.raises(BusyError):
        chunk(streams, "f", 90.0, start=True)


def test_a_stream_that_cannot_go_on_says_why(streams: StreamTable) -> None:
    stream = chunk(streams, 1, 0.0, start=True)
    streams.fail(stream, 1, "a chunk of it failed (no memory)")
    streams.fail(stream, 1, "a second reason")
    assert stream.broken == "was ended: a chunk of it failed (no memory); start it again"
    with pytest.raises(
        StreamError, match=r"stream 1 was ended: a chunk of it failed \(no memory\); start it again"
    ):
        chunk(streams, 1, 1.0)
    again = chunk(streams, 1, 2.0, start=True)
    streams.fail(stream, 1, "a chunk of the stream that had the name before")
    assert chunk(streams, 1, 3.0) is again


def test_chunks_before_the_one_that_is_lost_are_not(streams: StreamTable) -> None:
    stream = chunk(streams, 1, 0.0, start=True)
    assert not stream.has_lost(1)
    streams.fail(stream, 5, "the fifth was cancelled")
    assert [stream.has_lost(number) for number in (4, 5, 6)] == [False, True, True]
    streams.fail(stream, 3, "the third failed")
    assert [stream.has_lost(number) for number in (2, 3, 4)] == [False, True, True]
    assert "the third failed" in str(stream.error())


def test_a_stream_whose_chunk_waits_does_not_expire(streams: StreamTable) -> None:
    streams.admit("runs", 1, start=True, end=False, now=0.0)
    assert streams.next_expiry() is None
    chunk(streams, "idle", 7.0, start=True)
    assert streams.next_expiry() == 107.0


def test_streams_that_are_left_behind_do_not_leak() -> None:
    streams = StreamTable(Limits(max_streams=100, stream_idle=100.0, stream_keep=0.0))
    for number in range(2 * MAX_REASONS):
        chunk(streams, number, number * 1e-3, start=True)
    assert len(streams) == 100
    assert len(streams._reasons) == MAX_REASONS
    streams.expire(1e6)
    assert len(streams) == 0
    assert len(streams._reasons) == MAX_REASONS
