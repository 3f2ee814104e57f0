"""Processors of every kind, streams in files, the queue under stress, and the choice of chunk sizes."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time

import pytest
import torch

import hmm_functional as hf
from pytorch_hmm import (
    HSMM,
    AdaptiveChunks,
    CategoricalHMM,
    GaussianEmission,
    GaussianHMM,
    HMMPyTorch,
    InputDrivenHMM,
    LinearRegressionHMM,
    StreamingHMMProcessor,
    StreamingQueue,
)


def run(processor, x, size):
    found = [processor.process_chunk(chunk) for chunk in x.split(size)] + [processor.flush()]
    return torch.cat([part for part in found if part is not None])


def gaussian(seed=0):
    torch.manual_seed(seed)
    model = GaussianHMM(3, 2, means=torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).double()
    return model, model.sample(50)[1].detach()


@pytest.mark.parametrize("size", [1, 7, 50])
def test_states_of_every_model(size):
    model, x = gaussian()
    torch.manual_seed(1)
    lagged = LinearRegressionHMM(3, 2, num_lags=2).double()
    lagged.weights = 0.3 * torch.randn(3, 2, 4)
    symbols = CategoricalHMM(3, 4, probs=torch.rand(3, 4).log_softmax(-1).exp())
    for one, frames in ((model, x), (lagged, x), (symbols, torch.randint(4, (50,)))):
        processor = StreamingHMMProcessor(one, decode="viterbi")
        found = run(processor, frames, size)
        assert found.dtype == torch.int64
        assert torch.equal(found, one.viterbi_decode(frames)[0])
        assert processor.statistics.num_forced == 0


@pytest.mark.parametrize("size", [1, 7, 40])
def test_durations_in_every_mode(size):
    torch.manual_seed(2)
    model = HSMM(3, 2, max_duration=8, means=[[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]], censored=size > 1).double()
    x = model.sample(40)[1]
    found = run(StreamingHMMProcessor(model, decode="viterbi"), x, size)
    assert torch.equal(found, model.viterbi_decode(x)[0])
    found = run(StreamingHMMProcessor(model, decode="filter"), x, size)
    torch.testing.assert_close(found, model.filter(x))
    processor = StreamingHMMProcessor(model, overlap=6)
    assert processor.remaining() is None
    found = run(processor, x, size)
    chain = (model.log_initial, model.log_transition, model.log_duration)
    for t in (0, 5, 20, 37):
        scores = model.emission_log_prob(x[: t + 7])
        expected = hf.semi_markov_forward_backward(*chain, scores).log_posteriors[t].exp()
        torch.testing.assert_close(found[t], expected)
    processor.process_chunk(x)
    torch.testing.assert_close(processor.remaining().sum(-1), model.filter(x)[-1])


def test_what_depends_on_inputs_is_refused():
    with pytest.raises(TypeError, match="InputDrivenHMM depends on inputs or networks"):
        StreamingHMMProcessor(InputDrivenHMM(2, GaussianEmission(2, 1), 1), decode="viterbi")


def test_latency_and_statistics():
    model, x = gaussian()
    processor = StreamingHMMProcessor(model, overlap=4, frame_rate=100)
    assert processor.latency == 4
    assert processor.statistics == (0, 0, 0, 0.0, 0.0, 0.0, None, 0)
    processor.process_chunk(x[:3])
    assert processor.num_waiting == 3
    processor.process_chunk(x[3:20])
    assert processor.num_waiting == 4
    found = processor.statistics
    assert found[:3] == (20, 16, 2)
    assert 0 < found.mean_chunk_seconds <= found.worst_chunk_seconds <= found.seconds
    assert found.real_time_factor == pytest.approx(found.seconds / 0.2)
    processor.flush()
    assert processor.statistics[:3] == (20, 20, 2)
    processor.reset()
    assert processor.statistics.frames_in == 0
    assert StreamingHMMProcessor(model, overlap=4, decode="filter").latency == 0
    assert StreamingHMMProcessor(model, decode="viterbi").latency is None
    processor = StreamingHMMProcessor(model, decode="viterbi", max_delay=0)
    assert processor.latency == 0
    for chunk in x.split(1):
        assert len(processor.process_chunk(chunk)) == 1
    forced = processor.statistics.num_forced
    assert forced > 0
    processor.flush()
    assert processor.statistics.num_forced == forced
    assert "max_delay=0" in repr(processor)


def kinds():
    chain, _ = gaussian()
    torch.manual_seed(3)
    segments = HSMM(3, 2, max_duration=5, means=[[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    lagged = LinearRegressionHMM(2, 2, num_lags=2)
    for model in (chain, segments, lagged):
        for decode in ("posterior", "filter", "viterbi"):
            yield model, StreamingHMMProcessor(model, overlap=5, decode=decode, frame_rate=10)


RESUME = """
import sys, torch
from pytorch_hmm import BaseHMM, StreamingHMMProcessor
for i in range(int(sys.argv[2])):
    at = f"{sys.argv[1]}/{i}"
    given = torch.load(f"{at}.pt", weights_only=True)
    processor = StreamingHMMProcessor(BaseHMM.load(f"{at}.model"), overlap=5, decode=given["decode"], frame_rate=10)
    processor.resume(f"{at}.stream")
    rows = processor.process_chunk(given["x"])
    out = [rows, processor.flush(), torch.tensor(processor.statistics[:3])]
    torch.save([x for x in out if x is not None], f"{at}.out")
