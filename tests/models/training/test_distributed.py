"""Which of several processes says what all of them have to say."""

from torch import distributed

from models.training.distributed import reported_by_another


def test_the_first_process_with_a_message_says_it_and_no_message_is_lost() -> None:
    agent = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environ = {
        "WORLD_SIZE": "3",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(agent.port),
    }
    assert [reported_by_another("no such data", environ) for _ in range(3)] == [False, True, True]
    assert not reported_by_another("process 2 has no GPU of its own", environ)
    assert not reported_by_another("no such data", {**environ, "TORCHELASTIC_RESTART_COUNT": "1"})


def test_alone_or_where_the_others_are_not_found_everything_is_said() -> None:
    assert not reported_by_another("x", {})
    assert not reported_by_another("x", {"WORLD_SIZE": "2"})
    assert not reported_by_another("x", {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"})
