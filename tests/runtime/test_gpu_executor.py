"""The executor of GPU artifacts over drivers whose device is this machine's memory."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.gpu_drivers import InterpreterDriver, RecordingDriver
from tests.runtime.gpu_model import (
    CONTEXT,
    KERNELS,
    LIMITS,
    PAGE,
    VOCAB,
    Pages,
    launch_abi,
    write_gpu_artifact,
)
from tokc.errors import ArtifactRefused, RequestRefused, TokcError
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.gpu import GpuExecutor
from tokc.runtime.executors.gpu_inputs import query_tiles

KV_BYTES = 4 * PAGE * 80
BY_SYMBOL = {kernel.symbol: kernel for kernel in KERNELS}


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_gpu_artifact(tmp_path / "small.tokc")


@pytest.fixture
def interpreted(artifact: Artifact) -> Iterator[GpuExecutor]:
    executor = GpuExecutor(artifact, InterpreterDriver(BY_SYMBOL), kv_bytes=KV_BYTES)
    yield executor
    executor.close()
    assert executor.driver.alive() == {}


@pytest.fixture
def recorded(artifact: Artifact) -> Iterator[GpuExecutor]:
    executor = GpuExecutor(artifact, RecordingDriver(), kv_bytes=KV_BYTES)
    yield executor
    executor.close()
    assert executor.driver.alive() == {}


def check(
    executor: GpuExecutor, pages: Pages, chunks: dict[int, list[int]], rows: list[int] | None = None
) -> None:
    batch = pages.batch(chunks, rows)
    found = executor.step(batch)
    assert found.shape == (len(batch.logit_rows), VOCAB)
    np.testing.assert_allclose(found, pages.expected(batch), rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(executor.likeliest, found.copy().argmax(axis=1))


def test_steps_of_every_kind_give_the_models_answers(interpreted: GpuExecutor) -> None:
    pages = Pages(interpreted.num_pages)
    random = np.random.default_rng(4)

    def ids(count: int) -> list[int]:
        return random.integers(0, VOCAB, count).tolist()

    check(interpreted, pages, {0: ids(21), 2: ids(9)})  # wide
    check(
        interpreted, pages, {0: ids(5), 2: ids(1), 1: ids(6)}, rows=[0, 4, 4, 5, 11]
    )  # narrow, uneven tiles
    for _ in range(4):  # two buckets of splits, each run, recorded and replayed
        check(interpreted, pages, {1: ids(1), 0: ids(1), 2: ids(1)})
    check(interpreted, pages, {3: ids(40)}, rows=[])
    check(interpreted, pages, {3: ids(17)}, rows=[16, 0, 8])
    assert interpreted.driver.replays == 3


def test_a_replay_launches_what_the_first_step_of_its_bucket_launched(recorded: GpuExecutor) -> None:
    driver, pages = recorded.driver, Pages(recorded.num_pages)
    recorded.step(pages.batch({0: [1, 2], 1: [3]}))
    direct = driver.ran[:]
    for chunks in ({0: [4, 5], 1: [3]}, {0: [6], 1: [3, 2, 1]}):  # 3 tokens, then 4: the same bucket
        driver.ran.clear()
        recorded.step(pages.batch(chunks))
        assert driver.ran == direct
    assert driver.replays == 2
    assert len(driver.launches) == 2 * len(direct)


def test_grids_are_of_the_bucket_and_info_is_of_the_step(recorded: GpuExecutor) -> None:
    driver, pages = recorded.driver, Pages(recorded.num_pages)
    recorded.step(pages.batch({0: list(range(5)), 1: list(range(6))}, rows=[4, 9, 10]))
    grids = {launched.symbol: launched.grid for launched in driver.ran}
    assert grids == {
        "embed": (16, 1, 1),
        KERNELS[1].symbol: (16, 1, 1),
        "remember_narrow": (16, 1, 1),
        "recall": (4, 1, 1),
        "head": (4, 1, 1),
        KERNELS[-1].symbol: (4, 1, 1),
    }
    driver.ran.clear()
    recorded.step(pages.batch({2: [1] * 37}, rows=[36, 1, 3]))
    grids = {launched.symbol: launched.grid for launched in driver.ran}
    assert grids["remember_wide"] == (5, 1, 1)
    assert grids["recall"] == (3, 5, 1)
    assert "remember_narrow" not in grids
    sent = [np.frombuffer(data, np.int32) for kind, _, data in driver.copies if kind == "to device"]
    infos = [values[:8].tolist() for values in sent]
    assert infos[-2:] == [[11, 3, 4, 16, 4, 1, 16, 4], [37, 3, 4, 16, 5, 5, 37, 3]]


def test_a_step_costs_one_copy_each_way_of_what_it_uses(recorded: GpuExecutor) -> None:
    driver, pages = recorded.driver, Pages(recorded.num_pages, seqs=2)
    driver.copies.clear()
    batch = pages.batch({0: [1, 2, 3], 1: [7]})
    recorded.step(batch)
    (there, _, data), (back, _, tokens) = driver.copies
    assert (there, back, len(tokens)) == ("to device", "to host", 2 * 4)
    values = np.frombuffer(data, np.int32)
    assert values[-2 * LIMITS["blocks"] :].tolist() == batch.block_tables.reshape(-1).tolist()
    driver.copies.clear()
    recorded.step(pages.batch({0: [1]}, rows=[]))
    assert [kind for kind, _, _ in driver.copies] == ["to device"]


def test_parameters_are_packed_pointer_by_pointer(recorded: GpuExecutor, artifact: Artifact) -> None:
    driver, pages = recorded.driver, Pages(recorded.num_pages)
    recorded.step(pages.batch({0: [1]}))
    by_symbol = {launched.symbol: launched for launched in driver.ran}
    gate, embed, head = by_symbol[KERNELS[1].symbol], by_symbol["embed"], by_symbol["head"]
    x, info, y, *scratch = gate.pointers
    assert scratch == [0, 0]
    assert embed.pointers[1] == info
    assert embed.pointers[3] == x
    assert y == x + 4096
    assert head.pointers[0] == y
    assert (gate.threads, gate.shared_bytes) == (128, 1024)
    table = artifact.tensors()["table"]
    assert driver.memory(embed.pointers[2], table.nbytes).tobytes() == table.tobytes()


def test_the_cache_and_the_arena_begin_as_zeros(recorded: GpuExecutor) -> None:
    driver, pages = recorded.driver, Pages(recorded.num_pages)
    recorded.step(pages.batch({0: [1]}))
    pointers = {launched.symbol: launched.pointers for launched in driver.ran}
    for address, size in (
        (pointers["recall"][5], 4 * PAGE * recorded.num_pages),
        (pointers["embed"][3], recorded.plan["arena_bytes"]),
        (pointers["head"][5], 4 * 16 * LIMITS["rows"]),
    ):
        assert (driver.memory(address, size) == 0).all()


def test_a_failed_step_leaves_nothing_behind_and_the_next_one_is_right(artifact: Artifact) -> None:
    for fail_at in range(12):  # in one of six launches, then in one of six that are recorded
        driver = InterpreterDriver(BY_SYMBOL, fail_at=fail_at)
        executor = GpuExecutor(artifact, driver, kv_bytes=KV_BYTES)
        pages = Pages(executor.num_pages)
        batch = pages.batch({0: [3, 5]})
        failed = []
        for step in range(3):
            try:
                found = executor.step(batch)
            except TokcError:
                failed.append(step)
                driver.fail_at = None
            else:
                np.testing.assert_allclose(found, pages.expected(batch), rtol=2e-3, atol=2e-3)
        assert failed == [fail_at // 6]
        executor.close()
        executor.close()
        with pytest.raises(AssertionError, match="closed"):
            executor.step(batch)
        assert driver.alive() == {}
        assert driver.closed


def test_a_profile_times_each_launch_of_the_step(interpreted: GpuExecutor) -> None:
    pages = Pages(interpreted.num_pages)
    seconds = interpreted.profile(pages.batch({0: [1, 2]}))
    plan = interpreted.plan
    wide = [launch["steps"] == "wide" for launch in plan["launches"]]
    assert seconds.shape == (len(wide), 2)
    assert (seconds[wide] == 0).all()
    assert (seconds[np.logical_not(wide), 0] > 0).all()
    check(interpreted, pages, {0: [3]})


def test_what_exceeds_the_limits_is_refused_and_named(recorded: GpuExecutor) -> None:
    pages = Pages(recorded.num_pages)
    for batch, words in (
        (pages.batch({0: [1] * 41}), "41 tokens exceeds the artifact's limit of 40"),
        (pages.batch({1: [1]}, rows=[0] * 9), "9 logit rows exceeds"),
        (
            pages.batch({0: [1] * 17})._replace(sequences=np.arange(17, dtype=np.int32) % 4),
            "17 tiles of tokens",
        ),
    ):
        with pytest.raises(RequestRefused, match=words):
            recorded.step(batch)


def test_the_cache_takes_a_share_of_what_is_free_or_what_it_is_given(artifact: Artifact) -> None:
    page_bytes = 4 * PAGE
    executor = GpuExecutor(artifact, RecordingDriver(memory_bytes=1 << 20))
    taken = executor.num_pages * page_bytes
    free = executor.driver.free_bytes()
    executor.close()
    assert executor.kv_bytes_per_page == page_bytes
    assert 0.84 < taken / (taken + free) < 0.86
    executor = GpuExecutor(artifact, RecordingDriver(), kv_bytes=1000)
    executor.close()
    assert executor.num_pages == 1000 // page_bytes


@pytest.mark.parametrize(
    ("memory", "kv_bytes", "words"),
    [
        (1000, None, "the model's weights takes .* bytes of the device's memory, 1000 are free"),
        (4000, None, "the arena of a step takes 8448 bytes"),
        (1 << 20, 15, "a cache of 15 bytes does not fit: a page takes 16 bytes"),
        (1 << 20, 1 << 20, "a cache of 1048576 bytes does not fit"),
    ],
)
def test_too_little_memory_is_named_in_bytes(
    artifact: Artifact, memory: int, kv_bytes: int | None, words: str
) -> None:
    driver = RecordingDriver(memory_bytes=memory)
    with pytest.raises(ArtifactRefused, match=words):
        GpuExecutor(artifact, driver, kv_bytes=kv_bytes)
    assert driver.alive() == {}
    assert driver.closed


def test_weights_pass_through_two_small_pinned_pieces(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokc.runtime.drivers.memory.CHUNK_BYTES", 256)
    driver = RecordingDriver()
    executor = GpuExecutor(artifact, driver, kv_bytes=KV_BYTES)
    content = (artifact.path / "model.safetensors").read_bytes()
    uploads = [data for kind, _, data in driver.copies if kind == "to device"]
    assert b"".join(uploads) == content
    assert {len(data) for data in uploads[:-1]} == {256}
    assert len(uploads) > 3
    executor.close()


@pytest.mark.parametrize(
    ("arch", "target", "image"),
    [
        ("sm_80", ".target sm_80", b"\x7fELF"),
        ("sm_86", ".target sm_80", b"\x7fELF"),
        ("sm_90", ".target sm_80", b"// "),
        ("sm_120", ".target sm_80, debug", b"// "),
        ("sm_90", ".target sm_90a", b"\x7fELF"),
        ("sm_103", ".target sm_100f", b"\x7fELF"),
    ],
)
def test_a_device_gets_the_code_that_it_can_run(tmp_path: Path, arch: str, target: str, image: bytes) -> None:
    driver = RecordingDriver(arch=arch)
    GpuExecutor(write_gpu_artifact(tmp_path / "a.tokc", target=target), driver, kv_bytes=KV_BYTES).close()
    assert len(driver.images) == len(KERNELS)
    assert all(found.startswith(image) for found in driver.images)


@pytest.mark.parametrize(
    ("arch", "target", "words"),
    [
        ("sm_75", ".target sm_80", "this device is 'sm_75'(.|\n)*devices from 'sm_80' on run it"),
        ("sm_86", ".target sm_90a", "'sm_90' that no other architecture has(.|\n)*--target cuda:sm_86"),
        ("sm_100", ".target sm_90a", "this device is 'sm_100'"),
        ("sm_120", ".target sm_100f", "within the same family"),
        ("sm_80", "nothing", "names no target"),
    ],
)
def test_a_device_that_the_code_does_not_fit_is_told_what_does(
    tmp_path: Path, arch: str, target: str, words: str
) -> None:
    driver = RecordingDriver(arch=arch)
    with pytest.raises(ArtifactRefused, match=words):
        GpuExecutor(write_gpu_artifact(tmp_path / "a.tokc", target=target), driver)
    assert driver.alive() == {}


def test_code_for_another_rocm_device_is_refused(tmp_path: Path) -> None:
    abi = {**launch_abi(ptx=None), "backend": "hip", "arch": "gfx942"}
    artifact = write_gpu_artifact(tmp_path / "a.tokc", abi=abi)
    with pytest.raises(ArtifactRefused, match=r"'gfx942', this device is 'gfx90a'(.|\n)*rocm:gfx90a"):
        GpuExecutor(artifact, RecordingDriver(arch="gfx90a", backend="hip"))
    GpuExecutor(artifact, RecordingDriver(arch="gfx942", backend="hip"), kv_bytes=KV_BYTES).close()
    with pytest.raises(ArtifactRefused, match="the kernels are for 'hip', the driver is of 'cuda'"):
        GpuExecutor(artifact, RecordingDriver(arch="sm_90"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster": 2}, "clusters of 2 blocks"),
        ({"parameters": ["f16"]}, "pointers, it takes 1"),
        ({"symbol": "other"}, "name different kernels"),
        ({"scratch_pointers": None}, "cannot be read"),
    ],
)
def test_a_launch_abi_that_does_not_fit_the_plan_is_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    driver = RecordingDriver()
    with pytest.raises(ArtifactRefused, match=words):
        GpuExecutor(
            write_gpu_artifact(tmp_path / "a.tokc", abi=launch_abi(**changes)), driver, kv_bytes=KV_BYTES
        )
    assert driver.alive() == {}


def test_a_damaged_launch_abi_is_refused(artifact: Artifact) -> None:
    path = artifact.path / "kernels/kernels.json"
    for text, words in (("{", "cannot be read"), (json.dumps({"schema_version": 9}), "schema version 9")):
        path.write_text(text)
        with pytest.raises(ArtifactRefused, match=words):
            GpuExecutor(artifact, RecordingDriver())
    path.unlink()
    with pytest.raises(ArtifactRefused, match="cannot be read"):
        GpuExecutor(artifact, RecordingDriver())


@pytest.mark.parametrize("tile", [1, 4, 8])
def test_tiles_cover_every_token_once_and_stay_within_a_sequence(tile: int) -> None:
    random = np.random.default_rng(tile)
    for _ in range(20):
        counts = random.integers(1, 19, random.integers(1, 6))
        sequences = np.repeat(random.permutation(len(counts)), counts).astype(np.int32)
        expected = []
        start = 0
        for count in counts:
            expected += [[start + at, min(tile, count - at)] for at in range(0, count, tile)]
            start += count
        assert query_tiles(sequences, tile).tolist() == expected
    assert query_tiles(np.zeros(0, np.int32), tile).shape == (0, 2)


def test_a_whole_context_is_reached(interpreted: GpuExecutor) -> None:
    pages = Pages(interpreted.num_pages)
    check(interpreted, pages, {0: [1] * 40}, rows=[39])
    check(interpreted, pages, {0: [2] * (CONTEXT - 41)}, rows=[CONTEXT - 42])
    check(interpreted, pages, {0: [3]})