"""


def test_a_stream_goes_on_in_another_process(tmp_path):
    expected = []
    for i, (model, processor) in enumerate(kinds()):
        x = torch.randn(30, 2, dtype=model.means.dtype if hasattr(model, "means") else torch.float32)
        processor.process_chunk(x[:17])
        model.save(tmp_path / f"{i}.model")
        processor.save_stream(tmp_path / f"{i}.stream")
        torch.save({"x": x[17:], "decode": processor.decode}, tmp_path / f"{i}.pt")
        out = [processor.process_chunk(x[17:]), processor.flush(), torch.tensor(processor.statistics[:3])]
        expected.append([x for x in out if x is not None])
    command = [sys.executable, "-c", RESUME, str(tmp_path), str(len(expected))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for i, wanted in enumerate(expected):
        found = torch.load(tmp_path / f"{i}.out", weights_only=True)
        assert len(found) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_what_a_stream_cannot_go_on_with(tmp_path):
    model, x = gaussian()
    path = tmp_path / "stream"
    processor = StreamingHMMProcessor(model, decode="viterbi")
    processor.process_chunk(x)
    processor.save_stream(path)
    other = GaussianHMM(3, 2).double()
    with pytest.raises(ValueError, match="expected a stream of this model's parameters"):
        StreamingHMMProcessor(other, decode="viterbi").resume(path)
    with pytest.raises(ValueError, match="expected decode 'filter', got those of decode 'viterbi'"):
        StreamingHMMProcessor(model, decode="filter").resume(path)
    with pytest.raises(ValueError, match="expected model 'HMMPyTorch', got those of model 'GaussianHMM'"):
        StreamingHMMProcessor(HMMPyTorch(3), decode="viterbi").resume(path)
    kept = processor.process_chunk(x[:5])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged or something else"):
        processor.resume(path)
    model.save(path)
    with pytest.raises(ValueError, match="expected a stream in the format"):
        processor.resume(path)
    with pytest.raises(OSError, match="nowhere"):
        processor.save_stream(tmp_path / "nowhere" / "stream")
    assert list(tmp_path.iterdir()) == [path]
    assert processor.statistics.frames_in == 55
    assert kept is None or len(kept)
    with pytest.raises(FileNotFoundError):
        processor.resume(tmp_path / "none")


def test_a_stream_that_has_not_begun_is_saved(tmp_path):
    model, x = gaussian()
    processor = StreamingHMMProcessor(model, overlap=2)
    processor.save_stream(tmp_path / "stream")
    processor.process_chunk(x)
    processor.resume(tmp_path / "stream")
    torch.testing.assert_close(run(processor, x, 9), run(StreamingHMMProcessor(model, overlap=2), x, 9), rtol=0, atol=0)


# the queue

PATIENCE = 60.0


def test_a_queue_gives_what_the_processor_gives():
    model, x = gaussian()
    expected = run(StreamingHMMProcessor(model, decode="viterbi"), x, 4)
    with StreamingQueue(StreamingHMMProcessor(model, decode="viterbi"), max_chunks=100) as queue:
        buffer = torch.empty(4, 2, dtype=x.dtype)
        for chunk in x.split(4):
            buffer[: len(chunk)] = chunk
            queue.push(buffer[: len(chunk)])  # copied
    assert torch.equal(torch.cat(list(queue.results())), expected)
    assert list(queue.results()) == []
    queue.close()
    with pytest.raises(ValueError, match="this one is closed"):
        queue.push(x)


def test_a_full_queue_waits_and_drops_nothing():
    model, x = gaussian()
    queue = StreamingQueue(StreamingHMMProcessor(model, decode="filter"), max_chunks=2)
    pushed = 5  # two results, one that waits to be kept, and two chunks
    for chunk in x[:pushed].split(1):
        queue.push(chunk, timeout=PATIENCE)
    with pytest.raises(TimeoutError, match=r"no room in 0.3 s, 2 chunks wait; read the results"):
        queue.push(x, timeout=0.3)
    assert queue.num_waiting == 2
    found = []
    reader = threading.Thread(target=lambda: found.extend(queue.results()))
    reader.start()
    for chunk in x[pushed:].split(1):
        queue.push(chunk, timeout=PATIENCE)
    queue.close(PATIENCE)
    reader.join(PATIENCE)
    torch.testing.assert_close(torch.cat(found), model.filter(x))


def test_closing_a_full_queue_needs_no_reader():
    model, x = gaussian()
    queue = StreamingQueue(StreamingHMMProcessor(model, decode="filter"), max_chunks=1)
    for chunk in x[:3].split(1):
        queue.push(chunk, timeout=PATIENCE)
    queue.close(PATIENCE)
    assert len(list(queue.results())) == 3


def test_a_blocked_producer_hears_of_the_end():
    model, x = gaussian()
    queue = StreamingQueue(StreamingHMMProcessor(model, decode="filter"), max_chunks=1)
    said = []

    def produce():
        try:
            for chunk in x.split(1):
                queue.push(chunk)
        except ValueError as error:
            said.append(str(error))

    producer = threading.Thread(target=produce)
    producer.start()
    while queue.num_waiting == 0:
        time.sleep(0.01)
    queue.abort()
    producer.join(PATIENCE)
    assert not producer.is_alive()
    assert said == ["features: expected an open queue, this one is closed"]


def test_the_interpreter_may_end_without_closing():
    """A thread that is still at work then would abort the process now and then."""
    code = """
