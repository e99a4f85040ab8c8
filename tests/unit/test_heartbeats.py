"""A task is stuck when it is silent for longer than it may; one that is over is not."""

from correlator.ops.heartbeats import Heartbeats


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_task_without_heartbeat_is_stuck_until_the_next_one():
    clock = Clock()
    live = Heartbeats(clock)
    with live.heartbeat("tail", 10.0) as tail, live.heartbeat("disk", 300.0):
        clock.now += 10.0
        assert live.stuck() == {}
        clock.now += 5.0
        assert live.stuck() == {"tail": 15.0}
        tail()
        assert live.stuck() == {}


def test_a_task_that_is_over_is_not_stuck():
    clock = Clock()
    live = Heartbeats(clock)
    with live.heartbeat("tail", 10.0):
        clock.now += 11.0
        assert live.stuck()
    assert live.stuck() == {}


def test_of_two_tasks_with_one_name_the_longest_silence_counts():
    clock = Clock()
    live = Heartbeats(clock)
    with live.heartbeat("tail", 10.0):
        clock.now += 20.0
        with live.heartbeat("tail", 10.0) as second:
            clock.now += 11.0
            assert live.stuck() == {"tail": 31.0}
            second()
            assert live.stuck() == {"tail": 31.0}


def test_a_task_that_paused_with_the_whole_process_is_not_stuck():
    clock = Clock()
    live = Heartbeats(clock)
    with live.heartbeat("tail", 10.0):
        clock.now += 40.0
        live.excuse(35.0)
        assert live.stuck() == {}
        clock.now += 6.0
        assert live.stuck() == {"tail": 11.0}
