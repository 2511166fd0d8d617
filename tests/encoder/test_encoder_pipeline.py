"""The threads of the encoder: several workers, order, errors behind the scenes, and that none is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import build_model

from indexer import build_index
from indexer.build import BuildOptions, run_build
from indexer.config import Dtype, EncoderOptions
from indexer.encoder.bulk import BulkEncoder
from indexer.encoder.engine import GPU_BATCH_TOKENS, batch_tokens
from indexer.errors import EncoderError, UsageError

TEXTS = [f"the cat sat on mat {i} " + "and the dog ran " * (i % 9) for i in range(60)]


def load(model: Path, **more: object) -> BulkEncoder:
    return BulkEncoder.load(EncoderOptions(**{"model": str(model), "dtype": Dtype.FLOAT32, "device": "cpu", **more}))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Encoders of other tests may still be open, so only threads that came with this one count."""
    before = set(threading.enumerate())
    yield
    assert [each.name for each in set(threading.enumerate()) - before if each.name.startswith(("tok", "enc"))] == []


class Spy:
    """A model that runs a function of its own before each batch."""

    def __init__(self, model: Any, before: Any) -> None:
        self.model, self.before, self.device = model, before, model.device

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> Any:
        self.before()
        return self.model(ids, lengths)


def spy_on(encoder: BulkEncoder, before: Any) -> None:
    pipeline = encoder._pipeline
    for _ in pipeline._models:
        pipeline._idle.put(Spy(pipeline._idle.get(), before))


def test_two_workers_work_at_the_same_time_and_give_what_one_gives(tiny_bert: Path) -> None:
    one, two = load(tiny_bert, batch_tokens=64), load(tiny_bert, batch_tokens=64, device="cpu,cpu")
    assert two.device == "cpu,cpu"
    assert len(two._pipeline._models) == 2
    meeting, met = threading.Barrier(2, timeout=60), threading.local()

    def meet() -> None:  # each worker waits once for the other
        if not hasattr(met, "other"):
            met.other = meeting.wait()

    spy_on(two, meet)
    np.testing.assert_allclose(two.encode(TEXTS), one.encode(TEXTS), atol=1e-6)
    for encoder in (one, two):
        encoder.close()


def test_an_index_built_by_two_workers_is_that_of_one(tiny_bert: Path, tmp_path: Path) -> None:
    records = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    rows = []
    for device in ("cpu", "cpu,cpu"):
        out = tmp_path / device
        build_index(records, out, model=str(tiny_bert), device=device, dtype="float32", batch_tokens=64)
        (path,) = out.glob("vectors-*")
        rows.append(np.frombuffer(path.read_bytes()[4096:], np.float16).reshape(len(TEXTS), -1))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-3)


def test_texts_begin_to_be_encoded_before_anyone_asks_and_come_longest_first(tiny_bert: Path) -> None:
    encoder = load(tiny_bert, batch_tokens=64)
    begun = threading.Event()
    spy_on(encoder, begun.set)
    batches = encoder.encode_stream(TEXTS)
    assert begun.wait(timeout=60)
    later = encoder.encode_stream(["the cat"])
    lengths = np.concatenate([batch.n_tokens for batch in batches])
    assert (np.diff(lengths) <= 0).all()
    np.testing.assert_allclose(next(later).vectors, encoder.encode(["the cat"]), atol=1e-6)
    encoder.close()


def test_torch_has_its_threads_back_when_the_encoder_is_closed(tiny_bert: Path) -> None:
    import torch

    before = torch.get_num_threads()
    encoder = load(tiny_bert)
    encoder.encode(TEXTS)
    encoder.close()
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (seen, torch.get_num_threads()) == ([before], before)


@pytest.mark.parametrize("error", [RuntimeError("a broken device"), EncoderError("no room")])
def test_an_error_of_a_worker_ends_the_build_and_leaves_no_thread(
    error: Exception, tiny_bert: Path, tmp_path: Path
) -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        if len(calls) > 2:
            raise error

    def loader(options: EncoderOptions, *, contract: Any) -> BulkEncoder:
        encoder = BulkEncoder.load(options, contract=contract)
        spy_on(encoder, fail)
        return encoder

    options = BuildOptions(encoder=EncoderOptions(model=str(tiny_bert), device="cpu", batch_tokens=64))
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXTS))
    with pytest.raises(type(error), match=str(error)):
        run_build([path], tmp_path / "x", options, load_encoder=loader)
    assert run_build([path], tmp_path / "x", options).documents == len(TEXTS)


def test_an_interrupt_ends_the_build_drops_what_is_queued_and_leaves_no_thread(tiny_bert: Path, tmp_path: Path) -> None:
    n_run: list[int] = []

    class Interrupted(BulkEncoder):
        def encode_stream(self, texts: Sequence[str]) -> Any:
            batches = super().encode_stream(texts)
            yield next(batches)
            raise KeyboardInterrupt

    def loader(options: EncoderOptions, *, contract: Any) -> BulkEncoder:
        encoder = Interrupted.load(options, contract=contract)
        spy_on(encoder, lambda: n_run.append(1))
        return encoder

    options = BuildOptions(encoder=EncoderOptions(model=str(tiny_bert), device="cpu", batch_tokens=1))
    texts = [{"id": str(i), "text": f"the cat {i} " * 9} for i in range(2_000)]
    with pytest.raises(KeyboardInterrupt):
        run_build([texts], tmp_path / "x", options, load_encoder=loader)
    assert len(n_run) < 2_000


def test_devices_of_two_kinds_are_refused(tiny_bert: Path) -> None:
    with pytest.raises(UsageError, match="mixes kinds of devices"):
        load(tiny_bert, device="cpu,meta")


def test_the_budget_of_a_gpu_follows_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class OnGpu:
        device = torch.device("cuda")
        dim = 384
        cpu_batch_tokens = 1

    free = [80 << 30]
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _device: (free[0], 80 << 30))
    assert batch_tokens(OnGpu()) == GPU_BATCH_TOKENS
    free[0] = 1 << 30
    assert 8_192 < batch_tokens(OnGpu()) < GPU_BATCH_TOKENS
    free[0] = 0
    assert batch_tokens(OnGpu()) == 1


def test_one_cpu_stands_for_a_worker_a_core_unless_the_model_is_for_one_thread(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    assert len(load(tiny_bert)._pipeline._models) == 4
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    assert len(load(tiny_bert)._pipeline._models) == 8
    assert len(load(build_model(tmp_path / "m", "albert"))._pipeline._models) == 1