import atexit
queues = []
atexit.register(lambda: print(queues[0]._thread.is_alive()))  # the first is called last
import torch
from pytorch_hmm import HMMPyTorch, StreamingHMMProcessor, StreamingQueue
queues.append(StreamingQueue(StreamingHMMProcessor(HMMPyTorch(3), overlap=2)))
for _ in range(16):
    queues[0].push(torch.zeros(4, 3))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_many_producers():
    """Whose chunks come whole, each producer's in its order."""
    model = HMMPyTorch(4, transition=torch.eye(4), initial=[0.25] * 4)
    processor = StreamingHMMProcessor(model, decode="filter")
    seen = []
    plain = processor.process_chunk
    processor.process_chunk = lambda x: (seen.append(x[:, 0].tolist()), plain(x))[1]
    queue = StreamingQueue(processor, max_chunks=3)

    def produce(which):
        for i in range(20):
            queue.push(torch.full((2, 4), 100.0 * which + i))

    producers = [threading.Thread(target=produce, args=(which,)) for which in range(4)]
    reader = threading.Thread(target=lambda: list(queue.results()))
    for thread in (*producers, reader):
        thread.start()
    for thread in producers:
        thread.join(PATIENCE)
    queue.close(PATIENCE)
    reader.join(PATIENCE)
    assert len(seen) == 80
    for which in range(4):
        own = [a for a, b in seen if a // 100 == which and a == b]
        assert own == [100.0 * which + i for i in range(20)]


def test_errors_reach_whoever_calls():
    model, x = gaussian()
    bad = x[:3].clone()
    bad[1, 1] = torch.nan
    queue = StreamingQueue(StreamingHMMProcessor(model, decode="filter"), max_chunks=4)
    queue.push(x[:5])
    queue.push(bad)
    results = queue.results()
    assert len(next(results)) == 5
    with pytest.raises(ValueError, match=r"x\[1\]: expected finite"):
        next(results)
    with pytest.raises(ValueError, match=r"x\[1\]: expected finite"):
        queue.push(x)
    queue.close()  # it has been raised
    with pytest.raises(ValueError, match=r"x\[1\]"), StreamingQueue(StreamingHMMProcessor(model)) as queue:
        queue.push(bad)
    aborted = []

    def fail():
        with StreamingQueue(StreamingHMMProcessor(model)) as queue:
            aborted.append(queue)
            queue.push(x)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(aborted[0].results()) == []
    with pytest.raises(TypeError, match="processor: expected a StreamingHMMProcessor"):
        StreamingQueue(model)


# chunk sizes


def settle(chunks, cost, rounds=200):
    return [chunks.update(size, cost(size)) for _ in range(rounds) if (size := chunks.chunk_size)]


@pytest.mark.parametrize("start", [1, 160, 1600])
def test_the_target_is_met_from_either_side_without_swinging(start):
    chunks = AdaptiveChunks(0.5, 100.0, look_ahead=10, start=start)
    sizes = settle(chunks, lambda n: 0.02 + 0.001 * n)
    # 10 / 100 + n / 100 + 0.02 + 0.001 n = 0.5
    assert abs(sizes[-1] - 0.38 / 0.011) <= 0.06 * sizes[-1]
    assert len(set(sizes[-100:])) == 1
    moves = [b - a for a, b in zip([start, *sizes], sizes, strict=False) if b != a]
    turns = sum(a * b < 0 for a, b in itertools.pairwise(moves))
    assert turns <= 1
    assert abs(chunks.latency - 0.5) < 0.03


def test_one_slow_chunk_changes_little():
    chunks = AdaptiveChunks(0.5, 100.0)
    before = settle(chunks, lambda n: 0.001 * n)[-1]
    chunks.update(chunks.chunk_size, 0.001 * chunks.chunk_size + 0.05)
    assert abs(chunks.chunk_size - before) < 0.1 * before
    assert settle(chunks, lambda n: 0.001 * n)[-1] == pytest.approx(before, rel=0.06)


def test_chunks_grow_where_computing_does_not_keep_up():
    """0.3 s a chunk allows no chunk of the target's 0.2 s; larger ones keep up."""
    chunks = AdaptiveChunks(0.2, 100.0, largest=500)
    sizes = settle(chunks, lambda n: 0.3 + 0.001 * n, 400)
    assert min(sizes[20:]) > 0.3 / (0.01 - 0.001)
    assert len(set(sizes[-50:])) <= 3
    assert settle(AdaptiveChunks(0.2, 100.0, largest=500), lambda n: 0.02 * n)[-1] == 500


def test_bounds_and_errors():
    chunks = AdaptiveChunks(0.01, 100.0, smallest=8, largest=32, start=500)
    assert chunks.chunk_size == 32
    assert settle(chunks, lambda n: 0.0)[-1] == 8
    for arguments, name in (((0, 100), "target"), ((1, -1), "frame_rate"), ((float("nan"), 1), "target")):
        with pytest.raises(ValueError, match=name):
            AdaptiveChunks(*arguments)
    with pytest.raises(ValueError, match=r"target: expected more than the look-ahead's 0.8 s, got 0.5"):
        AdaptiveChunks(0.5, 100.0, look_ahead=80)
    with pytest.raises(ValueError, match="seconds: expected a time, got -1"):
        chunks.update(3, -1)
    with pytest.raises(ValueError, match="num_frames"):
        chunks.update(0, 0.1)


LONG = """
import torch
from pytorch_hmm import HSMM, GaussianHMM, StreamingHMMProcessor
def held():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))
torch.set_num_threads(1)
torch.manual_seed(0)
chain = GaussianHMM(4, 3, means=torch.randn(4, 3))
segments = HSMM(3, 3, max_duration=6, means=torch.randn(3, 3))
x = torch.randn(160, 3)
for model, count, x in ((chain, 300, x), (segments, 60, x[:20])):
    for decode in ("posterior", "filter", "viterbi"):
        processor = StreamingHMMProcessor(model, overlap=10, decode=decode)
        for i in range(count):
            processor.process_chunk(x)
            if i == count // 4:
                before = held()
        print(type(model).__name__, decode, held() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_flat():
    ran = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    growth = {line.rsplit(" ", 1)[0]: int(line.rsplit(" ", 1)[1]) for line in ran.stdout.splitlines()}
    assert len(growth) == 6
    assert max(growth.values()) < 4e6, growth


@pytest.mark.parametrize("size", [1, 7, 400])
def test_a_queue_cuts_what_is_pushed_as_its_controller_says(size):
    """However frames are pushed, also by more pushes than may wait, chunks have the sizes that are asked for."""
    torch.manual_seed(0)
    model, x = GaussianHMM(3, 2), torch.randn(400, 2)
    processor = StreamingHMMProcessor(model, overlap=5)
    sizes, process = [], processor.process_chunk
    processor.process_chunk = lambda chunk: (sizes.append(len(chunk)), process(chunk))[1]
    chunks = AdaptiveChunks(0.5, 100.0, look_ahead=5, start=32, smallest=16)
    wanted, update = [chunks.chunk_size], chunks.update
    chunks.update = lambda n, seconds: wanted.append(update(n, 0.001 * n)) or wanted[-1]
    with StreamingQueue(processor, max_chunks=8, chunks=chunks) as queue:
        reader = threading.Thread(target=lambda: rows.extend(queue.results()))
        rows = []
        reader.start()
        for piece in x.split(size):
            queue.push(piece, timeout=60)
    reader.join()
    assert sum(sizes) == 400
    assert sizes[:-1] == wanted[: len(sizes) - 1]
    assert sizes[-1] <= wanted[len(sizes) - 1]
    assert len(set(sizes)) > 1
    with torch.no_grad():
        emission = model.emission_log_prob(x)
        offline = hf.smooth_fixed_lag(model.log_initial, model.log_transition, emission, lag=5).exp()
    torch.testing.assert_close(torch.cat(rows), offline)
    with pytest.raises(TypeError, match="chunks: expected AdaptiveChunks or None, got int"):
        StreamingQueue(processor, chunks=160)


def test_what_is_no_tensor_is_told_by_a_queue_with_a_controller():
    queue = StreamingQueue(StreamingHMMProcessor(HMMPyTorch(3)), chunks=AdaptiveChunks(0.5, 100.0))
    queue.push([1, 2])
    with pytest.raises(ValueError, match="features: expected a tensor"):
        queue.close()
