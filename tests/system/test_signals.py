import signal

import pytest

from ppl_vae.system.signals import stoppable


def test_a_signal_that_comes_as_the_run_is_finished_is_not_lost():
    def work():
        with stoppable() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop() == signal.SIGINT  # which this work does not ask for

    with pytest.raises(KeyboardInterrupt):
        work()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop() is None
    finally:
        signal.signal(signal.SIGINT, before)
